"""A person's table of laboratory values: find the spectra that belong to its rows, and what may vouch for what.

Three kinds of tables are told apart by their columns: spectra in columns (channels `0`, `1`, ... or `channel_0`, ...),
samples whose spectra lie in instrument files, and numbers without an energy axis, such as band reflectances. From
each comes a [`LaboratoryTable`]. `choose_splits` decides how it is validated and says why; `leakage_warnings` looks
for what would flatter the numbers.

N = spectra, T = targets.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dataset_builder.spectrum import Spectrum
from protocols_xrf import CalibrationSet, Split, formation, k_fold, leave_one_group_out, leave_one_out

# Headers that say where a row comes from, once the unit is off, in small letters and without punctuation.
PLACE_COLUMNS = {
    "file": ("file", "filename", "filepath", "spectrum", "spectrumfile", "spectrumname", "path"),
    "sample": ("sample", "sampleid", "samplename", "sampleno", "id", "name", "label", "site"),
    "core": ("core", "coreid", "corename", "hole", "borehole"),
    "depth": ("depth", "coredepth", "compositedepth", "depthincore", "position"),
    "split": ("split", "subset"),
}
MM_PER_UNIT = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
UNIT = re.compile(r"(.+?)\s*(?:[(\[]\s*(.+?)\s*[)\]]|[ _](wt%|wt\.?\s?%|ppm|mg/kg|%|mm|cm|m))")
WEIGHT_PERCENT = re.compile(r"wt\.?[ -]?%|%\s?wt|wt\.?[ -]?pct|weight[ -]?(%|percent)|mass[ -]?(%|percent)", re.I)
MISSING = {"", "-", "na", "n/a", "nan", "null", "none", "nd", "n.d.", "bdl", "b.d.l.", "lod", "<lod"}
TEST_NAMES, TRAINING_NAMES = {"test", "holdout", "hold-out"}, {"train", "training", "calibration", "validation", "val"}
DEPTH_TOLERANCE_MM = 1.0  # between the depth of a sample and that of its spectrum
LEAST_FEATURES = 3  # numeric columns that are taken for inputs unasked
SMALL_TABLE = 60  # rows; below it, each is left out in turn
MOST_FOLDS = 10
FAR_OFF = 2.5  # times the RMSE
NUM_BLOCKS = 5  # of depths, where there is one core
VALIDATIONS = ("auto", "leave_group_out", "depth_blocks", "leave_one_out", "k_fold")


class FeatureRow(Spectrum):
    """Numbers in the place of counts, without an energy axis; they may be negative."""

    def __post_init__(self):
        object.__setattr__(self, "counts", np.asarray(self.counts, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class LaboratoryTable:
    """Spectra with laboratory values and their places.

    Args:
        data (`CalibrationSet`): N spectra, those without any laboratory value among them; its groups are what stays
            together (core, or sample), `None` where nothing is named.
        target_units (`list[str]`): unit of each target, empty where the table does not say.
        group_kind (`str`, *optional*): what a group is, `"core"`, `"sample"` or the name of a column.
        files (`list[str]`): for each spectrum the file it is from.
        test_rows (`np.ndarray` of shape `(N,)`, *optional*): which rows the table itself sets aside for testing.
        feature_names (`list[str]`, *optional*): the input columns of a table without an energy axis.
        notes, warnings (`list[str]`): how the table was read, and what the reader of a result must know.
    """

    data: CalibrationSet
    target_units: list[str]
    group_kind: str | None
    files: list[str]
    test_rows: np.ndarray | None = None
    feature_names: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def target_names(self) -> list[str]:
        """The names of the T targets."""
        return list(self.data.target_names)

    @property
    def labelled(self) -> np.ndarray:
        """Row numbers of the spectra with at least one laboratory value."""
        return np.flatnonzero(~np.isnan(self.data.targets).all(axis=1))

    @property
    def depths_mm(self) -> np.ndarray:
        """`(N,)`, NaN where unknown."""
        return np.array([np.nan if s.depth_mm is None else s.depth_mm for s in self.data.spectra])


# --- the table's text ---


class Sheet:
    """Columns of a CSV or Parquet table as text; only those asked for are read."""

    def __init__(self, path: str | Path):
        from dataset_builder.readers.text import decode, split_lines

        self.path = Path(path)
        if self.path.suffix.lower() in (".xlsx", ".xls", ".ods"):
            raise ValueError(f"{self.path} is a spreadsheet; save its sheet as CSV and give that file.")
        if self.path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            self._lines, self.names = None, pyarrow.parquet.read_schema(self.path).names
            return
        self._lines = [line for line in split_lines(decode(self.path.read_bytes())) if line.strip()]
        if len(self._lines) < 2:
            raise ValueError(f"The table {self.path} must have a line of column names and rows; it has no row.")
        self._separator = max(",;\t", key=self._lines[0].count)
        self.names = [name.strip() for name in next(csv.reader(self._lines[:1], delimiter=self._separator))]
        twice = [name for name, number in Counter(self.names).items() if number > 1 and name]
        if twice:
            raise ValueError(f"Column names must be unique, but {twice[0]!r} stands twice in {self.path}; rename one.")

    def columns(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The entries of some columns, row by row."""
        if self._lines is None:
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(self.path, columns=list(names))
            return {name: ["" if entry is None else str(entry) for entry in table[name].to_pylist()] for name in names}
        places = {name: self.names.index(name) for name in names}
        found = {name: [] for name in names}
        for entries in csv.reader(self._lines[1:], delimiter=self._separator):
            for name, place in places.items():
                found[name].append(entries[place].strip() if place < len(entries) else "")
        return found


