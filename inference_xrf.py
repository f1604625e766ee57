"""From files of spectra to a model's answers: what predict.py, embed.py, predict_map.py and explain.py share.

Spectra are read, completed with the calibration of the command line, batched, extracted and sent through the model,
each step while the next one still works on the batches before; what cannot be used ends the run or goes to a table of
rejections. torch and transformers are imported on first use, so that a script's `--help` stays fast.
"""

import contextlib
import csv
import functools
import itertools
import json
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from files_xrf import atomic_file

if TYPE_CHECKING:
    import pyarrow as pa

    from dataset_builder import Spectrum

CALIBRATION = ("gain_kev", "offset_kev", "tube_kv")
TEXTS = ("source", "sample", "core", "instrument", "detector", "anode", "filter")
NUMBERS = ("depth_mm", "x_mm", "y_mm", "tube_kv", "tube_ua", "live_time_s", "real_time_s")
# Numbers in the widest activation of a batch, by kind of device: 4 MB of a processor stay near its cache and in memory
# that the process keeps (fresh pages for every layer cost a quarter of the time), and a GPU is kept busy.
ACTIVATIONS_TOGETHER = {"cpu": 2**20, "cuda": 2**27}
READ_TOGETHER = 1024  # spectra that are read and extracted together, some batches of the model
ROWS_IN_A_GROUP = 8192  # of a Parquet file: many small groups make it large and slow to open
# What a script adds to the values of a model whose `calibration` is standardless.
STANDARDLESS = (
    "These values are standardless: the model learnt from simulated spectra alone and has seen no reference material "
    "of your instrument; trust patterns between samples more than single values, and check some in a laboratory."
)


@dataclass(kw_only=True)
class InferenceArguments:
    """The options of every script that sends spectra through a model; a script adds its own."""

    batch_size: int | None = field(
        default=None, metadata={"help": "spectra that go through the model together; by default what suits the device"}
    )
    on_error: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "what an unusable spectrum does: end the run, or go to a table of its own"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an existing output"})
    column_mapping: str | None = field(
        default=None, metadata={"help": "JSON file that says which column of a wide table is what"}
    )
    gain_kev: float | None = field(
        default=None, metadata={"help": "energy per channel in keV, for spectra that do not bring their own"}
    )
    offset_kev: float | None = field(default=None, metadata={"help": "energy of channel 0 in keV, in the same way"})
    tube_kv: float | None = field(default=None, metadata={"help": "tube voltage in kV, in the same way"})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, cuda:1, ...; a GPU where there is one"})

    def __post_init__(self):
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {self.batch_size}; leave it out.")


class Item(NamedTuple):
    """A spectrum and where it came from."""

    file: str
    index: int
    spectrum: "Spectrum"


class Rejections:
    """Takes the error of every spectrum that cannot be used: raises it, or notes it in a table and counts it."""

    def __init__(self, table=None):
        self.table, self.number, self.first = table, 0, None

    def add(self, error: ValueError, file: str, index: int, reason: str) -> None:
        if self.table is None:
            raise error
        self.table.writerow([file, index, reason])
        self.number += 1
        self.first = self.first or error


def output_paths(arguments: InferenceArguments, suffixes: tuple[str, ...]) -> tuple[Path, Path]:
    """The file to write, `arguments.output`, and that of the rejected spectra, once nothing speaks against writing
    them."""
    output = Path(arguments.output)
    rejected = output.with_name(f"{output.stem}.rejected.csv")
    if output.suffix not in suffixes:
        raise ValueError(f"The output must be named {' or '.join(suffixes)}, but is {output}; rename it.")
    if output.is_dir():
        raise ValueError(f"The output {output} is a folder; name a file.")
    for path in (output, rejected):
        if path.exists() and not arguments.overwrite:
            raise ValueError(f"The output {path} exists; choose another name, or add --overwrite.")
    return output, rejected


def find_inputs(inputs: list[str], column_mapping: str | None, outputs: tuple[Path, ...]):
    """The files of spectra that `inputs` name, none of which may be an output, and how to read wide tables."""
    from dataset_builder import ColumnMapping
    from dataset_builder.readers import find_sources

    mapping = ColumnMapping.from_json(column_mapping) if column_mapping else None
    sources = find_sources(inputs, mapping)
    for path in {output.resolve() for output in outputs} & {source.resolve() for source in sources}:
        raise ValueError(f"The output {path} lies among the inputs; choose a place outside the input folder.")
    return sources, mapping


