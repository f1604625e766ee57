"""NumPy `.npz` archives of many spectra, plain arrays only.

`counts (n, channels)` or `counts_per_second`; optional arrays of length n (or single values): `gain_kev`,
`offset_kev`, `live_time_s`, `tube_kv`, `anode_z`, `sample`, `core`, `depth_mm`, `point`, `detector`,
`num_channels` (the rest of a row is padding). Reference values: `elements` with `weight_percent`, or `oxides` with
`weight_percent` or `weight_percent_by_fundamental_parameters`, where 0 means not determined.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, checked_spectrum

REFERENCE_UNITS = {
    "weight_percent": "wt%",
    "weight_percent_by_fundamental_parameters": "wt% (fundamental parameters)",
}
NUMBERS = ("gain_kev", "offset_kev", "live_time_s", "real_time_s", "tube_kv", "tube_ua", "depth_mm", "x_mm", "y_mm")
TEXTS = ("sample", "core", "detector", "anode", "filter", "instrument")


def is_npz(path: Path, head: bytes) -> bool:
    """Whether the file is a zip archive named `.npz`."""
    return head[:2] == b"PK" and path.suffix.lower() == ".npz"


def read_npz(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read all spectra of an archive; pickled objects are refused.

    Raises:
        SpectrumFileError: the archive cannot be read, arrays do not fit together, or a row is no valid spectrum.
    """
    arrays = _load(path)
    metadata = {}
    if "counts" in arrays:
        counts = arrays["counts"]
    elif "counts_per_second" in arrays:
        counts, metadata = arrays["counts_per_second"], {"counts_unit": "counts per second"}
    else:
        raise SpectrumFileError(path, f"counts or counts_per_second must be there; it holds {sorted(arrays)}.")
    if counts.ndim != 2 or len(counts) == 0:
        raise SpectrumFileError(path, f"counts must have shape (spectra, channels); found {counts.shape}.")
    known = {name: arrays[name] for name in (*NUMBERS, *TEXTS, "anode_z", "num_channels", "point") if name in arrays}
    for name, array in known.items():
        if array.shape not in ((), (len(counts),)):
            raise SpectrumFileError(path, f"{name} must have one value a spectrum; found shape {array.shape}.")
    reference = _reference_values(path, arrays, len(counts))

    for i in range(len(counts)):
        at = {name: array[i] if array.ndim else array[()] for name, array in known.items()}
        num_channels = int(at.get("num_channels", counts.shape[1]))
        place = f"row {i}"
        if not 0 < num_channels <= counts.shape[1]:
            message = f"num_channels must lie between 1 and {counts.shape[1]}; found {num_channels}."
            raise SpectrumFileError(path, message, place)
        targets, units = reference(i)
        fields = {name: float(at[name]) for name in NUMBERS if name in at and not np.isnan(at[name])}
        fields |= {name: str(at[name]) for name in TEXTS if name in at and str(at[name])}
        if "point" in at:
            fields.setdefault("sample", f"point {at['point']}")
        if at.get("anode_z", 0) > 0:
            fields["anode"] = _symbol(int(at["anode_z"]))
        spectrum = checked_spectrum(
            path,
            place,
            on_reject,
            counts[i, :num_channels],
            targets=targets,
            target_units=units,
            metadata=metadata,
            **fields,
        )
        if spectrum is not None:
            yield spectrum


def _load(path):
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SpectrumFileError(path, f"the archive must hold plain arrays and be complete ({error}).") from None


def _symbol(atomic_number):
    import xraylib

    return xraylib.AtomicNumberToSymbol(atomic_number)


def _reference_values(path, arrays, num_spectra):
    """A function from row to `(targets, units)`."""
    key = next((key for key in REFERENCE_UNITS if key in arrays), None)
    columns = arrays.get("elements", arrays.get("oxides"))
    if key is None or columns is None:
        return lambda row: ({}, {})
    values, unit = arrays[key], REFERENCE_UNITS[key]
    names = [str(name).removesuffix("_%") for name in columns]
    if values.shape != (num_spectra, len(names)):
        raise SpectrumFileError(path, f"{key} must have shape {(num_spectra, len(names))}; found {values.shape}.")

    def row_values(row):
        # 0 and NaN both mean not determined; of two columns with one name the first determined one counts.
        determined = [(name, float(v)) for name, v in zip(names, values[row], strict=True) if v > 0]
        targets = dict(reversed(determined))
        return targets, dict.fromkeys(targets, unit)

    return row_values
