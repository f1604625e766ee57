"""Avaatech core scanner `.spe`: one spectrum a file; part of what is known of it stands in the file's name.

The file is made of `$NAME:` sections (`spe_sections`); `$X_Position:` (mm, down the core), `$Y_Position:` (mm, across
it), the slits `$Slit_DC:` and `$Slit_CC:` and `$TotalCPS:` tell it from other files of that layout. `$ACC_VOLT:` is in
kV. A field without a value may lack its line. Newer file names join their fields by `!`, older ones read
`CORE_SECTION    910.0mm  10s  10kV 150uA No-Filter`. Where file and name disagree the file is right, because files get
renamed; `metadata["file_name_<field>"]` then keeps what the name says.

The format states no energy scale (`gain_kev` and `offset_kev` stay `None`) unless somebody added a calibration.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, checked_spectrum, optional_number
from .header import MAX_TUBE_KV, MAX_TUBE_UA, metadata_without
from .spe_sections import SpeSections, has_section
from .text import parse_number

MAX_POSITION_MM = 1e5
MAX_COUNT_RATE = 1e9

NEW_NAME_FIELDS = (
    "core",
    "field_1",
    "field_2",
    "field_3",
    "date",
    "time",
    "live_time_s",
    "tube_kv",
    "tube_current",
    "x_mm",
    "y_mm",
    "filter",
    "slit_dc_mm",
    "slit_cc_mm",
)
"""Fields of a newer file name in their order; what 1 to 3 mean is not known, so they only go into the metadata."""

_NUMBER = r"([+-]?\d+(?:[.,]\d+)?)"
OLD_NAME_PATTERNS = {
    "live_time_s": rf"(?<![\w.,]){_NUMBER}\s?s\b",
    "tube_kv": rf"(?<![\w.,]){_NUMBER}\s?kV\b",
    "tube_current": rf"(?<![\w.,]){_NUMBER}\s?[um\u00b5\u03bc]A\b",
    "x_mm": rf"(?:^\S+\s+|\bX\s*){_NUMBER}\s?mm\b",
    "y_mm": rf"\bY\s*{_NUMBER}\s?mm\b",
    "slit_dc_mm": rf"\bDC\s*{_NUMBER}\s?mm\b",
    "slit_cc_mm": rf"\bCC\s*{_NUMBER}\s?mm\b",
    "filter": r"\d\s?[um\u00b5\u03bc]A\s+(\S.*?)(?:\s{2,}|$)",
}
COMPARED_FIELDS = ("live_time_s", "tube_kv", "tube_ua", "x_mm", "y_mm", "slit_dc_mm", "slit_cc_mm")
SECTIONS_OF_SPECTRUM = ("DATA", "CORE_ID", "SECTION_ID", "X_POSITION", "Y_POSITION", "SLIT_DC", "SLIT_CC", "ACC_VOLT")
NAME_FIELDS_IN_METADATA = ("field_1", "field_2", "field_3", "date", "time")


def is_avaatech_spe(path: Path, head: bytes) -> bool:
    """Whether it has one of the sections that only Avaatech writes."""
    return has_section(head, ("X_Position", "Y_Position", "Slit_DC", "Slit_CC", "TotalCPS"))


def read_avaatech_spe(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read one Avaatech file and its name.

    `core` is the header's `$Core_ID:`, else the name's; in `CORE_SECTION` the section follows the last `_`. `depth_mm`
    is the position down the core, which is `x_mm` too. Section, date, time and slits go into the metadata.

    Raises:
        SpectrumFileError: channels are missing, a number cannot be read, or the counts are no valid spectrum.
    """
    sections = SpeSections.read(path)
    first_channel, counts = sections.counts()
    live_time_s, real_time_s = sections.times()
    _check_count_rate(sections, int(counts.sum()), live_time_s, real_time_s)
    gain_kev, offset_kev, calibration = sections.energy_calibration(first_channel, counts.size)
    in_file = {
        "live_time_s": live_time_s,
        "tube_kv": sections.positive_number("ACC_VOLT", MAX_TUBE_KV),
        "tube_ua": _current_ua(sections.positive_number("TUBE_CUR", MAX_TUBE_UA)),
        "x_mm": _position_mm(sections, "X_Position"),
        "y_mm": _position_mm(sections, "Y_Position"),
        "slit_dc_mm": _position_mm(sections, "Slit_DC"),
        "slit_cc_mm": _position_mm(sections, "Slit_CC"),
    }
    in_name = file_name_fields(path.name)
    fields, disagreements = _combined(in_file, in_name)
    metadata = {
        **sections.metadata(without=SECTIONS_OF_SPECTRUM),
        **{f"file_name_{key}": in_name[key] for key in NAME_FIELDS_IN_METADATA if key in in_name},
        **disagreements,
        **{key: f"{fields[key]:g}" for key in ("slit_dc_mm", "slit_cc_mm") if fields[key] is not None},
        "section": sections.text("Section_ID") or in_name.get("section", ""),
        "calibration": calibration,
    }
    yield checked_spectrum(
        path,
        None,
        None,
        counts,
        gain_kev=gain_kev,
        offset_kev=offset_kev,
        live_time_s=fields["live_time_s"],
        real_time_s=real_time_s,
        tube_kv=fields["tube_kv"],
        tube_ua=fields["tube_ua"],
        filter=in_name.get("filter"),
        instrument="Avaatech",
        core=sections.text("Core_ID") or in_name.get("core"),
        depth_mm=fields["x_mm"],
        x_mm=fields["x_mm"],
        y_mm=fields["y_mm"],
        metadata=metadata_without(metadata, ()),
    )


