"""Attributions against what is known of a model: linear ones exactly, trained ones by the peaks they learnt from."""

import copy
import csv

import numpy as np
import pytest
import torch
from peaks_corpus import GAIN_KEV, NUM_CHANNELS, TARGETS, make_spectra
from synthetic_spectrum import synthetic
from test_pipeline import randomised, tiny_regressor

from attribution_xrf import (
    OTHER,
    attribute_lines,
    continuum,
    explain,
    fit_lines,
    integrated_gradients,
    markdown_table,
    standardized_view,
    strip_peaks,
)
from configuration_xrf import XRFMaskedConfig
from dataset_builder import SimulatedSource, Spectrum
from feature_extraction_xrf import XRFFeatureExtractor
from modeling_xrf import XRFForRegression

ENERGY_KEV = 0.02 * np.arange(1024)
MEASURED = (ENERGY_KEV > 0.6) & (ENERGY_KEV < 15)


def features_of(config, num_spectra=5, scaling="sqrt", **statistics):
    """Inputs of spectra that measured the first 20 of 32 patches, and the extractor."""
    extractor = XRFFeatureExtractor.for_config(config, scaling=scaling, **statistics)
    rng = np.random.default_rng(0)
    counts = rng.poisson(
        50 + 2000 * np.exp(-0.5 * ((np.arange(320) - rng.uniform(60, 280, (num_spectra, 1))) / 4) ** 2)
    )
    return extractor(counts, gain_kev=0.02, offset_kev=0.0), extractor


def linear_model(weights, **config):
    """A model whose standardised output is a weighted sum of the scaled counts: `spectrum_head` and nothing else."""
    model = tiny_regressor(spectrum_skip=True, **config)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.spectrum_head.weight.copy_(torch.as_tensor(weights))
    return model


