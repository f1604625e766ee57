"""Bruker S1PXRF: the text export of handheld Tracers, one spectrum a file.

Lines end with CR (some copies with LF): `key,value` lines, then `Channel#,Intensity` and one line a channel; texts and
counts may be quoted.

The format states the channel width but no zero. The first channel is put at 0 keV, and `metadata["offset_kev"]` says
so: the instrument's firmware keeps the zero there, and in genuine spectra the K lines of Si, K, Ca and Fe lie within
5 eV, a quarter of a channel, of their tabulated energies.
"""

from collections.abc import Iterator
from pathlib import Path

from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, check_declared, checked_spectrum, numbers, optional_number, whole_counts
from .text import read_text, split_lines

MAGIC = b"S1PXRF Spectrum"
MAX_BYTES = 4 * 2**20
FIELDS_OF_SPECTRUM = ("Label", "Duration Time", "Live Time", "HV ADC", "Filament ADC", "Filter", "eV per channel")
OFFSET_NOTE = "0 by the instrument's design; the format does not state it"


def is_s1pxrf(path: Path, head: bytes) -> bool:
    """Whether the first line says so."""
    return MAGIC in head[:200]


def read_s1pxrf(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read one S1PXRF file.

    `HV ADC` is the tube voltage in kV and `Filament ADC` its current in microampere.

    Raises:
        SpectrumFileError: the file is cut off, a number cannot be read, the counts are no valid spectrum, or their sum
            is not what `Valid Accumulated Counts` declares (genuine ones agree within 0.1 %).
    """
    header, counts = _parse(path)
    check_declared(path, "channels", "channels", _number(path, header, "Number of Channels"), len(counts))
    declared = _number(path, header, "Valid Accumulated Counts")
    check_declared(path, "channels", "valid counts", declared, counts.sum(), tolerance=0.1)
    ev_per_channel = _number(path, header, "eV per channel")
    metadata = {key: value for key, value in header.items() if key not in FIELDS_OF_SPECTRUM}
    spectrum = checked_spectrum(
        path,
        None,
        on_reject,
        counts,
        gain_kev=None if ev_per_channel is None else ev_per_channel / 1000,
        offset_kev=None if ev_per_channel is None else 0.0,
        live_time_s=_number(path, header, "Live Time"),
        real_time_s=_number(path, header, "Duration Time"),
        tube_kv=_number(path, header, "HV ADC"),
        tube_ua=_number(path, header, "Filament ADC"),
        filter=header.get("Filter"),
        instrument="Bruker S1PXRF",
        sample=header.get("Label") or path.stem,
        metadata=metadata if ev_per_channel is None else metadata | {"offset_kev": OFFSET_NOTE},
    )
    if spectrum is not None:
        yield spectrum


def _parse(path):
    """The header `{key: value}` and the counts."""
    lines = [line for line in split_lines(read_text(path, MAX_BYTES)) if line.strip()]
    if lines[-1].count('"') % 2:
        message = f"quotes must be closed; found {lines[-1][:80]!r}: the file is cut off."
        raise SpectrumFileError(path, message, "last line")
    rows = [tuple(field.strip().strip('"') for field in line.partition(",")[::2]) for line in lines]
    start = next((i for i, (key, _) in enumerate(rows) if key == "Channel#"), None)
    if start is None:
        raise SpectrumFileError(
            path, "the file must have a line Channel#,Intensity; it is cut off or of another format."
        )
    for channel, row in enumerate(rows[start + 1 :]):
        if row[0] != str(channel):
            message = f"channel {channel} must stand next; found {','.join(row)[:80]!r}."
            raise SpectrumFileError(path, message, "channels")
    counts = numbers(path, "channels", [count for _, count in rows[start + 1 :]], "the count of channel")
    return dict(rows[1:start]), whole_counts(path, "channels", counts)


def _number(path, header, key):
    """The header's number, not negative; `None` where it is absent or empty."""
    return optional_number(path, "header", header.get(key), key, lowest=0)
