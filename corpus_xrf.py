"""Corpora as model inputs: a split with its native counts, the features of its spectra, and batches of them.

B = spectra in a batch, L = channels, P = patches of a whole spectrum.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

import feature_extraction_xrf
from feature_extraction_xrf import XRFFeatureExtractor

SIMULATED = "simulation"  # how the source of a simulated spectrum begins
ROWS_PER_TABLE = 1000  # rows that are extracted together


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


def find_recipe(dataset: str):
    """The `dataset_builder.Recipe` that a YAML file or the name of a packaged recipe stands for; `None` for anything
    else.

    Raises:
        ValueError: it is not a valid recipe.
    """
    from dataset_builder import Recipe
    from dataset_builder.recipe import packaged_recipes

    if Path(dataset).is_dir() or (Path(dataset).suffix not in (".yaml", ".yml") and dataset not in packaged_recipes()):
        return None
    return Recipe.from_yaml(dataset)


def recipe_corpus(recipe, data_root=None) -> str:
    """Folder of the corpus of a `dataset_builder.Recipe` in the cache of datasets, built on first use.

    Args:
        data_root (path, *optional*): folder that the recipe's paths of files start from.
    """
    from datasets.config import HF_DATASETS_CACHE

    from dataset_builder import XRFDatasetBuilder, build_corpus

    folder = Path(HF_DATASETS_CACHE) / "xrf_corpora"
    fingerprint = XRFDatasetBuilder(recipe, folder, data_root).fingerprint()  # holds the version of the simulation
    name = f"{recipe.name}-{fingerprint[:16]}"
    return str(build_corpus(recipe=recipe, output_dir=folder / name, data_root=data_root))


@dataclass(frozen=True)
class NativeSpectra:
    """Spectra as recorded.

    Args:
        counts: `(B, channels)`, or a list of `(channels,)` where their numbers of channels differ.
        gain_kev, offset_kev, tube_kv (`np.ndarray` of shape `(B,)`): keV per channel, energy of channel 0 in keV, and
            tube voltage in kV; NaN where unknown.
        labels (`np.ndarray` of shape `(B, targets)`, *optional*): known values of targets, NaN where missing.
    """

    counts: np.ndarray | list[np.ndarray]
    gain_kev: np.ndarray
    offset_kev: np.ndarray
    tube_kv: np.ndarray
    labels: np.ndarray | None = None

    @classmethod
    def from_table(cls, table, targets: Sequence[str] = ()) -> "NativeSpectra":
        """From the columns of a `pyarrow.Table` with these names, and with those of `targets` as labels; `tube_kv` and
        targets may be missing. Where the table is in one piece, counts are not copied; those that are null become a
        row without channels."""
        counts = table["counts"].combine_chunks()
        values = counts.flatten().to_numpy(zero_copy_only=False)
        lengths = counts.value_lengths().fill_null(0).to_numpy()
        if (lengths == lengths[0]).all():
            counts = values.reshape(len(lengths), -1)
        else:
            counts = np.split(values, np.cumsum(lengths)[:-1])
        numbers = [_numbers(table, name) for name in ("gain_kev", "offset_kev", "tube_kv")]
        return cls(counts, *numbers, labels_of(table, targets) if targets else None)

    def take(self, rows: np.ndarray) -> "NativeSpectra":
        """Some of them, in the order of `rows`."""
        counts = self.counts[rows] if isinstance(self.counts, np.ndarray) else [self.counts[row] for row in rows]
        labels = None if self.labels is None else self.labels[rows]
        return NativeSpectra(counts, self.gain_kev[rows], self.offset_kev[rows], self.tube_kv[rows], labels)


def labels_of(table, targets: Sequence[str]) -> np.ndarray:
    """The columns of a `pyarrow.Table` named by `targets`, `(rows, targets)`, NaN where null or missing."""
    return np.stack([_numbers(table, name) for name in targets], axis=1)


def _numbers(table, name: str) -> np.ndarray:
    """A column of a `pyarrow.Table`, NaN where it is null or missing."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return table[name].to_numpy().astype(np.float64)


def extract_tensors(
    spectra: NativeSpectra, indices, extractor: XRFFeatureExtractor, split: str
) -> dict[str, torch.Tensor]:
    """Native spectra to model inputs.

    Args:
        indices (sequence of `int`): their numbers in the split.
        extractor: puts counts onto the model's grid and scales them.
        split: its name, for errors.

    Returns:
        `sample_id` (B,), the numbers; `input_values` (B, L), float32; `attention_mask` (B, P), uint8; of spectra with
        labels `labels` (B, targets), float32.

    Raises:
        ValueError: a spectrum that the feature extractor refuses, named by its number.
    """
    for index, counts in zip(indices, spectra.counts, strict=True):
        if len(counts) == 0:
            raise ValueError(f"Spectrum {index} of split {split!r} has no counts; leave it out.")
    features = extractor(
        spectra.counts,
        gain_kev=spectra.gain_kev,
        offset_kev=spectra.offset_kev,
        tube_kv=spectra.tube_kv,
        names=[f"{index} of split {split!r}" for index in indices],
    )
    tensors = {
        "sample_id": torch.tensor(indices, dtype=torch.int64),
        "input_values": torch.from_numpy(features["input_values"]),
        "attention_mask": torch.from_numpy(features["attention_mask"].astype(np.uint8)),
    }
    if spectra.labels is not None:
        tensors["labels"] = torch.from_numpy(spectra.labels.astype(np.float32))
    return tensors


