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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from corpus_xrf import ROWS_PER_TABLE, NativeSpectra, extract_tensors, load_split, recipe_corpus, spread
from feature_extraction_xrf import XRFFeatureExtractor

STREAM_BLOCK = 16_384  # spectra of a streamed corpus that are shuffled with each other
MIXTURE_BLOCK = 4096  # spectra of a mixture that are shuffled with each other
HELD_OUT_PER_CORE = 50  # simulated spectra of one core in a held-out set
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
    """Batches of model inputs without end: `sample_id`, `input_values` and `attention_mask` as `extract_tensors` gives
    them, and `epoch`, a number.

    Args:
        source (`StreamedRows` or `Mixture`): gives native batches.
        extractor (`XRFFeatureExtractor`): puts counts onto the model's grid and scales them.
        split (`str`): name of the split, for errors.
        batch_size (`int`): B.
        seed (`int`): of order and augmentation.
        process_index, num_processes (`int`): which share of the spectra is this process's.
        augmentation (callable, *optional*): a step of `dataset_builder.augmentation`, on native counts.
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
    ):
        self.source, self.extractor, self.split = source, extractor, split
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
        batches = self.source.batches(share, shares, self.batch_size, self.seed, skipped)
        for position, batch in enumerate(batches, skipped):
            spectra = batch.spectra
            if self.augmentation is not None:
                spectra = _augmented(
                    spectra, self.augmentation, np.random.default_rng((self.seed, 1, share, position))
                )
            tensors = extract_tensors(spectra, batch.sample_ids, self.extractor, self.split)
            yield {**tensors, "epoch": batch.epoch}


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


# ---------------------------------------------------------------------------------------------------------------------
# A streamed corpus


class StreamedRows:
    """A split that is read while training, pass after pass, shuffled within blocks of `block` spectra.

    Every share reads its own rows. An incomplete last batch of a block is dropped. To begin at a later batch, all that
    come before are read again.

    Args:
        rows (`datasets.IterableDataset`): the split.
        block (`int`): spectra that are shuffled with each other.
    """

    def __init__(self, rows, block: int = STREAM_BLOCK):
        self.rows, self.block = rows, block

    def batches(self, share: int, shares: int, batch_size: int, seed: int, first: int = 0) -> Iterator[NativeBatch]:
        """Batches of one share from number `first` on."""
        from datasets.distributed import split_dataset_by_node

        rows = split_dataset_by_node(self.rows, share, shares) if shares > 1 else self.rows
        rows = rows.select_columns([name for name in COLUMNS if name in (rows.column_names or COLUMNS)])
        block = max(1, self.block // batch_size) * batch_size
        number = 0
        for epoch in itertools.count():
            number_before = number
            for index, table in enumerate(rows.with_format("arrow").iter(block)):
                spectra = NativeSpectra.from_table(table)
                order = np.random.default_rng((seed, 0, epoch, share, index)).permutation(len(table))
                for start in range(0, len(table) - batch_size + 1, batch_size):
                    if number >= first:
                        chosen = order[start : start + batch_size]
                        yield NativeBatch(spectra.take(chosen), (index * block + chosen) * shares + share, epoch)
                    number += 1
            if number == number_before:
                raise ValueError(
                    f"The stream gives no whole batch of {batch_size} spectra to every process and worker; use a "
                    "smaller batch_size or fewer workers."
                )


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures


class SimulatedSpectra:
    """Fresh spectra without end from a `dataset_builder.simulation.SimulatedSource`: share s of S simulates units s,
    s + S, s + 2 S and so on, so no unit is ever simulated twice."""

    def __init__(self, source):
        self.source = source

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
                    yield _native_table(batch).slice(first)
                first = max(first - len(batch), 0)


class StoredSpectra:
    """The spectra of a stored split, pass after pass, each in another order. In a pass every spectrum belongs to one
    share.

    Args:
        rows (`datasets.Dataset`): the split.
        seed (`int`): of the order.
    """

    def __init__(self, rows, seed: int):
        self.rows = rows.select_columns([name for name in COLUMNS if name in rows.column_names])
        self.seed = seed

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
        sources (sequence of `SimulatedSpectra` or `StoredSpectra`): where spectra come from.
        weights (sequence of `float`, *optional*): share of each source; by default in proportion to their sizes.
        num_spectra (`int`, *optional*): spectra in an epoch; by default as many as no source gives twice.
        block (`int`): spectra that are shuffled with each other, but no more than an epoch has.
    """

    def __init__(self, sources, weights=None, num_spectra: int | None = None, block: int = MIXTURE_BLOCK):
        self.sources, self.block = list(sources), block
        sizes = np.array([len(source) for source in self.sources], dtype=np.float64)
        weights = sizes if weights is None else np.asarray(weights, dtype=np.float64)
        self.weights = weights / weights.sum()
        self.num_spectra = num_spectra or int(np.min(sizes / self.weights).round(6))

    def batches(self, share: int, shares: int, batch_size: int, seed: int, first: int = 0) -> Iterator[NativeBatch]:
        """Batches of one share from number `first` on. While those of a block are handed out, the next is filled."""
        batches_in_block = max(1, min(self.block, self.num_spectra // shares) // batch_size)
        block_size = batches_in_block * batch_size
        first_block, done = divmod(first, batches_in_block)
        rows = self._rows(share, shares, first_block * block_size)
        coming = [rows(batch_size) for _ in range(batches_in_block)]
        for index in itertools.count(first_block):
            block, coming = NativeSpectra.from_table(_together(coming)), []
            order = np.random.default_rng((seed, 0, share, index)).permutation(block_size)
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


def _native_table(batch):
    """A `SimulatedBatch` as a table with `COLUMNS`."""
    import pyarrow as pa

    num_spectra, num_channels = batch.counts.shape
    ends = pa.array(np.arange(0, batch.counts.size + 1, num_channels, dtype=np.int32))
    counts = pa.ListArray.from_arrays(ends, pa.array(batch.counts.ravel().astype(np.float32)))
    scalars = {name: pa.array(getattr(batch, name).astype(np.float64)) for name in COLUMNS[1:]}
    return pa.table({"counts": counts, **scalars})


# ---------------------------------------------------------------------------------------------------------------------
# Recipes


def recipe_mixture(recipe, split: str, seed: int, data_root=None) -> Mixture:
    """The spectra of one split of a `dataset_builder.Recipe` for a stream: simulated parts are drawn on the fly and
    never end, parts in files are first made a corpus in the cache of datasets.

    Args:
        split (`str`): `train`, `validation` or `test`. Every split has its own simulations, with another seed, which
            differ from those of the corpus built from the recipe, too.
        seed (`int`): of the order of stored spectra.
        data_root (path, *optional*): folder that the recipe's paths of files start from.

    Raises:
        ValueError: an unknown split.
    """
    stored = _stored_parts(recipe, split, data_root)
    sources, weights = [], []
    for part, weight in zip(recipe.parts, recipe.weights or [None] * len(recipe.parts), strict=True):
        if part.name not in stored:
            sources.append(SimulatedSpectra(_simulation_of_split(part, split).source()))
        elif len(stored[part.name]):
            sources.append(StoredSpectra(stored[part.name], seed))
        else:
            continue  # all its groups are in other splits
        weights.append(weight)
    return Mixture(sources, recipe.weights and weights, recipe.num_spectra)


def held_out_rows(recipe, split: str, num_spectra: int, data_root=None):
    """A fixed set of at most `num_spectra` spectra of one split of a recipe, with what names them: those of parts in
    files, and simulated cores, which are kept in the cache of datasets.

    Returns:
        `datasets.Dataset` with `COLUMNS`, `sample`, `core` and `depth_mm`.
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
        found.append(rows.select_columns([*COLUMNS, "sample", "core", "depth_mm"]))
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
