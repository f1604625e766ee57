"""Few-label adaptation: the prior where there are no labels, a Gaussian process where there are some."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV

import adaptation_xrf
from adaptation_xrf import KNOWN_SD, adapt, left_out_errors, most_probable_variances
from configuration_xrf import XRFMaskedConfig
from evaluation_xrf import RIDGE_PENALTIES
from finetuning_xrf import LabelledSpectra
from modeling_xrf import XRFForRegression

LENGTH, PATCHES = 64, 4


@pytest.fixture(scope="module")
def base():
    config = XRFMaskedConfig.from_size(
        "tiny",
        spectrum_length=LENGTH,
        target_names=["Fe", "Ca", "gain_drift"],
        target_units=["wt%", "wt%", "%"],
        target_transform=["log", "log", "linear"],
        target_mean=[1.0, 0.5, 0.0],
        target_std=[0.8, 1.2, 0.1],
        target_min=[0.0, 0.0, None],
        target_max=[100.0, 100.0, None],
        regression_loss="gaussian",
        pooling="mean",
        interval_coverages=[0.8, 0.9],
        interval_factors=[[1.2, 1.3, 1.4], [1.6, 1.7, 1.8]],
        calibration="standardless",
    )
    torch.manual_seed(0)
    model = XRFForRegression(config).eval()
    torch.nn.init.normal_(model.head.weight, std=0.05)
    return model


def spectra(labels, groups=None, seed=0):
    labels = np.asarray(labels, dtype=np.float32)
    values = torch.from_numpy(np.random.default_rng(seed).random((len(labels), LENGTH), dtype=np.float32) + 0.5)
    mask = torch.ones(len(labels), PATCHES, dtype=torch.long)
    return LabelledSpectra(values, mask, torch.from_numpy(labels), values.numpy(), groups)


def said(model, rows):
    with torch.no_grad():
        return model(rows.input_values, attention_mask=rows.attention_mask)


def test_without_labels_the_base_speaks(base):
    rows = spectra(np.full((5, 2), np.nan))
    model = adapt(base, rows, ["Ca", "Fe"], ["ppm", "wt%"])
    before, after = said(base, rows), said(model, rows)
    expected = before.predictions[:, [1, 0]] * torch.tensor([1e4, 1.0])
    torch.testing.assert_close(after.predictions, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(after.lower[:, 1], before.lower[:, 0], rtol=1e-4, atol=0)
    assert model.config.calibration == "standardless"
    empty = spectra(np.zeros((0, 2)))
    torch.testing.assert_close(said(adapt(base, empty, ["Ca", "Fe"], ["ppm", "wt%"]), rows).predictions, expected)


def test_one_label_shifts_everything_by_one_factor(base):
    rows = spectra(np.full((6, 1), np.nan))
    prior = said(base, rows).predictions[:, :1]
    rows.labels[2] = 2 * prior[2]
    model = adapt(base, rows, ["Fe"], ["wt%"])
    ratio = said(model, rows).predictions / prior
    torch.testing.assert_close(ratio, ratio[2].expand_as(ratio), rtol=1e-3, atol=0)
    assert 1.05 < ratio[2] < 2  # part of the way: a label may be wrong, too
    assert model.config.calibration is None


def test_the_model_is_the_weighted_mean_of_a_process_and_a_ridge_regression(base):
    """Against the same process in the space of functions, its variances given, and scikit-learn's ridge."""
    rng = np.random.default_rng(1)
    groups = np.repeat(list("abcd"), 4)
    rows, new = spectra(np.exp(rng.normal(size=(16, 1))), groups, 1), spectra(np.full((5, 1), np.nan), seed=2)
    model = adapt(base, rows, ["Fe"], ["wt%"])
    everything = torch.cat([rows.input_values, new.input_values])
    embeddings = base.xrf(everything).pooler_output.double().detach().numpy()
    weight, bias = base.head.weight[0].double().detach().numpy(), base.head.bias[0].item()
    prior, labels = (embeddings @ weight + bias) * 0.8 + 1.0, np.log(rows.labels.double().numpy()[:, 0])
    centred = embeddings - embeddings[:16].mean(axis=0)

    features = {
        "bias": np.ones((21, 1)),
        "slope": (prior - prior[:16].mean())[:, None],
        "embedding": centred / np.sqrt(np.mean(np.sum(centred[:16] ** 2, axis=1))),
    }
    residual = labels - prior[:16]
    known = {name: values[:16] for name, values in features.items()}
    variances, covariance = most_probable_variances(known, groups, residual, KNOWN_SD)
    cross = sum(variances[name] * values[16:] @ values[:16].T for name, values in features.items())
    process = prior[16:] + cross @ np.linalg.solve(covariance, residual)

    channels = everything.double().numpy()
    channels = channels / np.sqrt(np.mean(np.sum(channels[:16] ** 2, axis=1)))
    penalty = RidgeCV(RIDGE_PENALTIES).fit(channels[:16], labels).alpha_
    ridge = Ridge(penalty).fit(channels[:16], labels).predict(channels[16:])

    errors = {"process": np.empty(16), "ridge": np.empty(16)}
    for group in "abcd":
        out, rest = np.flatnonzero(groups == group), np.flatnonzero(groups != group)
        gain = covariance[np.ix_(out, rest)] @ np.linalg.inv(covariance[np.ix_(rest, rest)])
        errors["process"][out] = residual[out] - gain @ residual[rest]
        errors["ridge"][out] = labels[out] - Ridge(penalty).fit(channels[rest], labels[rest]).predict(channels[out])
    precision = {name: 1 / np.mean(values**2) for name, values in errors.items()}
    precision["ridge"] *= 16 / 41  # of 16 labels, and 25 for luck
    share = precision["process"] / sum(precision.values())
    expected = np.exp(share * process + (1 - share) * ridge)
    assert said(model, new).predictions[:, 0].numpy() == pytest.approx(expected, rel=3e-3)
    assert 0.1 < share < 0.9  # both have a say


