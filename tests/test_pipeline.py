"""The xrf-regression pipeline: every kind of input gives what the model gives on the extractor's output."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import pipeline

import pipeline_xrf
from configuration_xrf import XRFMaskedConfig
from dataset_builder import Spectrum
from feature_extraction_xrf import XRFFeatureExtractor
from hub_xrf import save_adapter_repository, save_repository
from modeling_xrf import XRFForMaskedSpectrumModeling, XRFForRegression

ROOT = Path(__file__).parent.parent
GAIN_KEV, OFFSET_KEV, TUBE_KV = 0.02, -0.01, 10.0
TARGETS = {
    "target_names": ["CaCO3", "TOC"],
    "target_units": ["wt%", "mg/g"],
    "target_mean": [60.0, 2.0],
    "target_std": [10.0, 1.5],
    "target_min": [0.0, 0.0],
    "target_max": [100.0, None],
}


def tiny_config(**kwargs) -> XRFMaskedConfig:
    return XRFMaskedConfig(
        spectrum_length=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=32, pooling="mean", **kwargs,
    )  # fmt: skip


def randomised(model, std=2.0):
    """Trainable weights large enough that different spectra get clearly different predictions."""
    generator = torch.Generator().manual_seed(15)
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            parameter.add_(std * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model.eval()


def tiny_regressor(**kwargs) -> XRFForRegression:
    torch.manual_seed(0)
    return randomised(XRFForRegression(tiny_config(**{**TARGETS, **kwargs})))


def tiny_pretrained() -> XRFForMaskedSpectrumModeling:
    torch.manual_seed(0)
    return randomised(XRFForMaskedSpectrumModeling(tiny_config()))


@pytest.fixture(scope="module", params=["mse", "gaussian"])
def repository(request, tmp_path_factory):
    model = tiny_regressor(regression_loss=request.param)
    folder = tmp_path_factory.mktemp("models") / f"regression-{request.param}"
    return save_repository(folder, model, XRFFeatureExtractor.for_config(model.config), "# A test model\n")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    model = tiny_pretrained()
    extractor = XRFFeatureExtractor.for_config(model.config)
    return save_repository(tmp_path_factory.mktemp("models") / "pretrained", model, extractor, "# A base\n")


@pytest.fixture(scope="module")
def adapter(pretrained, tmp_path_factory):
    torch.manual_seed(0)
    base = XRFForRegression.from_pretrained(pretrained, **TARGETS)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["head"])
    model = get_peft_model(base, lora)
    randomised(model)
    model.peft_config["default"].base_model_name_or_path = str(pretrained)
    extractor = XRFFeatureExtractor.from_pretrained(pretrained)
    return save_adapter_repository(tmp_path_factory.mktemp("models") / "adapter", model, extractor, "# An adapter\n")


@pytest.fixture(scope="module")
def counts():
    """Five spectra of 500 channels with a peak that moves, Poisson counts."""
    rng = np.random.default_rng(5)
    channels = np.arange(500)
    peaks = np.exp(-0.5 * ((channels - np.array([[90], [130], [185], [240], [320]])) / 6) ** 2)
    return rng.poisson(20 + 3000 * peaks)


def direct(folder, counts, **calibration):
    """Predictions and standard deviations without the pipeline."""
    calibration = calibration or {"gain_kev": GAIN_KEV, "offset_kev": OFFSET_KEV, "tube_kv": TUBE_KV}
    inputs = XRFFeatureExtractor.from_pretrained(folder)(counts, return_tensors="pt", **calibration)
    with torch.no_grad():
        outputs = XRFForRegression.from_pretrained(folder)(**inputs)
    sd = outputs.standard_deviation
    return outputs.predictions.numpy(), None if sd is None else sd.numpy()


def check(results, expected):
    predictions, sd = expected
    assert len(results) == len(predictions)
    for index, spectrum in enumerate(results):
        assert [(r["target"], r["unit"]) for r in spectrum] == [("CaCO3", "wt%"), ("TOC", "mg/g")]
        np.testing.assert_allclose([r["value"] for r in spectrum], predictions[index], rtol=1e-5, atol=1e-4)
        if sd is None:
            assert all(set(r) == {"target", "value", "unit"} for r in spectrum)
        else:
            np.testing.assert_allclose([r["standard_deviation"] for r in spectrum], sd[index], rtol=1e-5)


def spectra_of(counts):
    return [
        Spectrum(c, gain_kev=GAIN_KEV, offset_kev=OFFSET_KEV, tube_kv=TUBE_KV, sample=f"s{i}")
        for i, c in enumerate(counts)
    ]


def rows_of(counts):
    return [
        {"counts": c.tolist(), "gain_kev": GAIN_KEV, "offset_kev": OFFSET_KEV, "tube_kv": TUBE_KV, "sample": "x"}
        for c in counts
    ]


CALIBRATION = {"gain_kev": GAIN_KEV, "offset_kev": OFFSET_KEV, "tube_kv": TUBE_KV}


@pytest.fixture(scope="module")
def predict(repository):
    return pipeline("xrf-regression", model=str(repository), device="cpu")


def test_the_random_model_tells_the_spectra_apart(repository, counts):
    predictions, _ = direct(repository, counts)
    assert (predictions[:, 0].std() > 5) and ((predictions[:, 0] > 0) & (predictions[:, 0] < 100)).all()


def test_one_spectrum_gives_one_dict_per_target(predict, repository, counts):
    expected = direct(repository, counts[:1])
    check([predict(counts[0], **CALIBRATION)], expected)
    check([predict(counts[0].tolist(), **CALIBRATION)], expected)
    check([predict(spectra_of(counts)[0])], expected)
    check([predict(rows_of(counts)[0])], expected)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_many_spectra_give_one_list_each(predict, repository, counts, batch_size):
    expected = direct(repository, counts)
    kinds = [counts, torch.tensor(counts), list(counts), [list(map(int, c)) for c in counts]]
    for inputs in kinds:
        check(predict(inputs, batch_size=batch_size, **CALIBRATION), expected)
    for inputs in (spectra_of(counts), rows_of(counts), tuple(spectra_of(counts))):
        check(predict(inputs, batch_size=batch_size), expected)


def test_intervals_and_familiarity(counts, tmp_path):
    """By hand from the parts of the model: a log target, a spectrum head, two intervals, a distance."""
    model = tiny_regressor(
        regression_loss="gaussian", target_transform=["linear", "log"], spectrum_skip=True, familiarity_threshold=1.0,
        interval_coverages=[0.683, 0.9], interval_factors=[[0.01, 0.02], [0.03, 0.05]],
    )  # fmt: skip
    extractor = XRFFeatureExtractor.for_config(model.config, lowest_energy_kev=0.6)
    inputs = extractor(counts, return_tensors="pt", **CALIBRATION)
    with torch.no_grad():
        embedding = model.xrf(**inputs).pooler_output
        model.familiarity.center.copy_(embedding[2])
        model.familiarity.whitening.copy_(torch.diag(torch.linspace(0.1, 3.0, 32)))
        head = model.head(embedding).double().numpy()
        skipped = model.spectrum_head(inputs["input_values"]).double().numpy()
    embedding = embedding.double().numpy()
    distance = np.sqrt((((embedding - embedding[2]) * np.linspace(0.1, 3.0, 32)) ** 2).sum(axis=1))
    model.config.familiarity_threshold = threshold = float(np.sort(distance)[2:4].mean())  # two lie beyond
    save_repository(tmp_path / "model", model, extractor, "# A test model\n")

    results = pipeline("xrf-regression", model=str(tmp_path / "model"), device="cpu")(counts, **CALIBRATION)
    mean, sd = head[:, :2] + skipped, np.exp(np.clip(head[:, 2:], -10, 10) / 2)
    ends = {
        "value": (0, 0), "lower_68.3": (-0.01, -0.02), "upper_68.3": (0.01, 0.02), "lower_90": (-0.03, -0.05),
        "upper_90": (0.03, 0.05),
    }  # fmt: skip
    for row, (caco3, toc) in enumerate(results):
        for column, (result, in_unit) in enumerate([(caco3, lambda x: np.clip(x, 0, 100)), (toc, np.exp)]):
            for name, factors in ends.items():
                standardized = mean[row, column] + factors[column] * sd[row, column]
                expected = in_unit(standardized * TARGETS["target_std"][column] + TARGETS["target_mean"][column])
                np.testing.assert_allclose(result[name], expected, rtol=1e-4, atol=1e-4)
            assert result["lower_90"] <= result["lower_68.3"] <= result["value"]
            np.testing.assert_allclose(result["distance"], distance[row], rtol=1e-4, atol=1e-4)
            assert result["unfamiliar"] is bool(distance[row] > threshold)
        np.testing.assert_allclose(toc["standard_deviation"], toc["value"] * 1.5 * sd[row, 1], rtol=1e-4)
    assert [result[0]["unfamiliar"] for result in results].count(True) == 2


def test_a_batch_of_one_stays_a_batch(predict, repository, counts):
    check(predict(counts[:1], **CALIBRATION), direct(repository, counts[:1]))


def test_calibration_per_spectrum(predict, repository, counts):
    gains, offsets, kv = [0.02, 0.018, 0.021, 0.02, 0.019], [0.0, 0.01, -0.02, 0.03, 0.0], [10, 15, 30, 9, 50]
    calibration = {"gain_kev": gains, "offset_kev": offsets, "tube_kv": kv}
    results = predict(counts, **calibration)
    check(results, direct(repository, counts, **calibration))
    assert results[1] != predict(counts[1], gain_kev=gains[0], offset_kev=offsets[0], tube_kv=kv[0])


def test_ragged_spectra_of_different_instruments(predict, repository, counts):
    spectra = [*spectra_of(counts[:2]), Spectrum(np.repeat(counts[2], 2), gain_kev=0.01, offset_kev=0.0)]
    expected = direct(repository, spectra, gain_kev=None)
    check(predict(spectra, batch_size=3), expected)


def test_a_spectrum_keeps_its_own_calibration_and_takes_what_it_lacks(predict, repository, counts):
    own = Spectrum(counts[0], gain_kev=0.018, offset_kev=0.0, tube_kv=15.0)
    lacking = Spectrum(counts[0])
    results = predict([own, lacking], **CALIBRATION)
    check(results[:1], direct(repository, counts[:1], gain_kev=0.018, offset_kev=0.0, tube_kv=15.0))
    check(results[1:], direct(repository, counts[:1]))


def test_files(predict, repository, counts, tmp_path):
    expected = direct(repository, counts)
    many, one = tmp_path / "many.npz", tmp_path / "one.npz"
    np.savez(many, counts=counts, **CALIBRATION)
    np.savez(one, counts=counts[:1], **CALIBRATION)
    check(predict(str(many)), expected)
    check([predict(one)], [None if e is None else e[:1] for e in expected])
    results = predict([one, str(many)], batch_size=4)
    check(results[:1], [None if e is None else e[:1] for e in expected])
    check(results[1:], expected)


def test_datasets_and_generators_stream(predict, repository, counts):
    import datasets

    expected = direct(repository, counts)
    dataset = datasets.Dataset.from_list(rows_of(counts))
    check(list(predict(dataset, batch_size=2)), expected)
    check(list(predict(dataset.to_iterable_dataset(), batch_size=2)), expected)

    taken = []

    def source():
        for spectrum in spectra_of(counts):
            taken.append(spectrum)
            yield spectrum

    results = iter(predict(source(), batch_size=2))
    first = next(results)
    assert len(taken) < len(counts)  # nothing is read far ahead of need
    check([first, *results], expected)


def test_loading_asks_no_question(repository, adapter, monkeypatch):
    """Where the package is installed the repository's own code plays no part."""
    questions = []
    monkeypatch.setattr("builtins.input", lambda text="": questions.append(text) or "n")
    for model in (repository, adapter):
        assert type(pipeline("xrf-regression", model=str(model), device="cpu")) is pipeline_xrf.XRFRegressionPipeline
    assert questions == []