def split_header(header: str) -> tuple[str, str]:
    """Name and unit of a column: `"CaCO3 (wt.%)"` gives `("CaCO3", "wt%")`; the unit is empty where there is none."""
    match = UNIT.fullmatch(header.strip())
    if match is None:
        return header.strip(), ""
    unit = match[2] or match[3]
    return match[1], "wt%" if WEIGHT_PERCENT.fullmatch(unit) else unit


def find_target(names: Sequence[str], target: str, path) -> str:
    """The column of a target, by its header, or by its name without the unit, whatever the case.

    Raises:
        ValueError: there is none, or several.
    """
    for same in (
        lambda name: name == target,
        lambda name: split_header(name)[0] == target,
        lambda name: split_header(name)[0].casefold() == target.casefold(),
    ):
        found = [name for name in names if same(name)]
        if len(found) > 1:
            raise ValueError(f"Several columns of {path} are called {target} ({', '.join(found)}); give one in full.")
        if found:
            return found[0]
    shown = [name for name in names if not re.fullmatch(r"(channel_)?\d+", name)]
    raise ValueError(f"{path} has no column {target!r}; its columns are {', '.join(shown[:20])}: name one of these.")


def read_numbers(entries: Sequence[str], header: str, path) -> tuple[np.ndarray, int]:
    """A column of numbers, `(rows,)` with NaN where missing, and how many entries are below detection (`<0.1`), which
    count as missing.

    Raises:
        ValueError: an entry is neither a number nor a way to say that there is none.
    """
    values, below = np.full(len(entries), np.nan), 0
    for row, entry in enumerate(entries):
        if entry.casefold() in MISSING:
            continue
        if entry.startswith("<"):
            below += 1
            continue
        try:
            values[row] = float(entry.replace(",", "."))
        except ValueError:
            raise ValueError(
                f"Row {row + 1} of {path} has {entry!r} in the column {header!r}, which is no number; correct it, or "
                "leave it empty where nothing was determined."
            ) from None
        if not np.isfinite(values[row]):
            raise ValueError(f"Row {row + 1} of {path} has an infinite {header}; correct it, or leave it empty.")
    return values, below


def place_columns(names: Sequence[str]) -> dict[str, str]:
    """The columns that say where a row comes from: header by `file`, `sample`, `core`, `depth` and `split`."""
    found = {}
    for name in names:
        plain = re.sub(r"[\W_]+", "", split_header(name)[0].casefold())
        for place, spellings in PLACE_COLUMNS.items():
            if plain in spellings:
                found.setdefault(place, name)
    return found


# --- reading ---


