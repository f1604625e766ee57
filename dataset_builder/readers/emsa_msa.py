"""EMSA/MAS `.msa` (ISO 22029): the exchange format for spectra, in the dialects that X-ray fluorescence uses.

Lines `#KEYWORD : value` (`##` for keywords of a writer's own; a unit may follow the keyword, `#LIVETIME  -s:`), then
`#SPECTRUM`, the values, and `#ENDOFDATA`. `DATATYPE` says what one point is: `Y` a count, `XY` an energy and a count,
`YY` one count for each of two detectors (PIXL). `NPOINTS` points must follow; how many values stand on a line is of
no importance, so that `NCOLUMNS` need not be right (the XGT-7200 writes 1 for two columns).

Energies are in the unit that `XUNITS` names, eV or keV. A file without `XUNITS`, `XPERCHAN` or `OFFSET` gives a
spectrum without calibration. `CHOFFSET`, the number of the channel at zero energy, must agree with them.

PIXL writes an explanation behind many values, separated by three spaces or more, and positions in metres; the
standard's units are mm, nA, kV and s. `#CHECKSUM` is kept in the metadata and not verified.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..spectrum import Spectrum, SpectrumFileError
from .checks import (
    MAX_CHANNELS,
    Reject,
    check_declared,
    checked_spectrum,
    numbers,
    optional_number,
    reject,
    whole_counts,
    whole_number,
)
from .energy_scale import check_energy_scale, line_through
from .header import MAX_SPECTRUM_BYTES, MAX_TIME_S, MAX_TUBE_KV, MAX_TUBE_UA, header_fields, metadata_without
from .text import decode, parse_number, read_text, split_lines

UNITS = {
    "LIVETIME": {"": 1.0, "s": 1.0, "ms": 1e-3},
    "REALTIME": {"": 1.0, "s": 1.0, "ms": 1e-3},
    "BEAMKV": {"": 1.0, "kV": 1.0},
    "PROBECUR": {"": 1e-3, "nA": 1e-3, "uA": 1.0},
    "XPOSITION": {"": 1.0, "mm": 1.0, "cm": 10.0, "um": 1e-3, "m": 1e3},
    "YPOSITION": {"": 1.0, "mm": 1.0, "cm": 10.0, "um": 1e-3, "m": 1e3},
}
"""Factor from the unit of a keyword, the standard's where none is written, to that of the `Spectrum`."""

FIELDS_OF_SPECTRUM = (*UNITS, "TITLE", "DETECTOR_ID", "NPOINTS", "NCOLUMNS", "DATATYPE")
NOT_X_RAY = ("ELS", "EELS", "AES", "PES", "CLS", "GAM", "WDS")
PLACEHOLDERS = ("", "N/A", "<tbd>")
MAX_POSITION_MM = 1e5
ENERGY_TOLERANCE = 0.25
"""Of the energy column, in channel widths: more than rounding makes, and less than a missing row."""

ZERO_CHANNEL_TOLERANCE = 2.0
"""Writers round `CHOFFSET` to a channel and count from 0 or 1."""


class Field(NamedTuple):
    """A value of the header as text and the unit behind its keyword, empty where there is none."""

    text: str
    unit: str


def is_emsa_msa(path: Path, head: bytes) -> bool:
    """Whether the first line names the format."""
    return re.match(r"\s*#FORMAT\s*:\s*EMSA/MAS", decode(head), re.IGNORECASE) is not None


