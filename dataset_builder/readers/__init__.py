"""Readers: files, folders and tables of spectra, recognised by what they hold.

To add a format, write one module with `is_<format>(path, head)` and `read_<format>(path, on_reject)` and list it in
`FORMATS`, the more particular formats first.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, reject
from .max_tree import is_max_tree, read_max_tree
from .npz import is_npz, read_npz
from .s1pxrf import is_s1pxrf, read_s1pxrf
from .table import ColumnMapping, is_csv, is_parquet, read_table

__all__ = ["FORMATS", "ColumnMapping", "Format", "find_sources", "iter_spectra", "read_spectra"]

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Format:
    """A file format: its name, how the first bytes tell it, and its reader."""

    name: str
    recognise: Callable[[Path, bytes], bool]
    read: Callable[..., Iterator[Spectrum]]
    is_table: bool = False


FORMATS = [
    Format("Bruker S1PXRF", is_s1pxrf, read_s1pxrf),
    Format("NumPy archive", is_npz, read_npz),
    Format("Parquet table", is_parquet, read_table, is_table=True),
    Format("CSV table", is_csv, read_table, is_table=True),
]


def recognise_format(path: Path) -> Format | None:
    """The first format that knows the file, or `None`.

    Raises:
        SpectrumFileError: the file cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise SpectrumFileError(path, f"the file cannot be opened ({error.strerror}).") from None
    return next((file_format for file_format in FORMATS if file_format.recognise(path, head)), None)


def find_sources(paths) -> list[Path]:
    """Files and MAX trees below the given paths, folders searched to the bottom in sorted order.

    Args:
        paths (path or sequence of paths): a file that is named must be readable; in a folder, files of unknown format
            and hidden ones are passed over.

    Raises:
        SpectrumFileError: a path does not exist, a named file has an unknown format, or a folder holds no spectra.
    """
    sources = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(path)
        if path.is_dir():
            found = _sources_in_folder(path)
            if not found:
                raise SpectrumFileError(path, f"the folder must hold spectra; no file of a known format ({_names()}).")
            sources.extend(found)
        elif not path.exists():
            raise SpectrumFileError(path, "there is no such file or folder.")
        elif recognise_format(path) is None:
            raise SpectrumFileError(path, f"the format is not known; known are {_names()}.")
        else:
            sources.append(path)
    return sources


def _sources_in_folder(folder):
    if is_max_tree(folder):
        return [folder]
    sources = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            sources.extend(_sources_in_folder(path))
        elif recognise_format(path) is not None:
            sources.append(path)
    return sources


def _names():
    return ", ".join(["MAX tree"] + [file_format.name for file_format in FORMATS])


def iter_spectra(
    paths, column_mapping: ColumnMapping | None = None, on_reject: Reject | None = None
) -> Iterator[Spectrum]:
    """Spectra of a file, a folder or several of them, one at a time; memory does not grow with their number.

    Args:
        paths (path or sequence of paths): see `find_sources`.
        column_mapping (`ColumnMapping`, *optional*): for wide tables.
        on_reject (callable, *optional*): is called with the `SpectrumFileError` of every spectrum or file that cannot
            be used, and reading goes on with the next; without it the first such error is raised.
    """
    try:
        sources = find_sources(paths)
    except SpectrumFileError as error:
        reject(error, on_reject)
        return
    for source in sources:
        yield from read_source(source, column_mapping, on_reject)


def read_source(source: Path, column_mapping: ColumnMapping | None = None, on_reject: Reject | None = None):
    """Spectra of one of the paths that `find_sources` gives."""
    try:
        if source.is_dir():
            yield from read_max_tree(source, on_reject)
            return
        file_format = recognise_format(source)
        if file_format.is_table:
            yield from file_format.read(source, on_reject, column_mapping)
        else:
            yield from file_format.read(source, on_reject)
    except SpectrumFileError as error:
        reject(error, on_reject)


def read_spectra(paths, column_mapping: ColumnMapping | None = None) -> list[Spectrum]:
    """All spectra of a file, a folder or several of them, in memory.

    Raises:
        SpectrumFileError: something cannot be read; the error names file and place.
    """
    return list(iter_spectra(paths, column_mapping))
