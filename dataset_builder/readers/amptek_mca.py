"""Amptek `.mca`: the text file of Amptek's acquisition software (PMCA, DppMCA), one spectrum a file.

Sections start with `<<NAME>>`. `<<PMCA SPECTRUM>>` holds `KEY - value` lines, `<<CALIBRATION>>` a line `LABEL - unit`
and points of channel and energy, `<<DATA>>` one count a line up to `<<END>>`; the configuration and the status of the
processor follow. Some files start at `<<DATA>>`. The energy scale is the least-squares line through the points where
the label is keV or eV; the software's own default label, `Channel`, leaves the unit open and gives none.

The format has no field for the X-ray tube: `HVSE` and `HV` are the detector's bias.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..spectrum import Spectrum, SpectrumFileError
from .checks import (
    MAX_CHANNELS,
    Reject,
    check_declared,
    checked_spectrum,
    number,
    numbers,
    optional_number,
    whole_counts,
)
from .energy_scale import line_through
from .header import MAX_SPECTRUM_BYTES, MAX_TIME_S, header_fields, metadata_without, positive_number
from .text import decode, read_text, split_lines

FIELDS_OF_SPECTRUM = ("LIVE_TIME", "REAL_TIME")
HEADER, CALIBRATION, DATA, END = "PMCA SPECTRUM", "CALIBRATION", "DATA", "END"
KEV = {"kev": 1.0, "ev": 1e-3}
DEFAULT_TAG = "live_data"
POINT_TOLERANCE = 5.0
"""In channel widths: peaks are set by hand, but a point taken for another line is tens of channels off."""


def is_amptek_mca(path: Path, head: bytes) -> bool:
    """Whether the file starts with the format's first section, or, without a header, with its data."""
    return decode(head).lstrip().startswith((f"<<{HEADER}>>", f"<<{DATA}>>"))


def read_amptek_mca(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read one file. Every section but header and data is kept as one entry of the metadata.

    Raises:
        SpectrumFileError: the file is cut off, a calibration point is far off the line, or channels or counts are
            others than the processor's configuration and status declare.
    """
    sections = _sections(path)
    fields = header_fields(sections.get(HEADER, []), " - ")
    processor = _processor_fields(sections)
    counts = _counts(path, sections)
    channels = processor.get("MCAC", processor.get("MCA Channels"))
    check_declared(path, DATA, "channels", optional_number(path, None, channels, "MCA channels"), counts.size)
    _check_total(path, counts, processor.get("Slow Count"))
    gain_kev, offset_kev = _energy_scale(path, sections.get(CALIBRATION, []))
    live_time_s, real_time_s = (
        positive_number(path, HEADER, fields.get(key), key, MAX_TIME_S) for key in FIELDS_OF_SPECTRUM
    )
    tag = "" if fields.get("TAG", "").startswith(DEFAULT_TAG) else fields.get("TAG")
    spectrum = checked_spectrum(
        path,
        None,
        on_reject,
        counts,
        gain_kev=gain_kev,
        offset_kev=offset_kev,
        live_time_s=live_time_s,
        real_time_s=real_time_s,
        instrument=f"Amptek {processor.get('Device Type', '')}".strip(),
        sample=fields.get("DESCRIPTION") or tag or path.stem,
        metadata=metadata_without(fields, FIELDS_OF_SPECTRUM) | _section_texts(sections),
    )
    if spectrum is not None:
        yield spectrum


def _sections(path):
    """Lines that are not empty by section name."""
    sections = {}
    lines = None
    for line in map(str.strip, split_lines(read_text(path, MAX_SPECTRUM_BYTES))):
        heading = re.fullmatch(r"<<([^<>]{1,40})>>", line)
        if heading and heading[1] in sections:
            raise SpectrumFileError(
                path, f"a section must stand once; <<{heading[1]}>> comes again: split the file or copy it again."
            )
        if heading:
            lines = sections[heading[1]] = []
        elif line and lines is not None:
            lines.append(line)
    if DATA not in sections:
        raise SpectrumFileError(path, "a section <<DATA>> must follow; the file is cut off.")
    return sections


def _counts(path, sections):
    lines = sections[DATA]
    if not 1 <= len(lines) <= MAX_CHANNELS:
        raise SpectrumFileError(path, f"a spectrum must have 1 to {MAX_CHANNELS} channels; found {len(lines)}.", DATA)
    # Processors have 256, 512, ... 8192 channels, so without <<END>> any other number is a part of them.
    if END not in sections and (len(lines) < 256 or len(lines) & (len(lines) - 1)):
        raise SpectrumFileError(
            path, f"<<END>> must follow the counts; the file is cut off after {len(lines)} channels.", DATA
        )
    return whole_counts(path, DATA, numbers(path, DATA, lines, "the count of channel"))


def _check_total(path, counts, slow_count):
    """The processor counts every pulse, also those above the last channel: there may be more of them than counts."""
    pulses = optional_number(path, None, slow_count, "Slow Count")
    if pulses is not None and counts.sum() > pulses:
        # The status is read a moment before or after the spectrum.
        check_declared(path, DATA, "counts (Slow Count)", pulses, counts.sum(), tolerance=0.05)


def _energy_scale(path, lines):
    label = header_fields(lines[:1], " - ").get("LABEL", "").lower()
    points = [line.split() for line in lines[1:]]
    if label not in KEV or len(points) < 2:
        return None, None
    for i, point in enumerate(points):
        if len(point) != 2:
            raise SpectrumFileError(
                path, f"a calibration point must be a channel and an energy; found {lines[1 + i][:80]!r}.", CALIBRATION
            )
    channels, energies = (
        np.array([number(path, CALIBRATION, text, name) for text in column])
        for column, name in zip(zip(*points), ("the channel of a point", "the energy of a point"))
    )
    gain_kev, offset_kev, _ = line_through(path, CALIBRATION, channels, energies * KEV[label], POINT_TOLERANCE)
    return gain_kev, offset_kev


def _processor_fields(sections):
    """Configuration and status of the processor: `NAME=value;  comment` or `Name: value` lines."""
    fields = {}
    for name, lines in sections.items():
        if name not in (HEADER, DATA, CALIBRATION):
            fields |= header_fields(line.partition(";")[0].replace("=", ":", 1) for line in lines)
    return fields


def _section_texts(sections):
    """Each section but header and data as one text, without the comments of the configuration."""
    texts = {name: [line.partition(";")[0] for line in lines] for name, lines in sections.items()}
    return {name: "; ".join(lines) for name, lines in texts.items() if lines and name not in (HEADER, DATA)}