def read_laboratory_table(
    path: str | Path,
    targets: Sequence[str],
    spectra_folder: str | Path | None = None,
    feature_columns: Sequence[str] | None = None,
    group_column: str | None = None,
    column_mapping=None,
    calibration: dict | None = None,
) -> LaboratoryTable:
    """Read a table and the spectra that belong to it.

    Args:
        path: CSV or Parquet.
        targets (`Sequence[str]`): columns with laboratory values, with or without the unit in the header.
        spectra_folder (*optional*): where the instrument files lie; by default beside the table.
        feature_columns (`Sequence[str]`, *optional*): numeric columns to take as inputs, in the place of spectra.
        group_column (`str`, *optional*): column naming what must stay together, in the place of core or sample.
        column_mapping (`dataset_builder.ColumnMapping`, *optional*): says which column of a wide table is what.
        calibration (`dict`, *optional*): `gain_kev`, `offset_kev` and `tube_kv` of spectra that do not bring theirs.

    Raises:
        ValueError: a column is missing, an entry is no number, or no spectrum belongs to any row.
    """
    from dataset_builder.readers.table import has_channel_columns

    sheet = Sheet(path)
    headers = [find_target(sheet.names, target, path) for target in targets]
    places = place_columns([name for name in sheet.names if name not in headers])
    if group_column is not None:
        places["group"] = find_target(sheet.names, group_column, path)
    entries = sheet.columns(list(dict.fromkeys([*headers, *places.values()])))
    rows = _Rows(sheet, headers, {place: entries[name] for place, name in places.items()}, entries)
    if "depth" in places:
        rows.read_depths(places["depth"])
    notes, warnings = [], list(rows.warnings)
    feature_names, matched = None, None
    if feature_columns is not None:
        feature_names = [find_target(sheet.names, name, path) for name in feature_columns]
    elif has_channel_columns(sheet.path, column_mapping):
        spectra, files, matched = _wide_rows(sheet, column_mapping)
        notes.append(f"{len(spectra)} spectra in the rows of {sheet.path.name}.")
    else:
        folder = Path(spectra_folder) if spectra_folder is not None else sheet.path.parent
        spectra, files, unreadable = _spectra_below(folder)
        if unreadable:
            warnings.append(f"{len(unreadable)} files or spectra could not be read; the first: {unreadable[0]}")
        how, matched = match_rows(rows.places, rows.depths_mm, spectra, files)
        if (matched < 0).all():
            if spectra_folder is None:
                feature_names = _numeric_columns(sheet, {*headers, *places.values()})
            if not feature_names:
                raise ValueError(_nothing_matched(sheet, rows, spectra, files, folder))
            warnings.append(
                f"No spectrum beside the table belongs to one of its rows, so its {len(feature_names)} numeric "
                f"columns ({_some(feature_names)}) are the inputs; if spectra were meant, name their folder with "
                "--spectra."
            )
        else:
            notes.append(_how_matched(rows, matched, how, spectra, folder))
    if feature_names is not None:
        spectra, files, matched = _feature_rows(sheet, feature_names)
        notes.append(f"{len(spectra)} rows with {len(feature_names)} inputs each: {_some(feature_names, 12)}.")
    table = _assembled(sheet, rows, [split_header(header)[0] for header in headers], spectra, files, matched)
    filled = [_completed(spectrum, calibration or {}) for spectrum in table.data.spectra]
    return replace(
        table,
        data=replace(table.data, spectra=filled),
        target_units=[split_header(header)[1] for header in headers],
        group_kind=table.group_kind if group_column is None else places["group"],
        feature_names=feature_names,
        notes=notes,
        warnings=warnings + table.warnings,
    )


class _Rows:
    """What the rows of a sheet say: places by kind, labels `(rows, T)`, depths in mm `(rows,)`."""

    def __init__(self, sheet, headers, places, entries):
        self.places, self.warnings = places, []
        columns = []
        for header in headers:
            values, below = read_numbers(entries[header], header, sheet.path)
            columns.append(values)
            if below:
                self.warnings.append(f"{below} values of {header} are below detection and count as missing.")
        self.labels = np.stack(columns, axis=1)
        self.depths_mm = np.full(len(self.labels), np.nan)
        self._path = sheet.path

    def __len__(self):
        return len(self.labels)

    def read_depths(self, header):
        name, unit = split_header(header)
        self.depths_mm, _ = read_numbers(self.places["depth"], header, self._path)
        if unit not in MM_PER_UNIT:
            self.warnings.append(f"The unit of {header!r} is not known; mm is assumed: write 'depth (cm)' otherwise.")
        self.depths_mm *= MM_PER_UNIT.get(unit, 1.0)


def _wide_rows(sheet, mapping):
    """Spectra of a wide table, the file of each, and its row."""
    from dataset_builder import read_spectra

    spectra = read_spectra(sheet.path, mapping)
    return spectra, [sheet.path.name] * len(spectra), np.arange(len(spectra))


def _feature_rows(sheet, names):
    columns = sheet.columns(names)
    values = np.stack([read_numbers(columns[name], name, sheet.path)[0] for name in names], axis=1)
    for row, column in np.argwhere(np.isnan(values)):
        raise ValueError(
            f"Row {row + 1} of {sheet.path} has no {names[column]}; fill it in, leave the row out, or choose other "
            "columns with --features."
        )
    rows = [FeatureRow(row, source=sheet.path.name) for row in values]
    return rows, [sheet.path.name] * len(rows), np.arange(len(rows))


