"""From files of spectra to a model's answers: what predict.py, embed.py, predict_map.py and explain.py share.

Spectra are read one at a time, completed with the calibration of the command line, batched, extracted and sent through
the model; what cannot be used ends the run or goes to a table of rejections. torch and transformers are imported on
first use, so that a script's `--help` stays fast.
"""

import contextlib
import csv
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from files_xrf import atomic_file

if TYPE_CHECKING:
    from dataset_builder import Spectrum

TEXTS = ("source", "sample", "core", "instrument", "detector", "anode", "filter")
NUMBERS = ("depth_mm", "x_mm", "y_mm", "tube_kv", "tube_ua", "live_time_s", "real_time_s")


@dataclass
class InferenceArguments:
    """The options of every script that sends spectra through a model; a script adds its own."""

    output: str = field(metadata={"help": "file to write"})
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
    """The file to write and that of the rejected spectra, once nothing speaks against writing them."""
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
    """The model, ready to predict, and its feature extractor.

    Args:
        name (`str`): folder or Hub id of a model or an adapter.
        device (`str`, *optional*): `None` takes a GPU where there is one.
    """
    import torch
    from safetensors import SafetensorError
    from transformers.utils import find_adapter_config_file

    from configuration_xrf import XRFMaskedConfig
    from feature_extraction_xrf import XRFFeatureExtractor
    from modeling_xrf import XRFForRegression

    if not Path(name).is_dir() and (Path(name).is_absolute() or name.count("/") != 1):
        raise ValueError(f"There is no model folder {name}; give a folder or a Hub id such as org/name.")
    if find_adapter_config_file(name) is None:
        config, _ = XRFMaskedConfig.get_config_dict(name)
        if config.get("model_type") != XRFMaskedConfig.model_type:
            raise ValueError(
                f"{name} is a model of another architecture ({config.get('model_type')}); give an XRF model."
            )
        if not config.get("target_names"):
            raise ValueError(f"The model {name} is pretrained only and has no targets; fine-tune it on labels first.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = XRFForRegression.from_pretrained(name).to(device).eval()
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The model {name} could not be put on {device}: {reason}") from error
    return model, XRFFeatureExtractor.from_pretrained(name)


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
    given = {name: getattr(arguments, name) for name in ("gain_kev", "offset_kev", "tube_kv")}
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


def predict(model, features) -> dict:
    """Values, and with a Gaussian head standard deviations, `(batch_size, num_targets)` in the targets' units."""
    import torch

    with torch.inference_mode():
        outputs = model(**features.to(model.device))
    return {
        suffix: values.float().cpu().numpy()
        for suffix, values in (("", outputs.predictions), ("_sd", outputs.standard_deviation))
        if values is not None
    }


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
