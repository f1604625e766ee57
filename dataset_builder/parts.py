"""Parts of a build: some sources read into one Parquet file of a work folder, with all that later stages ask of it.

A part is three files, named by a hash of everything that their content depends on:

- `<key>.parquet`: rows of the corpus as they were read, targets as two lists, and the columns `content_hash` (equal
  for exact duplicates), `dispersion` and `rounding` (see `near_copies.counting_noise`). It is put in place last: where
  it stands, the part is complete.
- `<key>.coarse`: counts on the coarse grid of `near_copies`, raw float32 `(rows, NUM_BINS)`.
- `<key>.json`: rejected files and spectra, and the units of the targets.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .features import FIXED_COLUMNS, spectra_to_table, table_schema
from .near_copies import NUM_BINS, coarse_counts, counting_noise
from .readers import ColumnMapping
from .recipe import FilesPart, SimulationPart
from .sources import read_file
from .spectrum import Spectrum, SpectrumFileError

ROWS_AT_A_TIME = 500
NAME_COLUMNS = ("core", "sample", "source")


@dataclass(frozen=True)
class ReadTask:
    """What one process reads at a time.

    Args:
        part_index (`int`): number of the recipe's part that the units belong to.
        recipe_part (`FilesPart` or `SimulationPart`): that part.
        units (`tuple`): files (`SourceFile`), or numbers of the simulation's units.
        folder (`Path`), key (`str`): where the result goes; the key is a hash of everything the result depends on.
    """

    part_index: int
    recipe_part: FilesPart | SimulationPart
    units: tuple
    folder: Path
    key: str

    @property
    def rows_path(self) -> Path:
        """Parquet file of the rows."""
        return self.folder / f"{self.key}.parquet"

    @property
    def coarse_path(self) -> Path:
        """Coarse counts."""
        return self.folder / f"{self.key}.coarse"

    @property
    def notes_path(self) -> Path:
        """Rejected spectra and units of targets."""
        return self.folder / f"{self.key}.json"

    def is_done(self) -> bool:
        """Whether the part has been read, now or by an earlier build that was interrupted."""
        return self.rows_path.exists()


def read_part(task: ReadTask) -> None:
    """Read the units of a task and write its part; what cannot be used is noted in it."""
    rejected = []
    spectra = _simulated(task) if isinstance(task.recipe_part, SimulationPart) else _from_files(task, rejected)
    suffix = f".{os.getpid()}.part"
    rows, coarse, notes = (Path(f"{path}{suffix}") for path in (task.rows_path, task.coarse_path, task.notes_path))
    units = _write_rows(spectra, rows, coarse)
    notes.write_text(json.dumps({"rejected": rejected, "target_units": units}), encoding="utf-8")
    os.replace(notes, task.notes_path)
    os.replace(coarse, task.coarse_path)
    os.replace(rows, task.rows_path)


def load_notes(task: ReadTask) -> dict:
    """`rejected`: path, place and reason of each; `target_units`: target, unit and first source of each."""
    return json.loads(task.notes_path.read_text(encoding="utf-8"))


def load_coarse(task: ReadTask) -> np.ndarray:
    """Coarse counts of all rows, shape `(rows, NUM_BINS)`, memory-mapped."""
    if task.coarse_path.stat().st_size == 0:
        return np.zeros((0, NUM_BINS), np.float32)
    return np.memmap(task.coarse_path, np.float32, mode="r").reshape(-1, NUM_BINS)


def load_columns(task: ReadTask, names) -> dict[str, list]:
    """Columns of all rows by name."""
    import pyarrow.parquet as pq

    return pq.read_table(task.rows_path, columns=list(names), partitioning=None).to_pydict()


def load_tables(task: ReadTask) -> Iterator:
    """The rows, `ROWS_AT_A_TIME` at most, as `pyarrow.Table`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(task.rows_path) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME):
            yield pa.Table.from_batches([batch])


