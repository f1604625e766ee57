"""Training batches that never touch the disk: streamed corpora, and mixtures of simulated and stored spectra.

A source says which native spectra come in which order; `SpectrumStream` makes model inputs of them.

The work is divided into shares, one for each `DataLoader` worker of each process: worker w of W in process p has share
p W + w. Shares have no spectrum in common, and a process gets batches from those of its workers in turn. So the seed,
the number of processes and that of workers decide what comes when, and a run with the same three can be repeated, and
resumed at any batch; other numbers divide and order the same spectra in another way.

B = spectra in a batch.
"""

import dataclasses
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from corpus_xrf import (
    ROWS_PER_TABLE,
    NativeSpectra,
    extract_tensors,
    feature_batches,
    labels_of,
    load_split,
    measured_patches,
    recipe_corpus,
    spread,
)
from feature_extraction_xrf import XRFFeatureExtractor

STREAM_BLOCK = 16_384  # spectra of a streamed corpus that are shuffled with each other
MIXTURE_BLOCK = 4096  # spectra of a mixture that are shuffled with each other
HELD_OUT_PER_CORE = 50  # simulated spectra of one core in a held-out set
REACH_STEP = 16  # patches; spectra that reach equally far in these steps share batches
GOLDEN_RATIO = 0.5 * (1 + 5**0.5)
COLUMNS = ("counts", "gain_kev", "offset_kev", "tube_kv")  # what model inputs are made of


@dataclass(frozen=True)
class NativeBatch:
    """B spectra as recorded.

    Args:
        spectra (`NativeSpectra`): counts and calibration.
        sample_ids (`np.ndarray` of shape `(B,)`): numbers that differ between the spectra of an epoch.
        epoch (`int`): how often the source has been through.
    """

    spectra: NativeSpectra
    sample_ids: np.ndarray
    epoch: int


class SpectrumStream(IterableDataset):
    """Batches of model inputs without end: `sample_id`, `input_values`, `attention_mask` and `patch_ids` as
    `measured_patches` gives them, and `epoch`, a number. If the source has targets, also `labels`.

    Args:
        source (`StreamedRows` or `Mixture`): gives native batches.
        extractor (`XRFFeatureExtractor`): puts counts onto the model's grid and scales them.
        split (`str`): name of the split, for errors.
        batch_size (`int`): B.
        seed (`int`): of order and augmentation.
        process_index, num_processes (`int`): which share of the spectra is this process's.
        augmentation (callable, *optional*): a step of `dataset_builder.augmentation`, on native counts.
        by_reach (`bool`): whether spectra that reach similarly far in energy share batches. Then few patches are
            encoded in vain, but a model learns less from batches of one kind.
    """

    def __init__(
        self,
        source,
        extractor: XRFFeatureExtractor,
        split: str,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        augmentation=None,
        by_reach: bool = False,
    ):
        self.source, self.extractor, self.split, self.by_reach = source, extractor, split, by_reach
        self.batch_size, self.seed, self.augmentation = batch_size, seed, augmentation
        self.process_index, self.num_processes = process_index, num_processes
        self.first_batch = 0

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        # A loader asks its workers in turn from the first one on, which must have the batch that is due.
        number = (number + self.first_batch) % workers
        share, shares = self.process_index * workers + number, self.num_processes * workers
        skipped = (self.first_batch - number + workers - 1) // workers
        reach = self._reach if self.by_reach else None
        batches = self.source.batches(share, shares, self.batch_size, self.seed, skipped, reach)
        for position, batch in enumerate(batches, skipped):
            spectra = batch.spectra
            if self.augmentation is not None:
                spectra = _augmented(
                    spectra, self.augmentation, np.random.default_rng((self.seed, 1, share, position))
                )
            tensors = measured_patches(extract_tensors(spectra, batch.sample_ids, self.extractor, self.split))
            yield {**tensors, "epoch": batch.epoch}

    def _reach(self, spectra: NativeSpectra) -> np.ndarray:
        """How far up the model's grid spectra were measured, `(B,)`, in whole steps of `REACH_STEP` patches."""
        channels = np.array([len(counts) for counts in spectra.counts])
        highest_kev = spectra.offset_kev + (channels - 0.5) * spectra.gain_kev
        if self.extractor.limit_to_tube_kv:
            highest_kev = np.fmin(highest_kev, spectra.tube_kv)
        edges_kev = self.extractor.channel_edges_kev[:: REACH_STEP * self.extractor.patch_size]
        return np.searchsorted(edges_kev, highest_kev)


