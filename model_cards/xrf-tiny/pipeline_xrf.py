"""The `xrf-regression` pipeline: spectra, files or dataset rows in, values with units out."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import AutoModelForSequenceClassification, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

try:
    from .modeling_xrf import XRFForRegression  # beside this file in a Hub repository
except ImportError:
    from modeling_xrf import XRFForRegression  # noqa: F401 (registers the Auto classes), installed by setup.py

TASK = "xrf-regression"
CALIBRATION = ("gain_kev", "offset_kev", "tube_kv")
OUTPUTS = ("predictions", "standard_deviation", "lower", "upper", "distance")


class XRFRegressionPipeline(Pipeline):
    """
    Predicts the targets of an [`XRFForRegression`], for example concentrations, from spectra of any instrument.

    Example:

    ```python
    >>> import pipeline_xrf
    >>> from transformers import pipeline

    >>> predict = pipeline("xrf-regression", model="org/xrf-caco3")
    >>> predict(counts, gain_kev=0.02, offset_kev=0.0, tube_kv=10)
    [{'target': 'CaCO3', 'value': 41.2, 'unit': 'wt%', 'standard_deviation': 1.3,
      'lower_90': 38.7, 'upper_90': 43.7, 'unfamiliar': False, 'distance': 2.1}]
    ```

    An adapter repository loads too. transformers then takes the feature extractor of the adapter's base; where the
    adapter's own differs, add `feature_extractor=` with the name of the adapter."""

    _load_feature_extractor = True
    # left undecided, transformers looks for these too, and then asks whether to run the repository's code
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_processor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not getattr(self.model.config, "target_names", None):
            raise ValueError(
                f"The pipeline {TASK} needs a model with targets, but this {type(self.model).__name__} has none; "
                "fine-tune it on labels first."
            )

    def __call__(self, inputs, gain_kev=None, offset_kev=None, tube_kv=None, **kwargs):
        """
        Args:
            inputs: one spectrum, or a list of them: counts `(channels,)`, a `Spectrum`, the path of a file, or a row
                of a corpus (a dict with `counts`, `gain_kev`, `offset_kev`, `tube_kv`). Also a batch of counts
                `(batch_size, channels)`, and a `datasets.Dataset`, generator or other iterable, which is streamed.
            gain_kev, offset_kev (`float` or `(batch_size,)`): energy per channel and energy of channel 0 in keV, for
                spectra that do not bring their own.
            tube_kv (`float` or `(batch_size,)`, *optional*): tube voltage in kV, in the same way.
            batch_size (`int`, defaults to 1): spectra that go through the model together.

        Returns:
            For one spectrum, one dict per target: `target` (its name), `value` and `unit`; with a Gaussian head
            `standard_deviation`; for each interval of the model `lower_90`, `upper_90`, named by its coverage in
            percent; and where the model knows the spectra it was adapted to, the `distance` of this one from them
            and whether it is `unfamiliar`, the same for every target. For several spectra, one such list each, in the
            order of the input; a file that holds several spectra counts as several. For a streamed input, an
            iterator over these lists.

        Raises:
            `ValueError`: a spectrum, its calibration or a file cannot be used; the message says which and why.
        """
        calibration = {"gain_kev": gain_kev, "offset_kev": offset_kev, "tube_kv": tube_kv}
        if _is_streamed(inputs):
            return super().__call__(_rows(inputs, calibration), **kwargs)
        inputs = np.asarray(inputs) if hasattr(inputs, "ndim") else inputs
        one = _is_one_spectrum(inputs)
        inputs = [inputs] if one else inputs
        for name, value in calibration.items():
            if np.ndim(value) > 0 and len(value) != len(inputs):
                raise ValueError(
                    f"{name} must be one number or one per spectrum ({len(inputs)}), but has {len(value)} entries."
                )
        rows = list(_rows(inputs, calibration))
        if not rows:
            raise ValueError(f"The pipeline {TASK} got no spectrum; give at least one.")
        results = super().__call__(rows, **kwargs)
        return results[0] if one and len(results) == 1 else results

    def _sanitize_parameters(self):
        return {}, {}, {}  # every argument of a call belongs to its inputs

    def preprocess(self, row):
        calibration = {name: row[name] for name in CALIBRATION}
        features = self.feature_extractor([row["counts"]], **calibration, names=[row["name"]], return_tensors="pt")
        return dict(features)

    def _forward(self, model_inputs):
        outputs = self.model(**model_inputs)
        return {name: outputs[name] for name in OUTPUTS if outputs.get(name) is not None}

    def postprocess(self, outputs):
        config = self.model.config
        results = []
        for index, (target, unit) in enumerate(zip(config.target_names, config.target_units)):
            result = {"target": target, "value": outputs["predictions"][0, index].item(), "unit": unit}
            if "standard_deviation" in outputs:
                result["standard_deviation"] = outputs["standard_deviation"][0, index].item()
            for place, coverage in enumerate(config.interval_names):
                for end in ("lower", "upper"):
                    result[f"{end}_{coverage}"] = outputs[end][0, index, place].item()
            if "distance" in outputs:
                distance = outputs["distance"][0].item()
                result.update(unfamiliar=distance > config.familiarity_threshold, distance=distance)
            results.append(result)
        return results