def file_name_fields(name: str) -> dict[str, str]:
    """What a file's name says, as texts: `core`, `section`, `filter`, `date`, `time`, and numbers in the key's unit.

    `tube_current` keeps its unit where the name has one. A name of neither generation says nothing.
    """
    stem = re.sub(r"\.spe$", "", name, flags=re.IGNORECASE)
    parts = [part.strip() for part in stem.split("!")]
    if len(parts) > 8:
        return {key: part for part, key in zip(parts, NEW_NAME_FIELDS) if part}
    found = {key: re.search(pattern, stem) for key, pattern in OLD_NAME_PATTERNS.items()}
    if not found["x_mm"] or not found["tube_kv"]:
        return {}
    fields = {key: match[1] for key, match in found.items() if match}
    if found["tube_current"]:
        fields["tube_current"] = found["tube_current"][0]
    core, _, section = stem.split()[0].rpartition("_")
    return {**fields, "core": core or section, **({"section": section} if core else {})}


def _combined(in_file, in_name):
    """The fields of the file, filled up from its name; and what the name says otherwise."""
    named = {key: _leading_number(in_name.get(key)) for key in COMPARED_FIELDS}
    named["tube_ua"] = _named_current_ua(in_name.get("tube_current"))
    fields, disagreements = {}, {}
    for key in COMPARED_FIELDS:
        stated, other = in_file[key], named[key]
        fields[key] = other if stated is None else stated
        if None not in (stated, other) and abs(stated - other) > 0.05 + 1e-3 * abs(stated):  # names are rounded
            disagreements[f"file_name_{key}"] = f"{other:g}"
    return fields, disagreements


def _leading_number(text):
    match = re.match(_NUMBER, text or "")
    return parse_number(match[1]) if match else None


def _named_current_ua(text):
    current = _leading_number(text)
    if current is None or not text.endswith("A"):
        return _current_ua(current)
    return current * 1000 if text.endswith("mA") else current


def _position_mm(sections, name):
    return optional_number(sections.path, f"${name}", sections.text(name), name, -MAX_POSITION_MM, MAX_POSITION_MM)


def _current_ua(current):
    """Tube current in microampere. The format gives no unit, and programs that read it take it for mA or for uA: the
    scanner's tube takes about 0.05 to 4 mA, so below 5 it can only be the one and from 20 on only the other."""
    if not current or 5 <= current < 20:
        return None
    return current * 1000 if current < 5 else current


def _check_count_rate(sections, total_counts, live_time_s, real_time_s):
    """`$TotalCPS:` may be rounded, and taken over live or over real time, so it only has to lie within a factor of two
    of the counts per second: that is enough to tell counts that are not of this header."""
    rate = sections.positive_number("TotalCPS", MAX_COUNT_RATE)
    times = [time for time in (live_time_s, real_time_s) if time]
    if not rate or not times:
        return
    lowest, highest = 0.5 * total_counts / max(times), 2.0 * total_counts / min(times)
    if not lowest - 1 <= rate <= highest + 1:
        raise SpectrumFileError(
            sections.path,
            f"TotalCPS must agree with the counts, {total_counts} in {times[0]:g} s; found {rate:g}: "
            "the file is damaged or its counts are of another measurement.",
            "$TotalCPS",
        )