def _numeric_columns(sheet, others) -> list[str]:
    """Columns of nothing but numbers, where there are enough of them to be inputs."""
    names = [name for name in sheet.names if name and name not in others]
    numeric = []
    for name, entries in sheet.columns(names).items():
        try:
            values, _ = read_numbers(entries, name, sheet.path)
        except ValueError:
            continue
        if not np.isnan(values).any():
            numeric.append(name)
    return numeric if len(numeric) >= LEAST_FEATURES else []


def _spectra_below(folder: Path):
    """All spectra of the instrument files of a folder, the file of each (its path below the folder), and what could
    not be read."""
    from dataset_builder.readers import find_sources, read_source
    from dataset_builder.spectrum import SpectrumFileError

    spectra, files, unreadable = [], [], []
    if not folder.is_dir():
        raise ValueError(f"There is no folder of spectra {folder}; give the one of the instrument files.")
    try:
        sources = find_sources(folder)
    except SpectrumFileError:  # the folder holds none
        sources = []
    for source in sources:
        for spectrum in read_source(source, None, unreadable.append):
            spectra.append(spectrum)
            files.append(source.relative_to(folder).as_posix())
    return spectra, files, unreadable


def match_rows(places: dict, depths_mm: np.ndarray, spectra: Sequence[Spectrum], files: Sequence[str]):
    """Which row of the table each spectrum belongs to: by the way, among file name, sample name, and core with depth,
    that matches the most spectra.

    A spectrum may only belong to rows of one sample; of several rows it gets the first.

    Args:
        places (`dict[str, list[str]]`): entries of the columns `file`, `sample` and `core` that the table has.
        depths_mm (`np.ndarray` of shape `(rows,)`): NaN where unknown.
        files (`Sequence[str]`): for each spectrum, its file below the folder.

    Returns:
        how the spectra were matched, and the row of each `(N,)`, -1 where none.
    """
    ways = {}
    if "file" in places:
        by_name = _first_row_of(places["file"])
        ways["file name"] = [_row_of(by_name, _file_names(file)) for file in files]
    if "sample" in places:
        by_name = _first_row_of(places["sample"])
        ways["sample name"] = [
            _row_of(by_name, [spectrum.sample, *_file_names(file)]) for spectrum, file in zip(spectra, files)
        ]
    if not np.isnan(depths_mm).all():
        ways["core and depth"] = _rows_by_depth(places.get("core"), depths_mm, spectra)
    best, rows = max(
        ways.items(), key=lambda way: sum(row >= 0 for row in way[1]), default=("nothing", [-1] * len(spectra))
    )
    return best, np.array(rows, dtype=np.int64)


def _plain(name: str) -> str:
    return " ".join(name.replace("\\", "/").split()).casefold()


def _first_row_of(names) -> dict[str, int]:
    found = {}
    for row, name in enumerate(names):
        if name:
            found.setdefault(_plain(name), row)
    return found


def _file_names(file: str) -> list[str]:
    path = Path(file)
    return [file, str(path.with_suffix("")), path.name, path.stem]


def _row_of(by_name: dict[str, int], names) -> int:
    return next((by_name[_plain(name)] for name in names if name and _plain(name) in by_name), -1)


def _rows_by_depth(cores, depths_mm, spectra) -> list[int]:
    rows = []
    for spectrum in spectra:
        distance = np.full(len(depths_mm), np.inf)
        if spectrum.depth_mm is not None:
            distance = np.nan_to_num(np.abs(depths_mm - spectrum.depth_mm), nan=np.inf)
        if cores is not None:
            of_core = [spectrum.core is not None and _plain(core) == _plain(spectrum.core) for core in cores]
            distance = np.where(of_core, distance, np.inf)
        nearest = int(np.argmin(distance))
        rows.append(nearest if distance[nearest] <= DEPTH_TOLERANCE_MM else -1)
    return rows


def _how_matched(rows, matched, how, spectra, folder) -> str:
    number = len(np.unique(matched[matched >= 0]))
    text = f"{number} of {len(rows)} rows matched {int((matched >= 0).sum())} of {len(spectra)} spectra in {folder} "
    text += f"by {how}."
    missing = [row for row in range(len(rows)) if row not in set(matched.tolist())]
    if missing:
        names = next((rows.places[kind] for kind in ("file", "sample") if kind in rows.places), None)
        shown = [names[row] or f"row {row + 1}" if names else f"row {row + 1}" for row in missing]
        text += f" Without a spectrum: {_some(shown)}."
    return text


