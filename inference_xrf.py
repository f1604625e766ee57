"""From files of spectra to a model's answers: what predict.py, embed.py, predict_map.py and explain.py share.

Spectra are read one at a time, completed with the calibration of the command line, batched, extracted and sent through
the model; what cannot be used ends the run or goes to a table of rejections. torch and transformers are imported on
first use, so that a script's `--help` stays fast.
"""

import contextlib
import csv
import functools
import itertools
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from files_xrf import atomic_file

if TYPE_CHECKING:
    from dataset_builder import Spectrum

CALIBRATION = ("gain_kev", "offset_kev", "tube_kv")
TEXTS = ("source", "sample", "core", "instrument", "detector", "anode", "filter")
NUMBERS = ("depth_mm", "x_mm", "y_mm", "tube_kv", "tube_ua", "live_time_s", "real_time_s")
# What a script adds to the values of a model whose `calibration` is standardless.
STANDARDLESS = (
    "These values are standardless: the model learnt from simulated spectra alone and has seen no reference material "
    "of your instrument; trust patterns between samples more than single values, and check some in a laboratory."
)


@dataclass(kw_only=True)
class InferenceArguments:
    """The options of every script that sends spectra through a model; a script adds its own."""

    batch_size: int = field(default=256, metadata={"help": "spectra that go through the model together"})
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
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {self.batch_size}; 256 is the default.")


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
    """The encoder of any model or adapter and its feature extractor; its `pooler_output` is the mean over the measured
    patches, whatever the pooling of the model's own head. Arguments and errors as of `load_model`."""
    from modeling_xrf import XRFForRegression, XRFModel

    is_adapter = _checked_config(name) is None
    model, feature_extractor = _load(XRFForRegression if is_adapter else XRFModel, name, device)
    encoder = model.xrf if is_adapter else model
    encoder.config.pooling = "mean"
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

    Example:

    ```python
    >>> from inference_xrf import XRFPredictor

    >>> predictor = XRFPredictor("org/xrf-caco3")
    >>> predictor({"counts": counts, "gain_kev": 0.02, "offset_kev": 0.0, "tube_kv": 10})["CaCO3"]
    array([41.2, 38.7], dtype=float32)
    >>> corpus = corpus.map(predictor, batched=True)
    ```"""

    def __init__(self, name_or_path: str, device: str | None = None):
        self.name_or_path, self.device = str(name_or_path), device
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
            The columns that [`predict`] describes, `(batch_size,)` each.

        Raises:
            ValueError: a spectrum or its calibration cannot be used; the message says which and why.
        """
        counts = batch["counts"]
        if isinstance(counts, np.ndarray) and counts.dtype.kind == "O":  # rows of different lengths
            counts = list(counts)
        calibration = {name: batch.get(name) for name in CALIBRATION}
        return self.predict(self.feature_extractor(counts, **calibration, return_tensors="pt"))

    def predict(self, features) -> dict[str, np.ndarray]:
        """The same from what the feature extractor returned, as torch tensors."""
        return predict(self.model, features)


@functools.lru_cache(maxsize=1)
def _load_once(identity: str, name: str, device: str | None):
    return load_model(name, device)


def read_items(sources: list[Path], mapping, rejections: Rejections) -> Iterator[Item]:
    """Every readable spectrum of the sources, one at a time."""
    from dataset_builder.readers import read_source

    for source in sources:
        indices = itertools.count()

        def reject(error, indices=indices):
            reason = f"{error.place}: {error.reason}" if error.place else error.reason
            rejections.add(error, error.path, next(indices), reason)

        for spectrum in read_source(source, mapping, reject):
            yield Item(str(source), next(indices), spectrum)


def fill_in(item: Item, arguments: InferenceArguments) -> Item:
    """The item with the calibration of the command line where its file has none."""
    given = {name: getattr(arguments, name) for name in CALIBRATION}
    missing = {name: value for name, value in given.items() if getattr(item.spectrum, name) is None}
    return item._replace(spectrum=replace(item.spectrum, **missing)) if missing else item


def batches(items: Iterator[Item], batch_size: int) -> Iterator[list[Item]]:
    while batch := list(itertools.islice(items, batch_size)):
        yield batch


def extract_features(feature_extractor, batch: list[Item], rejections: Rejections):
    """The items of a batch that can be used and their model inputs; the others are rejected."""
    try:
        return batch, feature_extractor([item.spectrum for item in batch], return_tensors="pt")
    except ValueError:  # at least one: find out which
        batch = [item for item in batch if _is_usable(feature_extractor, item, rejections)]
    return batch, feature_extractor([item.spectrum for item in batch], return_tensors="pt") if batch else None