def test_bfloat16(repository, counts):
    predict = pipeline("xrf-regression", model=str(repository), device="cpu", dtype=torch.bfloat16)
    values = [r[0]["value"] for r in predict(counts, batch_size=5, **CALIBRATION)]
    expected, _ = direct(repository, counts)
    np.testing.assert_allclose(values, expected[:, 0], atol=0.2 * TARGETS["target_std"][0])


def test_adapter_repository_gives_the_values_of_the_peft_model(adapter, pretrained, counts):
    predict = pipeline("xrf-regression", model=str(adapter), device="cpu")
    results = predict(counts, batch_size=2, **CALIBRATION)

    config = XRFMaskedConfig.from_pretrained(adapter / "task")
    peft_model = PeftModel.from_pretrained(XRFForRegression.from_pretrained(pretrained, config=config), adapter).eval()
    inputs = XRFFeatureExtractor.from_pretrained(adapter)(counts, return_tensors="pt", **CALIBRATION)
    with torch.no_grad():
        expected = peft_model(**inputs).predictions.numpy()
        with peft_model.disable_adapter():
            without = peft_model(**inputs).predictions.numpy()
    check(results, (expected, None))
    assert np.abs(expected - without).max() > 1  # the adapter matters


def test_a_peft_model_object_works_too(adapter, pretrained, counts):
    config = XRFMaskedConfig.from_pretrained(adapter / "task")
    peft_model = PeftModel.from_pretrained(XRFForRegression.from_pretrained(pretrained, config=config), adapter).eval()
    extractor = XRFFeatureExtractor.from_pretrained(adapter)
    predict = pipeline("xrf-regression", model=peft_model, feature_extractor=extractor, device="cpu")
    by_name = pipeline("xrf-regression", model=str(adapter), device="cpu")
    for one, other in zip(predict(counts, **CALIBRATION), by_name(counts, **CALIBRATION)):
        np.testing.assert_allclose([r["value"] for r in one], [r["value"] for r in other], rtol=1e-4)


