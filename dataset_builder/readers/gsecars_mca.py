"""GSECARS `.mca`: the text file of the EPICS MCA software for one or more detector elements.

Lines `KEY: value` with one value for each element, then `DATA:` and one row a channel with one count for each element.
The energy of channel i is `CAL_OFFSET + CAL_SLOPE i + CAL_QUAD i^2`, in keV. A `Spectrum` has a linear scale: where
`CAL_QUAD` is not 0 it gets the least-squares line through all channels, `metadata["deviation_from_line_ev"]` says how
far the curve is from it at most, and an element more than one channel width off is refused. The scale 0 + 1 i is that
of an element that was never calibrated and gives none.
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
    reject,
    whole_counts,
    whole_number,
)
from .energy_scale import check_energy_scale, line_through
from .header import MAX_SPECTRUM_BYTES, MAX_TIME_S, header_fields, metadata_without, positive_number
from .text import decode, parse_number, read_text, split_lines

MAX_ELEMENTS = 1000
TIMES = ("REAL_TIME", "LIVE_TIME")
FIELDS_OF_SPECTRUM = (*TIMES, "ELEMENTS", "CHANNELS")
ENVIRONMENT = "ENVIRONMENT:"
CALIBRATION = ("CAL_OFFSET", "CAL_SLOPE", "CAL_QUAD")
LINE_TOLERANCE = 1.0
"""In channel widths, usually 10 to 20 eV: a tenth of a peak's width."""


def is_gsecars_mca(path: Path, head: bytes) -> bool:
    """Whether the header starts as this format does."""
    text = decode(head)
    return re.match(r"\s*VERSION:", text) is not None and re.search(r"[\r\n]ELEMENTS:", text) is not None


def read_gsecars_mca(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read the spectra of all elements; `detector` is the element's number, from 1.

    Raises:
        SpectrumFileError: the file is cut off, channels or elements are others than declared, or (without `on_reject`)
            the spectrum of an element is not valid.
    """
    lines = split_lines(read_text(path, MAX_SPECTRUM_BYTES))
    start = next((i for i, line in enumerate(lines) if line.startswith("DATA:")), None)
    if start is None:
        raise SpectrumFileError(path, "a line DATA: with the counts below it must follow; the file is cut off.")
    environment = _environment(lines[:start])
    fields = header_fields(line for line in lines[:start] if not line.startswith(ENVIRONMENT))
    num_elements = whole_number(path, "header", fields.get("ELEMENTS", ""), "ELEMENTS", 1, MAX_ELEMENTS)
    num_channels = whole_number(path, "header", fields.get("CHANNELS", ""), "CHANNELS", 1, MAX_CHANNELS)
    counts = _counts(path, lines[start + 1 :], num_elements, num_channels)
    for i in range(num_elements):
        place = f"element {i + 1}"
        try:
            of_element = {key: _of_element(value, i, num_elements) for key, value in fields.items()}
            gain_kev, offset_kev, notes = _energy_scale(path, place, of_element, num_channels)
            real_time_s, live_time_s = (
                positive_number(path, place, of_element.get(key), key, MAX_TIME_S) for key in TIMES
            )
        except SpectrumFileError as error:
            reject(error, on_reject)
            continue
        spectrum = checked_spectrum(
            path,
            place,
            on_reject,
            counts[i],
            gain_kev=gain_kev,
            offset_kev=offset_kev,
            real_time_s=real_time_s,
            live_time_s=live_time_s,
            detector=str(i + 1),
            sample=path.stem,
            metadata=metadata_without(of_element, FIELDS_OF_SPECTRUM) | environment | notes,
        )
        if spectrum is not None:
            yield spectrum


def _counts(path, lines, num_elements, num_channels):
    """The counts of every element, each of shape `(channels,)`."""
    lines = [line for line in lines if line.strip()]
    check_declared(path, "DATA", "channels", num_channels, len(lines))
    rows = [line.split() for line in lines]
    for channel, row in enumerate(rows):
        if len(row) != num_elements:
            raise SpectrumFileError(
                path,
                f"a row must have {num_elements} counts, one for each element; found {len(row)}: the file is damaged.",
                f"channel {channel}",
            )
    columns = []
    for i, column in enumerate(zip(*rows)):
        place = f"element {i + 1}"
        columns.append(whole_counts(path, place, numbers(path, place, list(column), "the count of channel")))
    return columns


def _of_element(value, element, num_elements):
    """This element's number or label of a header value, or the whole where it has not one for each element."""
    numerals, labels = value.split(), [label.strip() for label in value.removesuffix("&").split("&")]
    if len(numerals) == num_elements and all(parse_number(text) is not None for text in numerals):
        return numerals[element]
    return labels[element] if len(labels) == num_elements else value


def _energy_scale(path, place, fields, num_channels):
    """`gain_kev`, `offset_kev` and the metadata that explains them."""
    if "CAL_OFFSET" not in fields or "CAL_SLOPE" not in fields:
        return None, None, {}
    offset, slope, quadratic = (number(path, place, fields.get(key, "0"), key) for key in CALIBRATION)
    if (offset, slope, quadratic) == (0.0, 1.0, 0.0):
        return None, None, {}
    if quadratic == 0:
        check_energy_scale(path, place, slope, offset)
        return slope, offset, {}
    channel = np.arange(num_channels)
    with np.errstate(over="ignore", invalid="ignore"):
        energies_kev = offset + slope * channel + quadratic * channel**2
    gain_kev, offset_kev, distance = line_through(path, place, channel, energies_kev, LINE_TOLERANCE)
    return gain_kev, offset_kev, {"deviation_from_line_ev": f"{1000 * gain_kev * distance:.2f}"}


def _environment(lines):
    """`ENVIRONMENT: name="value" (description)` as `{name: "value (description)"}`."""
    fields = header_fields((line.removeprefix(ENVIRONMENT) for line in lines if line.startswith(ENVIRONMENT)), "=")
    return {name: re.sub(r'^"([^"]*)"', lambda match: match[1].strip(), value) for name, value in fields.items()}