def load_model(name: str, device: str | None):
    """The regression model, ready to predict, and its feature extractor.

    Args:
        name (`str`): folder or Hub id of a model or an adapter.
        device (`str`, *optional*): `None` takes a GPU where there is one.

    Raises:
        ValueError: there is no such model, it has no targets, or it cannot be put on the device.
    """
    from modeling_xrf import XRFForRegression

    config = _checked_config(name)
    if config is not None and not config.get("target_names"):
        raise ValueError(f"The model {name} is pretrained only and has no targets; fine-tune it on labels first.")
    return _load(XRFForRegression, name, device)


def load_encoder(name: str, device: str | None):
    """The encoder of any model or adapter and its feature extractor; its `pooler_output` is by the
    configuration's `embedding_pooling`, whatever the pooling of the model's own head. Arguments and errors as of
    `load_model`."""
    from modeling_xrf import XRFForRegression, XRFModel

    is_adapter = _checked_config(name) is None
    model, feature_extractor = _load(XRFForRegression if is_adapter else XRFModel, name, device)
    encoder = model.xrf if is_adapter else model
    encoder.config.pooling = encoder.config.embedding_pooling
    return encoder, feature_extractor


def _checked_config(name: str) -> dict | None:
    """The configuration of an XRF model, `None` for an adapter."""
    from transformers.utils import find_adapter_config_file

    from configuration_xrf import XRFMaskedConfig

    if not Path(name).is_dir() and (Path(name).is_absolute() or name.count("/") != 1):
        raise ValueError(f"There is no model folder {name}; give a folder or a Hub id such as org/name.")
    if find_adapter_config_file(name) is not None:
        return None
    config, _ = XRFMaskedConfig.get_config_dict(name)
    if config.get("model_type") != XRFMaskedConfig.model_type:
        raise ValueError(f"{name} is a model of another architecture ({config.get('model_type')}); give an XRF model.")
    return config


def _load(model_class, name: str, device: str | None):
    import torch
    from safetensors import SafetensorError

    from feature_extraction_xrf import XRFFeatureExtractor

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = model_class.from_pretrained(name).to(device).eval()
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The model {name} could not be put on {device}: {reason}") from error
    return model, XRFFeatureExtractor.from_pretrained(name)


class XRFPredictor:
    """
    A fine-tuned model as a function from arrays to arrays, for `datasets.map`, Ray, joblib and notebooks.

    It pickles as its arguments. Every process that gets a copy loads the model on first use, and copies of one
    predictor share it there.

    Args:
        name_or_path (`str`): folder or Hub id of a model or an adapter.
        device (`str`, *optional*): such as `"cpu"` or `"cuda:1"`; `None` takes a GPU where there is one.
        batch_size (`int`, *optional*): spectra that go through the model together; by default what suits the device.
            A call may bring any number.
        keep (sequence of `str`): columns to return beside the predictions, such as `sample`, for engines that keep
            none of the input, and maybe not its order either.

    Example:

    ```python
    >>> from inference_xrf import XRFPredictor

    >>> predictor = XRFPredictor("org/xrf-caco3")
    >>> predictor({"counts": counts, "gain_kev": 0.02, "offset_kev": 0.0, "tube_kv": 10})["CaCO3"]
    array([41.2, 38.7], dtype=float32)
    >>> corpus = corpus.map(predictor, batched=True)
    ```"""

    def __init__(
        self,
        name_or_path: str,
        device: str | None = None,
        batch_size: int | None = None,
        keep: Sequence[str] = (),
    ):
        self.name_or_path, self.device, self.batch_size = str(name_or_path), device, batch_size
        self.keep = tuple(keep)
        self._identity = uuid.uuid4().hex  # a new predictor of the same folder sees what the folder then holds
        self._loaded = None

    def __getstate__(self):
        return {**self.__dict__, "_loaded": None}

    @property
    def model(self):
        """The `XRFForRegression`."""
        return self._load()[0]

    @property
    def feature_extractor(self):
        """The `XRFFeatureExtractor`."""
        return self._load()[1]

    def _load(self):
        if self._loaded is None:
            self._loaded = _load_once(self._identity, self.name_or_path, self.device)
        return self._loaded

    def __call__(self, batch: Mapping) -> dict[str, np.ndarray]:
        """
        Args:
            batch (`Mapping`): `counts`, a `(batch_size, channels)` array or a list of `(channels,)` arrays, and
                `gain_kev`, `offset_kev` and, where known, `tube_kv`, each one number or `(batch_size,)`. Other columns
                are left alone.

        Returns:
            The columns to `keep`, and those that [`predict`] describes, `(batch_size,)` each.

        Raises:
            ValueError: a spectrum or its calibration cannot be used; the message says which and why. A column to
                `keep` is called as a prediction is.
        """
        counts = batch["counts"]
        if isinstance(counts, np.ndarray) and counts.dtype.kind == "O":  # rows of different lengths
            counts = list(counts)
        calibration = {name: batch.get(name) for name in CALIBRATION}
        predictions = self.predict(self.feature_extractor(counts, **calibration, return_tensors="pt"))
        for name in self.keep:
            if name in predictions:
                raise ValueError(f"The column {name!r} to keep is also a prediction; rename it in the input.")
        return {**{name: batch[name] for name in self.keep}, **predictions}

    def predict(self, features) -> dict[str, np.ndarray]:
        """The same from what the feature extractor returned, as torch tensors."""
        return predict(self.model, features, self.batch_size)