def test_noise_of_a_main_constituent_is_in_part_the_same_at_any_value():
    values = np.array([1.0, 30.0, 90.0])
    shape = adaptation_xrf._Column(np.arange(3), np.log(values), is_log=True, is_main=True).noise_shape()
    # relative noise r and even noise of 0.3 r of the largest label, together as a variance of the logarithm over r^2
    assert shape == pytest.approx(1 + (0.3 * 90 / values) ** 2)
    for is_log, is_main in ((True, False), (False, True)):
        assert (adaptation_xrf._Column(np.arange(3), values, is_log, is_main).noise_shape() == 1).all()


def test_variances_with_noise_of_a_shape_are_those_of_scaled_residuals():
    """Divided by the root of the shape, all residuals have the same noise."""
    rng = np.random.default_rng(4)
    shape = np.exp(rng.normal(size=30))
    features = {"spectrum": rng.normal(size=(30, 5))}
    residual = features["spectrum"] @ rng.normal(size=5) + np.sqrt(shape) * rng.normal(size=30)
    prior = {"spectrum": 0.5, "noise": 0.5}
    found, covariance = most_probable_variances(features, None, residual, prior, shape)
    scaled = {"spectrum": features["spectrum"] / np.sqrt(shape)[:, None]}
    expected, scaled_covariance = most_probable_variances(scaled, None, residual / np.sqrt(shape), prior)
    assert found == pytest.approx(expected, rel=1e-3)
    assert covariance == pytest.approx(scaled_covariance * np.sqrt(np.outer(shape, shape)), rel=1e-3)


def test_variances_are_the_most_probable_ones():
    """No other variances are more probable, by a formula of its own."""
    rng = np.random.default_rng(2)
    features = {"bias": np.ones((30, 1)), "spectrum": rng.normal(size=(30, 40)) / 6}
    groups = np.repeat(np.arange(6), 5)
    residual = (
        features["spectrum"] @ rng.normal(size=40) * 0.5 + rng.normal(size=6)[groups] + 0.2 * rng.normal(size=30)
    )
    prior = {"bias": 0.3, "spectrum": 0.15, "group": 0.1, "noise": 0.1}
    variances, covariance = most_probable_variances(features, groups, residual, prior)

    def log_probability(variances):
        kernels = {
            "bias": np.ones((30, 30)),
            "spectrum": features["spectrum"] @ features["spectrum"].T,
            "group": np.equal.outer(groups, groups).astype(float),
            "noise": np.eye(30),
        }
        matrix = sum(variances[name] * kernels[name] for name in kernels)
        change = [np.log(np.sqrt(variances[name]) / prior[name]) for name in prior]
        sign, log_determinant = np.linalg.slogdet(matrix)
        likelihood = -0.5 * residual @ np.linalg.solve(matrix, residual) - 0.5 * log_determinant
        return likelihood - 0.5 * np.sum(np.square(change) / adaptation_xrf.LN_SD_SPREAD**2), matrix

    best, matrix = log_probability(variances)
    assert covariance == pytest.approx(matrix)
    for name in variances:
        for factor in (0.8, 1.25):
            assert log_probability({**variances, name: variances[name] * factor})[0] < best
    assert variances["group"] > 0.1  # it was 1, and 0.01 was expected