def read_emsa_msa(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read one file: one spectrum, or one for each detector, which are named A and B.

    Raises:
        SpectrumFileError: the file is cut off, holds other than the declared points or no X-ray spectrum, or the parts
            of its energy scale disagree.
    """
    fields, lines = _parts(path)
    signal = _text(fields, "SIGNALTYPE").upper()
    if signal in NOT_X_RAY:
        raise SpectrumFileError(
            path, f"SIGNALTYPE must be one of X-ray energies, EDS or XRF; found {signal}.", "header"
        )
    kind = _text(fields, "DATATYPE").upper()
    if not re.fullmatch("XY|Y{1,8}", kind):
        raise SpectrumFileError(path, f"DATATYPE must be Y, XY or YY; found {kind[:80]!r}.", "header")
    num_points = whole_number(path, "header", _text(fields, "NPOINTS"), "NPOINTS", 0, MAX_CHANNELS)
    if num_points == 0:
        raise SpectrumFileError(path, "the file must hold a spectrum; NPOINTS is 0: it is a configuration only.")
    points = _values(path, lines, num_points * len(kind)).reshape(num_points, len(kind))
    energies, columns = (points[:, 0], points[:, 1:]) if kind == "XY" else (None, points)
    num_detectors = columns.shape[1]
    for i in range(num_detectors):
        detector = "ABCDEFGH"[i] if num_detectors > 1 else None
        own = _of_detector(fields, i, num_detectors)
        try:
            spectrum = _spectrum(path, detector, own, energies, columns[:, i], on_reject)
        except SpectrumFileError as error:
            reject(error, on_reject)
            continue
        if spectrum is not None:
            yield spectrum


def _parts(path):
    """The header `{keyword: Field}` and the lines of values."""
    lines = split_lines(read_text(path, MAX_SPECTRUM_BYTES))
    start, end = _line_of(path, lines, "SPECTRUM"), _line_of(path, lines, "ENDOFDATA")
    header = header_fields(line.lstrip("#") for line in lines[:start] + lines[end + 1 :] if line.startswith("#"))
    pixl = "PIXL" in header.get("VERSION", "")
    fields = {}
    for key, text in header.items():
        name, unit = _keyword_and_unit(key)
        if pixl:
            text = re.split(r"\s{3,}", text, maxsplit=1)[0]
            unit = "m" if name.endswith("POSITION") else unit
        fields[name] = Field(text, unit)
    return fields, lines[start + 1 : end]


def _line_of(path, lines, keyword):
    pattern = re.compile(rf"#\s*{keyword}\b", re.IGNORECASE)
    found = next((i for i, line in enumerate(lines) if pattern.match(line)), None)
    if found is None:
        raise SpectrumFileError(path, f"a line #{keyword} must follow; the file is cut off.")
    return found


def _keyword_and_unit(key):
    match = re.fullmatch(r"(\w+)\s*[-\s]\s*(s|ms|m|cm|mm|um|nm|keV|eV|kV|V|nA|uA|dg|mR|sR)", key)
    return (match[1].upper(), match[2]) if match else (key.upper(), "")


def _text(fields, keyword):
    return fields[keyword].text if keyword in fields else ""


def _values(path, lines, expected):
    """The values behind `#SPECTRUM`, shape `(expected,)`; a comma separates them, or is a decimal comma where that and
    not the other gives the expected number of values."""
    text = "\n".join(lines)
    texts = [text for text in re.split(r"[\s,;]+", text) if text]
    if len(texts) != expected:
        with_decimal_comma = [text.rstrip(",") for text in re.split(r"[\s;]+", text) if text.strip(",")]
        texts = with_decimal_comma if len(with_decimal_comma) == expected else texts
    check_declared(path, "SPECTRUM", "values", expected, len(texts))
    return numbers(path, "SPECTRUM", texts, "value")


def _of_detector(fields, detector, num_detectors):
    """The header with, of values that list one number for each detector, this detector's."""
    if num_detectors == 1:
        return fields
    own = {}
    for name, field in fields.items():
        parts = [part.strip() for part in field.text.split(",")]
        is_list = len(parts) == num_detectors and all(parse_number(part) is not None for part in parts)
        own[name] = field._replace(text=parts[detector]) if is_list else field
    return own


def _spectrum(path, detector, fields, energies, counts, on_reject):
    place = f"detector {detector}" if detector else None
    in_counts = _text(fields, "YUNITS").lower() in ("", "count", "counts")
    gain_kev, offset_kev = _energy_scale(path, place, fields, energies)
    if in_counts:
        counts = whole_counts(path, place, counts)
        # Processors differ by a few events in what they discard.
        events = optional_number(path, place, _text(fields, "EVENTS"), "EVENTS", lowest=0)
        check_declared(path, place, "events", events, counts.sum(), tolerance=0.01)
    metadata = {name: f"{field.text} {field.unit}".strip() for name, field in fields.items() if field.text}
    if not in_counts:
        metadata["counts_unit"] = _text(fields, "YUNITS")
    title = _text(fields, "TITLE")
    is_pixl = "PIXL" in _text(fields, "VERSION")
    return checked_spectrum(
        path,
        place,
        on_reject,
        counts,
        gain_kev=gain_kev,
        offset_kev=offset_kev,
        live_time_s=_quantity(path, place, fields, "LIVETIME", 0, MAX_TIME_S) or None,
        real_time_s=_quantity(path, place, fields, "REALTIME", 0, MAX_TIME_S) or None,
        tube_kv=_quantity(path, place, fields, "BEAMKV", 0, MAX_TUBE_KV) or None,
        tube_ua=_quantity(path, place, fields, "PROBECUR", 0, MAX_TUBE_UA) or None,
        x_mm=_quantity(path, place, fields, "XPOSITION", -MAX_POSITION_MM, MAX_POSITION_MM),
        y_mm=_quantity(path, place, fields, "YPOSITION", -MAX_POSITION_MM, MAX_POSITION_MM),
        instrument="PIXL" if is_pixl else None,
        detector=detector or _text(fields, "DETECTOR_ID") or None,
        sample=title if title not in PLACEHOLDERS else path.stem,
        metadata=metadata_without(metadata, FIELDS_OF_SPECTRUM),
    )


def _quantity(path, place, fields, keyword, lowest, highest):
    """A header's number in the unit of the `Spectrum`, `None` where it is missing."""
    field = fields.get(keyword, Field("", ""))
    factor = UNITS[keyword].get(field.unit)
    if factor is None:
        raise SpectrumFileError(
            path, f"{keyword} must be in {', '.join(filter(None, UNITS[keyword]))}; found {field.unit}.", place
        )
    value = optional_number(path, place, field.text, keyword, lowest / factor, highest / factor)
    return None if value is None else value * factor


def _energy_scale(path, place, fields, energies):
    """`gain_kev` and `offset_kev`, `None` where the file does not state them."""
    unit = _text(fields, "XUNITS") or (fields["XPERCHAN"].unit if "XPERCHAN" in fields else "")
    if not unit:
        return None, None
    electronvolt = re.search(r"\b(k?)eV\b", unit, re.IGNORECASE)
    if electronvolt is None:
        raise SpectrumFileError(path, f"XUNITS must be eV or keV; found {unit[:80]!r}.", place)
    kev = 1.0 if electronvolt[1] else 1e-3
    gain, offset = (optional_number(path, place, _text(fields, name), name) for name in ("XPERCHAN", "OFFSET"))
    if energies is not None:
        fitted = line_through(path, "energy column", np.arange(energies.size), energies * kev, ENERGY_TOLERANCE)[:2]
        _check_same_scale(path, fitted, gain, offset, kev, energies.size)
        gain_kev, offset_kev = fitted
    elif gain is None or offset is None:
        return None, None
    else:
        gain_kev, offset_kev = gain * kev, offset * kev
    check_energy_scale(path, place, gain_kev, offset_kev)
    zero_channel = optional_number(path, place, _text(fields, "CHOFFSET"), "CHOFFSET")
    if zero_channel and abs(zero_channel + offset_kev / gain_kev) > ZERO_CHANNEL_TOLERANCE:
        raise SpectrumFileError(
            path,
            f"CHOFFSET must be the channel at 0 keV, {-offset_kev / gain_kev:.1f} by OFFSET and XPERCHAN; found "
            f"{zero_channel:g}: check the energy calibration.",
            place,
        )
    return gain_kev, offset_kev


def _check_same_scale(path, fitted, gain, offset, kev, num_channels):
    """The energy column must be what `XPERCHAN` and `OFFSET` say, where they are given, to a channel."""
    gain_kev, offset_kev = fitted
    declared_gain = gain_kev if gain is None else gain * kev
    declared_offset = offset_kev if offset is None else offset * kev
    for channel in (0, num_channels - 1):
        declared, found = declared_offset + declared_gain * channel, offset_kev + gain_kev * channel
        if not abs(declared - found) <= gain_kev:
            raise SpectrumFileError(
                path,
                f"the energy column must agree with OFFSET and XPERCHAN; channel {channel} is at {found:.6g} keV and "
                f"should be at {declared:.6g} keV: check the energy calibration.",
                "energy column",
            )
