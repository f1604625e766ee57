"""MAX's tree of one CSV file per spectrum (arXiv 2410.12330): Avaatech core scanner, marine sediment.

A folder holds `info.csv` (and often `val.csv`, the rows set apart for validation), `spe/N.csv` with one count a line,
and, for fine-tuning, `target/N.csv` with one value in wt%. `dirname` in the info files is the name `N.csv`; other
columns are `core` and a depth. The target's name is that of a folder above, such as `CaCO3%/train`.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, checked_spectrum, numbers, optional_number, reject
from .text import read_text, split_lines

INFO_FILES = ("info.csv", "val.csv")
DEPTH_COLUMNS = ("composite_depth_mm", "mid_depth_mm", "depth_mm")
NUM_CHANNELS = 2048
MAX_BYTES = 2**20  # of one spectrum, whose 2048 lines usually take 20 kB
ACQUISITION = {
    "gain_kev": 0.02,
    "offset_kev": 0.0,
    "live_time_s": 10.0,
    "tube_kv": 10.0,
    "tube_ua": 150.0,
    "anode": "Rh",
    "instrument": "Avaatech core scanner",
}
"""The one condition of all of MAX's spectra; the files do not repeat it."""


def is_max_tree(folder: Path) -> bool:
    """Whether the folder has an info file and a `spe` folder beside it."""
    return (folder / "info.csv").is_file() and (folder / "spe").is_dir()


def read_max_tree(folder: Path, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """Read the spectra in the order of `info.csv`, then of `val.csv`.

    Raises:
        SpectrumFileError: a listed file is missing or has not 2048 counts, or a target cannot be read.
    """
    target_name = _target_name(folder)
    for info_path in (folder / name for name in INFO_FILES):
        if not info_path.is_file():
            continue
        for place, row in _info_rows(info_path):
            try:
                spectrum = _read_row(folder, info_path, place, row, target_name, on_reject)
            except SpectrumFileError as error:
                reject(error, on_reject)
                continue
            if spectrum is not None:
                yield spectrum


def _info_rows(path):
    """Place and entries by column of every line."""
    lines = split_lines(read_text(path))
    rows = csv.DictReader(lines)
    try:
        if "dirname" not in (rows.fieldnames or ()):
            raise SpectrumFileError(path, f"a column dirname must be there; found {str(rows.fieldnames)[:200]}.")
        for row in rows:
            further = row.pop(None, None)
            if further is not None:
                message = f"a line must have as many entries as the header; {further[:3]} are too many."
                raise SpectrumFileError(path, message, f"line {rows.line_num}")
            yield f"line {rows.line_num}", row
    except csv.Error as error:
        raise SpectrumFileError(path, f"the file must be a table ({error}).", f"line {rows.line_num}") from None


def _target_name(folder):
    if not (folder / "target").is_dir():
        return None
    parents = [folder.name, *(parent.name for parent in folder.resolve().parents)]
    name = next((name for name in parents if name.rstrip("%") in ("CaCO3", "TOC") or name.endswith("%")), None)
    if name is None:
        raise SpectrumFileError(
            folder / "target", "the target's name must be that of a folder above, such as CaCO3% or TOC%: rename one."
        )
    return name.rstrip("%")


def _read_row(folder, info_path, place, row, target_name, on_reject):
    name = row["dirname"] or ""
    if not name.endswith(".csv") or Path(name).name != name or "\0" in name:
        raise SpectrumFileError(info_path, f"dirname must be the name of a .csv file in spe; found {name!r}.", place)
    path = folder / "spe" / name
    entries = _entries(path)
    if len(entries) != NUM_CHANNELS:
        raise SpectrumFileError(path, f"a spectrum must have {NUM_CHANNELS} lines; found {len(entries)}.")
    counts = numbers(path, None, entries, "the count in channel")
    targets = {}
    if target_name is not None:
        target_path = folder / "target" / name
        entries = _entries(target_path)
        if len(entries) != 1:
            raise SpectrumFileError(target_path, f"a target must be one number; found {len(entries)}.")
        value = optional_number(target_path, None, entries[0], target_name)
        targets = {} if value is None else {target_name: value}
    depth = next((row[column] for column in DEPTH_COLUMNS if row.get(column)), None)
    known = ("dirname", "core", "composite_id", *DEPTH_COLUMNS[:2])
    return checked_spectrum(
        path,
        None,
        on_reject,
        counts,
        sample=row.get("composite_id") or None,
        core=row.get("core") or None,
        depth_mm=optional_number(info_path, place, depth, "the depth"),
        targets=targets,
        target_units=dict.fromkeys(targets, "wt%"),
        metadata={key: value for key, value in row.items() if key not in known and value},
        **ACQUISITION,
    )


def _entries(path):
    """The words of a file of one spectrum or one target."""
    return read_text(path, MAX_BYTES).split()