def _is_usable(feature_extractor, item: Item, rejections: Rejections) -> bool:
    try:
        feature_extractor(item.spectrum, names=[item.index])
    except ValueError as error:
        rejections.add(ValueError(f"{item.file}: {error}"), item.file, item.index, str(error))
        return False
    return True


def feature_batches(items: Iterator[Item], feature_extractor, batch_size: int, rejections: Rejections):
    """Pairs of a batch of usable items and their model inputs, with a progress bar.

    Raises:
        ValueError: no item at all was usable.
    """
    from tqdm import tqdm

    num_usable = 0
    with tqdm(unit=" spectra", disable=None) as progress:
        for batch in batches(items, batch_size):
            batch, features = extract_features(feature_extractor, batch, rejections)
            if batch:
                yield batch, features
                progress.update(len(batch))
                num_usable += len(batch)
        if num_usable == 0:
            raise ValueError(f"None of {rejections.number} spectra could be used; the first: {rejections.first}")


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


def target_columns(config, target: str) -> list[str]:
    """Names of the columns that `predict` returns for a target."""
    columns = [target]
    columns += [f"{target}_sd"] if config.regression_loss == "gaussian" else []
    return columns + [f"{target}_{side}_{name}" for name in config.interval_names for side in ("lower", "upper")]


def predict(model, features) -> dict[str, np.ndarray]:
    """
    What the model says about a batch.

    Returns:
        Arrays `(batch_size,)`: for each target `<target>`, with a Gaussian head `<target>_sd`, and for each prediction
        interval of the model `<target>_lower_90` and `<target>_upper_90` (for a coverage of 90 %), all in the
        target's unit; with a measure of familiarity `distance` and `unfamiliar` (`bool`).
    """
    import torch

    config = model.config
    with torch.inference_mode():
        outputs = model(**measured_patches_only(features).to(model.device))
    columns = {}
    for index, target in enumerate(config.target_names):
        values = [outputs.predictions[:, index]]
        if outputs.standard_deviation is not None:
            values.append(outputs.standard_deviation[:, index])
        for coverage in range(len(config.interval_names)):
            values += [bound[:, index, coverage] for bound in (outputs.lower, outputs.upper)]
        columns.update(zip(target_columns(config, target), values, strict=True))
    if config.familiarity_threshold is not None:
        columns["distance"] = outputs.distance
    columns = {name: values.float().cpu().numpy() for name, values in columns.items()}
    if config.familiarity_threshold is not None:
        columns["unfamiliar"] = columns["distance"] > config.familiarity_threshold
    return columns


def embed(encoder, features) -> np.ndarray:
    """Embeddings `(batch_size, hidden_size)` by an encoder of `load_encoder`."""
    import torch

    with torch.inference_mode():
        return encoder(**measured_patches_only(features).to(encoder.device)).pooler_output.float().cpu().numpy()


def identifier_fields() -> list:
    """Names and types of the columns that say where a spectrum comes from."""
    import pyarrow as pa

    fields = [("file", pa.string()), ("index", pa.int64())]
    fields += [(name, pa.string()) for name in TEXTS] + [(name, pa.float32()) for name in NUMBERS]
    return [*fields, ("metadata", pa.string()), ("reference_values", pa.string())]


def identifier_columns(batch: list[Item]) -> dict[str, list]:
    """The values of these columns for the spectra of a batch."""
    columns = {"file": [item.file for item in batch], "index": [item.index for item in batch]}
    for name in (*TEXTS, *NUMBERS):
        columns[name] = [getattr(item.spectrum, name) for item in batch]
    columns["metadata"] = [_json(item.spectrum.metadata) for item in batch]
    columns["reference_values"] = [_json(item.spectrum.targets) for item in batch]
    return columns


def _json(values: dict) -> str | None:
    return json.dumps(values, ensure_ascii=False) if values else None


@contextlib.contextmanager
def table_writer(path: Path, schema):
    """A function that appends a `pyarrow.Table` to `path`, which appears once all is written."""
    import pyarrow.csv
    import pyarrow.parquet

    make = pyarrow.parquet.ParquetWriter if path.suffix == ".parquet" else pyarrow.csv.CSVWriter
    with atomic_file(path) as temporary, make(temporary, schema) as writer:
        yield writer.write_table


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
