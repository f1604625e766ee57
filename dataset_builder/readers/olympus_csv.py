"""Olympus and Evident handhelds: the CSV export of spectra, one column an exposure (beam) of a test.

Header rows, a name and then one value an exposure, are followed by one row a channel, whose first cell is empty or a
label. Two dialects, UTF-16 or UTF-8, separated by tabs, commas or semicolons:

- Delta: the first row is `TestID`; `Offset` and `Slope` in keV, `Livetime` and `Realtime` in s, `TubeVoltageMon` in
  kV, `TubeCurrentMon` in microampere, `FilterPosition`, `NumData`. Names, order and shape of the rows are those of an
  export in a public repository, but no genuine file was at hand to test with.
- Vanta: a line `sep=,`, then rows such as `Reading`, `Exposure Number`, `Energy Slope`, `Energy Offset`, `Live Time`.
  This is not checked on a genuine file. The names are those that other public readers look for, and a row is found by
  how its name begins; a field whose row is not found stays empty.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, check_declared, checked_spectrum, numbers, optional_number, reject, whole_counts
from .text import decode, parse_number, read_text, split_lines

SAMPLE, FILTER = ("testid", "reading"), ("filterposition",)
NUMBERS = {
    "gain_kev": (("slope", "energyslope"), 0, 1),
    "offset_kev": (("offset", "energyoffset"), -10, 10),
    "live_time_s": (("livetime",), 0, 1e6),
    "real_time_s": (("realtime",), 0, 1e6),
    "tube_kv": (("tubevoltagemon", "tubevoltage"), 0, 1e3),
    "tube_ua": (("tubecurrentmon", "tubecurrent"), 0, 1e6),
}
"""How the name of a field's row begins (lower case, letters only; the first beginning that is found counts), and its
range: an energy scale in eV instead of keV is refused."""
MAX_BYTES = 32 * 2**20
MAX_HEADER_ROWS = 200
MAX_COLUMNS = 10_000


def is_olympus_csv(path: Path, head: bytes) -> bool:
    """Whether the first name is `TestID`, or a line `sep=` is followed by a row `Exposure Number`."""
    text = decode(head).lstrip()
    return bool(
        re.match(r'"?TestID"?[\t,;]', text)
        or (text.startswith("sep=") and re.search(r'[\r\n]"?Exposure Number', text))
    )


def read_olympus_csv(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read all exposures of an export.

    Raises:
        SpectrumFileError: a row has too few or too many cells, a number cannot be read or is out of its range, or an
            exposure does not hold the channels that `NumData` declares.
    """
    header, channels = _table(path)
    for column, texts in enumerate(zip(*channels, strict=True)):
        values = {name: row[column] for name, row in header.items() if row[column]}
        try:
            spectrum = _read_column(path, f"column {column + 1}", on_reject, values, list(texts))
        except SpectrumFileError as error:
            reject(error, on_reject)
            continue
        if spectrum is not None:
            yield spectrum


def _table(path):
    """The header `{name: values}` and the rows of counts, all with one cell a column."""
    lines = [line for line in split_lines(read_text(path, MAX_BYTES)) if line.strip()]
    separator = re.match(r'(?:sep=|"?TestID"?)([\t,;])', lines[0]) if lines else None
    if separator is None:
        raise SpectrumFileError(
            path, "the first line must be sep= or TestID with a tab, comma or semicolon.", "line 1"
        )
    try:
        rows = list(csv.reader(lines, delimiter=separator[1]))
    except csv.Error as error:
        raise SpectrumFileError(path, f"the rows must be separated values ({error}): the file is damaged.") from None
    rows = [[cell.strip() for cell in row] for row in rows if not row[0].startswith("sep=")]
    is_header = [row[0] != "" and parse_number(row[0]) is None for row in rows]
    num_header = is_header.index(False) if False in is_header else len(rows)
    if not 0 < num_header <= MAX_HEADER_ROWS or num_header == len(rows):
        message = (
            f"1 to {MAX_HEADER_ROWS} header rows must stand before the counts; found {num_header}: it is cut off."
        )
        raise SpectrumFileError(path, message)
    num_columns = max((i for row in rows[:num_header] for i, cell in enumerate(row) if cell), default=0)
    if not 0 < num_columns <= MAX_COLUMNS:
        raise SpectrumFileError(path, f"1 to {MAX_COLUMNS} exposures must be there; found {num_columns}.")
    header = {row[0]: (row[1:] + [""] * num_columns)[:num_columns] for row in rows[:num_header]}
    for channel, row in enumerate(rows[num_header:]):
        if is_header[num_header + channel] or len(row) <= num_columns or any(row[num_columns + 1 :]):
            message = f"a row of counts must have {num_columns} of them; found {','.join(row)[:80]!r}: it is cut off."
            raise SpectrumFileError(path, message, f"channel {channel}")
    return header, [row[1 : num_columns + 1] for row in rows[num_header:]]


def _read_column(path, place, on_reject, header, texts):
    while texts and not texts[-1]:  # an exposure with fewer channels than the others
        texts.pop()
    counts = whole_counts(path, place, numbers(path, place, texts, "the count of channel"))
    check_declared(
        path, place, "channels", optional_number(path, place, header.get("NumData"), "NumData"), counts.size
    )
    used, fields = set(), {}
    for field, (beginnings, lowest, highest) in NUMBERS.items():
        name = _row_name(header, beginnings)
        used.add(name)
        fields[field] = optional_number(path, place, header.get(name), name, lowest, highest)
    sample, filter_position = _row_name(header, SAMPLE), _row_name(header, FILTER)
    used |= {sample, filter_position}
    return checked_spectrum(
        path,
        place,
        on_reject,
        counts,
        sample=header.get(sample) or path.stem,
        filter=header.get(filter_position),
        instrument="Olympus",
        metadata={name: text for name, text in header.items() if name not in used},
        **fields,
    )


def _row_name(header, beginnings):
    """The name in the header that begins so, or `None`."""
    letters = {name: re.sub("[^a-z]", "", name.lower()) for name in header}
    return next((name for beginning in beginnings for name in header if letters[name].startswith(beginning)), None)