@functools.lru_cache(maxsize=1)
def _load_once(identity: str, name: str, device: str | None):
    return load_model(name, device)


def read_items(sources: Iterable[Path], mapping, rejections: Rejections) -> Iterator[Item]:
    """Every readable spectrum of the sources, one at a time."""
    from dataset_builder.readers import read_source

    for source in sources:
        yield from _items(source, functools.partial(read_source, source, mapping), 0, rejections)


def _items(source: Path, read, first_index: int, rejections: Rejections) -> Iterator[Item]:
    """The items of what `read`, called with what takes the errors, gives of a source."""
    indices = itertools.count(first_index)

    def reject(error):
        reason = f"{error.place}: {error.reason}" if error.place else error.reason
        rejections.add(error, error.path, next(indices), reason)

    for spectrum in read(reject):
        yield Item(str(source), next(indices), spectrum)


@dataclass
class CorpusRows:
    """Rows of a corpus that are spectra beyond doubt, by columns: much faster than an `Item` each, and the same."""

    counts: np.ndarray | list[np.ndarray]  # (N, channels), or N times (channels,)
    calibration: dict[str, np.ndarray]  # (N,) each, NaN where unknown
    identifiers: dict[str, "pa.Array | list"]
    target_units: dict[str, str]
    items: Callable[[], list[Item]]  # the same rows one by one

    def __len__(self):
        return len(self.counts)


def read_batches(sources: list[Path], mapping, arguments: InferenceArguments, rejections: Rejections):
    """The spectra of the sources, many at a time, completed with the calibration of the command line: `CorpusRows` of
    Parquet corpora, lists of `Item` of everything else and where a row of a corpus needs a closer look."""
    from dataset_builder.readers.table import is_corpus

    number = max(arguments.batch_size or 1, READ_TOGETHER)
    for by_columns, group in itertools.groupby(sources, lambda source: mapping is None and is_corpus(source)):
        if by_columns:
            for source in group:
                yield from _corpus_batches(source, number, arguments, rejections)
        else:
            items = (fill_in(item, arguments) for item in read_items(group, mapping, rejections))
            yield from batches(items, number)


def _corpus_batches(source: Path, number: int, arguments: InferenceArguments, rejections: Rejections):
    from dataset_builder import SpectrumFileError
    from dataset_builder.readers.table import corpus_spectra, parquet_tables

    num_read = 0
    try:
        for first_row, table in parquet_tables(source, number):

            def items(first_row=first_row, table=table):
                read = functools.partial(corpus_spectra, source, first_row, table)
                return [fill_in(item, arguments) for item in _items(source, read, first_row, rejections)]

            yield corpus_rows(str(source), first_row, table, arguments, items) or items()
            num_read = first_row + len(table)
    except SpectrumFileError as error:
        rejections.add(error, error.path, num_read, error.reason)