def test_repositories_on_the_hub(repository, adapter, pretrained, counts, hub_org, tmp_path):
    """By id alone: a model, and an adapter whose base is an id too."""
    api = HfApi()
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = f"{hub_org}/pretrained"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    for name, source in (("model", repository), ("pretrained", pretrained), ("adapter", folder)):
        api.create_repo(f"{hub_org}/{name}")
        api.upload_folder(repo_id=f"{hub_org}/{name}", folder_path=source)
    for name, source in (("model", repository), ("adapter", adapter)):
        predict = pipeline("xrf-regression", model=f"{hub_org}/{name}", device="cpu")
        check(predict(counts, **CALIBRATION), direct(source, counts))


def test_adapter_with_another_extractor_than_its_base(adapter, tmp_path, counts):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    XRFFeatureExtractor(**{**settings, "scaling": "log"}).save_pretrained(folder)
    predict = pipeline("xrf-regression", model=str(folder), feature_extractor=str(folder), device="cpu")
    check(predict(counts, **CALIBRATION), direct(folder, counts))


REMOTE_CODE = """
import json, sys

class Blocker:  # our modules are not installed here
    def find_spec(self, name, path=None, target=None):
        if name.endswith("_xrf") and "." not in name or name.split(".")[0] == "dataset_builder":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import numpy as np
from transformers import pipeline

counts = np.load(sys.argv[1])
results = []
for model in sys.argv[2:]:
    predict = pipeline("xrf-regression", model=model, trust_remote_code=True, device="cpu")
    assert type(predict).__module__.startswith("transformers_modules."), type(predict).__module__
    results.append(predict(counts, gain_kev=0.02, offset_kev=-0.01, tube_kv=10.0, batch_size=2))
try:
    predict("somewhere/scan.npz")
except ImportError as error:
    results.append(str(error))
print("RESULTS", json.dumps(results))
"""


