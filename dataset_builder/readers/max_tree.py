"""MAX's tree of one CSV file per spectrum (arXiv 2410.12330): Avaatech core scanner, marine sediment.

A folder holds `info.csv` (and often `val.csv`, the rows set apart for validation), `spe/N.csv` with one count a line,
and, for fine-tuning, `target/N.csv` with one value in wt%. `dirname` in the info files is the name `N.csv`; other
columns are `core` and a depth. The target's name is that of a folder above, such as `CaCO3%/train`.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, checked_spectrum, optional_number, reject

INFO_FILES = ("info.csv", "val.csv")
DEPTH_COLUMNS = ("composite_depth_mm", "mid_depth_mm", "depth_mm")
NUM_CHANNELS = 2048
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
        with open(info_path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "dirname" not in (rows.fieldnames or ()):
                raise SpectrumFileError(info_path, f"a column dirname must be there; found {rows.fieldnames}.")
            for row in rows:
                try:
                    spectrum = _read_row(folder, info_path, f"line {rows.line_num}", row, target_name, on_reject)
                except SpectrumFileError as error:
                    reject(error, on_reject)
                    continue
                if spectrum is not None:
                    yield spectrum


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
    if not name or Path(name).name != name:
        raise SpectrumFileError(info_path, f"dirname must be the name of a file in spe; found {name!r}.", place)
    path = folder / "spe" / name
    counts = _numbers(path)
    if counts.size != NUM_CHANNELS:
        raise SpectrumFileError(path, f"a spectrum must have {NUM_CHANNELS} lines; found {counts.size}.")
    targets = {}
    if target_name is not None:
        values = _numbers(folder / "target" / name)
        if values.size != 1:
            raise SpectrumFileError(folder / "target" / name, f"a target must be one number; found {values.size}.")
        if np.isfinite(values[0]):
            targets = {target_name: float(values[0])}
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
        metadata={key: value for key, value in row.items() if key and key not in known and value},
        **ACQUISITION,
    )


def _numbers(path):
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpectrumFileError(path, f"the file is listed but cannot be read ({error.strerror}).") from None
    numbers = []
    for line, entry in enumerate(text.split(), start=1):
        try:
            numbers.append(float(entry))
        except ValueError:
            raise SpectrumFileError(path, f"every line must be a number; found {entry!r}.", f"line {line}") from None
    return np.array(numbers)