def test_errors_of_left_out_groups_equal_those_of_fits_without_them():
    rng = np.random.default_rng(3)
    root = rng.normal(size=(12, 12))
    covariance = root @ root.T + np.eye(12)
    residual, groups = rng.normal(size=12), np.repeat(list("abc"), 4)
    inverse = np.linalg.inv(covariance)
    errors, expected_sd, weights = left_out_errors(inverse, inverse @ residual, groups)
    variances = []
    for group in "abc":
        test, rest = groups == group, groups != group
        gain = covariance[np.ix_(test, rest)] @ np.linalg.inv(covariance[np.ix_(rest, rest)])
        assert errors[test] == pytest.approx(residual[test] - gain @ residual[rest])
        left = covariance[np.ix_(test, test)] - gain @ covariance[np.ix_(rest, test)]
        variances.extend(np.diag(left))
        correlation = left / np.sqrt(np.outer(np.diag(left), np.diag(left)))
        rho = max((correlation.sum() - 4) / 12, 0)
        assert weights[test] == pytest.approx(1 / (1 + 3 * rho))
    assert np.square(expected_sd) == pytest.approx(variances)
    assert left_out_errors(inverse, inverse @ residual, None)[2] == pytest.approx(np.ones(12))


def test_targets_that_the_base_does_not_know(base):
    rng = np.random.default_rng(4)
    rows = spectra(np.zeros((40, 2)))
    rows.input_values[:] = torch.from_numpy(rng.random((40, 4)) @ rng.random((4, LENGTH)))  # four components
    truth = (rows.input_values @ torch.from_numpy(rng.normal(size=LENGTH).astype(np.float32)))[:, None]
    rows.labels[:] = torch.cat([truth, truth.exp()], dim=1)  # grain size, say, and something over decades
    train, test = rows.select(np.arange(30)), rows.select(np.arange(30, 40))
    model = adapt(base.xrf, train, ["phi", "abundance"], ["", "counts"])
    assert model.config.target_transform == ["linear", "log"]
    answers = said(model, test)
    for column, label in enumerate((truth[30:, 0], truth[30:, 0])):
        value = answers.predictions[:, column] if column == 0 else answers.predictions[:, column].log()
        assert (value - label).std() < 0.2 * label.std()
    assert (answers.lower < answers.upper).all() and (answers.distance > 0).all()
    with pytest.raises(ValueError, match="^phi is no target of the pretrained model and has 1 different labels"):
        adapt(base, spectra([[1.0], [1.0]]), ["phi"], [""])


def test_a_zero_is_below_detection_where_logarithms_are_asked(base):
    rows = spectra(np.linspace(0.5, 3, 8)[:, None])
    with_zero = spectra(np.concatenate([[0.0], np.linspace(0.5, 3, 8)])[:, None])
    with_zero.input_values[1:] = rows.input_values
    new = spectra(np.full((3, 1), np.nan), seed=7)
    predictions = [said(adapt(base, each, ["Fe"], ["wt%"]), new).predictions for each in (rows, with_zero)]
    torch.testing.assert_close(*predictions, rtol=1e-4, atol=1e-6)


def test_the_base_is_not_changed_and_the_result_loads(base, tmp_path):
    before = {name: value.clone() for name, value in base.state_dict().items()}
    config = base.config.to_dict()
    rows = spectra(np.exp(np.random.default_rng(5).normal(size=(9, 2))))
    model = adapt(base, rows, ["Fe", "As"], ["ppm", "ppm"])
    assert base.config.to_dict() == config
    for name, value in base.state_dict().items():
        assert torch.equal(value, before[name])
    model.save_pretrained(tmp_path)
    loaded = XRFForRegression.from_pretrained(tmp_path).eval()
    for name in ("predictions", "lower", "upper", "distance"):
        torch.testing.assert_close(getattr(said(loaded, rows), name), getattr(said(model, rows), name))


