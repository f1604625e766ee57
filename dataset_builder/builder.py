"""`XRFDatasetBuilder`: a recipe to a folder of Parquet files, stage by stage, and on from where it was interrupted."""

import contextlib
import csv
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .card import SUMMARY_FILE, render_card
from .near_copies import NUM_BINS, near_copies
from .parts import (
    NAME_COLUMNS,
    ReadTask,
    load_coarse,
    load_columns,
    load_notes,
    load_tables,
    read_part,
    to_corpus_rows,
)
from .recipe import FilesPart, Recipe, SimulationPart
from .shards import ShardWriter
from .spectrum import SpectrumFileError
from .splits import check_groups_separated, cores_and_samples, group_names, split_by_group

BUILDER_VERSION = "2.0.0"
"""To be raised with every change of what a corpus holds: fingerprints and interrupted builds carry it."""
REJECTED_FILE = "rejected.csv"
PART_BYTES = 8 * 2**20
PART_FILES = 256
PART_SIMULATED_SPECTRA = 2000
NOT_USED, DUPLICATE = -1, -2  # in place of a split's number


class LeakageError(ValueError):
    """A group, or two near-identical spectra, would stand on both sides of a split."""


@dataclass(frozen=True)
class Rows:
    """What is known of all N rows that were read, in the order of the plan.

    Args:
        part_index (`np.ndarray` of shape `(N,)`): part of the recipe.
        groups (`list[str]`): core, or else sample.
        content_hash (`np.ndarray` of shape `(N,)`): 16 bytes, equal for exact duplicates.
        noise (`np.ndarray` of shape `(N, 2)`): see `near_copies.counting_noise`.
        first_row (`list[int]`): number of each task's first row, and N.
    """

    part_index: np.ndarray
    groups: list
    content_hash: np.ndarray
    noise: np.ndarray
    first_row: list

    def __len__(self):
        return len(self.groups)