def _nothing_matched(sheet, rows, spectra, files, folder) -> str:
    if not spectra:
        return (
            f"{sheet.path} has no channel columns and no spectrum of a known format lies in {folder}; give the folder "
            "of the instrument files with --spectra, or numeric input columns with --features."
        )
    said = [f"{kind} {entries[0]!r}" for kind, entries in rows.places.items() if kind in ("file", "sample", "core")]
    found = f"file {files[0]!r}" + (f", sample {spectra[0].sample!r}" if spectra[0].sample else "")
    return (
        f"None of the {len(rows)} rows of {sheet.path} belongs to one of the {len(spectra)} spectra in {folder}: the "
        f"table says {' and '.join(said) or 'neither file, sample nor core'}, the spectra say {found}; add a column "
        "'file' with the spectra's file names, or one 'sample' with their sample names."
    )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _completed(spectrum: Spectrum, calibration: dict) -> Spectrum:
    missing = {
        name: value for name, value in calibration.items() if value is not None and getattr(spectrum, name) is None
    }
    return replace(spectrum, **missing)


def _assembled(sheet, rows: _Rows, names, spectra, files, matched) -> LaboratoryTable:
    """Labels and places of the table with the spectra they belong to."""
    labels = np.where((matched >= 0)[:, None], rows.labels[matched], np.nan)
    placed, warnings = [], []
    for spectrum, row in zip(spectra, matched):
        known = {}
        if row >= 0:
            for kind in ("sample", "core"):
                if rows.places.get(kind, [""] * len(rows))[row]:
                    known[kind] = rows.places[kind][row]
            if not np.isnan(rows.depths_mm[row]):
                known["depth_mm"] = float(rows.depths_mm[row])
        placed.append(replace(spectrum, targets={}, target_units={}, **known))
    cores = np.array([spectrum.core or "" for spectrum in placed], dtype=object)
    samples = np.array([spectrum.sample or "" for spectrum in placed], dtype=object)
    labelled = ~np.isnan(labels).all(axis=1)
    if not labelled.any():
        raise ValueError(f"{sheet.path} has no laboratory value of {', '.join(names)} for any spectrum; fill some in.")
    groups, kind = None, None
    if "group" in rows.places:
        column = np.array([rows.places["group"][row] if row >= 0 else "" for row in matched], dtype=object)
        groups, kind = column, "group"
    elif (cores[labelled] != "").all():
        groups, kind = cores, "core"
    elif (samples[labelled] != "").all():
        groups, kind = samples, "sample"
    if groups is not None and (groups[labelled] == "").any():
        row = int(np.flatnonzero(labelled & (groups == ""))[0]) + 1
        raise ValueError(f"Row {row} of {sheet.path} has no {kind}, so it cannot be kept apart; fill it in.")
    twice = [name for name, number in Counter(rows.places.get("sample", [])).items() if name and number > 1]
    if twice and "core" not in rows.places:
        warnings.append(f"Samples that stand on several rows ({_some(twice)}): they stay together in every split.")
    split = rows.places.get("split")
    test_rows = None
    if split is not None:
        test = [entry.casefold() in TEST_NAMES for entry in split]
        unknown = [entry for entry in split if entry and entry.casefold() not in TEST_NAMES | TRAINING_NAMES]
        if any(test) and not unknown:
            test_rows = np.array([row >= 0 and test[row] for row in matched])
        elif unknown:
            warnings.append(f"The column of splits says {unknown[0]!r}, neither train nor test; it is not used.")
    names_of_samples = np.array([_sample_name(spectrum, row) for row, spectrum in enumerate(placed)])
    data = CalibrationSet(placed, labels, names, names_of_samples, None if groups is None else groups.astype(str))
    return LaboratoryTable(data, [], kind, list(files), test_rows, warnings=warnings)


def _sample_name(spectrum: Spectrum, row: int) -> str:
    """The sample's name, or its place."""
    if spectrum.sample:
        return spectrum.sample
    if spectrum.depth_mm is None:
        return f"row {row + 1}"
    return f"{spectrum.core + ' ' if spectrum.core else ''}{spectrum.depth_mm:g} mm"


# --- validation ---


@dataclass(frozen=True)
class Validation:
    """How a table is validated.

    Args:
        splits (`list[Split]`): rows of the table, each labelled row tested once (or those of its own test split);
            spectra without a value are predicted with the group or block of depths that they belong to.
        description (`str`): one line for people.
        warnings (`list[str]`): why the numbers may flatter.
    """

    splits: list[Split]
    description: str
    warnings: list[str]