def measured_patches(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Model inputs, on the CPU, for a model that leaves out what no spectrum of the batch measured.

    Returns:
        the same tensors, but `patch_ids` (B, V), the patches that some spectrum measured, in ascending order, and
        `attention_mask` (B, V) for these; `all_measured`, a `bool`, says whether that hides none.
    """
    attention_mask = tensors["attention_mask"]
    patch_ids = attention_mask.any(dim=0).nonzero()[:, 0]  # (V,)
    attention_mask = attention_mask[:, patch_ids]
    return {
        **tensors,
        "attention_mask": attention_mask,
        "patch_ids": patch_ids.expand(len(attention_mask), -1).contiguous(),
        "all_measured": bool(attention_mask.numpy().all()),
    }


def extract_features(table, indices, extractor: XRFFeatureExtractor, split: str, targets: Sequence[str] = ()):
    """What `extract_tensors` makes of a `pyarrow.Table` as another one, the form in which features are stored."""
    import pyarrow as pa

    columns = {}
    spectra = NativeSpectra.from_table(table, targets)
    for name, values in extract_tensors(spectra, indices, extractor, split).items():
        flat = pa.array(values.numpy().ravel())
        columns[name] = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(columns)


def cached_features(rows, extractor: XRFFeatureExtractor, split: str, targets: Sequence[str] = ()):
    """All features of a `datasets.Dataset`, and the labels of `targets`, computed once and kept, memory-mapped, in the
    cache of datasets.

    The key of the cache holds the code that computed them; datasets itself would look at names only.
    """
    code = [inspect.getsource(code) for code in (feature_extraction_xrf, NativeSpectra, extract_tensors)]
    key = "\n".join([rows._fingerprint, split, extractor.to_json_string(), *targets, *code])
    return rows.with_format("arrow").map(
        extract_features,
        with_indices=True,
        batched=True,
        batch_size=ROWS_PER_TABLE,
        remove_columns=rows.column_names,
        fn_kwargs={"extractor": extractor, "split": split, "targets": targets},
        new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
        desc=f"Extracting {split}",
    )


def is_simulated(rows) -> bool:
    """Whether all spectra of a split (of many, some of them) say that they come from the simulation."""
    if "source" not in (rows.column_names or ()):
        return False
    return all((row["source"] or "").startswith(SIMULATED) for row in spread(rows.select_columns(["source"]), 1000))


def spread(rows, number: int):
    """At most `number` rows of a dataset, evenly spaced; of a stream, its first ones."""
    if not hasattr(rows, "__len__"):
        return rows.take(number)
    return rows.select(np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int))


def feature_batches(
    rows,
    extractor: XRFFeatureExtractor,
    split: str,
    targets: Sequence[str] = (),
    change: Callable[[NativeSpectra], NativeSpectra] | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Features of a dataset or a stream in its own order, as batches of tensors.

    Args:
        targets: columns to hand out as labels.
        change: what is done to spectra before features are extracted.
    """
    first = 0
    for table in rows.with_format("arrow").iter(ROWS_PER_TABLE):
        spectra = NativeSpectra.from_table(table, targets)
        if change is not None:
            spectra = change(spectra)
        yield extract_tensors(spectra, range(first, first + len(table)), extractor, split)
        first += len(table)


class SpectrumBatches(Dataset):
    """Stored features that a `DataLoader` fetches by whole batches (its `collate_fn` is `whole_batch`). Every row is
    copied once, from the memory-mapped file into its batch."""

    def __init__(self, features):
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def _columns(self) -> dict[str, list[np.ndarray]]:
        """Views of the file's pieces by column, made when a process first reads."""
        table = self.features.with_format("arrow")[:]
        return {name: [_rows_of(piece) for piece in table[name].chunks] for name in table.column_names}

    @cached_property
    def _first_rows(self) -> np.ndarray:
        """Number of the first row of every piece."""
        return np.cumsum([0] + [len(piece) for piece in self._columns["sample_id"][:-1]])

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        pieces = np.searchsorted(self._first_rows, indices, side="right") - 1
        places = list(zip(pieces.tolist(), (indices - self._first_rows[pieces]).tolist(), strict=True))
        batch = {}
        for name, column in self._columns.items():
            values = np.empty((len(places), *column[0].shape[1:]), column[0].dtype)
            for target, (piece, row) in enumerate(places):
                values[target] = column[piece][row]
            batch[name] = torch.from_numpy(values)
        return batch


def _rows_of(piece) -> np.ndarray:
    """An Arrow array of numbers, `(rows,)`, or of lists of one length, `(rows, length)`, without a copy."""
    from pyarrow.types import is_primitive

    if is_primitive(piece.type):
        return piece.to_numpy()
    return piece.flatten().to_numpy().reshape(len(piece), -1)


def whole_batch(batch):
    """The batch as it was fetched."""
    return batch


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
