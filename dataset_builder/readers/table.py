"""Wide tables: CSV or Parquet with one spectrum a row and one channel a column; and Parquet of our own corpora.

A `ColumnMapping` says which column is what. Without one, channels are the columns named `0`, `1`, ... or `channel_0`,
`channel_1`, ..., and columns named like a field of `Spectrum` (`sample`, `core`, `depth_mm`, `gain_kev`, ...) are it.
"""

import codecs
import contextlib
import csv
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..features import row_to_spectrum
from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, check_plausible, checked_spectrum, optional_number, reject
from .text import decode, split_lines

POSITION_FIELDS = ("depth_mm", "x_mm", "y_mm")
NUMBER_FIELDS = ("gain_kev", "offset_kev", "live_time_s", "real_time_s", "tube_kv", "tube_ua", *POSITION_FIELDS)
TEXT_FIELDS = ("anode", "filter", "instrument", "detector", "sample", "core")
ROWS_AT_A_TIME = 256
MAX_HEADER_BYTES = 2 * 2**20
"""Names of 65,536 channels fit."""


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
        for name in set(self.constants) & set(NUMBER_FIELDS):
            if isinstance(self.constants[name], bool) or not isinstance(self.constants[name], (int, float)):
                raise ValueError(
                    f"The constant {name} of a column mapping must be a number, not {self.constants[name]!r}."
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
    """Whether the file starts as Parquet does."""
    return head[:4] == b"PAR1"


def is_csv(path: Path, head: bytes) -> bool:
    """Whether the first line is a header, several unique names of which one at least is a word, and the second has as
    many entries. Of a wide table `head` may hold only the first names."""
    text = decode(head)
    if any(character < " " and character not in "\t\r\n" for character in text):
        return False
    lines = [line for line in split_lines(text) if line.strip()]
    if not lines:
        return False
    names = _split_row(lines[0], _separator(lines[0]))
    known = [name for name in names if name]
    if len(names) < 2 or 2 * len(known) < len(names) or len(set(known)) < len(known) or max(map(len, known)) > 100:
        return False
    if not any(name[0].isalpha() for name in known):
        return False
    # The last line of `head` may be cut off, so the second is judged only where a third follows.
    return len(lines) < 3 or len(_split_row(lines[1], _separator(lines[0]))) == len(names)


def has_channel_columns(path: Path, mapping: ColumnMapping | None = None) -> bool:
    """Whether a table holds spectra, by the names of its columns; `True` as well where they cannot be read, so that
    the reader can say why."""
    try:
        names = _parquet_names(path) if _starts_as_parquet(path) else _CsvLayout(path).names
    except SpectrumFileError:
        return True
    if mapping is None and "counts" in names and _starts_as_parquet(path):
        return True
    return any(name in names for name in _channel_columns(names, mapping))


def read_table(
    path: Path, on_reject: Reject | None = None, mapping: ColumnMapping | None = None
) -> Iterator[Spectrum]:
    """Read the rows of a CSV or Parquet table, a few hundred at a time.

    Raises:
        SpectrumFileError: the table cannot be read, a mapped column is missing, or a row is no valid spectrum.
    """
    parquet = _starts_as_parquet(path)
    frames = _parquet_frames(path) if parquet else _csv_frames(path)
    row, layout = 0, None
    for frame in frames:
        if parquet and mapping is None and "counts" in frame.columns:
            spectra = _corpus_rows(path, frame, row, on_reject)
        else:
            layout = layout or _Layout(path, [str(name) for name in frame.columns], mapping)
            spectra = layout.rows(frame, row, on_reject)
        yield from spectra
        row += len(frame)
    if row == 0:
        raise SpectrumFileError(path, "the table must have rows; it has none.")


def _starts_as_parquet(path):
    try:
        with open(path, "rb") as file:
            return is_parquet(path, file.read(4))
    except OSError as error:
        raise SpectrumFileError(path, f"the file cannot be read ({error.strerror}).") from None


@contextlib.contextmanager
def _library_errors(path, reason):
    """pandas and pyarrow raise exceptions of many types on damaged files, and warn of rows that they shorten."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", message="Length of header")  # entries would be lost
            yield
    except SpectrumFileError:
        raise
    except Exception as error:
        message = (str(error).splitlines() or [""])[0][:200]
        raise SpectrumFileError(path, f"{reason} ({type(error).__name__}: {message}).") from None


def _parquet_errors(path):
    return _library_errors(path, "the Parquet file is cut off or damaged; copy it again")


def _parquet_names(path):
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        return pq.read_schema(path).names


def _parquet_frames(path):
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        file = pq.ParquetFile(path)
    with file:
        num_bytes = path.stat().st_size
        if file.metadata.num_rows > num_bytes:  # nothing is as small as a byte a spectrum
            message = f"the header declares {file.metadata.num_rows} rows in {num_bytes} bytes: the file is damaged."
            raise SpectrumFileError(path, message)
        _check_unique(path, file.schema_arrow.names)
        with _parquet_errors(path):
            batches = file.iter_batches(batch_size=ROWS_AT_A_TIME)
        while True:
            with _parquet_errors(path):
                batch = next(batches, None)
                frame = None if batch is None else batch.to_pandas()
            if frame is None:
                return
            yield frame


class _CsvLayout:
    """Encoding, separator, column names and decimal mark of a CSV table, from its first lines."""

    def __init__(self, path):
        try:
            with open(path, "rb") as file:
                head = file.read(MAX_HEADER_BYTES)
        except OSError as error:
            raise SpectrumFileError(path, f"the file cannot be read ({error.strerror}).") from None
        text = decode(head)
        self.encoding = _encoding(head)
        lines = [line for line in split_lines(text) if line.strip()]
        if not lines or (len(lines) == 1 and len(head) == MAX_HEADER_BYTES):
            raise SpectrumFileError(
                path, f"the file must begin with a line of column names, at most {MAX_HEADER_BYTES // 2**20} MiB long."
            )
        self.separator = _separator(lines[0])
        with _library_errors(path, "the first line must hold the names of columns"):
            self.names = _split_row(lines[0], self.separator)
        rows = " ".join(lines[1:20])
        with_comma = re.search(r"\d,\d", rows) is not None and re.search(r"\d\.\d", rows) is None
        self.decimal = "," if self.separator != "," and with_comma else "."


def _encoding(head):
    """As `text.decode` decides, but the last character of `head` may be cut off."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


def _separator(header):
    return max(",;\t", key=header.count)


def _split_row(line, separator):
    return [entry.strip() for entry in next(csv.reader([line], delimiter=separator))]


def _csv_frames(path):
    import pandas as pd

    layout = _CsvLayout(path)
    _check_unique(path, [name for name in layout.names if name])
    with open(path, encoding=layout.encoding, errors="replace", newline="") as file:
        reason = "the file must be a table with one header line and as many entries in every row"
        with _library_errors(path, reason):
            reader = pd.read_csv(
                file,
                sep=layout.separator,
                decimal=layout.decimal,
                index_col=False,  # never take the first column for an index where rows are longer than the header
                chunksize=ROWS_AT_A_TIME,
                low_memory=False,
            )
        while True:
            with _library_errors(path, reason):
                frame = next(reader, None)
            if frame is None:
                return
            yield frame.rename(columns=lambda name: str(name).strip())


def _check_unique(path, names):
    twice = next((name for name, number in Counter(names).items() if number > 1), None)
    if twice is not None:
        raise SpectrumFileError(path, f"column names must be unique; {twice!r} stands twice: rename one.")


def _corpus_rows(path, frame, first_row, on_reject):
    """Rows of Parquet files that this package wrote."""
    for i, row in enumerate(frame.to_dict("records")):
        try:
            spectrum = row_to_spectrum({key: _none_if_missing(value) for key, value in row.items()})
            check_plausible(spectrum)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # of JSON and wrong types
            reject(SpectrumFileError(path, f"the row is no spectrum ({error}).", f"row {first_row + i}"), on_reject)
            continue
        yield spectrum


def _none_if_missing(value):
    return None if _is_missing(value) else value


def _is_missing(value):
    return value is None or (isinstance(value, float) and np.isnan(value))


def _channel_columns(names, mapping) -> list[str]:
    """The columns that are channels, in order, whether or not there is a gap between them."""
    channels = mapping.channels if mapping is not None else None
    if isinstance(channels, (list, tuple)):
        return list(channels)
    prefix = "(?:channel_)?" if channels is None else re.escape(channels)
    numbered = {name: re.fullmatch(rf"{prefix}(\d{{1,6}})", name, re.ASCII) for name in names}
    return [name for _, name in sorted((int(match[1]), name) for name, match in numbered.items() if match)]


class _Layout:
    """The columns of one table: checked once, then used for every chunk of rows."""

    def __init__(self, path, names, mapping):
        self.path, self.mapping = path, mapping or ColumnMapping()
        self.channels = self._channels(names)
        self.columns = dict(self.mapping.columns)
        if mapping is None:
            self.columns = {name: name for name in (*NUMBER_FIELDS, *TEXT_FIELDS) if name in names}
        used = (*self.channels, *self.columns.values(), *self.mapping.targets.values())
        known = set(names)
        missing = next((column for column in used if column not in known), None)
        if missing is not None:
            raise SpectrumFileError(path, f"the mapped column {missing!r} must be there; found {_shortened(names)}.")
        channels, mapped = set(self.channels), set(used[len(self.channels) :])
        if len(channels) < len(self.channels) or channels & mapped:
            raise SpectrumFileError(path, "a column must be one channel and nothing else; correct the column mapping.")
        self.others = [name for name in names if name not in channels]
        self.further = [name for name in self.others if name not in mapped]  # kept as metadata

    def _channels(self, names):
        columns = _channel_columns(names, self.mapping)
        prefix = self.mapping.channels
        if isinstance(prefix, (list, tuple)):
            return columns
        if not columns:
            raise SpectrumFileError(
                self.path,
                f"the channel columns must be named {prefix or 'channel_'}0, {prefix or 'channel_'}1, ...; "
                f"found {_shortened(names)}: give a column mapping.",
            )
        numbers = [int(re.search(r"\d+$", name)[0]) for name in columns]
        missing = next((numbers[0] + i for i, number in enumerate(numbers) if number != numbers[0] + i), None)
        if missing is not None:
            raise SpectrumFileError(
                self.path, f"channel columns must be numbered without a gap; {missing} is missing."
            )
        return columns

    def rows(self, frame, first_row, on_reject):
        """Spectra of a chunk."""
        frame = frame.rename(columns=str)
        counts, errors = self._counts(frame, first_row)
        for i, row in enumerate(frame[self.others].to_dict("records")):
            place = f"row {first_row + i}"
            try:
                if i in errors:
                    raise errors[i]
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
        """Counts `(rows, channels)`, NaN where an entry is empty, and the error of each row that holds no numbers."""
        columns, errors = frame[self.channels], {}
        if all(dtype.kind in "iuf" for dtype in columns.dtypes):
            return columns.to_numpy(dtype=np.float64), errors
        counts = np.full(columns.shape, np.nan)
        for j, column in enumerate(self.channels):
            for i, entry in enumerate(columns[column]):
                place = f"row {first_row + i}, column {column}"
                try:
                    counts[i, j] = optional_number(self.path, place, entry, "the count")
                except SpectrumFileError as error:
                    errors.setdefault(i, error)
        return counts, errors

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