def choose_splits(table: LaboratoryTable, validation: str = "auto", seed: int = 0) -> Validation:
    """Splits in which nothing that is tested has a relative among what is learnt from, as far as the table can tell.

    `auto` takes the table's own test split, else leaves out whole groups, else blocks of neighbouring depths of the
    one core, else single rows of a small table, else folds of rows, with a warning.

    Raises:
        ValueError: the table does not have what the validation needs.
    """
    rows, groups = table.labelled, table.data.groups
    if validation == "auto" and table.test_rows is not None:
        splits = [Split(rows[~table.test_rows[rows]], rows[table.test_rows[rows]])]
        text = f"the table's own split: {len(splits[0].training)} rows to learn from, {len(splits[0].test)} to test"
        return Validation(splits, text, [])
    groups = None if groups is None else groups[rows]
    number = 0 if groups is None else len(np.unique(groups))
    single = number == len(rows)  # every row is a group of its own
    has_depths = not np.isnan(table.depths_mm[rows]).any() and len(np.unique(table.depths_mm[rows])) >= NUM_BLOCKS
    one_core = has_depths and (number == 1 or groups is None)
    if validation == "auto":
        if number > 1 and not single:
            validation = "leave_group_out"
        elif one_core:
            validation = "depth_blocks"
        else:
            validation = "leave_one_out" if len(rows) < SMALL_TABLE else "k_fold"
    warnings, kind = [], table.group_kind
    if validation == "leave_group_out":
        if number < 2:
            raise ValueError(
                f"leave_group_out needs at least two groups, but the table names {number}; add a column 'core', name "
                "one with --group_column, or choose depth_blocks or leave_one_out."
            )
        folds = number if number <= 2 * MOST_FOLDS else MOST_FOLDS
        splits = leave_one_group_out(groups) if folds == number else k_fold(len(rows), folds, seed, groups)
        text = f"each {kind} predicted from the others ({number} in {folds} folds)"
    elif validation == "depth_blocks":
        if not has_depths:
            raise ValueError(f"depth_blocks needs a depth for every labelled row and {NUM_BLOCKS} different ones.")
        splits = depth_blocks(table.depths_mm[rows], groups)
        text = f"{NUM_BLOCKS} blocks of neighbouring depths, each predicted from the others"
        warnings.append(
            "There is one core only: its blocks share everything but depth, so the numbers do not tell how another "
            "core would be predicted."
        )
    elif validation == "leave_one_out":
        splits, text = leave_one_out(len(rows)), f"each of {len(rows)} rows predicted from the others"
        if number > 1 and not single:
            warnings.append(f"Rows of one {kind} vouch for each other in leave_one_out; prefer leave_group_out.")
    else:
        folds = min(MOST_FOLDS, number or len(rows))
        splits = k_fold(len(rows), folds, seed, groups if number > 1 else None)
        text = f"{folds} folds of {'whole groups' if number > 1 and not single else 'single rows'}"
    if validation in ("leave_one_out", "k_fold") and (number <= 1 or single):
        warnings.append(
            "No core or other group is named, so neighbours may stand on both sides of a split and flatter the "
            "numbers; name what belongs together in a column 'core', or with --group_column."
        )
        warnings += _likely_groups(table.data.samples[rows])
    splits = [Split(rows[split.training], rows[split.test]) for split in splits]
    if validation in ("leave_group_out", "depth_blocks"):
        splits = _with_unlabelled(table, splits, by_depth=validation == "depth_blocks")
    return Validation(splits, text, warnings)


def _with_unlabelled(table: LaboratoryTable, splits, by_depth: bool) -> list[Split]:
    """The splits with, among the tested rows, those without a value: of the groups that are tested, or nearest in
    depth to a tested row."""
    unlabelled = np.setdiff1d(np.arange(len(table.data)), table.labelled)
    split_of = {row: number for number, split in enumerate(splits) for row in split.test}
    if by_depth:
        unlabelled = unlabelled[~np.isnan(table.depths_mm[unlabelled])]
        distances = np.abs(table.depths_mm[unlabelled, None] - table.depths_mm[table.labelled])
        number = np.array([split_of[table.labelled[nearest]] for nearest in distances.argmin(axis=1)], dtype=int)
    else:
        groups = {table.data.groups[row]: number for row, number in split_of.items()}
        number = np.array([groups.get(table.data.groups[row], -1) for row in unlabelled], dtype=int)
    return [
        Split(split.training, np.sort(np.concatenate([split.test, unlabelled[number == place]])))
        for place, split in enumerate(splits)
    ]