def of_a_main_constituent(labels_of, rows=40):
    """Spectra of a mixture of two patterns, and the labels that its share `(rows,)` in [0, 1] gives."""
    rng = np.random.default_rng(3)
    share = rng.permutation(np.linspace(0, 1, rows))
    patterns = rng.random((2, LENGTH)) + 0.5
    values = (
        share[:, None] * patterns[0] + (1 - share)[:, None] * patterns[1] + 0.002 * rng.normal(size=(rows, LENGTH))
    )
    made = spectra(np.zeros((rows, 1)))
    made.input_values[:] = torch.from_numpy(values).float()
    return made, torch.from_numpy(labels_of(share)[:, None]).float()


def test_an_error_of_a_main_constituent_counts_in_its_unit(base, monkeypatch):
    """Logarithms would spend the fit on the few labels near zero."""
    rows, truth = of_a_main_constituent(lambda share: 0.05 + 90 * share)

    def rmse_of_the_unlabelled(unit, factor, transform):
        rows.labels[:] = torch.nan
        rows.labels[:30] = truth[:30] * factor
        model = adapt(base, rows, ["Ca"], [unit])
        assert model.config.target_transform == [transform]
        return float((said(model, rows).predictions / factor - truth)[30:].square().mean().sqrt())

    found = rmse_of_the_unlabelled("wt%", 1, "linear")
    assert found < 2
    assert rmse_of_the_unlabelled("g/kg", 10, "linear") == pytest.approx(found, rel=1e-2)
    monkeypatch.setattr(adaptation_xrf, "MAIN_CONSTITUENT", 100.0)
    assert rmse_of_the_unlabelled("wt%", 1, "log") > 2 * found


def test_a_good_prior_of_a_main_constituent_is_shifted_and_nothing_more(base):
    """Labels of what hardly matters, near zero, say nothing of the high values that were not labelled."""
    rng, base = np.random.default_rng(6), copy.deepcopy(base)
    rows = spectra(np.zeros((60, 2)), np.array(["core a", "core b", "core c"])[rng.integers(3, size=60)])
    row = base.config.target_names.index("Ca")
    with torch.no_grad():  # a prior that spans decades
        base.head.weight[row] *= 3 / said(base, rows).predictions[:, row].log().std()
        own = said(base, rows).predictions[:, row].log()
        base.head.bias[row] += (np.log(80) - own.max()) / base.config.target_std[row]
    truth = 1.1 * said(base, rows).predictions[:, row].numpy()
    order = np.argsort(truth)
    labels = np.maximum(truth * np.exp(0.02 * rng.normal(size=60)) + 0.3 * rng.normal(size=60), 0.05)
    rows.labels[:] = torch.nan
    rows.labels[order[:57], 0] = torch.from_numpy(labels[order[:57]]).float()
    rows.labels[::2, 1] = said(base, rows).predictions[::2, 0] * 1.3
    assert labels[order[:57]].max() > adaptation_xrf.MAIN_CONSTITUENT
    model = adapt(base, rows, ["Ca", "Fe"], ["wt%", "wt%"])
    found = said(model, rows).predictions[:, 0].numpy()
    high = order[57:]
    assert found[high] == pytest.approx(truth[high], rel=0.06)
    ratio = found / said(base, rows).predictions[:, row].numpy()
    assert ratio == pytest.approx(ratio[0], rel=1e-3) and ratio[0] == pytest.approx(1.1, rel=0.05)

    now = said(model, rows)
    inside = (now.lower[:, 0] <= rows.labels[:, :1]) & (rows.labels[:, :1] <= now.upper[:, 0])
    assert inside[order[:57]].double().mean(0).numpy() == pytest.approx([0.8, 0.9], abs=0.06)
    # as wide at any low value, and both kinds of target have intervals of their own
    half_width, floor = now.upper[:, 0, 1].numpy() - found, 0.3 * rows.labels[:, 0].nan_to_num().max().item()
    assert model.config.interval_floors == [pytest.approx(floor), None]
    assert half_width / np.hypot(found, floor) == pytest.approx(half_width[0] / np.hypot(found[0], floor), rel=1e-3)
    alone = said(adapt(base, dataclasses.replace(rows, labels=rows.labels[:, 1:]), ["Fe"], ["wt%"]), rows)
    for name in ("predictions", "lower", "upper"):
        torch.testing.assert_close(getattr(now, name)[:, 1], getattr(alone, name)[:, 0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("target", ["Ca", "CaCO3"])
def test_a_main_constituent_whose_logarithm_is_plain_stays_there(base, target):
    rows, truth = of_a_main_constituent(lambda share: 0.02 * 4000**share)
    rows.labels[:] = truth
    assert adapt(base, rows, [target], ["wt%"]).config.target_transform == ["log"]
