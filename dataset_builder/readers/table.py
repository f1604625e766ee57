"""Wide tables: CSV or Parquet with one spectrum a row and one channel a column; and Parquet of our own corpora.

A `ColumnMapping` says which column is what. Without one, channels are the columns named `0`, `1`, ... or `channel_0`,
`channel_1`, ..., and columns named like a field of `Spectrum` (`sample`, `core`, `depth_mm`, `gain_kev`, ...) are it.
"""

import codecs
import contextlib
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..features import row_to_spectrum
from ..spectrum import Spectrum, SpectrumFileError
from .checks import Reject, check_plausible, checked_spectrum, numbers, optional_number, reject
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
    """Whether the first line is a header, several unique names of which one at least is a word (or the numbers of
    channels from 0), and the second has as many entries. Of a wide table `head` may hold only the first names."""
    text = decode(head)
    if any(character < " " and character not in "\t\r\n" for character in text):
        return False
    lines = [line for line in split_lines(text) if line.strip()]
    if not lines:
        return False
    names = _split_row(lines[0], _separator(lines[0]))
    if len(lines) == 1 and len(names) > 2:
        names = names[:-1]  # `head` may end within the last one, which may then equal another
    known = [name for name in names if name]
    if len(names) < 2 or 2 * len(known) < len(names) or len(set(known)) < len(known) or max(map(len, known)) > 100:
        return False
    are_numbered = known == [str(number) for number in range(len(known))]  # a table of nothing but channels
    if not (are_numbered or any(name[0].isalpha() for name in known)):
        return False
    # The last line of `head` may be cut off, so the second is judged only where a third follows.
    return len(lines) < 3 or len(_split_row(lines[1], _separator(lines[0]))) == len(names)


def has_channel_columns(path: Path, mapping: ColumnMapping | None = None) -> bool:
    """Whether a table holds spectra, by the names of its columns; `True` as well where they cannot be read, so that
    the reader can say why."""
    try:
        names = _parquet_schema(path).names if _starts_as_parquet(path) else _CsvLayout(path).names
    except SpectrumFileError:
        return True
    if mapping is None and "counts" in names and _starts_as_parquet(path):
        return True
    return not set(names).isdisjoint(_channel_columns(names, mapping))


def read_table(
    path: Path, on_reject: Reject | None = None, mapping: ColumnMapping | None = None
) -> Iterator[Spectrum]:
    """Read the rows of a CSV or Parquet table; memory does not grow with their number.

    Raises:
        SpectrumFileError: the table cannot be read, a mapped column is missing, or a row is no valid spectrum.
    """
    if not _starts_as_parquet(path):
        spectra = _csv_rows(path, on_reject, mapping)
    elif mapping is None and _is_corpus(_parquet_schema(path)):
        spectra = _corpus_rows(path, on_reject)
    else:
        spectra = _parquet_rows(path, on_reject, mapping)
    yield from (spectrum for spectrum in spectra if spectrum is not None)


def _channel_columns(names, mapping) -> list[str]:
    """The columns that are channels, in order, whether or not there is a gap between them."""
    channels = mapping.channels if mapping is not None else None
    if isinstance(channels, (list, tuple)):
        return list(channels)
    prefix = "(?:channel_)?" if channels is None else re.escape(channels)
    numbered = {name: re.fullmatch(rf"{prefix}(\d{{1,6}})", name, re.ASCII) for name in names}
    return [name for _, name in sorted((int(match[1]), name) for name, match in numbered.items() if match)]


