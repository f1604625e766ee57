"""The parts of masked pretraining: feature rows, masks that can be repeated, rates, arithmetic, checkpoints, log.

B = spectra in a batch, L = channels, P = patches of a whole spectrum.
"""

import contextlib
import hashlib
import inspect
import itertools
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch.utils.data import Dataset, IterableDataset, get_worker_info

import feature_extraction_xrf
from configuration_xrf import XRFMaskedConfig
from feature_extraction_xrf import XRFFeatureExtractor
from files_xrf import write_json, write_text

SCHEDULES = ("cosine", "linear", "constant")
ROWS_PER_TABLE = 1000  # rows that are extracted together
STREAM_BLOCK = 16_384  # spectra of a stream that are shuffled with each other
PROGRESS_FILE = "progress.json"


# ---------------------------------------------------------------------------------------------------------------------
# Spectra to batches


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
    try:
        features = extractor(
            [row.values.to_numpy(zero_copy_only=False) for row in counts],
            gain_kev=table["gain_kev"].to_numpy(),
            offset_kev=table["offset_kev"].to_numpy(),
            tube_kv=table["tube_kv"].to_numpy() if "tube_kv" in table.column_names else None,
        )
    except ValueError as error:  # it counts within this table
        named = re.sub(
            r"([Ss]pectrum) (\d+)", lambda found: f"{found[1]} {indices[int(found[2])]} of split {split!r}", str(error)
        )
        raise ValueError(named) from None
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


# ---------------------------------------------------------------------------------------------------------------------
# What the model is asked, and how well it answers


def mask_noise(sample_ids: torch.Tensor, num_patches: int, seed: int, epoch: int) -> torch.Tensor:
    """Uniform noise `(B, P)` in [0, 1) that depends on nothing but the arguments, so that a spectrum's mask is the
    same whatever the batch, process or device, and after a resume: SplitMix64 (Steele et al. 2014) in place of a
    generator with a state.

    Args:
        sample_ids (`torch.LongTensor` of shape `(B,)`): the spectra's numbers.
        num_patches: P.
        seed, epoch: of the run; -1 is the epoch of validation.
    """
    state = _splitmix64(_splitmix64(torch.full_like(sample_ids, seed)) + epoch)
    state = _splitmix64(state + sample_ids)[:, None]
    bits = _splitmix64(state + torch.arange(num_patches, device=sample_ids.device))
    return _shift_right(bits, 40).float() / 2**24