class XRFDatasetBuilder:
    """Builds the corpus of a recipe.

    The stages are methods, in this order: `tasks` (what is to be read, with hashes of contents and options), `read`
    (into parts in a hidden work folder beside the output; those already there are not read again), `rows`,
    `assignment` (duplicates, shares, splits), `check_leakage`, `write`. `build` runs them all.

    Args:
        recipe (`Recipe`): what the corpus is made of.
        output_dir (path): a new or empty folder.
        data_root (path, *optional*): folder that the paths of files start from.
        num_proc (`int`, *optional*): worker processes; none if not given.
        shard_rows (`int`): spectra in a Parquet file.
        on_error (`str`): `"skip"` lists files and spectra that cannot be used in `rejected.csv`; `"raise"` stops.

    Raises:
        SpectrumFileError: a path does not exist or holds no spectra.
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        recipe: Recipe,
        output_dir,
        data_root=None,
        num_proc: int | None = None,
        shard_rows: int = 20_000,
        on_error: str = "skip",
    ):
        if shard_rows < 1:
            raise ValueError(f"shard_rows must be at least 1; got {shard_rows}.")
        if num_proc is not None and num_proc < 1:
            raise ValueError(f"num_proc must be at least 1; got {num_proc}.")
        if on_error not in ("skip", "raise"):
            raise ValueError(f"on_error must be 'skip' or 'raise'; got {on_error!r}.")
        self.recipe, self.data_root = recipe, data_root
        self.output_dir = Path(output_dir).absolute()
        self.num_proc, self.shard_rows, self.on_error = num_proc or 1, shard_rows, on_error
        self.work_dir = self.output_dir.with_name(f".{self.output_dir.name}.build")

    @cached_property
    def tasks(self) -> list[ReadTask]:
        """What is to be read, in the order of the corpus; small files are read together."""
        tasks = []
        for part_index, part in enumerate(self.recipe.parts):
            source = part.source(self.data_root)
            if isinstance(part, SimulationPart):
                units_of_task = _simulated_tasks(part, source)
                options = {**_options(part), "units": source.num_units}
            else:
                units_of_task = _file_tasks([f for f in source.files if not f.path.is_relative_to(self.output_dir)])
                options = _options(part)
            for units, contents in units_of_task:
                key = _digest([BUILDER_VERSION, type(part).__name__, options, contents])
                tasks.append(ReadTask(part_index, part, units, self.work_dir, key))
        return tasks

    def fingerprint(self) -> str:
        """Hash of the recipe and of the files' contents: the same fingerprint means the same corpus."""
        return _digest([BUILDER_VERSION, self.recipe.to_dict(), [task.key for task in self.tasks]])

    def build(self) -> Path:
        """Build the corpus, or go on with a build that was interrupted; where it is there already, nothing is done.

        Returns:
            `Path`: the folder.

        Raises:
            LeakageError: spectra that belong together would be on both sides of a split.
            ValueError: the output holds something else, nothing can be used, or there are too few groups.
        """
        license = self.recipe.license or ("apache-2.0" if self.recipe.is_endless else "other")
        expected = {"fingerprint": self.fingerprint(), "shard_rows": self.shard_rows, "license": license}
        if _holds_corpus(self.output_dir, expected):
            return self.output_dir
        with self._locked_work_dir():
            try:
                self.read()
                rows = self.rows()
                assignment = self.assignment(rows)
                self.check_leakage(rows, assignment)
                self.write(rows, assignment, expected)
            except LeakageError:
                raise  # what was read serves the next attempt, with other options
            except ValueError:
                shutil.rmtree(self.work_dir, ignore_errors=True)
                raise
        return self.output_dir

    def read(self) -> None:
        """Read all tasks whose part is not there yet.

        Raises:
            SpectrumFileError: something cannot be used, with `on_error="raise"`.
        """
        waiting = {task.key: task for task in self.tasks if not task.is_done()}  # equal sources are read once
        with _progress(self.tasks) as progress:
            for task in self.tasks:
                if task.key not in waiting:
                    self._finish(task, progress)
            if self.num_proc == 1:
                for task in waiting.values():
                    read_part(task)
                    self._finish(task, progress)
            else:
                self._read_in_processes(list(waiting.values()), progress)

    def rows(self) -> Rows:
        """What later stages need to know of the rows, without their counts.

        Raises:
            ValueError: nothing was read.
        """
        part_index, groups, hashes, noise, first_row = [], [], [], [], [0]
        for task in self.tasks:
            columns = load_columns(task, [*NAME_COLUMNS, "content_hash", "dispersion", "rounding"])
            groups += group_names(*self._final_names(task, columns))
            hashes += columns["content_hash"]
            noise += zip(columns["dispersion"], columns["rounding"], strict=True)
            part_index += [task.part_index] * len(columns["source"])
            first_row.append(len(groups))
        if not groups:
            rejected = self._rejected()
            raise ValueError(
                f"No spectrum can be used; {len(rejected)} were rejected, the first of them {_place(*rejected[0])}"
                if rejected
                else "No spectrum can be used; the files hold none."
            )
        hashes = np.array(hashes, dtype="V16")
        return Rows(np.array(part_index), groups, hashes, np.array(noise, np.float32), first_row)

    def assignment(self, rows: Rows) -> np.ndarray:
        """Shape `(N,)`: the number of every row's split in `recipe.fractions`, `DUPLICATE`, or `NOT_USED` where a part
        holds more than its share."""
        assignment = np.full(len(rows), NOT_USED)
        used = np.zeros(len(rows), dtype=bool)
        used[np.unique(rows.content_hash, return_index=True)[1]] = True
        assignment[~used] = DUPLICATE
        used = np.flatnonzero(used)
        used = np.sort(np.concatenate(_thinned_out(used, rows.part_index[used], self.recipe)))
        fractions = self.recipe.fractions
        splits = split_by_group([rows.groups[row] for row in used], fractions, self.recipe.seed)
        assignment[used] = np.array([list(fractions).index(split) for split in splits])
        return assignment

    def check_leakage(self, rows: Rows, assignment: np.ndarray) -> None:
        """Check that no group and no near-identical spectra are on two sides.

        Raises:
            LeakageError: the first such pair, with the remedy.
        """
        used = np.flatnonzero(assignment >= 0)
        names = np.array(list(self.recipe.fractions))[assignment[used]]
        try:
            check_groups_separated([rows.groups[row] for row in used], names)
        except ValueError as error:
            raise LeakageError(str(error)) from None
        coarse_path = self.work_dir / f"coarse.{os.getpid()}.part"
        with open(coarse_path, "wb") as file:
            for first, last, task in self._ranges(rows):
                load_coarse(task)[assignment[first:last] >= 0].tofile(file)
        coarse = np.memmap(coarse_path, np.float32, mode="r").reshape(-1, NUM_BINS)
        found = list(near_copies(coarse, rows.noise[used], assignment[used]))
        coarse_path.unlink()
        if found:
            first, second, chi_squared = min(found)
            raise LeakageError(
                f"No two spectra on different sides of a split may be closer than counting noise allows; "
                f"{self._name_row(rows, used[first])} ({names[first]}) and {self._name_row(rows, used[second])} "
                f"({names[second]}) differ by a chi-squared of {chi_squared:.2g} per channel"
                f"{f', and so do {len(found) - 1} more pairs' if len(found) > 1 else ''}: "
                "give them one core or sample, for example with core_pattern, or drop one of them."
            )

    def write(self, rows: Rows, assignment: np.ndarray, summary: dict) -> None:
        """Write Parquet files, summary, card and rejected spectra; the output folder appears when all is there."""
        result = self.work_dir / "corpus"
        shutil.rmtree(result, ignore_errors=True)
        (result / "data").mkdir(parents=True)
        files = self._write_splits(rows, assignment, result / "data")
        rejected = self._rejected()
        if rejected:
            with open(result / REJECTED_FILE, "w", newline="", encoding="utf-8", errors="replace") as file:
                csv.writer(file, lineterminator="\n").writerows([("path", "place", "reason"), *rejected])
        summary = {
            **summary,
            "builder_version": BUILDER_VERSION,
            **self._counted(rows, assignment, files),
            "rejected": len(rejected),
            "recipe": self.recipe.to_dict(),
        }
        (result / SUMMARY_FILE).write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (result / "README.md").write_text(render_card(result), encoding="utf-8")
        if self.output_dir.exists():
            self.output_dir.rmdir()
        os.replace(result, self.output_dir)
        shutil.rmtree(self.work_dir, ignore_errors=True)

    def _counted(self, rows, assignment, files) -> dict:
        """The numbers of the summary: spectra by split and by part, and what was left out."""
        used = assignment >= 0
        parts = {}
        for index, part in enumerate(self.recipe.parts):
            of_part = rows.part_index == index
            parts[part.name] = {"read": int(of_part.sum()), "used": int((of_part & used).sum())}
        splits = {}
        for number, name in enumerate(self.recipe.fractions):
            if name in files:
                in_split = np.flatnonzero(assignment == number)
                # rows stand in the order of the parts
                of_parts = np.bincount(rows.part_index[in_split], minlength=len(self.recipe.parts))
                splits[name] = {
                    "spectra": len(in_split),
                    "groups": len({rows.groups[row] for row in in_split}),
                    "files": files[name],
                    "parts": dict(zip(parts, of_parts.tolist(), strict=True)),
                }
        return {"splits": splits, "parts": parts, "duplicates": int((assignment == DUPLICATE).sum())}

    def _write_splits(self, rows, assignment, folder) -> dict[str, list[str]]:
        """Hand every row to the writer of its split; returns the files of each split, relative to the corpus."""
        target_units = self._target_units()
        with contextlib.ExitStack() as stack:
            writers = {}
            for number, split in enumerate(self.recipe.fractions):
                if num_rows := int((assignment == number).sum()):
                    writers[number] = stack.enter_context(ShardWriter(folder, split, num_rows, self.shard_rows))
            for first, _, task in self._ranges(rows):
                cores, samples = self._final_names(task, load_columns(task, NAME_COLUMNS))
                kept_targets = _kept_targets(task)
                start = 0
                for table in load_tables(task):
                    stop = start + len(table)
                    names = cores[start:stop], samples[start:stop]
                    table = to_corpus_rows(table, *names, target_units, kept_targets)
                    split_of_row = assignment[first + start : first + stop]
                    for number, writer in writers.items():
                        in_split = np.flatnonzero(split_of_row == number)
                        if len(in_split):
                            writer.write(table.take(in_split))
                    start = stop
        names = list(self.recipe.fractions)
        return {names[n]: [f"data/{path.name}" for path in writer.paths] for n, writer in writers.items()}

    def _read_in_processes(self, tasks, progress) -> None:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.num_proc, context, _start_worker) as pool:
            futures = {pool.submit(read_part, task): task for task in tasks}
            try:
                for future in as_completed(futures):
                    future.result()
                    self._finish(futures[future], progress)
            except BrokenProcessPool:
                raise OSError(
                    "A worker process died; if for want of memory, build again with a smaller num_proc (what was read "
                    "is kept), and if you call this from a script, do so under `if __name__ == '__main__':`."
                ) from None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _finish(self, task, progress) -> None:
        """Count a task that has been read; with `on_error="raise"` stop at what it rejected."""
        progress.update(len(task.units))
        rejected = load_notes(task)["rejected"] if self.on_error == "raise" else []
        if rejected:
            path, place, reason = rejected[0]
            raise SpectrumFileError(path, reason, place)

    def _ranges(self, rows) -> Iterator[tuple[int, int, ReadTask]]:
        """First row, row after the last, and the task."""
        yield from zip(rows.first_row[:-1], rows.first_row[1:], self.tasks, strict=True)

    def _final_names(self, task, columns) -> tuple[list, list]:
        part = task.recipe_part
        if isinstance(part, FilesPart):
            return cores_and_samples(columns["core"], columns["sample"], columns["source"], part.core_pattern)
        if sum(isinstance(other, SimulationPart) for other in self.recipe.parts) == 1:
            return columns["core"], columns["sample"]
        # The cores of two simulations have the same names.
        return tuple([f"{part.name} {name}" for name in columns[column]] for column in ("core", "sample"))

    def _name_row(self, rows, row) -> str:
        task_number = int(np.searchsorted(rows.first_row, row, side="right")) - 1
        columns = load_columns(self.tasks[task_number], NAME_COLUMNS)
        place = row - rows.first_row[task_number]
        core, sample, source = (columns[name][place] for name in NAME_COLUMNS)
        return f"{sample or core or f'row {place}'} of {source}"

    def _rejected(self) -> list[tuple[str, str, str]]:
        """Path, place and reason, in the order of the plan."""
        return [tuple(entry) for task in self.tasks for entry in load_notes(task)["rejected"]]

    def _target_units(self) -> dict[str, str]:
        """Unit of every target that is kept, by name.

        Raises:
            ValueError: a target has two units.
        """
        units = {}
        for task in self.tasks:
            kept = _kept_targets(task)
            for name, unit, source in load_notes(task)["target_units"]:
                if kept is not None and name not in kept:
                    continue
                known_unit, known_source = units.setdefault(name, (unit, source))
                if known_unit != unit:
                    raise ValueError(
                        f"target {name} must have one unit; it has {unit!r} in {source} and {known_unit!r} in "
                        f"{known_source}: leave it out of one part with targets."
                    )
        return {name: units[name][0] for name in sorted(units)}

    @contextlib.contextmanager
    def _locked_work_dir(self):
        """The work folder, for this process alone; the lock ends with the process, however it ends."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        with open(self.work_dir / "lock", "w") as lock:
            try:
                import fcntl
            except ImportError:  # Windows has no such locks
                fcntl = None
            try:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"Another process is building {self.output_dir}; wait until it is done.") from None
            yield


def _kept_targets(task) -> list | None:
    """The targets that the task's part keeps; `None` for all."""
    return task.recipe_part.targets if isinstance(task.recipe_part, FilesPart) else None


