"""Corpora as model inputs: a split with its native counts, the features of its spectra, and batches of them.

B = spectra in a batch, L = channels, P = patches of a whole spectrum.
"""

import hashlib
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

import feature_extraction_xrf
from feature_extraction_xrf import XRFFeatureExtractor

ROWS_PER_TABLE = 1000  # rows that are extracted together
STREAM_BLOCK = 16_384  # spectra of a stream that are shuffled with each other


def load_split(corpus: str, split: str, streaming: bool = False):
    """One split of a corpus, a local folder of Parquet files or a dataset on the Hub, with its native counts.

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` with `streaming`.

    Raises:
        ValueError: no such corpus or split, an empty folder, a damaged file, or columns that are not those of spectra.
    """
    import pyarrow
    import pyarrow.parquet
    from datasets import load_dataset
    from datasets.config import HF_DATASETS_CACHE
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    cache_dir = None
    if Path(corpus).is_dir():
        files = sorted(Path(corpus).resolve().rglob("*.parquet"))
        for file in files:
            try:
                num_rows = pyarrow.parquet.read_metadata(file).num_rows
            except pyarrow.ArrowInvalid:
                raise ValueError(f"{file} is not a complete Parquet file; write or download it again.") from None
            if num_rows == 0:
                raise ValueError(f"{file} holds no spectrum; remove it.")
        # datasets may take one folder for another of the same name, or for what it held before
        state = repr([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files])
        cache_dir = Path(HF_DATASETS_CACHE) / "xrf_folders" / hashlib.sha256(state.encode()).hexdigest()[:16]
    try:
        rows = load_dataset(str(corpus), split=split, streaming=streaming, cache_dir=cache_dir)
    except DatasetNotFoundError:
        raise ValueError(
            f"There is no corpus {corpus!r}, neither a folder here nor a dataset on the Hub; check the name."
        ) from None
    except FileNotFoundError as error:
        raise ValueError(f"There is no corpus in {corpus!r}: {error}") from None
    except DatasetGenerationError as error:
        raise ValueError(f"The corpus {corpus!r} cannot be read: {error.__cause__ or error}") from error
    columns = rows.column_names
    missing = [name for name in ("counts", "gain_kev", "offset_kev") if columns is not None and name not in columns]
    if missing:
        raise ValueError(
            f"The split {split!r} of {corpus!r} has no column {missing[0]!r}, but {', '.join(columns)}; build the "
            "corpus with dataset_builder."
        )
    return rows


def simulated_corpus(num_spectra: int, num_cores: int, seed: int) -> str:
    """Folder of a simulated corpus in the cache of datasets, built on first use."""
    from datasets.config import HF_DATASETS_CACHE

    from dataset_builder import XRFBuilderConfig, build_corpus

    options = {"num_spectra": num_spectra, "num_cores": num_cores, "seed": seed}
    name = XRFBuilderConfig(source="simulated", **options).name  # holds the version of the simulation
    return str(build_corpus("simulated", Path(HF_DATASETS_CACHE) / "xrf_corpora" / name, **options))


def extract_features(table, indices, extractor: XRFFeatureExtractor, split: str):
    """Rows of native spectra to rows of model inputs: one `pyarrow.Table` to another.

    Args:
        table (`pyarrow.Table`): columns `counts`, `gain_kev`, `offset_kev` and, where known, `tube_kv`.
        indices (sequence of `int`): the rows' numbers in the split.
        extractor: puts counts onto the model's grid and scales them.
        split: its name, for errors.

    Returns:
        `pyarrow.Table` with `sample_id` (the row's number), `input_values` (L) and `attention_mask` (P).

    Raises:
        ValueError: a spectrum that the feature extractor refuses, named by its row.
    """
    import pyarrow as pa

    counts = table["counts"].combine_chunks()
    if counts.null_count:
        row = indices[int(np.argmax(counts.is_null().to_numpy(zero_copy_only=False)))]
        raise ValueError(f"Spectrum {row} of split {split!r} has no counts; leave it out.")
    features = extractor(
        [row.values.to_numpy(zero_copy_only=False) for row in counts],
        gain_kev=table["gain_kev"].to_numpy(),
        offset_kev=table["offset_kev"].to_numpy(),
        tube_kv=table["tube_kv"].to_numpy() if "tube_kv" in table.column_names else None,
        names=[f"{index} of split {split!r}" for index in indices],
    )
    columns = {"sample_id": pa.array(indices, pa.int64())}
    for name, dtype in (("input_values", np.float32), ("attention_mask", np.uint8)):
        values = np.ascontiguousarray(features[name], dtype=dtype)
        columns[name] = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
    return pa.table(columns)