def stream_batches(loader, stream: SpectrumStream, device, first_batch: int = 0) -> Iterator[tuple[int, dict]]:
    """Epochs and batches of the `DataLoader` of a stream without end, from batch number `first_batch` of this process
    on.

    Raises:
        ValueError: the stream is shorter than one batch; a spectrum in it cannot be used.
    """
    from accelerate.utils import send_to_device

    stream.first_batch = first_batch
    try:
        for batch in loader:
            epoch = batch.pop("epoch")
            yield epoch, send_to_device(batch, device, non_blocking=True)
    except ValueError as error:  # a worker of the loader sends its whole traceback
        raise ValueError(str(error).splitlines()[-1].removeprefix("ValueError: ")) from None


def augmented_batches(
    rows, extractor: XRFFeatureExtractor, split: str, seed: int, augmentation, targets: Sequence[str] = ()
) -> Iterator[dict]:
    """As `feature_batches`, every spectrum of a `datasets.Dataset` once, augmented."""
    change = partial(_augmented, augmentation=augmentation, rng=np.random.default_rng(seed))
    return feature_batches(rows, extractor, split, targets, change)


def _augmented(spectra: NativeSpectra, augmentation, rng) -> NativeSpectra:
    """Spectra with augmented counts, those of one length together."""
    if isinstance(spectra.counts, np.ndarray):
        counts = augmentation(spectra.counts, spectra.gain_kev, spectra.offset_kev, rng)
        return dataclasses.replace(spectra, counts=counts)
    counts = list(spectra.counts)
    lengths = np.array([len(row) for row in counts])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        alike = np.stack([counts[row] for row in rows])
        alike = augmentation(alike, spectra.gain_kev[rows], spectra.offset_kev[rows], rng)
        for row, augmented in zip(rows, alike, strict=True):
            counts[row] = augmented
    return dataclasses.replace(spectra, counts=counts)


