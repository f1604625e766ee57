"""Itrax core scanner `.spe`: one raw spectrum a file.

The file starts with records of key, value and unit, separated by tabs and ended by a bare CR; then come lines of
channel number, from 1, and count. E0 and E1 in the header are placeholders and never used: the energy scale stands in
files beside the spectrum (`itrax_scan`).
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ..spectrum import Spectrum, SpectrumFileError
from .checks import MAX_CHANNELS, Reject, check_declared, checked_spectrum, numbers, optional_number, whole_counts
from .header import MAX_SPECTRUM_BYTES, MAX_TIME_S, MAX_TUBE_KV, MAX_TUBE_UA, metadata_without, positive_number
from .itrax_scan import find_scan_point
from .text import read_text, split_lines

MAX_POSITION_MM = 1e5
MAX_EVENTS = 1e15
MAX_RECORDS = 1000
PLACEHOLDER_NAMES = ("", "222", "section")
"""What the scanner's software writes for sample and section where nobody named them."""

FIELDS_OF_SPECTRUM = ("Position", "Tube anode", "Tube voltage", "Tube current", "livetime", "runtime")


def is_itrax_spe(path: Path, head: bytes) -> bool:
    """Whether it has the header records of an Itrax spectrum."""
    head = head.replace(b"\0", b"")
    return all(key in head for key in (b"Tube anode:\t", b"Position\t", b"\tkeV/channel"))


def read_itrax_spe(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read one raw spectrum, and what the files beside it say of it.

    `depth_mm` is the position along the section. `metadata["calibration"]` says where the energy scale is from or why
    there is none, `validity` and `MSE` are those of the spectrum's row in Results.

    Raises:
        SpectrumFileError: channels are missing, a number cannot be read, or the counts are no valid spectrum.
    """
    header, rows = _header_and_rows(path)
    values = {key: value for key, (value, _) in header.items()}
    counts = _counts(path, values, rows)
    position_mm = optional_number(
        path, "header", values.get("Position"), "Position", -MAX_POSITION_MM, MAX_POSITION_MM
    )
    anode = values.get("Tube anode") or None
    tube_kv = positive_number(path, "header", values.get("Tube voltage"), "Tube voltage", MAX_TUBE_KV)
    tube_ma = positive_number(path, "header", values.get("Tube current"), "Tube current", MAX_TUBE_UA / 1000)
    point = find_scan_point(path, counts.size, position_mm, anode, tube_kv, tube_ma)
    from_scan = {
        "calibration": point.calibration,
        "section": point.section or _unless_placeholder(values.get("Section name", "")) or "",
        "validity": point.validity or "",
        "MSE": point.mse or "",
    }
    records = {key: f"{value} {unit}".strip() for key, (value, unit) in header.items()}
    yield checked_spectrum(
        path,
        None,
        None,
        counts,
        gain_kev=point.gain_kev,
        offset_kev=point.offset_kev,
        live_time_s=positive_number(path, "header", values.get("livetime"), "livetime", MAX_TIME_S),
        real_time_s=positive_number(path, "header", values.get("runtime"), "runtime", MAX_TIME_S),
        tube_kv=tube_kv,
        tube_ua=None if tube_ma is None else tube_ma * 1000,
        anode=anode,
        instrument="Itrax",
        core=point.core or _unless_placeholder(values.get("Sample name", "")),
        depth_mm=position_mm,
        metadata=metadata_without(records | from_scan, FIELDS_OF_SPECTRUM),
    )


def _header_and_rows(path):
    """Header records as {key: (value, unit)}, and the lines below them that are not empty."""
    lines = split_lines(read_text(path, MAX_SPECTRUM_BYTES))
    start = next((i for i, line in enumerate(lines[:MAX_RECORDS]) if re.match(r"channel\tcontent\b", line)), None)
    if start is None:
        raise SpectrumFileError(
            path, "the header must end with a line channel, content; the file is cut off.", "header"
        )
    header = {}
    for line in lines[:start]:
        key, value, unit, *_ = [*map(str.strip, line.split("\t")), "", ""]
        header.setdefault(key.removesuffix(":"), (value, unit))
    return header, [line for line in lines[start + 1 :] if line.strip()]


def _counts(path, header, lines):
    """Counts of shape `(channels,)` from the lines of channel number and count."""
    declared = positive_number(path, "header", header.get("number_mca_channels"), "number_mca_channels", MAX_CHANNELS)
    check_declared(path, "channels", "channels", declared, len(lines))
    if not 1 <= len(lines) <= MAX_CHANNELS:
        raise SpectrumFileError(
            path, f"a spectrum must have 1 to {MAX_CHANNELS} channels; found {len(lines)}: the file is damaged."
        )
    rows = [line.split(maxsplit=2) for line in lines]
    wrong = next((i for i, row in enumerate(rows) if len(row) != 2), None)
    if wrong is not None:
        raise SpectrumFileError(
            path,
            f"every line must hold a channel and its count; found {lines[wrong][:80]!r}: the file is damaged.",
            f"channel {wrong + 1}",
        )
    channels, counts = (numbers(path, "channels", list(column), "row") for column in zip(*rows, strict=True))
    if (channels != range(1, len(lines) + 1)).any():
        raise SpectrumFileError(path, "channels must be numbered 1, 2, 3, ...; the file is damaged.", "channels")
    counts = whole_counts(path, "channels", counts)
    _check_events(path, header, int(counts.sum()))
    return counts


def _check_events(path, header, total_counts):
    """The pulse processor counts every event. Those above the last channel (up to 30 keV, where 1024 channels end at
    18 keV) are missing in the spectrum, so it may hold as little as half of them; more than all is an error."""
    events = positive_number(path, "header", header.get("events_in_run"), "events_in_run", MAX_EVENTS)
    if events and not 0.5 * events <= total_counts <= 1.001 * events:
        raise SpectrumFileError(
            path,
            f"the counts must add up to the {events:.0f} events in the run, less those above the last channel; found "
            f"{total_counts}: the file is damaged.",
            "channels",
        )


def _unless_placeholder(name):
    return None if name in PLACEHOLDER_NAMES else name
