"""NumPy `.npz` archives of many spectra, plain arrays only.

`counts (n, channels)` or `counts_per_second`; optional arrays of length n (or single values): `gain_kev`,
`offset_kev`, `live_time_s`, `tube_kv`, `anode_z`, `sample`, `core`, `depth_mm`, `point`, `detector`,
`num_channels` (the rest of a row is padding). Reference values: `elements` with `weight_percent`, or `oxides` with
`weight_percent` or `weight_percent_by_fundamental_parameters`, where 0 means not determined. Further arrays of length
n are kept as metadata.

Counts are read a block of rows at a time, and every array's header is compared with the archive's directory before
its data are touched, so memory is bounded whatever the file claims.
"""

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..spectrum import Spectrum, SpectrumFileError
from .checks import MAX_CHANNELS, Reject, checked_spectrum, element_symbol, reject, whole_number
from .text import MAX_FILE_BYTES

COUNTS_METADATA = {"counts": {}, "counts_per_second": {"counts_unit": "counts per second"}}
REFERENCE_UNITS = {
    "weight_percent": "wt%",
    "weight_percent_by_fundamental_parameters": "wt% (fundamental parameters)",
}
NUMBERS = ("gain_kev", "offset_kev", "live_time_s", "real_time_s", "tube_kv", "tube_ua", "depth_mm", "x_mm", "y_mm")
TEXTS = ("sample", "core", "detector", "anode", "filter", "instrument")
MAX_ARRAYS = 1000
BLOCK_BYTES = 4 * 2**20


def is_npz(path: Path, head: bytes) -> bool:
    """Whether the file is a zip archive whose first member is an array."""
    name_length = int.from_bytes(head[26:28], "little")
    return head[:4] == b"PK\x03\x04" and head[30 : 30 + name_length].endswith(b".npy")


