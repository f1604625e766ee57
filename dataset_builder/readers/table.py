"""Wide tables: CSV or Parquet with one spectrum a row and one channel a column; and Parquet of our own corpora.

A `ColumnMapping` says which column is what. Without one, channels are the columns named `0`, `1`, ... or `channel_0`,
`channel_1`, ..., and columns named like a field of `Spectrum` (`sample`, `core`, `depth_mm`, `gain_kev`, ...) are it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..features import row_to_spectrum
from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, checked_spectrum, optional_number, reject

POSITION_FIELDS = ("depth_mm", "x_mm", "y_mm")
NUMBER_FIELDS = ("gain_kev", "offset_kev", "live_time_s", "real_time_s", "tube_kv", "tube_ua", *POSITION_FIELDS)
TEXT_FIELDS = ("anode", "filter", "instrument", "detector", "sample", "core")
ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class ColumnMapping:
    """Which columns of a wide table are what.

    Args:
        channels (`str` or sequence of `str`, *optional*): prefix of the channel columns, followed by the channel's
            number, or their names in order.
        columns (`dict[str, str]`): column by field of `Spectrum`, for example `{"sample": "id", "depth_mm": "depth"}`.
        constants (`dict`): value by field where all rows share it, for example `{"gain_kev": 0.02, "anode": "Rh"}`.
        targets (`dict[str, str]`): column by target name.
        target_units (`dict[str, str]`): unit by target name.

    Raises:
        ValueError: a field is unknown, or a target has no unit.
    """

    channels: str | tuple[str, ...] | None = None
    columns: dict[str, str] = field(default_factory=dict)
    constants: dict = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    target_units: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        unknown = (set(self.columns) | set(self.constants)) - {*NUMBER_FIELDS, *TEXT_FIELDS}
        if unknown:
            raise ValueError(
                f"A column mapping may name the fields {', '.join((*NUMBER_FIELDS, *TEXT_FIELDS))}; "
                f"it names {sorted(unknown)}."
            )
        without_unit = sorted(set(self.targets) - set(self.target_units))
        if without_unit:
            raise ValueError(
                f"Every target of a column mapping needs a unit in target_units; {without_unit} have none."
            )

    @classmethod
    def from_dict(cls, values: dict) -> "ColumnMapping":
        """From parsed JSON with the same names as the arguments."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"A column mapping has the keys {', '.join(cls.__dataclass_fields__)}; found {unknown}.")
        return cls(**values)

    @classmethod
    def from_json(cls, path) -> "ColumnMapping":
        """From a JSON file.

        Raises:
            ValueError: the file is not a valid mapping.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"The column mapping {path} must be a JSON file ({error}).") from None
        if not isinstance(values, dict):
            raise ValueError(f"The column mapping {path} must be a JSON object, not {type(values).__name__}.")
        return cls.from_dict(values)


def is_parquet(path: Path, head: bytes) -> bool:
    """Whether the file starts as Parquet does, or claims to be it by name."""
    return head[:4] == b"PAR1" or path.suffix.lower() == ".parquet"


def is_csv(path: Path, head: bytes) -> bool:
    """Whether the file is named as a table and its first line has several columns with a name."""
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        return False
    first_line = head.decode("utf-8", errors="replace").lstrip("\ufeff").splitlines()[:1]
    return bool(first_line) and any(separator in first_line[0] for separator in ",;\t")


def read_table(
    path: Path, on_reject: Reject | None = None, mapping: ColumnMapping | None = None
) -> Iterator[Spectrum]:
    """Read the rows of a CSV or Parquet table, a few hundred at a time.

    Raises:
        SpectrumFileError: the table cannot be read, a mapped column is missing, or a row is no valid spectrum.
    """
    frames = _parquet_frames(path) if _starts_as_parquet(path) else _csv_frames(path)
    row, layout = 0, None
    for frame in frames:
        if mapping is None and "counts" in frame.columns:
            spectra = _corpus_rows(path, frame, row, on_reject)
        else:
            layout = layout or _Layout(path, frame, mapping)
            spectra = layout.rows(frame, row, on_reject)
        yield from spectra
        row += len(frame)
    if row == 0:
        raise SpectrumFileError(path, "the table must have rows; it has none.")


def _starts_as_parquet(path):
    with open(path, "rb") as file:
        return is_parquet(path, file.read(4))


def _parquet_frames(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME):
                yield batch.to_pandas()
    except (pa.ArrowException, OSError) as error:
        message = str(error).splitlines()[0]
        raise SpectrumFileError(path, f"the Parquet file is cut off or damaged; copy it again ({message}).") from None


def _csv_frames(path):
    import pandas as pd

    with open(path, encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    separator = max(",;\t", key=header.count)
    try:
        with pd.read_csv(
            path, sep=separator, chunksize=ROWS_AT_A_TIME, encoding="utf-8-sig", low_memory=False
        ) as reader:
            yield from reader
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise SpectrumFileError(path, f"the file must be a table with one header line ({error}).") from None


def _corpus_rows(path, frame, first_row, on_reject):
    """Rows of Parquet files that this package wrote."""
    for i, row in enumerate(frame.to_dict("records")):
        try:
            spectrum = row_to_spectrum({key: _none_if_missing(value) for key, value in row.items()})
            if not np.any(spectrum.counts):
                raise ValueError("the spectrum must hold counts; all its channels are zero: remove the row.")
        except (ValueError, TypeError) as error:
            reject(SpectrumFileError(path, str(error), f"row {first_row + i}"), on_reject)
            continue
        yield spectrum


def _none_if_missing(value):
    return None if _is_missing(value) else value


def _is_missing(value):
    return value is None or (isinstance(value, float) and np.isnan(value))


class _Layout:
    """The columns of one table: checked once, then used for every chunk of rows."""

    def __init__(self, path, frame, mapping):
        self.path, self.mapping = path, mapping or ColumnMapping()
        names = [str(name) for name in frame.columns]
        self.channels = self._channel_columns(names)
        self.columns = dict(self.mapping.columns)
        if mapping is None:
            self.columns = {name: name for name in (*NUMBER_FIELDS, *TEXT_FIELDS) if name in names}
        for column in (*self.channels, *self.columns.values(), *self.mapping.targets.values()):
            if column not in names:
                raise SpectrumFileError(
                    path, f"the mapped column {column!r} must be there; found {_shortened(names)}."
                )
        used = {*self.channels, *self.columns.values(), *self.mapping.targets.values()}
        self.further = [name for name in names if name not in used]  # kept as metadata: nothing is lost

    def _channel_columns(self, names):
        channels = self.mapping.channels
        if isinstance(channels, (list, tuple)):
            return list(channels)
        prefix = "(?:channel_)?" if channels is None else re.escape(channels)
        numbered = {name: re.fullmatch(rf"{prefix}(\d+)", name) for name in names}
        found = sorted((int(match[1]), name) for name, match in numbered.items() if match)
        if not found:
            raise SpectrumFileError(
                self.path,
                f"the channel columns must be named {channels or 'channel_'}0, {channels or 'channel_'}1, ...; "
                f"found {_shortened(names)}: give a column mapping.",
            )
        first = found[0][0]
        missing = next((first + i for i, (number, _) in enumerate(found) if number != first + i), None)
        if missing is not None:
            raise SpectrumFileError(
                self.path, f"channel columns must be numbered without a gap; {missing} is missing."
            )
        return [name for _, name in found]

    def rows(self, frame, first_row, on_reject):
        """Spectra of a chunk."""
        frame = frame.rename(columns=str)
        counts = self._counts(frame, first_row)
        others = frame[[*self.columns.values(), *self.mapping.targets.values(), *self.further]].to_dict("records")
        for i, row in enumerate(others):
            place = f"row {first_row + i}"
            try:
                fields, targets = self._fields(row, place)
            except SpectrumFileError as error:
                reject(error, on_reject)
                continue
            units = {name: self.mapping.target_units[name] for name in targets}
            spectrum = checked_spectrum(
                self.path, place, on_reject, counts[i], targets=targets, target_units=units, **fields
            )
            if spectrum is not None:
                yield spectrum

    def _counts(self, frame, first_row):
        try:
            return frame[self.channels].to_numpy(dtype=np.float64)
        except (ValueError, TypeError):
            for column in self.channels:
                for i, entry in enumerate(frame[column]):
                    optional_number(self.path, f"row {first_row + i}, column {column}", entry, "the count")
            return frame[self.channels].replace(r"^\s*$", np.nan, regex=True).to_numpy(dtype=np.float64)

    def _fields(self, row, place):
        fields = dict(self.mapping.constants)
        for name, column in self.columns.items():
            if name in NUMBER_FIELDS:
                fields[name] = optional_number(self.path, f"{place}, column {column}", row[column], name)
            elif not _is_missing(row[column]):
                fields[name] = str(row[column])
        fields["metadata"] = {name: str(row[name]) for name in self.further if not _is_missing(row[name])}
        targets = {
            name: optional_number(self.path, f"{place}, column {column}", row[column], name)
            for name, column in self.mapping.targets.items()
        }
        return fields, {name: value for name, value in targets.items() if value is not None}


def _shortened(names):
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