class _Columns:
    """What the columns of one table are."""

    def __init__(self, path, names, mapping):
        self.path, self.mapping = path, mapping or ColumnMapping()
        twice = next((name for name, number in Counter(names).items() if number > 1 and name), None)
        if twice is not None:
            raise SpectrumFileError(path, f"column names must be unique; {twice!r} stands twice: rename one.")
        self.channels = self._channels(names)
        self.fields = dict(self.mapping.columns)
        if mapping is None:
            self.fields = {name: name for name in (*NUMBER_FIELDS, *TEXT_FIELDS) if name in names}
        channels, mapped = set(self.channels), {*self.fields.values(), *self.mapping.targets.values()}
        missing = next(iter(sorted((channels | mapped) - set(names))), None)
        if missing is not None:
            raise SpectrumFileError(path, f"the mapped column {missing!r} must be there; found {_shortened(names)}.")
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

    def spectrum(self, row, counts, others, on_reject) -> Spectrum | None:
        """The spectrum of a row, whose other entries are in `others` by column; `None` where it was rejected."""
        place = f"row {row}"
        try:
            fields = dict(self.mapping.constants)
            for name, column in self.fields.items():
                if name in NUMBER_FIELDS:
                    fields[name] = self._number(place, column, others[column], name)
                elif not _is_missing(others[column]):
                    fields[name] = str(others[column])
            targets = {
                name: self._number(place, column, others[column], name)
                for name, column in self.mapping.targets.items()
            }
        except SpectrumFileError as error:
            reject(error, on_reject)
            return None
        targets = {name: value for name, value in targets.items() if value is not None}
        return checked_spectrum(
            self.path,
            place,
            on_reject,
            counts,
            targets=targets,
            target_units={name: self.mapping.target_units[name] for name in targets},
            metadata={name: str(others[name]) for name in self.further if not _is_missing(others[name])},
            **fields,
        )

    def _number(self, place, column, entry, name):
        return optional_number(self.path, f"{place}, column {column}", entry, name)


def _is_missing(value):
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))


def _shortened(names):
    shown = repr(", ".join(names[:8])[:300])[1:-1]  # a line end in a name must not break the sentence
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


class _CsvLayout:
    """Encoding, separator and column names of a CSV table, from its first lines."""

    def __init__(self, path):
        try:
            with open(path, "rb") as file:
                head = file.read(min(MAX_HEADER_BYTES, path.stat().st_size))
        except OSError as error:
            raise SpectrumFileError(path, f"the file cannot be read ({error.strerror}).") from None
        lines = [line for line in split_lines(decode(head)) if line.strip()]
        if not lines or (len(lines) == 1 and len(head) == MAX_HEADER_BYTES):
            raise SpectrumFileError(
                path, f"the file must begin with a line of column names, at most {MAX_HEADER_BYTES // 2**20} MiB long."
            )
        self.encoding = _encoding(head)
        self.separator = _separator(lines[0])
        with _csv_errors(path):
            self.names = _split_row(lines[0], self.separator)


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


@contextlib.contextmanager
def _csv_errors(path):
    try:
        yield
    except csv.Error as error:
        raise SpectrumFileError(
            path, f"the file must be a table; a quotation mark may be missing ({error})."
        ) from None


def _csv_rows(path, on_reject, mapping):
    layout = _CsvLayout(path)
    columns = _Columns(path, layout.names, mapping)
    channel_indices = [layout.names.index(name) for name in columns.channels]
    other_indices = {name: layout.names.index(name) for name in columns.others}
    row = -1  # the header
    with open(path, encoding=layout.encoding, errors="replace", newline="") as file, _csv_errors(path):
        for entries in csv.reader(file, delimiter=layout.separator):
            if not any(entry.strip() for entry in entries):
                continue
            if row >= 0:
                try:
                    surplus = len(entries) - len(layout.names)
                    if surplus < 0 or any(entry.strip() for entry in entries[len(layout.names) :]):
                        message = f"a row must have {len(layout.names)} entries as the header; found {len(entries)}."
                        raise SpectrumFileError(path, message, f"row {row}")
                    texts = [entries[index] for index in channel_indices]
                    counts = numbers(path, f"row {row}", texts, "the count in channel")
                except SpectrumFileError as error:
                    reject(error, on_reject)
                else:
                    others = {name: entries[index].strip() for name, index in other_indices.items()}
                    yield columns.spectrum(row, counts, others, on_reject)
            row += 1
    if row < 1:
        raise SpectrumFileError(path, "the table must have rows; it has none.")


