"""Export a fine-tuned model to ONNX, for programs that have no torch, or no Python.

    pip install 'xrf-transformers[onnx]'
    python scripts/export_onnx.py --model model_cards/xrf-tiny --output onnx/xrf-tiny

The folder gets `model.onnx`, `config.json` (names, units and ranges of the targets, coverages of the intervals) and
`preprocessor_config.json`. The inputs are what `XRFFeatureExtractor` returns, for any number of spectra:

- `input_values` `(batch, spectrum_length)`, float32: scaled counts on the model's energy grid;
- `attention_mask` `(batch, num_patches)`, int64: 1 where a patch was measured. The encoder meets as many patches as
  the spectrum has that has most: batches of spectra that are alike are fastest.

The outputs, float32, in the order of `target_names` and `interval_coverages`, each in its target's unit:

- `predictions` `(batch, num_targets)`;
- `standard_deviation` `(batch, num_targets)`, with a Gaussian head;
- `lower`, `upper` `(batch, num_targets, num_coverages)`, with prediction intervals;
- `distance` `(batch,)`, with a measure of familiarity: beyond `familiarity_threshold` a spectrum is unfamiliar.

In Python, with ONNX Runtime:

    session = onnxruntime.InferenceSession("onnx/xrf-tiny/model.onnx")
    features = XRFFeatureExtractor.from_pretrained("onnx/xrf-tiny")(counts, gain_kev=0.02, offset_kev=0.0, tube_kv=15)
    predictions, *others = session.run(None, dict(features))

Before anything is written ONNX Runtime's answers are compared with torch's, on random inputs and on simulated spectra.

`--int8` adds `model_int8.onnx`, with the same inputs and outputs: weights as 8-bit integers, a third of the size and
about twice as fast on a CPU. The errors of `xrf-tiny` on labelled spectra grew by less than 2 % (`benchmarks/LOG.md`);
measure it on yours.
"""

import contextlib
import logging
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from command_line_xrf import HfArgumentParser, run
from files_xrf import atomic_folder, check_replaceable
from inference_xrf import load_model

FILES = {"model.onnx", "model_int8.onnx", "config.json", "preprocessor_config.json"}
OUTPUTS = ("predictions", "standard_deviation", "lower", "upper", "distance")
TOLERANCE = 1e-3  # of a value, or of its target's standard deviation: far below what any prediction is worth
INT8_TOLERANCE = 0.1  # in the same parts, of the median: a check that quantisation went well, not that it is harmless
# instruments of different ranges, so that a batch holds spectra with different numbers of measured patches
INSTRUMENTS = ("avaatech_10kv", "handheld_15kv", "avaatech_30kv")


@dataclass(kw_only=True)
class ExportArguments:
    model: str = field(metadata={"help": "folder or Hub id of a fine-tuned model or an adapter"})
    output: str = field(metadata={"help": "folder to write"})
    int8: bool = field(default=False, metadata={"help": "write a model with 8-bit weights, too"})
    overwrite: bool = field(default=False, metadata={"help": "replace an earlier export"})


def main():
    (arguments,) = HfArgumentParser(ExportArguments, description=__doc__.splitlines()[0]).parse_args_into_dataclasses()
    folder = check_replaceable(arguments.output, FILES, arguments.overwrite)
    check_packages()
    model, feature_extractor = load_model(arguments.model, "cpu")
    model = model.float()

    with atomic_folder(folder) as temporary:
        names = export(model, temporary / "model.onnx")
        model.config.to_json_file(temporary / "config.json")
        feature_extractor.to_json_file(temporary / "preprocessor_config.json")
        inputs = check_inputs(model.config, feature_extractor)
        largest = check(model, temporary / "model.onnx", inputs, names, np.max, TOLERANCE)
        if arguments.int8:
            quantize(temporary / "model.onnx", temporary / "model_int8.onnx")
            median = check(model, temporary / "model_int8.onnx", inputs[1:], names, np.median, INT8_TOLERANCE)
    print(f"{folder / 'model.onnx'}: input_values, attention_mask -> {', '.join(names)}")
    print(f"The largest difference from torch is {largest:.1g} of a value or of its target's standard deviation.")
    if arguments.int8:
        print(f"{folder / 'model_int8.onnx'}: the median difference on simulated spectra is {median:.1g}.")