def _options(part) -> dict:
    """What of a part decides how a unit is read."""
    if isinstance(part, SimulationPart):
        names = ("samples", "instruments", "num_spectra", "num_cores", "seed")
    else:
        names = ("column_mapping", "fill", "overwrite")
    return {name: getattr(part, name) for name in names}


def _simulated_tasks(part, source):
    """Units and their identities, task by task."""
    units_per_task = max(1, round(PART_SIMULATED_SPECTRA * source.num_units / part.num_spectra))
    for start in range(0, source.num_units, units_per_task):
        units = tuple(range(start, min(start + units_per_task, source.num_units)))
        yield units, list(units)


def _file_tasks(files):
    """Files and the hashes of their contents, task by task: few large ones or many small ones."""
    waiting, hashes, num_bytes = [], [], 0
    for file in files:
        waiting.append(file)
        hashes.append(file.content_hash())
        num_bytes += file.size_bytes()
        if num_bytes >= PART_BYTES or len(waiting) == PART_FILES:
            yield tuple(waiting), hashes
            waiting, hashes, num_bytes = [], [], 0
    if waiting:
        yield tuple(waiting), hashes


def _thinned_out(used, part_index, recipe) -> list[np.ndarray]:
    """Of the rows `used`, those that the weights leave, a part at a time."""
    rows_of_part = [used[part_index == index] for index in range(len(recipe.parts))]
    if recipe.weights is None:
        return rows_of_part
    total = recipe.num_spectra
    if total is None:
        total = min(len(rows) / weight for rows, weight in zip(rows_of_part, recipe.weights, strict=True))
    rng = np.random.default_rng(recipe.seed)
    left = []
    for rows, weight in zip(rows_of_part, recipe.weights, strict=True):
        number = min(len(rows), math.floor(total * weight + 1e-6))
        left.append(rng.choice(rows, number, replace=False))
    return left


def _holds_corpus(output_dir, expected) -> bool:
    """Whether the folder holds this corpus; raises where it holds anything else."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return False
    try:
        found = json.loads((output_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
        same = all(found[key] == value for key, value in expected.items())
        same = same and all((output_dir / f).is_file() for s in found["splits"].values() for f in s["files"])
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ValueError(f"The output folder {output_dir} already holds something else: give a new or empty folder.")
    return True


def _progress(tasks):
    """A progress bar of files or cores, where someone watches."""
    from tqdm import tqdm

    total = sum(len(task.units) for task in tasks)
    return tqdm(total=total, desc="Reading", unit=" sources", disable=not sys.stderr.isatty())


def _start_worker():
    """A worker leaves interruption to its parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _place(path, place, reason) -> str:
    return f"{path}{f', {place}' if place else ''}: {reason}"