def _likely_groups(samples) -> list[str]:
    """A hint, where sample names look like those of cores or formations with a depth or number behind."""
    try:
        stems = [formation(sample) for sample in samples]
    except ValueError:
        stems = [match[0] if (match := re.match(r"[^\W\d]+[-_ ]?\d+", sample)) else "" for sample in samples]
    shared = [stem for stem, number in Counter(stems).items() if stem and stem != "row" and number > 1]
    if not shared:
        return []
    return [f"The samples' names look as if some belonged together ({_some(shared)})."]


def depth_blocks(depths_mm, cores=None, num_blocks: int = NUM_BLOCKS) -> list[Split]:
    """Contiguous blocks of depths of about equal size, each predicted from the others; equal depths stay together.

    Args:
        depths_mm (array-like of shape `(N,)`): depth of each row.
        cores (array-like of shape `(N,)`, *optional*): blocks are cut core by core.
    """
    depths_mm = np.asarray(depths_mm, dtype=np.float64)
    cores = np.zeros(len(depths_mm)) if cores is None else np.asarray(cores)
    block = np.empty(len(depths_mm), dtype=np.int64)
    for core in np.unique(cores):
        members = np.flatnonzero(cores == core)
        different, rank = np.unique(depths_mm[members], return_inverse=True)
        block[members] = rank * num_blocks // len(different)
    rows = np.arange(len(depths_mm))
    return [Split(rows[block != number], rows[block == number]) for number in np.unique(block)]


def leakage_warnings(table: LaboratoryTable, splits: Sequence[Split]) -> list[str]:
    """What stands on both sides of a split although it should not: samples of one name, neighbouring depths of one
    core, and spectra closer than counting noise lets two measurements be."""
    warnings = []
    samples, depths_mm = table.data.samples, table.depths_mm
    splits = [Split(split.training, np.intersect1d(split.test, table.labelled)) for split in splits]
    cores = np.array([spectrum.core or "" for spectrum in table.data.spectra])
    shared, neighbours, tested = set(), 0, 0
    for split in splits:
        shared |= set(samples[split.training]) & set(samples[split.test])
        tested += len(split.test)
        neighbours += _neighbours(cores, depths_mm, split)
    if shared:
        warnings.append(f"{len(shared)} samples are measured on both sides of a split ({_some(sorted(shared))}).")
    if neighbours:
        warnings.append(
            f"{neighbours} of {tested} tested rows have a neighbour of the same core, next to them in depth, among "
            "the rows learnt from; such rows are easier than those of another core."
        )
    if table.feature_names is None:
        copies = _near_copies(table, splits)
        if copies:
            shown = [f"{samples[left]} and {samples[right]}" for left, right in copies]
            warnings.append(
                f"{len(copies)} pairs of spectra across a split are alike beyond counting noise, as copies are "
                f"({_some(shown, 3)}); remove one of each, or give both one name."
            )
    return warnings


def _neighbours(cores, depths_mm, split) -> int:
    """How many tested rows stand, in the order of depth, beside a training row of the same core."""
    number = 0
    for core in np.unique(cores[split.test]):
        sides = [
            (depths_mm[row], side)
            for side in (0, 1)
            for row in (split.training, split.test)[side]
            if cores[row] == core
        ]
        sides = sorted(pair for pair in sides if not np.isnan(pair[0]))
        for place, (_, side) in enumerate(sides):
            beside = sides[max(place - 1, 0) : place + 2]
            number += side == 1 and any(other == 0 for _, other in beside)
    return number


def _near_copies(table, splits) -> list[tuple[int, int]]:
    from dataset_builder.near_copies import coarse_counts, counting_noise, near_copies

    rows = np.unique(np.concatenate([np.concatenate([split.training, split.test]) for split in splits]))
    spectra = [table.data.spectra[row] for row in rows]
    if any(spectrum.gain_kev is None or spectrum.offset_kev is None for spectrum in spectra):
        return []
    coarse = np.stack([coarse_counts(s.counts, s.gain_kev, s.offset_kev) for s in spectra])
    noise = np.array([counting_noise(s.counts, s.gain_kev) for s in spectra])
    sides = np.full(len(rows), -1)
    for number, split in enumerate(splits):
        sides[np.isin(rows, split.test)] = number
    pairs = {
        tuple(sorted((int(rows[left]), int(rows[right])))) for left, right, _ in near_copies(coarse, noise, sides)
    }
    return sorted(pairs)