def batch_order(number: int, batch_size: int, rng: np.random.Generator, reach: np.ndarray | None = None) -> np.ndarray:
    """A random order of the spectra of a block, whole batches only, `(N,)` with N a multiple of `batch_size`.

    Args:
        number (`int`): spectra of the block.
        reach (`np.ndarray` of shape `(number,)`, *optional*): spectra with equal ones share batches as far as they go;
            who shares a batch with whom is random, and so is the order of the batches.
    """
    order = rng.permutation(number)[: number // batch_size * batch_size]
    if reach is None:
        return order
    order = order[np.argsort(reach[order], kind="stable")]
    return rng.permutation(order.reshape(-1, batch_size)).ravel()


# ---------------------------------------------------------------------------------------------------------------------
# A streamed corpus


class StreamedRows:
    """A split that is read while training, pass after pass, shuffled within blocks of `block` spectra.

    Every share reads its own rows. An incomplete last batch of a block is dropped. To begin at a later batch, all that
    come before are read again.

    Args:
        rows (`datasets.IterableDataset`): the split.
        block (`int`): spectra that are shuffled with each other.
        targets (sequence of `str`): columns to hand out as labels.
    """

    def __init__(self, rows, block: int = STREAM_BLOCK, targets: Sequence[str] = ()):
        _check_units(rows, targets)
        self.rows, self.block, self.targets = rows, block, tuple(targets)

    def batches(
        self, share: int, shares: int, batch_size: int, seed: int, first: int = 0, reach=None
    ) -> Iterator[NativeBatch]:
        """Batches of one share from number `first` on. `reach` makes of `NativeSpectra` what `batch_order` takes."""
        from datasets.distributed import split_dataset_by_node

        rows = split_dataset_by_node(self.rows, share, shares) if shares > 1 else self.rows
        wanted = (*COLUMNS, *self.targets)
        rows = rows.select_columns([name for name in wanted if name in (rows.column_names or wanted)])
        block = max(1, self.block // batch_size) * batch_size
        number = 0
        for epoch in itertools.count():
            number_before = number
            for index, table in enumerate(rows.with_format("arrow").iter(block)):
                spectra = NativeSpectra.from_table(table, self.targets)
                rng = np.random.default_rng((seed, 0, epoch, share, index))
                order = batch_order(len(table), batch_size, rng, reach and reach(spectra))
                for start in range(0, len(order), batch_size):
                    if number >= first:
                        chosen = order[start : start + batch_size]
                        yield NativeBatch(spectra.take(chosen), (index * block + chosen) * shares + share, epoch)
                    number += 1
            if number == number_before:
                raise ValueError(
                    f"The stream gives no whole batch of {batch_size} spectra to every process and worker; use a "
                    "smaller batch_size or fewer workers."
                )


def first_labels(rows, targets: Sequence[str], number: int) -> np.ndarray:
    """Labels of some spectra to learn from, `(number, targets)`, NaN where missing: the first of a `Mixture` or a
    stream, evenly spaced ones of a split."""
    if isinstance(rows, Mixture):
        return rows.labels(number)
    known = [name for name in targets if name in (rows.column_names or targets)]
    if not known:
        return np.full((0, len(targets)), np.nan)
    tables = spread(rows, number).select_columns(known).with_format("arrow").iter(ROWS_PER_TABLE)
    return np.concatenate([labels_of(table, targets) for table in tables])


def _check_units(rows, targets) -> None:
    """Raise `ValueError` where a corpus states another unit of a target than simulations do."""
    from dataset_builder.simulation import TARGET_UNITS

    if not targets or "target_units" not in (rows.column_names or ()):
        return
    (row,) = rows.select_columns("target_units").take(1)
    for name, unit in json.loads(row["target_units"] or "{}").items():
        if name in targets and unit not in ("", TARGET_UNITS[name]):
            raise ValueError(
                f"The corpus has {name} in {unit!r}, but to learn with simulated spectra it must be in "
                f"{TARGET_UNITS[name]!r}; convert it, or leave the target out."
            )


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures


class SimulatedSpectra:
    """Fresh spectra without end from a `dataset_builder.simulation.SimulatedSource`: share s of S simulates units s,
    s + S, s + 2 S and so on, so no unit is ever simulated twice.

    Args:
        source (`SimulatedSource`): what simulates.
        targets (sequence of `str`): labels to hand out.
    """

    def __init__(self, source, targets: Sequence[str] = ()):
        self.source, self.targets = source, tuple(targets)

    def __len__(self) -> int:
        """Spectra in what the source calls its size."""
        return self.source.num_spectra

    def tables(self, share: int, shares: int, first: int) -> Iterator:
        """Native spectra of one share as `pyarrow.Table`s, from its spectrum number `first` on."""
        for unit in itertools.count(share, shares):
            size = self.source.unit_size(unit)
            if first >= size:
                first -= size
                continue
            for batch in self.source.simulate(unit):
                if first < len(batch):
                    yield _native_table(batch, self.targets).slice(first)
                first = max(first - len(batch), 0)


class StoredSpectra:
    """The spectra of a stored split, pass after pass, each in another order. In a pass every spectrum belongs to one
    share.

    Args:
        rows (`datasets.Dataset`): the split.
        seed (`int`): of the order.
        targets (sequence of `str`): columns to hand out as labels.
    """

    def __init__(self, rows, seed: int, targets: Sequence[str] = ()):
        _check_units(rows, targets)
        self.rows = rows.select_columns([name for name in (*COLUMNS, *targets) if name in rows.column_names])
        self.seed, self.targets = seed, tuple(targets)

    def __len__(self) -> int:
        return len(self.rows)

    def tables(self, share: int, shares: int, first: int) -> Iterator:
        """Native spectra of one share as `pyarrow.Table`s, from its spectrum number `first` on."""
        size = len(range(share, len(self.rows), shares))
        if size == 0:
            raise ValueError(
                f"{len(self.rows)} spectra are fewer than the {shares} workers of all processes; use fewer workers."
            )
        rows = self.rows.with_format("arrow")
        first_pass, first = divmod(first, size)
        for number in itertools.count(first_pass):
            order = np.random.default_rng((self.seed, number)).permutation(len(self.rows))[share::shares]
            for start in range(first, size, ROWS_PER_TABLE):
                yield rows[order[start : start + ROWS_PER_TABLE]]
            first = 0


class Mixture:
    """Spectra of several sources in given shares, without end, shuffled within blocks.

    Spectrum k of a share of the work comes from the source in whose interval the fractional part of k times the golden
    ratio lies; the intervals are as wide as the weights. So every batch has nearly its share of each source.

    Args:
        sources (sequence of `SimulatedSpectra` or `StoredSpectra`): where spectra come from, with the same targets.
        weights (sequence of `float`, *optional*): share of each source; by default in proportion to their sizes.
        num_spectra (`int`, *optional*): spectra in an epoch; by default as many as no source gives twice.
        block (`int`): spectra that are shuffled with each other, but no more than an epoch has.
    """

    def __init__(self, sources, weights=None, num_spectra: int | None = None, block: int = MIXTURE_BLOCK):
        self.sources, self.block = list(sources), block
        self.targets = self.sources[0].targets
        sizes = np.array([len(source) for source in self.sources], dtype=np.float64)
        weights = sizes if weights is None else np.asarray(weights, dtype=np.float64)
        self.weights = weights / weights.sum()
        self.num_spectra = num_spectra or int(np.min(sizes / self.weights).round(6))

    def batches(
        self, share: int, shares: int, batch_size: int, seed: int, first: int = 0, reach=None
    ) -> Iterator[NativeBatch]:
        """Batches of one share from number `first` on. `reach` makes of `NativeSpectra` what `batch_order` takes.
        While those of a block are handed out, the next is filled."""
        batches_in_block = max(1, min(self.block, self.num_spectra // shares) // batch_size)
        block_size = batches_in_block * batch_size
        first_block, done = divmod(first, batches_in_block)
        rows = self._rows(share, shares, first_block * block_size)
        coming = [rows(batch_size) for _ in range(batches_in_block)]
        for index in itertools.count(first_block):
            block, coming = NativeSpectra.from_table(_together(coming), self.targets), []
            rng = np.random.default_rng((seed, 0, share, index))
            order = batch_order(block_size, batch_size, rng, reach and reach(block))
            for start in range(0, block_size, batch_size):
                if start >= done * batch_size:
                    chosen = order[start : start + batch_size]
                    sample_ids = (index * block_size + chosen) * shares + share
                    epoch = (index * block_size + start) * shares // self.num_spectra
                    yield NativeBatch(block.take(chosen), sample_ids, epoch)
                coming.append(rows(batch_size))
            done = 0

    def take(self, number: int):
        """The first spectra, `number` or as many as a block or an epoch holds, as a `datasets.Dataset` in memory."""
        from datasets import Dataset

        return Dataset(self._rows(0, 1, 0)(min(number, self.block, self.num_spectra)))

    def labels(self, number: int) -> np.ndarray:
        """Labels of the first `number` spectra, or of as many as an epoch holds, `(number, targets)`."""
        rows, number = self._rows(0, 1, 0), min(number, self.num_spectra)
        tables = (rows(min(ROWS_PER_TABLE, number - start)) for start in range(0, number, ROWS_PER_TABLE))
        return np.concatenate([labels_of(table, self.targets) for table in tables])

    def _rows(self, share, shares, first):
        """A function that returns the next spectra of a share, from its spectrum number `first` on."""
        taken = sum((self._numbers(start, min(start + 2**20, first)) for start in range(0, first, 2**20)), start=0)
        taken = np.broadcast_to(taken, len(self.sources))
        sources = zip(self.sources, taken.tolist(), strict=True)
        readers = [_Reader(source.tables(share, shares, skipped)) for source, skipped in sources]
        position = first

        def next_rows(number: int):
            nonlocal position
            numbers = self._numbers(position, position + number).tolist()
            position += number
            tables = [reader(wanted) for reader, wanted in zip(readers, numbers, strict=True) if wanted]
            return _together(tables)

        return next_rows

    def _numbers(self, first, last) -> np.ndarray:
        """How many of the spectra `first` to `last` of a share come from each source."""
        places = (np.arange(first, last) * GOLDEN_RATIO) % 1
        chosen = np.searchsorted(np.cumsum(self.weights)[:-1], places, side="right")
        return np.bincount(chosen, minlength=len(self.sources))


class _Reader:
    """Hands out rows of an endless iterator of tables in the numbers asked for."""

    def __init__(self, tables):
        self.tables, self.rest = tables, None

    def __call__(self, number: int):
        pieces = []
        while number:
            if self.rest is None or len(self.rest) == 0:
                self.rest = next(self.tables)
            pieces.append(self.rest.slice(0, number))
            self.rest = self.rest.slice(number)
            number -= len(pieces[-1])
        return _together(pieces)


def _together(tables):
    """One table in one piece, the columns that only some of them have filled with null."""
    import pyarrow as pa

    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def _native_table(batch, targets):
    """A `SimulatedBatch` as a table with `COLUMNS` and those of its labels that are `targets`."""
    import pyarrow as pa

    num_spectra, num_channels = batch.counts.shape
    ends = pa.array(np.arange(0, batch.counts.size + 1, num_channels, dtype=np.int32))
    counts = pa.ListArray.from_arrays(ends, pa.array(batch.counts.ravel().astype(np.float32)))
    scalars = {name: pa.array(getattr(batch, name).astype(np.float64)) for name in COLUMNS[1:]}
    labels = {name: pa.array(batch.labels[name].astype(np.float32)) for name in targets}
    return pa.table({"counts": counts, **scalars, **labels})


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def recipe_mixture(recipe, split: str, seed: int, data_root=None, targets: Sequence[str] = ()) -> Mixture:
    """The spectra of one split of a `dataset_builder.Recipe` for a stream: simulated parts are drawn on the fly and
    never end, parts in files are first made a corpus in the cache of datasets.

    Args:
        split (`str`): `train`, `validation` or `test`. Every split has its own simulations, with another seed, which
            differ from those of the corpus built from the recipe, too.
        seed (`int`): of the order of stored spectra.
        data_root (path, *optional*): folder that the recipe's paths of files start from.
        targets (sequence of `str`): labels to hand out, NaN where a part does not know them.

    Raises:
        ValueError: an unknown split.
    """
    stored = _stored_parts(recipe, split, data_root)
    sources, weights = [], []
    for part, weight in zip(recipe.parts, recipe.weights or [None] * len(recipe.parts), strict=True):
        if part.name not in stored:
            sources.append(SimulatedSpectra(_simulation_of_split(part, split).source(), targets))
        elif len(stored[part.name]):
            sources.append(StoredSpectra(stored[part.name], seed, targets))
        else:
            continue  # all its groups are in other splits
        weights.append(weight)
    return Mixture(sources, recipe.weights and weights, recipe.num_spectra)


def held_out_rows(recipe, split: str, num_spectra: int, data_root=None, targets: Sequence[str] = ()):
    """A fixed set of at most `num_spectra` spectra of one split of a recipe, with what names them: those of parts in
    files, and simulated cores, which are kept in the cache of datasets.

    Returns:
        `datasets.Dataset` with `COLUMNS`, `sample`, `core`, `depth_mm` and the `targets`, null where a part does not
        know them.
    """
    from datasets import concatenate_datasets

    stored = _stored_parts(recipe, split, data_root)
    weights = recipe.weights or [1 / len(recipe.parts)] * len(recipe.parts)
    found = []
    for part, weight in zip(recipe.parts, weights, strict=True):
        number = max(1, int(num_spectra * weight))
        if part.name in stored:
            rows = spread(stored[part.name], number)
        else:
            few = {"num_spectra": number, "num_cores": -(-number // HELD_OUT_PER_CORE), "weight": None}
            few = dataclasses.replace(_simulation_of_split(part, split), **few)
            everything = {"num_spectra": None, "validation_fraction": 0.0, "test_fraction": 0.0}
            alone = dataclasses.replace(recipe, name=f"{recipe.name}-{part.name}", parts=(few,), **everything)
            rows = load_split(recipe_corpus(alone), "train")
        wanted = (*COLUMNS, "sample", "core", "depth_mm", *targets)
        found.append(rows.select_columns([name for name in wanted if name in rows.column_names]))
    return concatenate_datasets(found)


def _simulation_of_split(part, split):
    """A `SimulationPart` with a seed that belongs to the split."""
    from dataset_builder.recipe import SPLITS

    if split not in SPLITS:
        raise ValueError(f'Unknown split "{split}" of a recipe. Should be one of {", ".join(SPLITS)}.')
    return dataclasses.replace(part, seed=part.seed + (zlib.crc32(split.encode()) << 32))


def _stored_parts(recipe, split: str, data_root) -> dict:
    """Rows of one split by name of the part, for all parts in files; they are made one corpus, so that no group and no
    near copies are on two sides."""
    from dataset_builder import FilesPart

    parts = tuple(dataclasses.replace(part, weight=None) for part in recipe.parts if isinstance(part, FilesPart))
    if not parts:
        return {}
    in_files = dataclasses.replace(recipe, name=f"{recipe.name}-files", parts=parts, num_spectra=None)
    folder = recipe_corpus(in_files, data_root)
    rows = load_split(folder, split)
    sizes = json.loads((Path(folder) / "corpus.json").read_text(encoding="utf-8"))["splits"][split]["parts"]
    ends = np.cumsum(list(sizes.values()))
    return {name: rows.select(range(end - sizes[name], end)) for name, end in zip(sizes, ends.tolist(), strict=True)}
