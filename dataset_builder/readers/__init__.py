"""Readers: files, folders and tables of spectra, recognised by what they hold.

To add a format, write one module with `is_<format>(path, head)` and `read_<format>(path, on_reject)` and list it in
`FORMATS`, the more particular formats first.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..spectrum import Spectrum, SpectrumFileError
from .amptek_mca import is_amptek_mca, read_amptek_mca
from .avaatech_spe import is_avaatech_spe, read_avaatech_spe
from .bruker_pdz import is_bruker_pdz, read_bruker_pdz
from .bruker_spx import is_bruker_spx, read_bruker_spx
from .checks import Reject, reject
from .emsa_msa import is_emsa_msa, read_emsa_msa
from .fits_table import is_fits, read_fits
from .gsecars_mca import is_gsecars_mca, read_gsecars_mca
from .itrax_spe import is_itrax_spe, read_itrax_spe
from .max_tree import is_max_tree, read_max_tree
from .npz import is_npz, read_npz
from .olympus_csv import is_olympus_csv, read_olympus_csv
from .panalytical_mp2 import is_panalytical_mp2, read_panalytical_mp2
from .qxas_spe import is_qxas_spe, read_qxas_spe
from .s1pxrf import is_s1pxrf, read_s1pxrf
from .shimadzu_csv import is_shimadzu_csv, read_shimadzu_csv
from .table import ColumnMapping, has_channel_columns, is_csv, is_parquet, read_table

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
    Format("Bruker pdz", is_bruker_pdz, read_bruker_pdz),
    Format("Bruker spx", is_bruker_spx, read_bruker_spx),
    Format("Bruker S1PXRF", is_s1pxrf, read_s1pxrf),
    Format("Olympus CSV", is_olympus_csv, read_olympus_csv),
    Format("Panalytical mp2", is_panalytical_mp2, read_panalytical_mp2),
    Format("EMSA/MAS msa", is_emsa_msa, read_emsa_msa),
    Format("Shimadzu profile CSV", is_shimadzu_csv, read_shimadzu_csv),
    Format("Amptek mca", is_amptek_mca, read_amptek_mca),
    Format("GSECARS mca", is_gsecars_mca, read_gsecars_mca),
    Format("FITS table", is_fits, read_fits),
    Format("Avaatech spe", is_avaatech_spe, read_avaatech_spe),
    Format("Itrax spe", is_itrax_spe, read_itrax_spe),
    Format("QXAS spe", is_qxas_spe, read_qxas_spe),
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


def find_sources(paths, column_mapping: ColumnMapping | None = None) -> list[Path]:
    """Files and MAX trees below the given paths, folders searched to the bottom in sorted order.

    Args:
        paths (path or sequence of paths): a file that is named must be readable; in a folder, files of unknown
            format, hidden ones, and tables without channel columns, such as results or concentrations beside the
            spectra, are passed over.
        column_mapping (`ColumnMapping`, *optional*): says which columns of a wide table are channels.

    Raises:
        SpectrumFileError: a path does not exist, a named file has an unknown format, or a folder holds no spectra.
    """
    sources = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(path)
        if path.is_dir():
            found = _sources_in_folder(path, column_mapping)
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


def _sources_in_folder(folder, mapping):
    if is_max_tree(folder):
        return [folder]
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise SpectrumFileError(folder, f"the folder cannot be read ({error.strerror}).") from None
    sources = []
    for path in paths:
        if path.is_dir():
            sources.extend(_sources_in_folder(path, mapping))
        elif path.is_file() and _holds_spectra(path, mapping):
            sources.append(path)
    return sources


def _holds_spectra(path, mapping):
    file_format = recognise_format(path)
    return file_format is not None and (not file_format.is_table or has_channel_columns(path, mapping))


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
        sources = find_sources(paths, column_mapping)
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
        if file_format is None:
            raise SpectrumFileError(source, f"the format is not known; known are {_names()}.")
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