# --- in words ---


def describe(table: LaboratoryTable) -> list[tuple[str, str]]:
    """Facts of the data for people: name and value."""
    data, rows = table.data, table.labelled
    spectra = data.spectra
    facts = [("table", " ".join(table.notes))]
    for column, (name, unit) in enumerate(zip(data.target_names, table.target_units)):
        values = data.targets[~np.isnan(data.targets[:, column]), column]
        text = f"{len(values)} values, {values.min():.4g} to {values.max():.4g}, median {np.median(values):.4g}"
        facts.append((name, f"{text} {unit}".strip()))
    if len(spectra) > len(rows):
        facts.append(("without a value", f"{len(spectra) - len(rows)}, predicted by the final model"))
    if data.groups is not None:
        groups = np.unique(data.groups[rows])
        if len(groups) < len(rows):
            facts.append((f"{table.group_kind}s", f"{len(groups)}: {_some(groups, 8)}"))
    depths_mm = table.depths_mm[~np.isnan(table.depths_mm)]
    if len(depths_mm):
        facts.append(("depths", f"{depths_mm.min():g} to {depths_mm.max():g} mm"))
    if table.feature_names is not None:
        return facts
    grids = Counter(
        f"{s.counts.size} channels of {1000 * s.gain_kev:.4g} eV from {s.offset_kev:.3g} keV"
        for s in spectra
        if s.gain_kev is not None and s.offset_kev is not None
    )
    settings = Counter(
        ", ".join(
            part
            for part in (s.instrument, s.anode and f"{s.anode} tube", s.tube_kv and f"{s.tube_kv:g} kV", s.filter)
            if part
        )
        for s in spectra
    )
    counts = np.array([s.total_counts for s in spectra])
    facts.append(("energy grid", _counted(grids)))
    if set(settings) != {""}:
        facts.append(("instrument", _counted(settings)))
    facts.append(
        ("counts in a spectrum", f"{counts.min():,.0f} to {counts.max():,.0f}, median {np.median(counts):,.0f}")
    )
    return facts


def _counted(found: Counter) -> str:
    """The commonest of several descriptions, with their numbers where they differ."""
    if len(found) == 1:
        return next(iter(found))
    shown = [f"{text or 'not stated'} ({number})" for text, number in found.most_common(3)]
    return "; ".join(shown) + (f"; {len(found) - 3} more" if len(found) > 3 else "")


def doubtful_predictions(table: LaboratoryTable, values, unfamiliar, tested, learnt, column: int) -> list[str]:
    """Sentences on the predictions of one target to be careful with: far off the laboratory value, outside the range
    of the labels, or of spectra unlike those that were learnt from.

    Args:
        values (`np.ndarray` of shape `(N, T)`): predictions.
        unfamiliar (`np.ndarray` of bool, shape `(N,)`, *optional*): what the model says of the spectra.
        tested, learnt (`np.ndarray`): rows that were predicted out of group, and rows of the final model's labels.
    """
    labels, predicted, samples = table.data.targets[:, column], values[:, column], table.data.samples
    unit, sentences = table.target_units[column], []
    errors = np.abs(predicted - labels)[tested]
    far = tested[np.nan_to_num(errors) > FAR_OFF * np.sqrt(np.nanmean(errors**2))]
    if len(far):
        far = far[np.argsort(-np.abs(predicted - labels)[far])]
        shown = [f"{samples[row]} (laboratory {labels[row]:.3g}, predicted {predicted[row]:.3g})" for row in far]
        sentences.append(f"Far off, worth a look at the sample and its label: {_some(shown, 3)}.")
    lowest, highest = np.nanmin(labels[learnt]), np.nanmax(labels[learnt])
    margin = np.sqrt(np.nanmean(errors**2))  # within its error a prediction may pass the last label
    outside = np.flatnonzero((predicted < lowest - margin) | (predicted > highest + margin))
    if len(outside):
        sentences.append(
            f"{len(outside)} of {len(predicted)} predictions lie well outside the labels' range, {lowest:.3g} to "
            f"{highest:.3g}{f' {unit}' if unit else ''}, where nothing was learnt: {_some(samples[outside], 3)}."
        )
    if unfamiliar is not None and unfamiliar.any():
        rows = np.flatnonzero(unfamiliar)
        sentences.append(
            f"{len(rows)} of {len(unfamiliar)} spectra are unlike those with a label ({_some(samples[rows], 3)}); "
            "measure some of them in the laboratory."
        )
    return sentences