def corpus_rows(file: str, first_row: int, table, arguments: InferenceArguments, items) -> CorpusRows | None:
    """A table of a corpus by columns; `None` where a row may be no spectrum, which its reader then says."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(set(table.column_names)) < len(table.column_names):
        return None
    counts = _plain_counts(table["counts"].combine_chunks())
    numbers = {name: _column(table, name, pa.float64()) for name in ("gain_kev", "offset_kev", *NUMBERS)}
    texts = {name: _column(table, name, pa.string()) for name in (*TEXTS, "metadata", "target_units")}
    if any(column is None for column in (counts, *numbers.values(), *texts.values())):
        return None
    try:
        metadata = {text: _json(json.loads(text or "{}")) for text in texts["metadata"].unique().to_pylist()}
        all_units = [json.loads(text or "{}") for text in texts["target_units"].unique().to_pylist()]
        targets = {name: _column(table, name, pa.float64()) for name, _ in all_units[0].items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    if len(all_units) > 1 or any(column is None for column in targets.values()):
        return None
    for name in CALIBRATION:
        given = getattr(arguments, name)
        numbers[name] = numbers[name] if given is None else numbers[name].fill_null(given)
    calibration = {name: numbers[name].to_numpy(zero_copy_only=False) for name in CALIBRATION}
    if np.isinf(calibration["gain_kev"]).any() or np.isinf(calibration["offset_kev"]).any():
        return None
    if (calibration["gain_kev"] <= 0).any():
        return None
    identifiers = {"file": [file] * len(table), "index": np.arange(first_row, first_row + len(table))}
    identifiers |= {name: texts[name] for name in TEXTS}
    identifiers |= {name: pc.cast(numbers[name], pa.float32(), safe=False) for name in NUMBERS}
    identifiers["metadata"] = [metadata[text] for text in texts["metadata"].to_pylist()]
    identifiers["reference_values"] = _reference_texts(targets, len(table))
    return CorpusRows(
        counts,
        calibration,
        identifiers,
        {name: all_units[0][name] for name, column in targets.items() if column.null_count < len(column)},
        items,
    )


def _plain_counts(column) -> np.ndarray | list[np.ndarray] | None:
    """The counts in the rows of a list array, views into it; `None` where some may not be those of a spectrum."""
    from dataset_builder.readers.checks import MAX_CHANNELS, MAX_COUNT

    if column.null_count or column.values.null_count:
        return None
    ends = column.offsets.to_numpy()
    lengths = np.diff(ends)
    if lengths.min() == 0 or lengths.max() > MAX_CHANNELS:
        return None
    values = column.values.to_numpy(zero_copy_only=False)
    highest = np.maximum.reduceat(values[: ends[-1]], ends[:-1])  # NaN where there is one
    if not (values[ends[0] : ends[-1]].min() >= 0 and highest.min() > 0 and highest.max() <= MAX_COUNT):
        return None
    if lengths.min() == lengths.max():
        return values[ends[0] : ends[-1]].reshape(len(lengths), -1)
    return [values[start:end] for start, end in itertools.pairwise(ends.tolist())]


def _column(table, name: str, dtype):
    """A column as a `pyarrow.Array` of that type, numbers or texts, nulls where it has none or NaN; `None` where it
    holds something else."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if name not in table.column_names:
        return pa.nulls(len(table), dtype)
    column = table[name].combine_chunks()
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    is_number = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    if not (pa.types.is_null(column.type) or (is_text if pa.types.is_string(dtype) else is_number)):
        return None
    column = pc.cast(column, dtype, safe=False)
    if pa.types.is_floating(dtype):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, dtype), column)
    return column


def fill_in(item: Item, arguments: InferenceArguments) -> Item:
    """The item with the calibration of the command line where its file has none."""
    given = {name: getattr(arguments, name) for name in CALIBRATION}
    missing = {name: value for name, value in given.items() if getattr(item.spectrum, name) is None}
    return item._replace(spectrum=replace(item.spectrum, **missing)) if missing else item


def batches(items: Iterator[Item], number: int = READ_TOGETHER) -> Iterator[list[Item]]:
    while batch := list(itertools.islice(items, number)):
        yield batch


def extract_features(feature_extractor, batch: CorpusRows | list[Item], rejections: Rejections):
    """The spectra of a batch that can be used and their model inputs; the others are rejected."""
    if isinstance(batch, CorpusRows):
        try:
            return batch, feature_extractor(batch.counts, **batch.calibration, return_tensors="pt")
        except ValueError:
            batch = batch.items()
    with contextlib.suppress(ValueError):
        return batch, feature_extractor([item.spectrum for item in batch], return_tensors="pt")
    batch = [item for item in batch if _is_usable(feature_extractor, item, rejections)]  # at least one is not
    return batch, feature_extractor([item.spectrum for item in batch], return_tensors="pt") if batch else None


def _is_usable(feature_extractor, item: Item, rejections: Rejections) -> bool:
    try:
        feature_extractor(item.spectrum, names=[item.index])
    except ValueError as error:
        rejections.add(ValueError(f"{item.file}: {error}"), item.file, item.index, str(error))
        return False
    return True