def cached_features(rows, extractor: XRFFeatureExtractor, split: str):
    """All features of a `datasets.Dataset`, computed once and kept, memory-mapped, in the cache of datasets.

    The key of the cache holds the code that computed them; datasets itself would look at names only.
    """
    code = Path(feature_extraction_xrf.__file__).read_text(encoding="utf-8") + inspect.getsource(extract_features)
    key = "\n".join([rows._fingerprint, split, extractor.to_json_string(), code])
    return rows.with_format("arrow").map(
        extract_features,
        with_indices=True,
        batched=True,
        batch_size=ROWS_PER_TABLE,
        remove_columns=rows.column_names,
        fn_kwargs={"extractor": extractor, "split": split},
        new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
        desc=f"Extracting {split}",
    )


def spread(rows, number: int):
    """At most `number` rows of a dataset, evenly spaced; of a stream, its first ones."""
    if not hasattr(rows, "__len__"):
        return rows.take(number)
    return rows.select(np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int))


def feature_batches(rows, extractor: XRFFeatureExtractor, split: str) -> Iterator[dict[str, torch.Tensor]]:
    """Features of a dataset or a stream in its own order, as batches of tensors."""
    first = 0
    for table in rows.with_format("arrow").iter(ROWS_PER_TABLE):
        yield _tensors(extract_features(table, range(first, first + len(table)), extractor, split))
        first += len(table)


def _tensors(features) -> dict[str, torch.Tensor]:
    """A table of `extract_features` as tensors: `sample_id` (B,), `input_values` (B, L), `attention_mask` (B, P)."""
    tensors = {}
    for name in features.column_names:
        column = features[name].combine_chunks()
        values = column.to_numpy() if name == "sample_id" else column.flatten().to_numpy().reshape(len(column), -1)
        tensors[name] = torch.from_numpy(values.copy())
    return tensors


class SpectrumBatches(Dataset):
    """Feature rows that a `DataLoader` fetches by whole batches (its `collate_fn` is `whole_batch`); sample by sample
    would be ten times slower."""

    def __init__(self, features):
        self.features = features.with_format("torch")

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return self.features[indices]


def whole_batch(batch):
    """The batch as it was fetched."""
    return batch


class SpectrumStream(IterableDataset):
    """Batches of features from a streamed split, extracted on the way and shuffled within blocks of `block` spectra.

    Every process, and within it every worker of the `DataLoader`, reads its own share of the rows. An incomplete last
    batch of a block is dropped, so that all batches have one shape. `sample_id` is the position within the stream and
    differs between shares.
    """

    def __init__(
        self,
        rows,
        extractor: XRFFeatureExtractor,
        split: str,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        block: int = STREAM_BLOCK,
    ):
        self.rows, self.extractor, self.split = rows, extractor, split
        self.batch_size, self.seed = batch_size, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.block = max(1, block // batch_size) * batch_size
        self.epoch = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        from datasets.distributed import split_dataset_by_node

        worker = get_worker_info()
        workers = worker.num_workers if worker else 1
        share = self.process_index * workers + (worker.id if worker else 0)
        shares = self.num_processes * workers
        rows = split_dataset_by_node(self.rows, share, shares) if shares > 1 else self.rows
        first = 0
        for table in rows.with_format("arrow").iter(self.block):
            positions = range(first, first + len(table))
            batch = _tensors(extract_features(table, positions, self.extractor, self.split))
            batch["sample_id"] = batch["sample_id"] * shares + share
            order = np.random.default_rng((self.seed, self.epoch, share, first)).permutation(len(table))
            for start in range(0, len(table) - self.batch_size + 1, self.batch_size):
                chosen = torch.from_numpy(order[start : start + self.batch_size])
                yield {name: values[chosen] for name, values in batch.items()}
            first += len(table)


def repeated_epochs(loader, first_batch: int = 0) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Epoch after epoch of a prepared loader without end, from batch number `first_batch` of the whole run on. Yields
    the epoch's number and the batch; the order within an epoch depends on the loader's seed and that number only."""
    from accelerate import skip_first_batches

    epoch, skipped = divmod(first_batch, len(loader))
    while True:
        loader.set_epoch(epoch)
        for batch in skip_first_batches(loader, skipped) if skipped else loader:
            yield epoch, batch
        epoch, skipped = epoch + 1, 0


def repeated_stream(loader, stream: SpectrumStream, device, first_batch: int = 0):
    """As `repeated_epochs`, for the loader of a stream. Skipping reads the stream again from its start.

    Raises:
        ValueError: the stream is shorter than one batch; a spectrum in it cannot be used.
    """
    from accelerate.utils import send_to_device

    drawn = 0
    for epoch in itertools.count():
        stream.epoch = epoch
        drawn_before = drawn
        try:
            for batch in loader:
                drawn += 1
                if drawn > first_batch:
                    yield epoch, send_to_device(batch, device, non_blocking=True)
        except ValueError as error:  # a worker of the loader sends its whole traceback
            raise ValueError(str(error).splitlines()[-1].removeprefix("ValueError: ")) from None
        if drawn == drawn_before:
            raise ValueError(
                f"The split {stream.split!r} gives no whole batch of {stream.batch_size} spectra to every process and "
                "worker; use a smaller batch_size or fewer workers."
            )
