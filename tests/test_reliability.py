"""Intervals from errors that were made, and the distance of what is no longer familiar."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from configuration_xrf import XRFMaskedConfig
from corpus_xrf import measured_patches
from modeling_xrf import XRFForRegression
from reliability_xrf import calibrate, embedding_covariance, fit_familiarity, interval_half_widths, make_familiar


def test_many_errors_decide_the_interval():
    errors = np.random.default_rng(0).standard_t(3, 2000)
    widths = interval_half_widths(errors, expected_sd=100.0, coverages=(0.5, 0.8, 0.9))
    for width, share in zip(widths, (0.5, 0.8, 0.9), strict=True):
        assert np.mean(np.abs(errors) <= width) == pytest.approx(share, abs=0.004)
        assert width >= np.sort(np.abs(errors))[int(np.ceil(share * 2001)) - 1]  # at least the conformal one


def test_new_errors_fall_inside_as_often_as_promised():
    rng = np.random.default_rng(1)
    inside = [
        np.mean(np.abs(rng.standard_normal(200)) <= interval_half_widths(rng.standard_normal(26), 1.0, (0.9,)))
        for _ in range(400)
    ]
    assert 0.88 < np.mean(inside) < 0.93


def test_without_errors_the_expected_ones_give_the_width():
    # of four expected errors and the one to come, 90 % are fewer than all: the interval is the widest there is
    half, most = interval_half_widths([], expected_sd=2.0, coverages=(0.4, 0.9))
    assert half == pytest.approx(2 * norm.ppf(0.75), rel=0.06)
    assert 2 * norm.ppf(0.975) < most < 2 * norm.ppf(0.999)


def test_one_large_error_widens_but_does_not_rule():
    calm, one = (interval_half_widths(errors, 0.1, (0.8,))[0] for errors in ([0.1] * 9, [0.1] * 8 + [9.0]))
    assert calm == pytest.approx(0.1, abs=0.02) and calm <= one < 1


def test_errors_that_are_alike_count_less():
    errors = np.concatenate([np.full(10, 0.1), [1.0, 1.1]])  # ten spectra of one core, two other cores
    alone, alike = (
        interval_half_widths(errors, 0.5, (0.6,), weights) for weights in (None, np.append(np.full(10, 0.1), [1, 1]))
    )
    assert alone < 0.5 < alike  # 10 of 12 errors are small, but only one core of three


def test_distances_of_spectra_left_out_set_the_threshold():
    rng = np.random.default_rng(2)
    embeddings = rng.normal(size=(12, 5)) * [3, 1, 1, 0.3, 0.1]
    like = np.diag([9.0, 1, 1, 0.1, 0.01])
    center, whitening, threshold = fit_familiarity(embeddings, like)

    def distance(known, embedding):
        center = known.mean(axis=0)
        scatter = (known - center).T @ (known - center)
        whole = (embeddings - embeddings.mean(axis=0)).T @ (embeddings - embeddings.mean(axis=0))
        shape = like * np.trace(whole) / 11 / np.trace(like)
        shape = shape + 1e-3 * np.trace(shape) / 5 * np.eye(5)
        covariance = (scatter + 5 * shape) / (len(known) - 1 + 5)
        return np.sqrt((embedding - center) @ np.linalg.inv(covariance) @ (embedding - center))

    left_out = np.log([distance(np.delete(embeddings, row, axis=0), embeddings[row]) for row in range(12)])
    assert threshold == pytest.approx(np.exp(left_out.mean() + 2.326 * left_out.std()), rel=1e-9)
    new = rng.normal(size=5)
    assert np.linalg.norm(whitening @ (new - center)) == pytest.approx(distance(embeddings, new), rel=1e-9)


def test_far_in_a_quiet_direction_is_unfamiliar():
    rng = np.random.default_rng(3)
    spread = np.array([10.0, 1, 0.1, 0.01])
    center, whitening, threshold = fit_familiarity(rng.normal(size=(500, 4)) * spread)
    distances = np.linalg.norm((rng.normal(size=(2000, 4)) * spread - center) @ whitening.T, axis=1)
    assert np.mean(distances > threshold) < 0.03
    assert np.linalg.norm(whitening @ (np.array([0, 0, 3.0, 0]) - center)) > threshold  # 30 sd along the third axis
    assert np.linalg.norm(whitening @ (np.array([20.0, 0, 0, 0]) - center)) < threshold  # 2 sd along the first


def test_a_model_tells_the_distance_that_was_fitted(tmp_path):
    config = XRFMaskedConfig.from_size("tiny", spectrum_length=64, target_names=["Fe"], pooling="mean")
    torch.manual_seed(0)
    model = XRFForRegression(config).eval()
    values = torch.rand(20, 64)
    embeddings = model.xrf(values).pooler_output.detach().numpy()
    assert embedding_covariance(model) is None
    make_familiar(model, embeddings)
    model.save_pretrained(tmp_path)
    loaded = XRFForRegression.from_pretrained(tmp_path).eval()
    center, whitening, threshold = fit_familiarity(embeddings)
    expected = np.linalg.norm((embeddings - center) @ whitening.T, axis=1)
    torch.testing.assert_close(loaded(values).distance.double(), torch.from_numpy(expected), rtol=1e-3, atol=1e-3)
    assert loaded.config.familiarity_threshold == pytest.approx(threshold)
    precision = whitening.T @ whitening
    assert np.allclose(embedding_covariance(loaded) @ precision, np.eye(len(center)), atol=0.02)


def test_a_pretrained_model_gets_intervals_that_hold_on_spectra_held_out():
    config = XRFMaskedConfig.from_size(
        "tiny",
        spectrum_length=64,
        target_names=["Fe", "gain_drift"],
        target_transform=["log", "linear"],
        target_mean=[0.5, 0.0],
        target_std=[0.5, 2.0],
        regression_loss="gaussian",
        pooling="mean",
    )
    torch.manual_seed(0)
    model = XRFForRegression(config)
    torch.nn.init.normal_(model.head.weight, std=0.05)
    values, mask = torch.rand(900, 64), torch.ones(900, 4, dtype=torch.long)
    with torch.no_grad():
        said = model.eval()(values, attention_mask=mask)
    noise = torch.from_numpy(np.random.default_rng(0).standard_t(4, size=(900, 2)))
    iron = said.predictions[:, 0] * torch.exp(0.5 * noise[:, 0])
    labels = torch.stack([iron, said.predictions[:, 1] + 2.0 * noise[:, 1]], dim=1)
    labels[:50, 1] = torch.nan
    labels[:200, 0] = 0  # not there
    held_out = {"input_values": values[:600], "attention_mask": mask[:600], "labels": labels[:600]}
    calibrate(model, [measured_patches(held_out)], (0.5, 0.9))
    with torch.no_grad():
        said = model.eval()(values[600:], attention_mask=mask[600:])
    inside = (said.lower <= labels[600:, :, None]) & (labels[600:, :, None] <= said.upper)
    assert inside.double().mean(0).numpy() == pytest.approx(np.tile([0.5, 0.9], (2, 1)), abs=0.07)
    assert (said.distance <= model.config.familiarity_threshold).double().mean() > 0.95
    assert (model(torch.full((1, 64), 5.0)).distance > model.config.familiarity_threshold).all()
