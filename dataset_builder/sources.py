"""`FileSource`: the spectra files of a corpus, each with a name and a hash that do not depend on where they lie."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .readers import ColumnMapping, find_sources, read_source
from .readers.checks import Reject
from .readers.max_tree import is_max_tree
from .spectrum import Spectrum, SpectrumFileError

FILL_FIELDS = {
    "gain_kev": (int, float),
    "offset_kev": (int, float),
    "live_time_s": (int, float),
    "tube_kv": (int, float),
    "tube_ua": (int, float),
    "anode": str,
    "filter": str,
    "instrument": str,
    "detector": str,
}
"""Fields of `Spectrum` that a user may state for files that leave them open, with their types."""


@dataclass(frozen=True)
class SourceFile:
    """A file, or a folder that is one data set.

    Args:
        path (`Path`): where it is.
        name (`str`): path relative to the root of its source, with forward slashes.
    """

    path: Path
    name: str

    def size_bytes(self) -> int:
        """Size of the file or of all files in the folder."""
        return sum(path.stat().st_size for path in self._files())

    def content_hash(self) -> str:
        """SHA-256 of the name and of everything that its spectra are read from, files beside it included."""
        digest = hashlib.sha256(self.name.encode())
        for path in self._files():
            digest.update(os.fsencode(path.relative_to(self.path.parent)) + _file_hash(path))
        if self.path.suffix.lower() == ".spe":
            digest.update(_calibration_files_hash(self.path.parent) + _calibration_files_hash(self.path.parent.parent))
        return digest.hexdigest()

    def _files(self):
        if self.path.is_dir():
            return sorted(path for path in self.path.rglob("*") if path.is_file())
        return [self.path]


class FileSource:
    """The spectra of files and folders, in an order that depends on nothing but their names.

    Args:
        paths (path or sequence of paths): files, folders, and patterns such as `maps/*.npz`.
        data_root (path, *optional*): folder that relative paths start from; the working directory if not given.
        column_mapping (`dict`, *optional*): arguments of `ColumnMapping` for wide tables.
        fill (`dict`): value by field of `FILL_FIELDS` where a file leaves it open.
        overwrite (`bool`): `fill` also replaces what a file states.

    Raises:
        SpectrumFileError: a path does not exist, a named file has an unknown format, or a folder holds no spectra.
    """

    def __init__(self, paths, data_root=None, column_mapping=None, fill=None, overwrite=False):
        self.column_mapping = None if column_mapping is None else ColumnMapping.from_dict(column_mapping)
        self.fill, self.overwrite = fill or {}, overwrite
        roots = _expanded([paths] if isinstance(paths, (str, Path)) else paths, Path(data_root or "."))
        common = _common_folder(roots)
        found = {path for root in roots for path in find_sources(root, self.column_mapping)}
        files = [SourceFile(path, _storable(path.relative_to(common).as_posix())) for path in found]
        self.files = sorted(files, key=lambda file: file.name)

    @property
    def num_units(self) -> int:
        """Number of files."""
        return len(self.files)

    def unit_names(self) -> list[str]:
        """Names of the files, relative to the folder that holds them all."""
        return [file.name for file in self.files]

    def spectra(self, unit: int, on_reject: Reject | None = None) -> Iterator[Spectrum]:
        """Spectra of one file, with open fields filled; see `readers.iter_spectra` for `on_reject`."""
        return read_file(self.files[unit], self.column_mapping, self.fill, self.overwrite, on_reject)


def read_file(
    file: SourceFile,
    column_mapping: ColumnMapping | None = None,
    fill: dict | None = None,
    overwrite: bool = False,
    on_reject: Reject | None = None,
) -> Iterator[Spectrum]:
    """Spectra of a file with open fields filled; `source` is the file's name below its root."""
    for spectrum in read_source(file.path, column_mapping, on_reject):
        changes = {
            name: value
            for name, value in (fill or {}).items()
            if value is not None and (overwrite or getattr(spectrum, name) is None)
        }
        if spectrum.source in (None, file.path.name):
            changes["source"] = file.name
        yield dataclasses.replace(spectrum, **changes) if changes else spectrum


def _storable(name):
    """A name without the bytes that are no text, as file systems allow them and Parquet does not."""
    return name.encode("utf-8", "replace").decode()


def _file_hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@lru_cache(maxsize=16)
def _calibration_files_hash(folder):
    """Hash of what an Itrax scan keeps beside its spectra: settings and results."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".dfl", ".txt") and path.is_file():
            digest.update(os.fsencode(path.name) + _file_hash(path))
    return digest.digest()


def _expanded(paths, data_root):
    """Absolute paths, patterns replaced by what they match."""
    roots = []
    for path in map(str, paths):
        if any(character in path for character in "*?[") and not (data_root / path).exists():
            folder = Path(path).anchor or data_root
            matches = sorted(Path(folder).glob(str(Path(path).relative_to(Path(path).anchor))))
            if not matches:
                raise SpectrumFileError(data_root / path, "no file matches this pattern.")
            roots.extend(matches)
        else:
            roots.append(data_root / path)
    return [Path(os.path.abspath(root)) for root in roots]


def _common_folder(roots):
    """The folder that names are relative to; a data set that is a folder keeps its own name."""
    folders = [root.parent if root.is_file() or is_max_tree(root) else root for root in roots]
    return Path(os.path.commonpath(folders))