def feature_batches(batches: Iterable, feature_extractor, rejections: Rejections):
    """Pairs of a batch of usable spectra and their model inputs, with a progress bar. A thread reads and extracts two
    batches ahead.

    Args:
        batches: `CorpusRows` and lists of `Item`.

    Raises:
        ValueError: no spectrum at all was usable.
    """
    from tqdm import tqdm

    num_usable = 0
    extracted = ahead(extract_features(feature_extractor, batch, rejections) for batch in batches)
    with contextlib.closing(extracted), tqdm(unit=" spectra", disable=None) as progress:
        for batch, features in extracted:
            if batch:
                yield batch, features
                progress.update(len(batch))
                num_usable += len(batch)
        if num_usable == 0:
            raise ValueError(f"None of {rejections.number} spectra could be used; the first: {rejections.first}")


def ahead(items: Iterator, number: int = 2) -> Iterator:
    """The same items, which a thread works out up to `number` ahead."""
    with ThreadPoolExecutor(1) as executor:
        futures = deque(executor.submit(next, items, None) for _ in range(number))
        while (item := futures.popleft().result()) is not None:
            futures.append(executor.submit(next, items, None))
            yield item


def measured_patches_only(features):
    """Model inputs with which the encoder meets measured patches only, as far as their number is that of the spectrum
    of the batch that has most.

    Attention passes over unmeasured patches in any case, so the results are the same, only sooner.
    """
    from transformers import BatchFeature

    attention_mask = features["attention_mask"]  # (B, P)
    num_measured = int(attention_mask.sum(dim=1).max())
    if num_measured == attention_mask.shape[1]:
        return features
    patch_ids = attention_mask.argsort(dim=1, descending=True, stable=True)[:, :num_measured]  # (B, V)
    selected = {"attention_mask": attention_mask.gather(1, patch_ids), "patch_ids": patch_ids}
    return BatchFeature({**features, **selected})


