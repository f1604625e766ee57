"""Bruker S1PXRF: the text export of handheld Tracers, one spectrum a file.

Lines end with CR (some copies with LF): `key,value` lines, then `Channel#,Intensity` and one line a channel; texts and
counts may be quoted. The format holds the channel width but no zero, so the first channel is put at 0 keV.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, checked_spectrum, number, optional_number, reject

MAGIC = b"S1PXRF Spectrum"
FIELDS_OF_SPECTRUM = ("Label", "Duration Time", "Live Time", "HV ADC", "Filament ADC", "Filter", "eV per channel")


def is_s1pxrf(path: Path, head: bytes) -> bool:
    """Whether the first line says so."""
    return MAGIC in head[:200]


def read_s1pxrf(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read one S1PXRF file.

    `HV ADC` is the tube voltage in kV and `Filament ADC` its current in microampere.

    Raises:
        SpectrumFileError: the file is cut off, a number cannot be read, or the counts are no valid spectrum.
    """
    try:
        spectrum = _parse(path, on_reject)
    except SpectrumFileError as error:
        reject(error, on_reject)
        return
    if spectrum is not None:
        yield spectrum


def _parse(path, on_reject):
    lines = path.read_text(encoding="latin-1").splitlines()
    rows = list(csv.reader(line for line in lines[1:] if line.strip()))
    start = next((i for i, row in enumerate(rows) if row[0] == "Channel#"), None)
    if start is None:
        raise SpectrumFileError(
            path, "the file must have a line Channel#,Intensity; it is cut off or of another format."
        )
    header = {row[0].strip(): row[1].strip() for row in rows[:start] if len(row) > 1}
    counts = []
    for channel, row in enumerate(rows[start + 1 :]):
        if len(row) != 2 or row[0].strip() != str(channel):
            raise SpectrumFileError(path, f"channel {channel} must stand next; found {','.join(row)!r}.", "channels")
        counts.append(number(path, f"channel {channel}", row[1], "the count"))
    declared = optional_number(path, "header", header.get("Number of Channels"), "Number of Channels")
    if declared is not None and declared != len(counts):
        raise SpectrumFileError(
            path, f"the header says {declared:.0f} channels but {len(counts)} follow: the file is cut off.", "channels"
        )
    ev_per_channel = optional_number(path, "header", header.get("eV per channel"), "eV per channel")
    read = {key: optional_number(path, "header", header.get(key), key) for key in ("Duration Time", "Live Time")}
    return checked_spectrum(
        path,
        None,
        on_reject,
        np.array(counts),
        gain_kev=None if ev_per_channel is None else ev_per_channel / 1000,
        offset_kev=0.0,
        live_time_s=read["Live Time"],
        real_time_s=read["Duration Time"],
        tube_kv=optional_number(path, "header", header.get("HV ADC"), "HV ADC"),
        tube_ua=optional_number(path, "header", header.get("Filament ADC"), "Filament ADC"),
        filter=header.get("Filter"),
        instrument="Bruker S1PXRF",
        sample=header.get("Label") or path.stem,
        metadata={key: value for key, value in header.items() if key not in FIELDS_OF_SPECTRUM},
    )
