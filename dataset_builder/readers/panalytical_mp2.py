"""Panalytical `.mp2`: the text export of Epsilon spectrometers, one spectrum a file.

Lines `key : value`, then a tab-separated table whose first line names the columns Energy (keV), Counts, Background and
Fit. The energy scale is the line through the energy column, which is rounded to seven digits and agrees with
`ZeroFit` and `GainFit` of the header to that precision. Counts add up to `OutputCounts`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..spectrum import Spectrum, SpectrumFileError
from .checks import MAX_CHANNELS, Reject, check_declared, checked_spectrum, numbers, optional_number, whole_counts
from .energy_scale import line_through
from .header import (
    MAX_SPECTRUM_BYTES,
    MAX_TIME_S,
    MAX_TUBE_KV,
    MAX_TUBE_UA,
    header_fields,
    metadata_without,
    positive_number,
)
from .text import decode, read_text, split_lines

FIELDS_OF_SPECTRUM = ("SampleIdent", "Instrument", "Detector", "kV", "uA", "Filter", "LiveTime", "TrueTime")
KEV = {"kev": 1.0, "ev": 1e-3}
ENERGY_TOLERANCE = 0.25
"""In channel widths: far more than rounding makes, and less than the half a missing or doubled row makes."""


def is_panalytical_mp2(path: Path, head: bytes) -> bool:
    """Whether the header starts with the sample and the time as this format writes them."""
    return re.match(r"\s*SampleIdent\s*:.*[\r\n]+TimeMeasured\s*:", decode(head)) is not None


def read_panalytical_mp2(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read one file.

    `TubeAnode` is the anode with the tube's highest voltage. The medium of the beam path (`Air`, `Helium`) stays in
    the metadata.

    Raises:
        SpectrumFileError: the table is missing or cut off, the energies are not linear, or channels or counts are
            others than the header declares.
    """
    lines = split_lines(read_text(path, MAX_SPECTRUM_BYTES))
    start = next((i for i, line in enumerate(lines) if line.startswith("Energy") and "\t" in line), None)
    if start is None:
        raise SpectrumFileError(path, "a table with the columns Energy and Counts must follow; the file is cut off.")
    fields = header_fields(lines[:start])

    def quantity(key, highest):
        return positive_number(path, "header", fields.get(key), key, highest)

    energies_kev, counts = _table(path, lines[start:])
    declared = {key: optional_number(path, "header", fields.get(key), key) for key in ("NrOfChannels", "OutputCounts")}
    check_declared(path, "table", "channels", declared["NrOfChannels"], counts.size)
    check_declared(path, "table", "total counts", declared["OutputCounts"], counts.sum())
    gain_kev, offset_kev, _ = line_through(
        path, "column Energy", np.arange(counts.size), energies_kev, ENERGY_TOLERANCE
    )
    anode = re.match(r"[A-Z][a-z]?\b", fields.get("TubeAnode", ""))
    spectrum = checked_spectrum(
        path,
        None,
        on_reject,
        counts,
        gain_kev=gain_kev,
        offset_kev=offset_kev,
        live_time_s=quantity("LiveTime", MAX_TIME_S),
        real_time_s=quantity("TrueTime", MAX_TIME_S),
        tube_kv=quantity("kV", MAX_TUBE_KV),
        tube_ua=quantity("uA", MAX_TUBE_UA),
        anode=anode[0] if anode else None,
        filter=fields.get("Filter") or None,
        instrument=f"Panalytical {fields.get('Instrument', '')}".strip(),
        detector=fields.get("Detector") or None,
        sample=fields.get("SampleIdent") or path.stem,
        metadata=metadata_without(fields, FIELDS_OF_SPECTRUM),
    )
    if spectrum is not None:
        yield spectrum


def _table(path, lines):
    """Energies in keV and counts, each of shape `(channels,)`."""
    names = [name.strip() for name in lines[0].split("\t")]
    unit = re.fullmatch(r"Energy\s*\((k?eV)\)", names[0], re.IGNORECASE)
    if unit is None or "Counts" not in names:
        raise SpectrumFileError(
            path, f"the table must have the columns Energy (keV) and Counts; found {', '.join(names)[:80]!r}.", "table"
        )
    lines = [line for line in lines[1:] if line.strip()]
    if not 1 <= len(lines) <= MAX_CHANNELS:
        raise SpectrumFileError(
            path,
            f"a spectrum must have 1 to {MAX_CHANNELS} channels; found {len(lines)}: the file is damaged.",
            "table",
        )
    rows = [line.split("\t") for line in lines]
    for i, row in enumerate(rows):
        if len(row) != len(names):
            raise SpectrumFileError(
                path, f"a row must have {len(names)} columns; found {len(row)}: the file is damaged.", f"channel {i}"
            )
    column = names.index("Counts")
    energies = numbers(path, "column Energy", [row[0] for row in rows], "the energy of channel")
    counts = numbers(path, "column Counts", [row[column] for row in rows], "the count of channel")
    return energies * KEV[unit[1].lower()], whole_counts(path, "column Counts", counts)