def equally_measured(model, features, batch_size: int | None = None):
    """Pairs of rows `(n,)` of model inputs and the inputs of these, at most `batch_size` spectra, or as many as suit
    the model's device, with equally many measured patches. The encoder meets these patches alone and needs no mask:
    the same results, only sooner."""
    config, activations = model.config, ACTIVATIONS_TOGETHER.get(model.device.type, 2**20)
    widest = config.intermediate_size if config.num_hidden_layers else config.hidden_size
    values, measured = features["input_values"], features["attention_mask"].bool()  # (B, L), (B, P)
    num_measured = measured.sum(dim=1)
    for number in num_measured.unique().tolist():
        rows = (num_measured == number).nonzero()[:, 0]
        size = batch_size or max(activations // max((number + 1) * widest, config.spectrum_length), 1)
        for part in rows.chunk(-(-len(rows) // size)):
            inputs = {"input_values": values[part]}
            if number < measured.shape[1]:
                inputs["patch_ids"] = measured[part].nonzero()[:, 1].view(len(part), number)  # (n, V)
            yield part, inputs


def _outputs(model, features, batch_size: int | None, names: list[str]) -> list[np.ndarray]:
    """These outputs of a model, float32, in the order of the features' rows; `None` where it has none."""
    import torch

    rows, outputs = [], []
    with torch.inference_mode():
        for part, inputs in equally_measured(model, features, batch_size):
            rows.append(part)
            output = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
            outputs.append([output.get(name) for name in names])
        places = torch.cat(rows).argsort()
        return [
            None if parts[0] is None else torch.cat(parts).float().cpu()[places].numpy() for parts in zip(*outputs)
        ]


def target_columns(config, target: str) -> list[str]:
    """Names of the columns that `predict` returns for a target."""
    columns = [target]
    columns += [f"{target}_sd"] if config.regression_loss == "gaussian" else []
    return columns + [f"{target}_{side}_{name}" for name in config.interval_names for side in ("lower", "upper")]


def predict(model, features, batch_size: int | None = None) -> dict[str, np.ndarray]:
    """
    What the model says about spectra, `batch_size` of which at most go through it together, or what suits its device.

    Returns:
        Arrays `(batch_size,)`: for each target `<target>`, with a Gaussian head `<target>_sd`, and for each prediction
        interval of the model `<target>_lower_90` and `<target>_upper_90` (for a coverage of 90 %), all in the
        target's unit; with a measure of familiarity `distance` and `unfamiliar` (`bool`).
    """
    config = model.config
    names = ["predictions", "standard_deviation", "lower", "upper", "distance"]
    predictions, sd, lower, upper, distance = _outputs(model, features, batch_size, names)
    columns = {}
    for index, target in enumerate(config.target_names):
        values = [predictions[:, index]]
        if sd is not None:
            values.append(sd[:, index])
        for coverage in range(len(config.interval_names)):
            values += [bound[:, index, coverage] for bound in (lower, upper)]
        columns.update(zip(target_columns(config, target), values, strict=True))
    if distance is not None:
        columns |= {"distance": distance, "unfamiliar": distance > config.familiarity_threshold}
    return columns


def embed(encoder, features, batch_size: int | None = None) -> np.ndarray:
    """Embeddings `(number of spectra, hidden_size)` by an encoder of `load_encoder`; `batch_size` as in `predict`."""
    return _outputs(encoder, features, batch_size, ["pooler_output"])[0]


def identifier_fields() -> list:
    """Names and types of the columns that say where a spectrum comes from."""
    import pyarrow as pa

    fields = [("file", pa.string()), ("index", pa.int64())]
    fields += [(name, pa.string()) for name in TEXTS] + [(name, pa.float32()) for name in NUMBERS]
    return [*fields, ("metadata", pa.string()), ("reference_values", pa.string())]


def identifier_columns(batch: CorpusRows | list[Item]) -> dict:
    """The values of these columns for the spectra of a batch."""
    if isinstance(batch, CorpusRows):
        return batch.identifiers
    import pyarrow as pa

    columns = {"file": [item.file for item in batch], "index": [item.index for item in batch]}
    for name in (*TEXTS, *NUMBERS):
        columns[name] = [getattr(item.spectrum, name) for item in batch]
    columns["metadata"] = [_json(item.spectrum.metadata) for item in batch]
    names = dict.fromkeys(name for item in batch for name in item.spectrum.targets)
    targets = {name: pa.array([item.spectrum.targets.get(name) for item in batch], pa.float64()) for name in names}
    columns["reference_values"] = _reference_texts(targets, len(batch))
    return columns


def target_units(batch: CorpusRows | list[Item]) -> dict[str, str]:
    """The units of the reference values of a batch."""
    if isinstance(batch, CorpusRows):
        return batch.target_units
    return {name: unit for item in batch for name, unit in item.spectrum.target_units.items()}


def _reference_texts(targets: dict, number: int):
    """JSON of the finite reference values of every spectrum, from a `pyarrow.Array` of each target; no text where it
    has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not targets:
        return pa.nulls(number, pa.string())
    members = []
    for name, column in targets.items():
        value = pc.cast(pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type)), pa.string())
        member = pc.binary_join_element_wise(f"{json.dumps(name, ensure_ascii=False)}: ", value, ", ", "")
        members.append(member.fill_null(""))
    text = pc.binary_join_element_wise(*members, "")
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    return pc.binary_join_element_wise("{", pc.utf8_slice_codeunits(text, 0, -2), "}", "")


def _json(values: dict) -> str | None:
    return json.dumps(values, ensure_ascii=False) if values else None


@contextlib.contextmanager
def table_writer(path: Path, schema):
    """A function that appends a `pyarrow.Table` to `path`, which appears once all is written. A thread writes, one
    part behind; an error of it is raised by the next call or at the end."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    is_parquet = path.suffix == ".parquet"
    make = pyarrow.parquet.ParquetWriter if is_parquet else pyarrow.csv.CSVWriter
    # numbers hardly ever repeat
    options = (
        {"use_dictionary": [field.name for field in schema if pa.types.is_string(field.type)]} if is_parquet else {}
    )
    waiting, writing = [], []

    with (
        atomic_file(path) as temporary,
        make(temporary, schema, **options) as writer,
        ThreadPoolExecutor(1) as executor,
    ):

        def write(table=None):
            waiting.extend([] if table is None else [table])
            if waiting and (table is None or not is_parquet or sum(map(len, waiting)) >= ROWS_IN_A_GROUP):
                tables = pa.concat_tables(waiting)
                waiting.clear()
                if writing:
                    writing.pop().result()
                writing.append(executor.submit(writer.write_table, tables))

        yield write
        write()
        if writing:
            writing.pop().result()


@contextlib.contextmanager
def rejection_table(path: Path, on_error: str):
    """The `Rejections` of a run; with `skip` they are in `path` once all is done."""
    if on_error == "stop":
        yield Rejections()
        path.unlink(missing_ok=True)  # that of an earlier run, which --overwrite replaces
        return
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "index", "reason"])
        yield Rejections(table)
