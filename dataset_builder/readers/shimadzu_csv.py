"""Shimadzu EDX profile CSV: the measured profiles of one sample, one for each analysis channel that has points.

Every line is quoted and ends with a comma. `key : value` lines and a table of conditions, one row for each channel
(analyte, anode, kV, uA, filter, ranges in keV, time in s, dead time in %), stand before `<Profile>`. Below it each
channel has `Channel_info_start`, its name, `Points`, `Range` (keV), `Step` (keV), `Channel_info_end` and one count a
line. Qualitative and quantitative results may follow; they are kept in the metadata.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from ..spectrum import Spectrum, SpectrumFileError
from .checks import MAX_CHANNELS, Reject, check_declared, checked_spectrum, number, numbers, whole_counts, whole_number
from .energy_scale import check_energy_scale
from .header import (
    MAX_SPECTRUM_BYTES,
    MAX_TIME_S,
    MAX_TUBE_KV,
    MAX_TUBE_UA,
    header_fields,
    metadata_without,
    positive_number,
)
from .text import decode, parse_number, read_text, split_lines

FIELDS_OF_SPECTRUM = ("Sample", "Instrument")
_CONDITION = re.compile(
    r"(?P<anode>[A-Z][a-z]?)\s+(?P<tube_kv>[\d.,]+)\s+(?P<tube_ua>[\d.,]+)\S*"
    r"\s+(?P<filter>\S+)\s+[\d.,]+\s*-.*?(?P<timing>Live|Real)\s*-\s*(?P<time>[\d.,]+)\s"
)


def is_shimadzu_csv(path: Path, head: bytes) -> bool:
    """Whether the file starts with the sample and the conditions of measurement, as this format writes them."""
    text = decode(head)
    return re.match(r'\s*"?Sample\s*:', text) is not None and ("<Profile>" in text or "surement Condition" in text)


def read_shimadzu_csv(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read the profiles of one file.

    The current of a condition `1000-Auto` is the 1000 uA that the automatic control chose.

    Raises:
        SpectrumFileError: the file has no profile or is cut off, points, range and step disagree, or (without
            `on_reject`) a profile is no valid spectrum.
    """
    lines = [_unquoted(path, i, line) for i, line in enumerate(split_lines(read_text(path, MAX_SPECTRUM_BYTES)), 1)]
    if "<Profile>" not in lines:
        raise SpectrumFileError(path, "a line <Profile> with the channels below it must follow; the file is cut off.")
    start = lines.index("<Profile>")
    fields, conditions = _header(lines[:start])
    profiles, results = _profiles(path, lines[start + 1 :])
    missing = sorted(set(conditions) - {name for name, _, _ in profiles})
    if missing:
        raise SpectrumFileError(
            path, f"every condition must have a profile; {missing[0]} has none: the file is cut off."
        )
    if not any(counts.size for _, _, counts in profiles):
        raise SpectrumFileError(path, "a profile must have points; the file has none: export it with the profile.")
    metadata = metadata_without(fields, FIELDS_OF_SPECTRUM) | ({"results": results} if results else {})
    for name, scale, counts in profiles:
        if counts.size == 0:
            continue
        spectrum = checked_spectrum(
            path,
            f"channel {name}",
            on_reject,
            counts,
            sample=fields.get("Sample") or path.stem,
            instrument=f"Shimadzu {fields.get('Instrument', '')}".strip(),
            metadata=metadata | {"Channel": name, "condition": conditions.get(name, "not in the file")},
            **scale,
            **_condition(path, name, conditions.get(name, "")),
        )
        if spectrum is not None:
            yield spectrum


def _unquoted(path, line_number, line):
    line = line.strip().rstrip(",;").rstrip()
    if not line.startswith('"'):
        return line
    if len(line) < 2 or not line.endswith('"'):
        raise SpectrumFileError(
            path, "a quoted line must end with a quote; the file is cut off.", f"line {line_number}"
        )
    return line[1:-1].strip()


def _header(lines):
    """The header's fields, and the row of conditions by analysis channel."""
    table = next((i for i, line in enumerate(lines) if line.startswith("Analyte")), len(lines))
    fields = header_fields(
        part for line in lines[:table] if ":" in line for part in re.split(r"\s{2,}(?=[A-Za-z]\w* :)", line[:1000])
    )
    # A row is the channel's name, two blanks or more, and its values; an empty line ends the table.
    rows = (re.split(r"\s{2,}", line[:200], maxsplit=1) for line in itertools.takewhile(bool, lines[table + 1 :]))
    return fields, {row[0]: row[1] for row in rows if len(row) == 2}


def _profiles(path, lines):
    """`(name, energy scale, counts)` of every channel, and the text of the results below them."""
    profiles, i = [], 0
    while i < len(lines) and lines[i] in ("", "Channel_info_start"):
        if not lines[i]:
            i += 1
            continue
        place = f"profile {len(profiles) + 1}"
        info = header_fields(lines[i + 1 : i + 5])
        name = info.get("Channel", "")
        if lines[i + 5 : i + 6] != ["Channel_info_end"] or not name:
            raise SpectrumFileError(
                path, "Channel, Points, Range and Step must stand before Channel_info_end; the file is cut off.", place
            )
        place = f"channel {name}"
        num_points = whole_number(path, place, info.get("Points", ""), "Points", 0, MAX_CHANNELS)
        first = i = i + 6
        while i < len(lines) and parse_number(lines[i]) is not None:
            i += 1
        check_declared(path, place, "points", num_points, i - first)
        counts = whole_counts(path, place, numbers(path, place, lines[first:i], "the count of point"))
        profiles.append((name, _energy_scale(path, place, info, num_points) if num_points else {}, counts))
    return profiles, "\n".join(line for line in lines[i:] if line and not re.fullmatch("-+", line))


def _energy_scale(path, place, info, num_points):
    step_kev = number(path, place, info.get("Step", ""), "Step")
    limits = re.split(r"\s+-\s+", info.get("Range", ""))
    if len(limits) != 2:
        raise SpectrumFileError(path, f"Range must be two energies; found {info.get('Range', '')[:80]!r}.", place)
    first_kev, last_kev = (number(path, place, limit, "Range") for limit in limits)
    check_energy_scale(path, place, step_kev, first_kev)
    if not abs(last_kev - first_kev - num_points * step_kev) <= 1.5 * step_kev:
        raise SpectrumFileError(
            path,
            f"Range must be as wide as Points times Step; {info['Range'][:80]} keV is not {num_points} times "
            f"{step_kev:g} keV: the file is damaged.",
            place,
        )
    return {"gain_kev": step_kev, "offset_kev": first_kev}


def _condition(path, name, row):
    """The fields of a `Spectrum` that the row of conditions states; none where it is laid out in another way."""
    condition = _CONDITION.match(row)
    if condition is None:
        return {}
    place = f"condition of {name}"
    return {
        "anode": condition["anode"],
        "filter": condition["filter"],
        "tube_kv": positive_number(path, place, condition["tube_kv"], "kV", MAX_TUBE_KV),
        "tube_ua": positive_number(path, place, condition["tube_ua"], "uA", MAX_TUBE_UA),
        "live_time_s" if condition["timing"] == "Live" else "real_time_s": positive_number(
            path, place, condition["time"], "Time", MAX_TIME_S
        ),
    }
