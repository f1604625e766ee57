"""CSV files of results: rows are appended to them, read from them, and printed as Markdown."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path


def append_rows(path: Path, columns: Sequence[str], rows: Iterable[dict]) -> None:
    """Write rows at the end of a file, which gets a header if it is new; a value that a row lacks stays empty."""
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def last_rows(path: Path) -> list[dict[str, str]]:
    """The rows that were measured at the last commit and on the last hardware."""
    rows = read_rows(path)
    return [row for row in rows if all(row[name] == rows[-1][name] for name in ("commit", "hardware"))]


def latest_rows(path: Path, key: Sequence[str]) -> list[dict[str, str]]:
    """The last row of each kind, which the columns `key` tell apart, in the order in which the kinds first came."""
    return list({tuple(row[name] for name in key): row for row in read_rows(path)}.values())


def markdown(header: Sequence, rows: Iterable[Sequence]) -> str:
    """A table in Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
