"""The checkpoint that comes with the source: whole, small, and worth its name on simulated and on real spectra."""

import json

import numpy as np
import pytest
from conftest import ROOT
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForSequenceClassification

from dataset_builder import read_spectra
from dataset_builder.simulation import SimulatedSource
from inference_xrf import XRFPredictor
from modeling_xrf import XRFForRegression, XRFModel

FOLDER = ROOT / "model_cards" / "xrf-tiny"
MAIN_ELEMENTS = ("Al", "Si", "K", "Ca", "Ti", "Fe")


@pytest.fixture(scope="module")
def predictor():
    return XRFPredictor(FOLDER)


def test_the_folder_is_a_whole_repository():
    names = {path.name for path in FOLDER.iterdir()}
    code = {"configuration_xrf.py", "modeling_xrf.py", "feature_extraction_xrf.py", "pipeline_xrf.py"}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", *code} <= names
    assert (FOLDER / "model.safetensors").stat().st_size <= 12e6
    for name in code:
        assert (FOLDER / name).read_text() == (ROOT / name).read_text(), f"{name} is not that of the source: copy it"


def test_auto_classes_load_it():
    assert AutoConfig.from_pretrained(FOLDER).calibration == "standardless"
    assert isinstance(AutoModel.from_pretrained(FOLDER), XRFModel)
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(FOLDER), XRFForRegression)
    config = json.loads((FOLDER / "preprocessor_config.json").read_text())
    assert AutoFeatureExtractor.from_pretrained(FOLDER).patch_size == config["patch_size"]


def test_rocks_on_a_simulated_handheld_it_has_never_seen(predictor):
    source = SimulatedSource("rock", "varied handheld_15kv", num_spectra=60, num_cores=6, seed=987)
    spectra = [s for unit in range(6) for batch in source.simulate(unit) for s in batch.spectra()]
    said = predictor.predict(predictor.feature_extractor(spectra, return_tensors="pt"))
    for name in MAIN_ELEMENTS:
        truth = np.array([spectrum.targets[name] for spectrum in spectra])
        assert np.corrcoef(np.log(truth), np.log(said[name]))[0, 1] > 0.9, name
        inside = (said[f"{name}_lower_90"] <= truth) & (truth <= said[f"{name}_upper_90"])
        assert inside.mean() > 0.7, name
    assert said["unfamiliar"].mean() < 0.2


def test_noise_is_unfamiliar(predictor):
    noise = np.random.default_rng(0).poisson(2000, (5, 2048))
    said = predictor({"counts": noise, "gain_kev": 0.02, "offset_kev": 0.0, "tube_kv": 15.0})
    assert said["unfamiliar"].all()


def test_real_mudrocks_without_a_label(predictor, real_data):
    for instrument in "ab":
        spectra = read_spectra(real_data / "labelled" / f"mudrock_light_instrument_{instrument}.npz")
        said = predictor.predict(predictor.feature_extractor(spectra, return_tensors="pt"))
        for name in MAIN_ELEMENTS:
            truth = np.array([spectrum.targets[name] for spectrum in spectra])
            assert np.corrcoef(np.log(truth), np.log(said[name]))[0, 1] > 0.96, (instrument, name)