def _splitmix64(state: torch.Tensor) -> torch.Tensor:
    """Its output for 64-bit states; int64 arithmetic wraps as the unsigned one of the original does."""
    state = state + (0x9E3779B97F4A7C15 - 2**64)
    state = (state ^ _shift_right(state, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    state = (state ^ _shift_right(state, 27)) * (0x94D049BB133111EB - 2**64)
    return state ^ _shift_right(state, 31)


def _shift_right(state: torch.Tensor, bits: int) -> torch.Tensor:
    """A shift that fills with zeros; that of int64 repeats the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def reconstruction_targets(input_values: torch.Tensor, config: XRFMaskedConfig) -> torch.Tensor:
    """What the model reconstructs `(B, L)`: the input, or, with `normalize_patch_targets`, each patch standardised."""
    if not config.normalize_patch_targets:
        return input_values
    patches = input_values.view(len(input_values), -1, config.patch_size)
    sd = patches.std(dim=-1, keepdim=True, correction=int(config.patch_size > 1))
    return ((patches - patches.mean(dim=-1, keepdim=True)) / (sd + 1e-6)).flatten(1)


def channel_statistics(
    batches: Iterable[dict[str, torch.Tensor]], patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of `input_values` in every channel, over the spectra that measured it.

    Returns:
        two `torch.DoubleTensor` of shape `(L,)`; 0 and 1 for a channel that no spectrum measured, and a standard
        deviation of 1 where all values are equal.
    """
    sums = 0  # number, sum, sum of squares
    for batch in batches:
        measured = batch["attention_mask"].repeat_interleave(patch_size, dim=1).double()
        values = batch["input_values"].double() * measured
        sums = sums + torch.stack([measured.sum(0), values.sum(0), values.square().sum(0)])
    number = sums[0].clamp(min=1)
    mean = sums[1] / number
    variance = sums[2] / number - mean.square()
    sd = torch.where(variance > 1e-12 * mean.square(), variance.clamp(min=0).sqrt(), 1.0)
    return mean, sd


@torch.no_grad()
def reconstruction_errors(model, batches: Iterable[dict], corpus_mean: torch.Tensor, seed: int) -> torch.Tensor:
    """Sums over the masked channels of all batches, with one fixed mask per spectrum.

    Args:
        model (`XRFForMaskedSpectrumModeling`): left in training mode.
        batches: dicts with `sample_id`, `input_values` and `attention_mask`.
        corpus_mean (`(L,)`): the spectrum that the model must beat, on the scale of the reconstruction targets.
        seed: of the masks.

    Returns:
        `torch.DoubleTensor` `(3,)`: squared error of the reconstruction, squared error of the corpus mean, number of
        masked channels.
    """
    config, device = model.config, model.device
    corpus_mean = corpus_mean.to(device, torch.float32)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    model.eval()
    for batch in batches:
        batch = {name: values.to(device) for name, values in batch.items()}
        noise = mask_noise(batch["sample_id"], config.num_patches, seed, epoch=-1)
        outputs = model(batch["input_values"], attention_mask=batch["attention_mask"], noise=noise)
        targets = reconstruction_targets(batch["input_values"], config)
        masked = outputs.mask.repeat_interleave(config.patch_size, dim=1)  # (B, L)
        error = (outputs.reconstruction.float() - targets).square() * masked
        mean_error = (corpus_mean - targets).square() * masked
        sums += torch.stack([error.sum(), mean_error.sum(), masked.sum()]).double()
    model.train()
    return sums


# ---------------------------------------------------------------------------------------------------------------------
# Optimisation


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Parameters for the optimiser: weight decay for matrices; none for biases, norms and the two learned tokens,
    which are vectors."""
    groups = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[parameter.squeeze().ndim < 2]["params"].append(parameter)
    return groups


def learning_rate_at(
    step: int,
    total_steps: int,
    learning_rate: float,
    min_learning_rate: float = 0.0,
    warmup_steps: int = 0,
    warmup_start_factor: float = 0.0,
    schedule: str = "cosine",
) -> float:
    """Rate of optimiser step `step`, counted from 0.

    It rises linearly from `warmup_start_factor * learning_rate` at step 0 to `learning_rate` at step `warmup_steps`,
    then falls to `min_learning_rate` at the last step, along half a cosine (Loshchilov & Hutter 2017) or a line, or
    stays (`constant`).
    """
    if step < warmup_steps:
        return learning_rate * (warmup_start_factor + (1 - warmup_start_factor) * step / warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    share = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}[schedule]
    return min_learning_rate + (learning_rate - min_learning_rate) * share


# ---------------------------------------------------------------------------------------------------------------------
# Speed


def num_visible_patches(config: XRFMaskedConfig) -> int:
    """Places for patches in the encoder during pretraining."""
    return int(config.num_patches * (1 - config.mask_ratio))


def training_flops(config: XRFMaskedConfig) -> int:
    """Floating-point operations of one spectrum in a pretraining step, a multiply-add counted as two.

    Per token and block of width d: 8 d^2 for the four projections, 4 d f for feed-forward layers of width f, 4 n d for
    attention over n tokens. The encoder sees the visible patches, the decoder all, each with CLS; patch embedding, the
    map between the two, and the head come on top. The backward pass costs twice the forward pass.
    """

    def blocks(layers: int, tokens: int, width: int, intermediate: int) -> int:
        return layers * tokens * (8 * width**2 + 4 * width * intermediate + 4 * tokens * width)

    visible, patches, patch_size = num_visible_patches(config), config.num_patches, config.patch_size
    width, decoder_width = config.hidden_size, config.decoder_hidden_size
    encoder = blocks(config.num_hidden_layers, visible + 1, width, config.intermediate_size)
    decoder = blocks(config.decoder_num_hidden_layers, patches + 1, decoder_width, config.decoder_intermediate_size)
    ends = visible * patch_size * width + (visible + 1) * width * decoder_width + patches * decoder_width * patch_size
    return 3 * (encoder + decoder + 2 * ends)


def matrix_peak(device: torch.device, dtype: torch.dtype, least_seconds: float = 0.1) -> float:
    """FLOP/s of large square matrix products on this device: the 100 % that the speed of training is compared with."""
    size = 8192 if device.type == "cuda" else 1024
    synchronize = torch.get_device_module(device).synchronize
    matrix = torch.randn(size, size, device=device).to(dtype)
    product = matrix @ matrix  # the first call chooses a kernel
    repeats = 1
    while True:
        synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(matrix, matrix, out=product)
        synchronize()
        seconds = time.perf_counter() - start
        if seconds > least_seconds:
            return repeats * 2 * size**3 / seconds
        repeats *= 2


# ---------------------------------------------------------------------------------------------------------------------
# Log and checkpoints


def log_line(record: dict, total_steps: int, seconds_left: float) -> str:
    """A record of the history as one line whose columns stand below each other from line to line."""
    minutes, seconds = divmod(round(seconds_left), 60)
    return (
        f"step {record['step']:>{len(str(total_steps))}}/{total_steps}  loss {record['loss']:9.5f}  "
        f"rate {record['learning_rate']:.3e}  gradient norm {record['gradient_norm']:9.4f}  "
        f"{record['spectra_per_s']:8.1f} spectra/s  {100 * record['share_of_peak']:5.1f} % of peak  "
        f"{minutes // 60:3d}:{minutes % 60:02d}:{seconds:02d} left"
    )


class History:
    """Records of a run, one JSON object a line in `path`, and in `records`; those after `last_step` are forgotten, as
    a run that resumes from there writes them anew."""

    def __init__(self, path: str | Path, last_step: int = 0):
        self.path, self.records = Path(path), []
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            self.records = [record for record in map(json.loads, lines) if record["step"] <= last_step]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))

    def add(self, record: dict) -> None:
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def last(self, name: str) -> dict | None:
        """The last record that holds `name`."""
        return next((record for record in reversed(self.records) if name in record), None)


@contextlib.contextmanager
def writing(path: str | Path):
    """Turns whatever the several writers of torch and safetensors raise on a full disk into one `OSError`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"{path} could not be written ({reason}); free some disk space and resume the run.") from error


def save_checkpoint(accelerator, folder: str | Path, progress: dict, keep_last: int) -> Path:
    """Write `folder/step_000100` with everything that continues the run, whole or not at all, and remove all but the
    newest `keep_last` checkpoints. Called by every process.

    Args:
        progress: `step` and whatever else `read_progress` shall compare or return, kept as JSON beside the state.

    Raises:
        OSError: it could not be written.
    """
    path = Path(folder) / f"step_{progress['step']:06d}"
    temporary = path.with_name(f".{path.name}.part")
    if accelerator.is_main_process:
        for left_by_a_killed_run in Path(folder).glob(".step_*.part"):
            shutil.rmtree(left_by_a_killed_run)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        with writing(path):
            accelerator.save_state(str(temporary))
            if accelerator.is_main_process:
                write_json(temporary / PROGRESS_FILE, progress)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(path, ignore_errors=True)  # of a run that was extended and resumed from an earlier step
        os.replace(temporary, path)
        for old in checkpoints(folder)[:-keep_last]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return path


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in `folder`, the oldest first."""
    found = [path for path in Path(folder).glob("step_*") if (path / PROGRESS_FILE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def read_progress(path: str | Path, expected: dict) -> dict:
    """How far a checkpoint is, once everything in `expected` is found to be as it was when it was written.

    Raises:
        ValueError: an option that decides the data order or the model has another value now.
    """
    progress = json.loads((Path(path) / PROGRESS_FILE).read_text(encoding="utf-8"))
    for name, value in expected.items():
        if progress[name] != value:
            raise ValueError(
                f"{path} was written with {name} {progress[name]!r}, but the run to resume has {value!r}; give the "
                "same, or start a new run in another output_dir."
            )
    return progress