def to_corpus_rows(table, cores, samples, target_units: dict[str, str], kept_targets=None):
    """Rows of a part as rows of the corpus, with their final names and one column a target.

    Args:
        table (`pyarrow.Table`): some rows of a part.
        cores, samples (sequences of `str` or `None`): their final names.
        target_units (`dict[str, str]`): unit by target of the corpus; others are left out.
        kept_targets (sequence of `str`, *optional*): the targets of these rows to keep; all if not given.
    """
    import pyarrow as pa

    values = np.full((len(table), len(target_units)), np.nan, np.float32)
    names = table["target_names"].combine_chunks()
    flat_names = names.flatten().dictionary_encode()
    columns = {name: column for column, name in enumerate(target_units)}
    kept = {name: column for name, column in columns.items() if kept_targets is None or name in kept_targets}
    column_of_code = np.array([kept.get(name, -1) for name in flat_names.dictionary.to_pylist()], dtype=np.int64)
    if len(column_of_code):
        column = column_of_code[flat_names.indices.to_numpy()]
        row = np.repeat(np.arange(len(table)), names.value_lengths().to_numpy())
        flat_values = table["target_values"].combine_chunks().flatten().to_numpy()
        values[row[column >= 0], column[column >= 0]] = flat_values[column >= 0]
    schema = table_schema(target_units)
    made = {
        "core": pa.array(cores, pa.string()),
        "sample": pa.array(samples, pa.string()),
        "target_units": pa.array([json.dumps(target_units, ensure_ascii=False)] * len(table), pa.string()),
    }
    made |= {name: pa.array(values[:, column], from_pandas=True) for name, column in columns.items()}
    return pa.table([made.get(name, table[name] if name in FIXED_COLUMNS else None) for name in schema.names], schema)


def content_hash(spectrum: Spectrum) -> bytes:
    """Hash of counts and energy calibration, equal for exact duplicates; 16 bytes."""
    digest = hashlib.blake2b(np.ascontiguousarray(spectrum.counts, dtype=np.float32).data, digest_size=16)
    digest.update(struct.pack("<dd", spectrum.gain_kev, spectrum.offset_kev))
    return digest.digest()


def _simulated(task):
    source = task.recipe_part.source()
    for unit in task.units:
        for batch in source.simulate(unit):
            yield from batch.spectra()


def _from_files(task, rejected: list):
    """Usable spectra; path below the root, place and reason of the others are added to `rejected`."""
    part = task.recipe_part
    mapping = None if part.column_mapping is None else ColumnMapping.from_dict(part.column_mapping)
    for file in task.units:

        def on_reject(error, file=file):
            path = Path(error.path)
            inside = path.relative_to(file.path).as_posix() if path.is_relative_to(file.path) else "."
            name = file.name if inside == "." else f"{file.name}/{inside}"
            rejected.append([name, error.place, error.reason])

        for number, spectrum in enumerate(read_file(file, mapping, part.fill, part.overwrite, on_reject)):
            if spectrum.gain_kev is None or spectrum.offset_kev is None:
                reason = "the energy calibration is not known: give gain_kev and offset_kev for it."
                on_reject(SpectrumFileError(file.path, reason, f"spectrum {number}"))
            else:
                yield spectrum


def _write_rows(spectra, rows_path, coarse_path) -> list:
    """Write rows and coarse counts; returns target, unit and first source of every target."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = table_schema().append(pa.field("target_names", pa.list_(pa.string())))
    schema = schema.append(pa.field("target_values", pa.list_(pa.float32())))
    schema = schema.append(pa.field("content_hash", pa.binary(16)))
    schema = schema.append(pa.field("dispersion", pa.float32())).append(pa.field("rounding", pa.float32()))
    units = {}
    with ExitStack() as stack:
        writer = stack.enter_context(pq.ParquetWriter(rows_path, schema, compression="lz4"))
        coarse = stack.enter_context(open(coarse_path, "wb"))
        for batch in _in_batches(spectra):
            noise = np.array([counting_noise(s.counts, s.gain_kev) for s in batch], np.float32)
            for spectrum in batch:
                coarse.write(coarse_counts(spectrum.counts, spectrum.gain_kev, spectrum.offset_kev).tobytes())
                for name in spectrum.targets:
                    units.setdefault((name, spectrum.target_units.get(name, "")), spectrum.source)
            made = {
                "target_names": pa.array([list(s.targets) for s in batch], pa.list_(pa.string())),
                "target_values": pa.array([list(s.targets.values()) for s in batch], pa.list_(pa.float32())),
                "content_hash": pa.array([content_hash(s) for s in batch], pa.binary(16)),
                "dispersion": pa.array(noise[:, 0]),
                "rounding": pa.array(noise[:, 1]),
            }
            table = spectra_to_table(batch)
            writer.write_table(pa.table([*table.columns, *made.values()], schema))
    return [[name, unit, source] for (name, unit), source in units.items()]


def _in_batches(spectra):
    batch = []
    for spectrum in spectra:
        batch.append(spectrum)
        if len(batch) == ROWS_AT_A_TIME:
            yield batch
            batch = []
    if batch:
        yield batch