@pytest.mark.parametrize("repository", ["gaussian"], indirect=True)
def test_remote_code_where_nothing_of_ours_is_installed(repository, adapter, counts, tmp_path, hub_environment):
    np.save(tmp_path / "counts.npy", counts)
    command = [sys.executable, "-c", REMOTE_CODE, tmp_path / "counts.npy", repository, adapter]
    hub_environment.pop("PYTHONPATH", None)
    run = subprocess.run(command, cwd=tmp_path, env=hub_environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    full, adapted, message = json.loads(run.stdout.split("RESULTS", 1)[1])
    check(full, direct(repository, counts))
    check(adapted, direct(adapter, counts))
    assert "scan.npz needs the package dataset_builder" in message and "install" in message


def test_a_model_without_targets(pretrained):
    model = XRFForMaskedSpectrumModeling.from_pretrained(pretrained)
    extractor = XRFFeatureExtractor.from_pretrained(pretrained)
    with pytest.raises(ValueError, match="XRFForMaskedSpectrumModeling has none; fine-tune it on labels first"):
        pipeline("xrf-regression", model=model, feature_extractor=extractor, device="cpu")
    with pytest.raises(ValueError, match="XRFForRegression needs named targets"):
        pipeline("xrf-regression", model=str(pretrained), device="cpu")


def with_value(counts, index, channel, value):
    counts = counts.astype(float)
    counts[index, channel] = value
    return counts


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: {"inputs": c}, "Spectrum 0 has no energy calibration; supply gain_kev"),
        (lambda c: {"inputs": c, **CALIBRATION, "gain_kev": [0.02, 0.02, -0.1, 0.02, 0.02]}, "spectrum 2 has -0.1"),
        (lambda c: {"inputs": c, **CALIBRATION, "gain_kev": [0.02, 0.02]}, "one per spectrum .5., but has 2 entries"),
        (lambda c: {"inputs": with_value(c, 3, 7, np.nan), **CALIBRATION}, "spectrum 3 has nan in channel 7"),
        (lambda c: {"inputs": with_value(c, 3, 7, np.inf), **CALIBRATION}, "spectrum 3 has inf in channel 7"),
        (lambda c: {"inputs": with_value(c, 4, 0, -1), **CALIBRATION}, "spectrum 4 has -1 in channel 0"),
        (lambda c: {"inputs": with_value(c, 1, slice(None), 0), **CALIBRATION}, "Spectrum 1 has no counts"),
        (lambda c: {"inputs": c, **CALIBRATION, "offset_kev": 100.0}, "Spectrum 0 covers 99.99 to"),
        (lambda c: {"inputs": []}, "got no spectrum; give at least one"),
        (lambda c: {"inputs": [{"spectrum": c[0]}]}, "Row 0 has no counts, but the fields"),
        (lambda c: {"inputs": np.zeros((2, 3, 4)), **CALIBRATION}, "Spectrum 0 must be a row of counts"),
        (lambda c: {"inputs": "nowhere/scan.npz"}, "nowhere/scan.npz"),
    ],
)
def test_bad_input_is_named(predict, counts, change, message):
    with pytest.raises(ValueError, match=message):
        predict(**change(counts), batch_size=2)


def test_bad_spectrum_in_a_file_is_named_with_the_file(predict, counts, tmp_path):
    np.savez(tmp_path / "scan.npz", counts=counts, gain_kev=GAIN_KEV, offset_kev=[0.0, 0.0, 0.0, 80.0, 0.0])
    with pytest.raises(ValueError, match=r"Spectrum 3 of .*scan\.npz covers"):
        predict(tmp_path / "scan.npz")


def test_task_is_registered():
    from transformers.pipelines import PIPELINE_REGISTRY

    assert PIPELINE_REGISTRY.check_task("xrf-regression")[1]["impl"] is pipeline_xrf.XRFRegressionPipeline