def _starts_as_parquet(path):
    try:
        with open(path, "rb") as file:
            return is_parquet(path, file.read(4))
    except OSError as error:
        raise SpectrumFileError(path, f"the file cannot be read ({error.strerror}).") from None


@contextlib.contextmanager
def _parquet_errors(path):
    """pyarrow raises exceptions of many types on damaged files."""
    try:
        yield
    except SpectrumFileError:
        raise
    except Exception as error:
        message = (str(error).splitlines() or [""])[0][:200]
        reason = f"the Parquet file is cut off or damaged; copy it again ({type(error).__name__}: {message})."
        raise SpectrumFileError(path, reason) from None


def _parquet_schema(path):
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        return pq.read_schema(path)


def parquet_tables(path: Path, num_rows: int = ROWS_AT_A_TIME):
    """A Parquet file as `pyarrow.Table`s of at most `num_rows` rows each, with the number of the first row.

    Raises:
        SpectrumFileError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _parquet_errors(path):
        # read as it is needed: what is fetched ahead stays in memory until the file is closed
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**16)
    with file:
        declared, num_bytes = file.metadata.num_rows, path.stat().st_size
        if not 0 < declared <= num_bytes:  # no spectrum is as small as a byte
            reason = "the table must have rows" if declared == 0 else "the file is damaged"
            raise SpectrumFileError(path, f"{reason}; it declares {declared} rows in {num_bytes} bytes.")
        first_row, batches = 0, None
        while True:
            with _parquet_errors(path):
                batches = batches or file.iter_batches(batch_size=num_rows)
                batch = next(batches, None)
                table = None if batch is None else pa.Table.from_batches([batch])
            if table is None:
                return
            yield first_row, table
            first_row += len(table)


def _parquet_rows(path, on_reject, mapping):
    import pyarrow as pa

    schema = _parquet_schema(path)
    columns = _Columns(path, schema.names, mapping)
    for name in columns.channels:
        if not (pa.types.is_integer(schema.field(name).type) or pa.types.is_floating(schema.field(name).type)):
            raise SpectrumFileError(
                path, f"channels must hold numbers; column {name} holds {schema.field(name).type}."
            )
    for first_row, table in parquet_tables(path):
        with _parquet_errors(path):
            counts = np.stack([table[name].to_numpy() for name in columns.channels], axis=1)  # a missing one is NaN
            others = table.select(columns.others).to_pylist()
        for row in range(len(table)):
            yield columns.spectrum(first_row + row, counts[row], others[row] if others else {}, on_reject)


def _is_corpus(schema):
    """Whether the counts of a row stand in one column, as in Parquet files that this package wrote."""
    import pyarrow as pa

    if schema.names.count("counts") != 1:
        return False
    of_counts = schema.field("counts").type
    return pa.types.is_list(of_counts) and (
        pa.types.is_floating(of_counts.value_type) or pa.types.is_integer(of_counts.value_type)
    )


def _corpus_rows(path, on_reject):
    for first_row, table in parquet_tables(path):
        yield from corpus_spectra(path, first_row, table, on_reject)


def is_corpus(path: Path) -> bool:
    """Whether a file is Parquet of our own corpora; `False` as well where it cannot be read."""
    try:
        return path.is_file() and _starts_as_parquet(path) and _is_corpus(_parquet_schema(path))
    except SpectrumFileError:
        return False


def corpus_spectra(path: Path, first_row: int, table, on_reject: Reject | None = None) -> Iterator[Spectrum]:
    """The spectra of one of these tables."""
    with _parquet_errors(path):
        rows = table.drop_columns(["counts"]).to_pylist()
        counts = table["counts"].combine_chunks()
        counts = [counts[i].values for i in range(len(table))]  # None where there are none
        counts = [None if values is None else values.to_numpy(zero_copy_only=False) for values in counts]
    for i, row in enumerate(rows):
        try:
            spectrum = row_to_spectrum({**row, "counts": counts[i]})
            check_plausible(spectrum)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:  # of JSON and wrong types
            message = f"the row is no spectrum ({error})."
            reject(SpectrumFileError(path, message, f"row {first_row + i}"), on_reject)
        else:
            yield spectrum