def _is_spectrum_object(item) -> bool:
    """A `Spectrum` is known by its fields, so that this file needs no package of ours."""
    return hasattr(item, "counts") and hasattr(item, "gain_kev")


def _is_one_spectrum(inputs) -> bool:
    if isinstance(inputs, (str, Path, dict)) or _is_spectrum_object(inputs):
        return True
    if isinstance(inputs, (list, tuple)):
        return len(inputs) > 0 and np.isscalar(inputs[0]) and not isinstance(inputs[0], str)
    return inputs.ndim == 1


def _is_streamed(inputs) -> bool:
    """Whether `inputs` is an iterable other than a container held in memory."""
    in_memory = isinstance(inputs, (str, Path, dict, list, tuple)) or _is_spectrum_object(inputs)
    return not in_memory and not hasattr(inputs, "ndim")


def _rows(inputs, calibration: dict) -> Iterator[dict]:
    """One dict per spectrum: `name` for messages, `counts`, and the calibration, its own or else the caller's."""
    for index, item in enumerate(inputs):
        given = {key: value if np.ndim(value) == 0 else value[index] for key, value in calibration.items()}
        if isinstance(item, (str, Path)):
            for place, spectrum in enumerate(_read_spectra(item)):
                yield _row(f"{place} of {item}", spectrum, given)
        else:
            yield _row(str(index), item, given)


def _row(name: str, item, given: dict) -> dict:
    if _is_spectrum_object(item):
        item = {key: getattr(item, key) for key in ("counts", *CALIBRATION)}
    elif not isinstance(item, dict):
        item = {"counts": item}
    if item.get("counts") is None:
        raise ValueError(f"Row {name} has no counts, but the fields {sorted(item)}; name the counts `counts`.")
    own = {key: given[key] if item.get(key) is None else item[key] for key in CALIBRATION}
    return {"name": name, "counts": np.asarray(item["counts"]), **own}


def _read_spectra(path):
    try:
        from dataset_builder import read_spectra
    except ImportError:
        raise ImportError(
            f"Reading the file {path} needs the package dataset_builder, which comes with the XRF library and not "
            "with a Hub repository; install the library, or give arrays with gain_kev and offset_kev."
        ) from None
    return read_spectra(path)


# The installed package serves the task; code fetched from a Hub repository serves that repository only.
if __name__ == "pipeline_xrf":
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=XRFRegressionPipeline, pt_model=AutoModelForSequenceClassification
    )

__all__ = ["XRFRegressionPipeline"]