def check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"Exporting needs the package {error.name}; run pip install 'xrf-transformers[onnx]'."
        ) from error


def export(model, path: Path) -> list[str]:
    """Write the model to `path`; returns the names of its outputs."""
    import torch

    config = model.config
    input_values = torch.ones(2, config.spectrum_length)
    attention_mask = torch.ones(2, config.num_patches, dtype=torch.long)
    with torch.no_grad():
        names = [name for name in OUTPUTS if model(input_values, attention_mask).get(name) is not None]

    class MeasuredPatches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_values, attention_mask):
            number = attention_mask.sum(dim=1).max().item()
            torch._check(number >= 2)  # not a special case
            torch._check(number <= config.num_patches)
            # measured patches before the others, both in order; the exporter knows no stable sort
            order = attention_mask * config.num_patches - torch.arange(config.num_patches)
            patch_ids = order.topk(number, dim=1).indices  # (B, V)
            outputs = self.model(input_values, attention_mask.gather(1, patch_ids), patch_ids=patch_ids)
            return tuple(outputs[name] for name in names)

    batch = {0: torch.export.Dim("batch")}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of operators that no model here has
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.export.export(
            MeasuredPatches().eval(), (input_values, attention_mask), dynamic_shapes=(batch, batch), strict=True
        )
        exported = torch.onnx.export(program, dynamo=True, output_names=names, verbose=False)
    exported.save(path)
    return names


def quantize(path: Path, output: Path) -> None:
    """Write the model with the weights of its matrix products as 8-bit integers, a scale for each column, and inputs
    of these products quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # that shapes could be inferred first: the exporter has done so
    try:
        quantize_dynamic(path, output, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


def check_inputs(config, feature_extractor) -> list[dict[str, np.ndarray]]:
    """Batches of random numbers, of simulated spectra of one instrument each, of all together, and of one spectrum."""
    from dataset_builder.simulation import SimulatedSource

    rng = np.random.default_rng(0)
    measured = rng.random((16, config.num_patches)) < rng.uniform(0.2, 1.0, (16, 1))
    measured[0], measured[:, 0] = True, True
    values = rng.uniform(0, 2, (16, config.spectrum_length)).astype(np.float32)
    inputs = [{"input_values": values, "attention_mask": measured.astype(np.int64)}]
    for instrument in INSTRUMENTS:
        simulated = next(SimulatedSource(instruments=instrument, num_spectra=8, num_cores=1).simulate(0))
        with contextlib.suppress(ValueError):  # a grid of its own may lie beyond an instrument
            inputs.append(dict(feature_extractor(simulated.spectra())))
    inputs.append({name: np.concatenate([part[name] for part in inputs]) for name in inputs[0]})
    return [*inputs, {name: values[-1:] for name, values in inputs[-1].items()}]


def check(model, path: Path, inputs: list[dict[str, np.ndarray]], names: list[str], summary, tolerance) -> float:
    """The summary, `np.max` or `np.median`, of the differences between the answers of ONNX Runtime and torch, in parts
    of the value or of its target's standard deviation, whichever is larger.

    Raises:
        ValueError: it is beyond the tolerance.
    """
    import onnxruntime
    import torch

    config = model.config
    is_log = np.array([transform == "log" for transform in config.target_transform])
    spread = np.where(is_log, 0.0, config.target_std)  # (T,); a logarithm's sd is a ratio
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for batch in inputs:
        with torch.inference_mode():
            outputs = model(**{name: torch.from_numpy(values) for name, values in batch.items()})
        for name, found in zip(names, session.run(None, batch), strict=True):
            expected = outputs[name].numpy().astype(np.float64)
            scale = np.abs(expected)
            if name != "distance":
                scale = np.maximum(scale, spread.reshape(-1, *[1] * (scale.ndim - 2)))
            difference = np.abs(found - expected) / np.maximum(scale, np.finfo(np.float32).tiny)
            differences.append(np.where(np.isfinite(difference), difference, np.inf).ravel())
    difference = float(summary(np.concatenate(differences)))
    if not difference <= tolerance:
        raise ValueError(
            f"ONNX Runtime's answers from {path.name} differ from torch's by {difference:.2g} of a value, more than "
            f"{tolerance:g}; nothing was written: try other versions of torch, onnxscript and onnxruntime."
        )
    return difference


if __name__ == "__main__":
    run(main)