def test_a_linear_model_gives_weight_times_change_of_its_input():
    weights = np.random.default_rng(1).normal(size=(2, 512)).astype(np.float32)
    # predictions of CaCO3 are all clamped to 0, which must not matter
    model = linear_model(weights, target_mean=[-1e4, 2.0])
    features, extractor = features_of(model.config)
    x, mask = features["input_values"], features["attention_mask"]
    assert (model(torch.from_numpy(x), torch.from_numpy(mask)).predictions[:, 0] == 0).all()
    baseline = continuum(x, mask, extractor)
    for column, target in enumerate(TARGETS):
        attributions, differences = integrated_gradients(model, target, x, baseline, mask, steps=1)
        expected = weights[column] * (x - baseline)
        expected[:, 320:] = 0
        np.testing.assert_allclose(attributions, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(differences, expected.sum(axis=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("loss", ["mse", "gaussian"])
def test_attributions_add_up_to_the_change_of_the_output(pooling, loss):
    model = tiny_regressor(
        regression_loss=loss,
        spectrum_skip=True,
        target_transform=["linear", "log"],
        target_mean=[60.0, 0.5],
        target_std=[10.0, 0.2],
        target_min=[None, None],
        target_max=[None, None],
    )
    model.xrf.config.pooling = pooling
    randomised(model, std=0.5)
    features, extractor = features_of(model.config)
    x, mask = features["input_values"], features["attention_mask"]
    baseline = continuum(x, mask, extractor)

    def standardised(values):
        with torch.no_grad():
            outputs = model(torch.as_tensor(values, dtype=torch.float32), torch.from_numpy(mask)).predictions.numpy()
        return np.stack([(outputs[:, 0] - 60) / 10, (np.log(outputs[:, 1]) - 0.5) / 0.2], axis=1)

    expected = standardised(x) - standardised(baseline)
    assert np.abs(expected).max() > 0.3
    for column, target in enumerate(TARGETS):
        attributions, differences = integrated_gradients(model, target, x, baseline, mask, steps=64, batch_size=2)
        np.testing.assert_allclose(differences, expected[:, column], atol=2e-3)
        scale = np.abs(attributions).sum(axis=1).max()
        np.testing.assert_allclose(attributions.sum(axis=1), expected[:, column], atol=0.01 * scale)
        assert (attributions[:, 320:] == 0).all() and (attributions[:, :320] != 0).any()


def test_the_model_stays_as_it_is_and_results_do_not_depend_on_batches():
    model = tiny_regressor()
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    features, extractor = features_of(model.config)
    x, mask = features["input_values"], features["attention_mask"]
    arguments = model, "TOC", x, continuum(x, mask, extractor), mask
    first, _ = integrated_gradients(*arguments, steps=4)
    np.testing.assert_array_equal(integrated_gradients(*arguments, steps=4)[0], first)
    np.testing.assert_allclose(integrated_gradients(*arguments, steps=4, batch_size=2)[0], first, rtol=1e-3, atol=1e-5)
    assert model.config.to_dict() == config
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_standardised_view_undoes_units_and_ranges():
    model = tiny_regressor(target_transform=["linear", "log"], target_std=[10.0, 0.3], target_max=[100.0, 8.0])
    features, _ = features_of(model.config, 20)
    inputs = {name: torch.from_numpy(values) for name, values in features.items()}
    with torch.no_grad():
        standardised = standardized_view(model)(**inputs).predictions
        predictions = model(**inputs).predictions
    restored = torch.stack([standardised[:, 0] * 10 + 60, (standardised[:, 1] * 0.3 + 2).exp()], dim=1)
    bounds = torch.tensor([0.0, 0.0]), torch.tensor([100.0, 8.0])
    torch.testing.assert_close(restored.clamp(*bounds), predictions)
    assert (restored > bounds[1]).any()


def test_peaks_are_stripped_down_to_the_continuum_and_unmeasured_channels_stay():
    background = 40 * np.exp(-ENERGY_KEV / 6)
    peaks = sum(np.exp(-0.5 * ((ENERGY_KEV - line_kev) / 0.065) ** 2) for line_kev in (3.69, 4.01, 6.4))
    values = np.stack([background + 300 * peaks, background])
    measured = np.tile(MEASURED, (2, 1))
    values[:, ~MEASURED] = 7.0
    stripped = strip_peaks(values, measured, ENERGY_KEV)
    inside = (ENERGY_KEV > 1) & (ENERGY_KEV < 14.5)
    np.testing.assert_allclose(stripped[:, inside], np.tile(background[inside], (2, 1)), rtol=0.05)
    assert (stripped[:, ~MEASURED] == 7).all()


def test_values_scaled_per_channel_are_stripped_as_counts():
    config = tiny_regressor().config
    mean, std = np.linspace(0, 2, 512), np.linspace(1, 3, 512)
    plain, _ = features_of(config, scaling="channel", channel_mean=[0.0] * 512, channel_std=[1.0] * 512)
    scaled, extractor = features_of(config, scaling="channel", channel_mean=list(mean), channel_std=list(std))
    found = continuum(scaled["input_values"], scaled["attention_mask"], extractor)[:, :320] * std[:320] + mean[:320]
    measured = np.tile(np.arange(512) < 320, (5, 1))
    expected = strip_peaks(plain["input_values"], measured, extractor.energy_kev)[:, :320]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def lines_of(spectrum, near_kev, elements=("Si", "S", "K", "Ca", "Ti", "Mn", "Fe", "Ni", "Ba"), tube_kv=30.0):
    """Lines when all of the attribution, -1 in all, lies in the channels within 30 eV of an energy."""
    near = np.abs(ENERGY_KEV - near_kev) <= 0.03
    attribution = np.where(near, -1 / near.sum(), 0.0)
    counts = spectrum.counts.astype(float)
    return attribute_lines(ENERGY_KEV, counts, attribution, -attribution, MEASURED, tube_kv, elements)


@pytest.mark.parametrize(
    "near_kev, element, line, tabulated_kev",  # Bearden (1967)
    [(3.69, "Ca", "Kα", 3.691), (6.40, "Fe", "Kα", 6.399), (7.06, "Fe", "Kβ", 7.058), (4.51, "Ti", "Kα", 4.509)],
)
def test_attribution_at_a_line_belongs_to_its_element(near_kev, element, line, tabulated_kev):
    lines = lines_of(synthetic(0.02, 0.0, num_channels=1024), near_kev)
    first = lines[0]
    assert (first.element, first.line, first.kind) == (element, line, "line")
    assert first.energy_kev == pytest.approx(tabulated_kev, abs=0.005)
    assert first.share > 0.85 and first.attribution == pytest.approx(-first.share)
    assert sum(line.share for line in lines) == pytest.approx(1)
    assert sum(line.attribution for line in lines) == pytest.approx(-1)
    assert lines[-1].element == OTHER and lines[-1].kind == OTHER


def test_what_no_line_claims_is_left_over():
    lines = lines_of(synthetic(0.02, 0.0, num_channels=1024), 13.0)
    assert [line.element for line in lines] == [OTHER] and lines[0].share == pytest.approx(1)


def test_escape_and_sum_peaks_of_strong_lines_are_told_from_lines_of_elements():
    # much calcium with 1 % of escape at 3.69 - 1.74 keV and a sum peak where nickel would be
    lines = {3.691: 5e6, 4.012: 7e5, 1.951: 5e4, 7.382: 3e4, 7.703: 8.4e3}
    spectrum = synthetic(0.02, 0.0, lines, num_channels=1024)
    escape, double = lines_of(spectrum, 1.951)[0], lines_of(spectrum, 7.36)[0]
    assert (escape.element, escape.line, escape.kind) == ("Ca", "Kα escape", "escape")
    assert escape.energy_kev == pytest.approx(1.951, abs=0.01) and escape.share > 0.9
    assert (double.element, double.line, double.kind) == ("Ca + Ca", "Kα + Kα sum", "sum")
    assert double.energy_kev == pytest.approx(7.382, abs=0.01) and double.share > 0.9
    assert double.label == "Ca Kα + Ca Kα" and escape.label == "Ca Kα escape"


def test_fitted_lines_have_the_counts_that_made_the_spectrum():
    spectrum = synthetic(0.02, 0.0, {3.691: 1e6, 4.012: 1.2e5, 6.403: 5e5, 7.057: 7e4}, num_channels=1024)
    names, counts = fit_lines(ENERGY_KEV, spectrum.counts, MEASURED, 30.0, ("K", "Ca", "Ti", "Ba", "Mn", "Fe"))
    areas = {name[:2]: area for name, area in zip(names, counts.sum(axis=1))}
    assert areas["Ca", "Kα"] == pytest.approx(1e6, rel=0.05) and areas["Fe", "Kα"] == pytest.approx(5e5, rel=0.05)
    assert areas["Ca", "Kβ"] == pytest.approx(1.2e5, rel=0.15)
    absent = sum(areas.get((element, "Kα"), 0) for element in ("K", "Ti", "Mn")) + areas.get(("Ba", "Lα"), 0)
    assert absent < 0.01 * 1.5e6


def test_families_have_their_usual_names_and_energies():
    names, _ = fit_lines(ENERGY_KEV, np.full(1024, 100.0), MEASURED, 40.0, ("Pb", "Ca"))
    energies = {name[:2]: name[2] for name in names}
    # Bearden (1967): Pb La1 10.5515, Lb1 12.6137, Lg1 14.7644, Ll 9.1845, M-alpha 2.3455 keV
    for key, line_kev in {"Lα": 10.5515, "Lβ": 12.6137, "Lγ": 14.7644, "Ll": 9.1845, "M": 2.3455}.items():
        assert np.abs(energies["Pb", key] - line_kev).min() < 0.06, key
    assert energies["Pb", "Lα"][0] == pytest.approx(10.55, abs=0.05)
    unexcited, _ = fit_lines(ENERGY_KEV, np.full(1024, 100.0), MEASURED, 12.0, ("Pb",))
    assert {name[1].split()[0] for name in unexcited} == {"M"}


@pytest.fixture(scope="module")
def trained():
    """A small transformer that has learnt two peaks from labels: Ca K-alpha, and one where P K-alpha lies."""
    spectra = make_spectra(192, 4)
    labels = np.array([list(spectrum.targets.values()) for spectrum in spectra])
    torch.manual_seed(0)
    config = XRFMaskedConfig(
        spectrum_length=NUM_CHANNELS, patch_size=8, channel_width_kev=GAIN_KEV, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, pooling="mean", target_names=list(TARGETS),
        target_units=list(TARGETS.values()), target_mean=labels.mean(0).tolist(), target_std=labels.std(0).tolist(),
    )  # fmt: skip
    # not divided by the total counts, in which all peaks have a part
    model, extractor = XRFForRegression(config), XRFFeatureExtractor.for_config(config, scaling="log")
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.02)  # small weights learn the peaks, large ones the spectra
    inputs = extractor(spectra, return_tensors="pt")
    labels = torch.from_numpy(labels).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
    return model.eval(), extractor


@pytest.mark.parametrize("baseline", ["continuum", "mean"])
def test_a_trained_model_looks_at_the_peaks_that_made_its_labels(trained, baseline):
    model, extractor = trained
    spectra = make_spectra(24, 2, seed=5)
    shares = {}
    for target in TARGETS:
        explanation = explain(model, extractor, spectra, target, baseline, steps=32)
        assert explanation.attribution.sum() == pytest.approx(explanation.difference, abs=0.02)
        shares[target] = {line.element: 0.0 for line in explanation.lines}
        for line in explanation.lines:
            shares[target][line.element] += line.share
    assert max(shares["CaCO3"], key=shares["CaCO3"].get) == "Ca"
    assert max(shares["TOC"], key=shares["TOC"].get) == "P"
    assert shares["CaCO3"]["Ca"] > 2 * shares["TOC"]["Ca"]


def simulated_spectra():
    batch = next(SimulatedSource(num_spectra=20, num_cores=1, seed=2).simulate(0))
    instrument = batch.instrument
    calibration = {"gain_kev": instrument.gain_kev, "offset_kev": instrument.offset_kev, "tube_kv": instrument.tube_kv}
    return [Spectrum(counts, anode=instrument.anode, **calibration) for counts in batch.counts]


def test_tables_of_simulated_spectra(tmp_path):
    extractor = XRFFeatureExtractor.for_config(tiny_regressor().config)
    weights = np.zeros((2, 512), dtype=np.float32)
    weights[0, np.abs(extractor.energy_kev - 3.69) < 0.1] = 1.0  # calcium raises CaCO3,
    weights[0, np.abs(extractor.energy_kev - 6.40) < 0.1] = -0.5  # iron lowers it
    explanation = explain(linear_model(weights), extractor, simulated_spectra(), "CaCO3", steps=1)
    # the figure ends at 10.2 keV, the grid of 512 channels
    table = {(line.element, line.line): line for line in explanation.lines}
    calcium, iron = table["Ca", "Kα"], table["Fe", "Kα"]
    assert calcium.attribution > 0 > iron.attribution
    assert calcium.share + iron.share > 0.9
    assert calcium.attribution == pytest.approx(calcium.share * explanation.absolute_attribution.sum(), rel=0.02)

    explanation.save_lines(tmp_path / "lines.csv")
    explanation.save_channels(tmp_path / "channels.csv")
    with open(tmp_path / "lines.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["element", "line", "energy_kev", "attribution", "share"]
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1)
    assert sum(float(row["attribution"]) for row in rows) == pytest.approx(explanation.difference, rel=1e-3)
    with open(tmp_path / "channels.csv", newline="", encoding="utf-8") as file:
        channels = list(csv.DictReader(file))
    assert len(channels) == explanation.measured.sum()
    np.testing.assert_allclose(
        [float(row["attribution"]) for row in channels], explanation.attribution[explanation.measured]
    )
    text = markdown_table(explanation.lines, 2).splitlines()
    assert len(text) == 2 + 2 + 1 and text[-1].startswith("| other |")
    assert text[2].split("|")[1].strip() in ("Ca Kα", "Fe Kα")


def test_unknown_names_are_refused():
    model = tiny_regressor()
    extractor = XRFFeatureExtractor.for_config(model.config)
    with pytest.raises(ValueError, match="no target 'CaO'; it has CaCO3, TOC"):
        explain(model, extractor, simulated_spectra(), "CaO")
    with pytest.raises(ValueError, match="baseline must be one of continuum, mean, but is 'zero'"):
        explain(model, extractor, simulated_spectra(), "TOC", baseline="zero")


def test_the_view_of_a_wrapped_model_is_standardised_too():
    model = linear_model(torch.ones(2, 512) / 512, target_mean=[10.0, 2.0])
    values = torch.rand(3, model.config.spectrum_length)
    expected = standardized_view(model)(values).predictions
    model.forward = model.forward  # bound to the model and an attribute of its own, as accelerate's wrapper is
    torch.testing.assert_close(standardized_view(model)(values).predictions, expected)
    assert (model(values).predictions - expected).abs().max() > 1