def read_npz(path: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read all spectra of an archive; pickled objects are refused.

    Raises:
        SpectrumFileError: the archive cannot be read, arrays do not fit together, or a row is no valid spectrum.
    """
    with _archive_errors(path):
        archive = zipfile.ZipFile(path)
    with archive:
        arrays = _open_arrays(path, archive)
        name = next((name for name in COUNTS_METADATA if name in arrays), None)
        if name is None:
            found = ", ".join(sorted(arrays))[:200]
            raise SpectrumFileError(path, f"counts or counts_per_second must be there; it holds {found!r}.")
        counts = arrays.pop(name)
        if len(counts.shape) != 2 or not counts.shape[0] or not 0 < counts.shape[1] <= MAX_CHANNELS:
            raise SpectrumFileError(
                path,
                f"{name} must have shape (spectra, channels), at most {MAX_CHANNELS} channels; found {counts.shape}.",
            )
        if counts.dtype.kind not in "iuf":
            raise SpectrumFileError(path, f"{name} must hold numbers; found {counts.dtype}.")
        rows = _Rows(path, arrays, *counts.shape)
        row = 0
        for block in counts.blocks():
            for channels in block:
                try:
                    num_channels, fields = rows.fields(row)
                except SpectrumFileError as error:
                    reject(error, on_reject)
                else:
                    fields["metadata"] |= COUNTS_METADATA[name]
                    spectrum = checked_spectrum(path, f"row {row}", on_reject, channels[:num_channels], **fields)
                    if spectrum is not None:
                        yield spectrum
                row += 1


@contextlib.contextmanager
def _archive_errors(path):
    """zipfile, zlib and NumPy's header parser raise exceptions of many types on damaged archives."""
    try:
        yield
    except SpectrumFileError:
        raise
    except Exception as error:
        reason = f"the archive must hold plain arrays and be complete ({type(error).__name__}: {str(error)[:100]})."
        raise SpectrumFileError(path, reason) from None


def _open_arrays(path, archive) -> dict[str, "_Array"]:
    members = archive.infolist()
    if len(members) > MAX_ARRAYS:
        raise SpectrumFileError(
            path, f"an archive must hold at most {MAX_ARRAYS} arrays; this one has {len(members)}."
        )
    return {member.filename.removesuffix(".npy"): _Array(path, archive, member) for member in members}


class _Array:
    """One array of an archive, of which only the header has been read."""

    def __init__(self, path, archive, member):
        self.path, self.name = path, member.filename
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            message = "the archive must be written by numpy.savez or savez_compressed; it has another compression."
            raise SpectrumFileError(path, message, self.name)
        with _archive_errors(path):
            self.stream = archive.open(member)
            version = np.lib.format.read_magic(self.stream)
            formats = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            self.shape, self.is_fortran, self.dtype = formats[version](self.stream)
        if self.dtype.kind not in "biufU":
            message = f"the archive must hold plain arrays of numbers or text and be complete; found {self.dtype}."
            raise SpectrumFileError(path, message, self.name)
        self.num_bytes = math.prod(self.shape) * self.dtype.itemsize
        found = member.file_size - self.stream.tell()
        if self.num_bytes != found or min(self.shape, default=0) < 0:
            raise SpectrumFileError(
                path, f"the array's header declares {self.num_bytes} bytes but the archive {found}.", self.name
            )

    def read(self) -> np.ndarray:
        """The whole array, which must be small enough."""
        if self.num_bytes > MAX_FILE_BYTES:
            raise SpectrumFileError(
                self.path, f"the array must not exceed {MAX_FILE_BYTES // 2**20} MiB; it is larger.", self.name
            )
        values = self._next(math.prod(self.shape))
        return values.reshape(self.shape[::-1]).T if self.is_fortran else values.reshape(self.shape)

    def blocks(self) -> Iterator[np.ndarray]:
        """Rows of a two-dimensional array, `(a few, columns)` at a time."""
        if self.is_fortran:
            yield self.read()
            return
        num_rows, num_columns = self.shape
        step = max(1, BLOCK_BYTES // (num_columns * self.dtype.itemsize))
        for start in range(0, num_rows, step):
            yield self._next(min(step, num_rows - start) * num_columns).reshape(-1, num_columns)

    def _next(self, number):
        """The next `number` entries of the stream."""
        with _archive_errors(self.path):
            return np.frombuffer(self.stream.read(number * self.dtype.itemsize), self.dtype, number)


class _Rows:
    """Everything but the counts, row by row."""

    def __init__(self, path, arrays, num_spectra, num_channels):
        self.path, self.num_channels = path, num_channels
        self.targets = _reference_values(path, arrays, num_spectra)
        self.per_row = {}
        left = MAX_FILE_BYTES
        for name, array in arrays.items():
            known = name in (*NUMBERS, *TEXTS, "anode_z", "num_channels", "point")
            if array.shape not in ((), (num_spectra,)):
                if known:
                    message = f"{name} must have one value a spectrum; found shape {array.shape}."
                    raise SpectrumFileError(path, message)
                continue
            if name in (*NUMBERS, "anode_z", "num_channels") and array.dtype.kind not in "iuf":
                raise SpectrumFileError(path, f"{name} must hold numbers; found {array.dtype}.")
            left -= array.num_bytes
            if left < 0:
                raise SpectrumFileError(
                    path, f"the arrays beside the counts must not exceed {MAX_FILE_BYTES // 2**20} MiB; they do."
                )
            self.per_row[name] = np.broadcast_to(array.read(), num_spectra)

    def fields(self, row) -> tuple[int, dict]:
        """Number of channels that were measured, and the fields of the spectrum."""
        place = f"row {row}"
        at = {name: values[row] for name, values in self.per_row.items()}
        num_channels = at.pop("num_channels", self.num_channels)
        if not (0 < num_channels <= self.num_channels and num_channels == int(num_channels)):
            message = f"num_channels must lie between 1 and {self.num_channels}; found {num_channels}."
            raise SpectrumFileError(self.path, message, place)
        at = {name: value for name, value in at.items() if value == value and str(value)}  # NaN and "" say nothing
        fields = {name: float(at.pop(name)) for name in NUMBERS if name in at}
        fields |= {name: str(at.pop(name)) for name in TEXTS if name in at}
        if "point" in at:
            fields.setdefault("sample", f"point {at['point']}")
        anode_z = at.pop("anode_z", 0)
        if anode_z != 0:
            fields["anode"] = element_symbol(
                self.path, place, whole_number(self.path, place, anode_z, "anode_z", 1, 107)
            )
        fields["targets"], fields["target_units"] = self.targets(row)
        fields["metadata"] = {name: str(value) for name, value in at.items()}
        return int(num_channels), fields


def _reference_values(path, arrays, num_spectra):
    """A function from row to `(targets, units)`; takes the arrays that it uses out of `arrays`."""
    key = next((key for key in REFERENCE_UNITS if key in arrays), None)
    columns = next((name for name in ("elements", "oxides") if name in arrays), None)
    if key is None or columns is None:
        return lambda row: ({}, {})
    names, values, unit = arrays.pop(columns).read(), arrays.pop(key), REFERENCE_UNITS[key]
    if names.ndim != 1 or values.shape != (num_spectra, len(names)):
        shape = (num_spectra, names.size)
        raise SpectrumFileError(path, f"{key} must have shape {shape}; found {values.shape}.")
    if values.dtype.kind not in "iuf":
        raise SpectrumFileError(path, f"{key} must hold numbers; found {values.dtype}.")
    names, values = [str(name).removesuffix("_%") for name in names], values.read()

    def row_values(row):
        # 0 and NaN both mean not determined; of two columns with one name the first determined one counts.
        determined = [(name, float(v)) for name, v in zip(names, values[row], strict=True) if 0 < v < math.inf]
        targets = dict(reversed(determined))
        return targets, dict.fromkeys(targets, unit)

    return row_values
