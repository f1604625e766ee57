"""scripts/export_onnx.py: the same answers from ONNX Runtime, from a folder that holds all a user needs."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_inference import adapted_regressor, save
from test_pipeline import tiny_pretrained, tiny_regressor
from tiny_repositories import save_adapter, save_base

from feature_extraction_xrf import XRFFeatureExtractor
from hub_xrf import save_repository
from inference_xrf import load_model

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")

SCRIPT = "export_onnx.py"
EVERYTHING = ["predictions", "standard_deviation", "lower", "upper", "distance"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    model = adapted_regressor(spectrum_skip=True, target_transform=["linear", "log"], interval_floors=[None, 0.5])
    return save(tmp_path_factory.mktemp("models") / "adapted", model)


@pytest.fixture(scope="module")
def exported(repository, tmp_path_factory):
    """The folder of an export with 8-bit weights, made as on the command line."""
    folder = tmp_path_factory.mktemp("exports") / "new" / "adapted"
    command = [sys.executable, f"scripts/{SCRIPT}", "--model", repository, "--output", folder, "--int8"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert f"{folder / 'model.onnx'}: input_values, attention_mask -> {', '.join(EVERYTHING)}" in result.stdout
    return folder


def session(folder, name="model.onnx"):
    return onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])


def answers(folder, features, name="model.onnx"):
    model = session(folder, name)
    outputs = [output.name for output in model.get_outputs()]
    return dict(zip(outputs, model.run(None, dict(features)), strict=True))


def features_of(extractor, num_spectra):
    """Spectra of instruments of different ranges: from all patches down to a single one."""
    rng = np.random.default_rng(num_spectra)
    counts = rng.poisson(
        20 + 3000 * np.exp(-0.5 * ((np.arange(500) - rng.uniform(80, 400, (num_spectra, 1))) / 6) ** 2)
    )
    patch_kev = extractor.patch_size * extractor.channel_width_kev
    tube_kv = np.linspace(extractor.channel_edges_kev[-1], 0.9 * patch_kev, num_spectra)
    return extractor(counts, gain_kev=0.02, offset_kev=0.0, tube_kv=tube_kv)


@pytest.mark.parametrize("num_spectra", [1, 2, 9])
def test_any_number_of_spectra_gives_what_torch_gives(repository, exported, num_spectra):
    model, _ = load_model(str(repository), "cpu")
    features = features_of(XRFFeatureExtractor.from_pretrained(exported), num_spectra)
    if num_spectra == 9:
        measured = features["attention_mask"].sum(axis=1)
        assert measured.min() == 1 and len(set(measured)) > 3
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(values) for name, values in features.items()})
    found = answers(exported, features)
    assert list(found) == EVERYTHING
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_only_measured_patches_are_encoded(repository, exported):
    """What lies in unmeasured patches has no influence, and neither has how many others in the batch have measured."""
    extractor = XRFFeatureExtractor.from_pretrained(exported)
    features = dict(features_of(extractor, 9))
    together = answers(exported, features)
    alone = answers(exported, {name: values[4:5] for name, values in features.items()})
    hidden = np.repeat(features["attention_mask"] == 0, extractor.patch_size, axis=1)
    filled = answers(
        exported, {**features, "input_values": np.where(hidden, 7.0, features["input_values"]).astype("f4")}
    )
    for name in EVERYTHING:
        np.testing.assert_allclose(alone[name][0], together[name][4], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(filled[name], together[name], rtol=1e-4, atol=1e-4)


def test_the_folder_says_what_the_outputs_are(repository, exported):
    assert {path.name for path in exported.iterdir()} == {
        "model.onnx", "model_int8.onnx", "config.json", "preprocessor_config.json"
    }  # fmt: skip
    config = json.loads((exported / "config.json").read_text())
    assert config["target_names"] == ["CaCO3", "TOC"] and config["interval_coverages"] == [0.8, 0.9]
    extractor = XRFFeatureExtractor.from_pretrained(repository)
    assert XRFFeatureExtractor.from_pretrained(exported).to_dict() == extractor.to_dict()
    shapes = {
        each.name: each.shape[1:] for each in [*session(exported).get_inputs(), *session(exported).get_outputs()]
    }
    length, patches = extractor.spectrum_length, extractor.spectrum_length // extractor.patch_size
    assert shapes == {
        "input_values": [length], "attention_mask": [patches], "predictions": [2], "standard_deviation": [2],
        "lower": [2, 2], "upper": [2, 2], "distance": [],
    }  # fmt: skip


def test_8_bit_weights_are_near(exported):
    features = features_of(XRFFeatureExtractor.from_pretrained(exported), 9)
    exact, rounded = answers(exported, features), answers(exported, features, "model_int8.onnx")
    assert list(rounded) == EVERYTHING
    spread = exact["standard_deviation"].mean(axis=0)
    difference = np.abs(rounded["predictions"] - exact["predictions"]) / spread
    assert 0 < difference.max() < 0.3
    assert (exported / "model_int8.onnx").stat().st_size < (exported / "model.onnx").stat().st_size


def test_an_adapter_of_a_plain_model(call_script, tmp_path):
    base = save_base(tmp_path / "base")
    save_adapter(tmp_path / "adapter", base)
    assert call_script("--model", tmp_path / "adapter", "--output", tmp_path / "out")[0] == 0
    model, extractor = load_model(str(tmp_path / "adapter"), "cpu")
    features = features_of(extractor, 3)
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(values) for name, values in features.items()}).predictions
    found = answers(tmp_path / "out", features)
    assert list(found) == ["predictions"]
    np.testing.assert_allclose(found["predictions"], expected, rtol=1e-4, atol=1e-4)


def test_what_differs_is_not_written(refuses, script, repository, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "export", lambda _, path: shutil.copy(exported / "model.onnx", path) and EVERYTHING)
    monkeypatch.setattr(script, "TOLERANCE", 0.0)
    refuses("ONNX Runtime's answers from model.onnx differ", "--model", repository, "--output", tmp_path / "out")


def test_bad_input(refuses, repository, tmp_path, monkeypatch):
    model = tiny_pretrained()
    pretrained = save_repository(tmp_path / "p", model, XRFFeatureExtractor.for_config(model.config), "# A base\n")
    refuses("has no targets", "--model", pretrained, "--output", tmp_path / "out")
    refuses("There is no model folder", "--model", tmp_path / "absent", "--output", tmp_path / "out")
    (tmp_path / "file").write_text("")
    refuses("is a file; choose another folder", "--model", repository, "--output", tmp_path / "file")
    refuses("holds other files", "--model", repository, "--output", tmp_path / "p")
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "model.onnx").write_text("earlier work")
    refuses("add --overwrite", "--model", repository, "--output", tmp_path / "earlier")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refuses("needs the package onnxscript; run pip install", "--model", repository, "--output", tmp_path / "out")


def test_logarithmic_targets_count_in_parts_of_their_value(script, tmp_path):
    """A difference is relative for a target with the transform `log`, else in parts of the larger of value and sd."""
    model = tiny_regressor(target_transform=["log", "linear"], target_std=[1.0, 5.0])
    model.config.target_min, model.config.target_max = [None, None], [None, None]
    features = dict(features_of(XRFFeatureExtractor.for_config(model.config), 4))
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(values) for name, values in features.items()}).predictions.numpy()

    class Session:
        def __init__(self, *arguments, **options): ...

        def run(self, names, batch):
            return [expected + np.array([0.002, 0.0]) * expected]

    def measured():
        return script.check(model, tmp_path, [features], ["predictions"], np.max, 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", Session)
        assert measured() == pytest.approx(0.002, rel=1e-3)
        patch.setattr(Session, "run", lambda *_: [expected + np.array([0.0, 0.01])])
        largest = 0.01 / np.maximum(np.abs(expected[:, 1]), 5.0).min()
        assert measured() == pytest.approx(largest, rel=1e-3)
        patch.setattr(Session, "run", lambda *_: [expected * np.nan])
        with pytest.raises(ValueError, match="differ from torch's by inf"):
            measured()
