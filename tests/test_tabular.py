"""Calibrations of tables without an energy axis against references that others computed."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from evaluation_xrf import interval_metrics, regression_metrics
from laboratory_xrf import FeatureRow, read_laboratory_table
from protocols_xrf import leave_one_out, run_protocol
from tabular_xrf import GaussianProcess, TabularPeer, as_given, shape_and_level


def rows_of(inputs):
    return [FeatureRow(row) for row in inputs]


@pytest.fixture
def curve():
    """A target that bends with two inputs, and noise of sd 0.1."""
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-1, 1, (110, 2))
    return inputs, (np.sin(3 * inputs[:, 0]) + inputs[:, 1] ** 2 + rng.normal(0, 0.1, 110))[:, None]


def test_predictions_and_intervals_equal_scikit_learns_at_the_same_scales(curve):
    inputs, labels = curve
    ours = GaussianProcess().fit(rows_of(inputs[:50]), labels[:50])
    (model,) = ours.models_
    assert model.transform is as_given and not model.log_target  # inputs and labels are negative somewhere
    signal, width, noise = np.exp(model.scales * [1, 1, 1])
    kernel = ConstantKernel(signal) * RBF(width) + WhiteKernel(noise)
    theirs = GaussianProcessRegressor(kernel, alpha=0, optimizer=None)
    theirs.fit((inputs[:50] - model.center) / model.spread, (labels[:50, 0] - model.mean) / model.sd)
    mean, sd = theirs.predict((inputs[50:] - model.center) / model.spread, return_std=True)
    values, intervals = ours.predict(rows_of(inputs[50:]))
    np.testing.assert_allclose(values[:, 0], mean * model.sd + model.mean, rtol=1e-6)
    lower, upper = intervals[0.9]
    # scikit-learn's standard deviation holds the noise of its WhiteKernel too
    np.testing.assert_allclose((upper - lower)[:, 0], 2 * 1.6449 * sd * model.sd, rtol=1e-5)


def test_the_closed_form_leaves_rows_out_as_refitting_would(curve):
    inputs, labels = curve
    (model,) = GaussianProcess().fit(rows_of(inputs[:12]), labels[:12]).models_
    standardised = (labels[:12, 0] - model.mean) / model.sd
    covariance, errors = np.linalg.inv(model.inverse), []
    for row in range(12):
        others = np.arange(12) != row
        weights = np.linalg.solve(covariance[np.ix_(others, others)], standardised[others])
        errors.append((covariance[row, others] @ weights - standardised[row]) * model.sd)
    assert model.squared_error == pytest.approx(np.mean(np.square(errors)), rel=1e-8)


def test_it_learns_a_bend_that_ridge_cannot_and_its_intervals_hold(curve):
    inputs, labels = curve
    fitted, tested = rows_of(inputs[:50]), rows_of(inputs[50:])
    values, intervals = GaussianProcess().fit(fitted, labels[:50]).predict(tested)
    ours = regression_metrics(values[:, 0], labels[50:, 0])["rmse"]
    ridge, svr = (
        regression_metrics(TabularPeer(name).fit(fitted, labels[:50]).predict(tested)[:, 0], labels[50:, 0])["rmse"]
        for name in ("ridge", "svr")
    )
    assert ours < 0.6 * ridge and svr < ridge and ours < 0.25
    lower, upper = intervals[0.9]
    assert interval_metrics(lower[:, 0], upper[:, 0], labels[50:, 0], 0.9)["coverage"] > 0.75


def test_a_common_factor_moves_the_level_and_nothing_else():
    inputs = np.random.default_rng(1).uniform(0.1, 1, (5, 4))
    one, other = shape_and_level(inputs), shape_and_level(7 * inputs)
    np.testing.assert_allclose(other[:, :-1], one[:, :-1], atol=1e-12)
    np.testing.assert_allclose(other[:, -1], one[:, -1] + np.log(7))


def test_targets_are_fitted_to_their_own_labels(curve):
    inputs, labels = curve
    both = np.concatenate([labels, 5 - 2 * labels], axis=1)
    both[::3, 1] = np.nan
    known = ~np.isnan(both[:, 1])
    values, _ = GaussianProcess(["a", "b"]).fit(rows_of(inputs), both).predict(rows_of(inputs[:5]))
    alone, _ = GaussianProcess(["b"]).fit(rows_of(inputs[known]), both[known, 1:]).predict(rows_of(inputs[:5]))
    np.testing.assert_allclose(values[:, 1], alone[:, 0])
    with pytest.raises(ValueError, match="b"):
        GaussianProcess(["a", "b"]).fit(rows_of(inputs), np.where([[True, False]], both, np.nan))


def test_labels_of_the_left_out_row_change_no_prediction():
    rng = np.random.default_rng(2)
    inputs = rng.uniform(0.1, 1, (8, 3))
    labels = np.exp(inputs.sum(axis=1, keepdims=True))
    for make in (GaussianProcess, lambda: TabularPeer("ridge")):
        first = make().fit(rows_of(inputs[:7]), labels[:7])
        second = make().fit(rows_of(inputs[:7]), labels[:7])
        answers = [np.asarray(part.predict(rows_of(inputs[7:]))[0]) for part in (first, second)]
        np.testing.assert_array_equal(*answers)


def test_lunar_titanium_from_reflectance(real_data):
    table = read_laboratory_table(real_data / "labelled" / "lunar_kaguya_tio2.csv", ["TiO2"])
    assert len(table.feature_names) == 10 and len(table.labelled) == 55
    some = leave_one_out(55)[::5]  # a fifth of the rows, for time
    predictions = run_protocol(GaussianProcess(), some, table.data)
    references = table.data.targets[predictions.rows, 0]
    assert regression_metrics(predictions.values[:, 0], references)["rmse"] < 0.5 * np.std(references)
