"""Metrics against hand computations and scikit-learn, baselines against closed forms, draws against their promises."""

import math
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.model_selection import GroupKFold, KFold, LeaveOneOut, cross_val_predict

from evaluation_xrf import (
    METRIC_NAMES,
    RIDGE_PENALTIES,
    MeanBaseline,
    RidgeBaseline,
    draw_labelled,
    interval_metrics,
    ln_agreement,
    ln_rmse,
    mean_relative_ln_rmse,
    regression_metric,
    regression_metrics,
    regression_report,
    relative_ln_rmse,
)

NAN = float("nan")


def simulated_counts(num_spectra, num_channels=64, seed=0, counts_per_channel=200.0):
    """Poisson spectra of two peaks and a continuum, with the share of the first peak as the target."""
    rng = np.random.default_rng(seed)
    channel = np.arange(num_channels)
    peaks = np.exp(-0.5 * ((channel - np.array([[20], [40]])) / 3) ** 2)
    weights = rng.uniform(0.1, 1, (num_spectra, 2))
    counts = rng.poisson(counts_per_channel * (weights @ peaks + 0.2))
    return counts, 30 * weights[:, 0] / weights.sum(axis=1)


def features_of(counts):
    return np.sqrt(counts / counts.sum(axis=1, keepdims=True))


def test_metrics_equal_a_hand_computation():
    # errors 1, -1, 0, 2: squares sum to 6; references have mean 4, squared deviations 20, quartiles 2.5 and 5.5
    metrics = regression_metrics([2, 2, 5, 9], [1, 3, 5, 7])
    rmse = math.sqrt(6 / 4)
    expected = {
        "r2": 1 - 6 / 20,
        "rmse": rmse,
        "mae": 1.0,
        "bias": 0.5,
        "rpd": math.sqrt(20 / 3) / rmse,
        "rpiq": 3.0 / rmse,
        "n": 4,
    }
    assert tuple(metrics) == METRIC_NAMES
    assert metrics == pytest.approx(expected)


def test_metrics_agree_with_scikit_learn_on_the_labelled_rows():
    rng = np.random.default_rng(1)
    references = rng.lognormal(size=200)
    predictions = references + rng.normal(0.1, 0.3, 200)
    references[::7] = NAN
    labelled = ~np.isnan(references)
    metrics = regression_metrics(predictions, references)
    assert metrics["n"] == labelled.sum()
    assert metrics["r2"] == pytest.approx(r2_score(references[labelled], predictions[labelled]))
    assert metrics["rmse"] == pytest.approx(root_mean_squared_error(references[labelled], predictions[labelled]))
    assert metrics["mae"] == pytest.approx(mean_absolute_error(references[labelled], predictions[labelled]))


def test_metrics_say_nan_where_nothing_can_be_known():
    one = regression_metrics([2.0, 5.0], [1.0, NAN])
    assert (one["n"], one["rmse"], one["bias"]) == (1, 1.0, 1.0)
    assert all(math.isnan(one[name]) for name in ("r2", "rpd", "rpiq"))

    none = regression_metrics([2.0], [NAN])
    assert none["n"] == 0
    assert all(math.isnan(none[name]) for name in METRIC_NAMES if name != "n")

    constant = regression_metrics([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert constant["rmse"] == pytest.approx(math.sqrt(2 / 3))
    assert all(math.isnan(constant[name]) for name in ("r2", "rpd", "rpiq"))

    perfect = regression_metrics([1.0, 2.0, 4.0], [1.0, 2.0, 4.0])
    assert (perfect["r2"], perfect["rmse"], perfect["rpd"], perfect["rpiq"]) == (1.0, 0.0, math.inf, math.inf)


def test_a_failed_prediction_is_not_taken_for_a_missing_label():
    metrics = regression_metrics([1.0, NAN, 3.0], [1.0, 2.0, 3.0])
    assert metrics["n"] == 3
    assert math.isnan(metrics["rmse"]) and math.isnan(metrics["r2"])


def test_metrics_refuse_shapes_and_infinite_references():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        regression_metrics([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="row 1 is infinite"):
        regression_metrics([1, 2], [1, math.inf])
    with pytest.raises(ValueError, match="each of the 3 targets"):
        regression_report(np.zeros((4, 2)), np.zeros((4, 2)), ["a", "b", "c"])


def test_report_judges_every_target_by_its_own_labelled_rows():
    predictions = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 30.0]])
    references = np.array([[1.5, NAN], [2.0, 22.0], [NAN, 30.0]])
    report = regression_report(predictions, references, ["CaCO3", "TOC"])
    assert list(report) == ["CaCO3", "TOC"]
    assert report["CaCO3"] == regression_metrics([1.0, 2.0], [1.5, 2.0])
    assert report["TOC"] == regression_metrics([20.0, 30.0], [22.0, 30.0])


def test_errors_of_logarithms_equal_a_hand_computation():
    # ln errors ln 2, 0, -ln 2; the references' ln are 0, ln 4, ln 16: sd sqrt(2/3) ln 4
    references, predictions = [1.0, 4.0, 16.0], [2.0, 4.0, 8.0]
    expected = math.log(2) * math.sqrt(2 / 3)
    assert ln_rmse(predictions, references) == pytest.approx(expected)
    assert relative_ln_rmse(predictions, references) == pytest.approx(expected / (math.sqrt(2 / 3) * math.log(4)))
    assert ln_rmse([*predictions, 7.0], [*references, NAN]) == pytest.approx(expected)  # a missing label is left out
    assert relative_ln_rmse([2.0, 2.0], [1.0, 4.0]) == pytest.approx(1.0)  # their geometric mean
    both = mean_relative_ln_rmse(np.transpose([predictions, references]), np.transpose([references, references]))
    assert both == pytest.approx(0.25)


def test_logarithms_that_do_not_exist_are_not_hidden():
    for prediction in (0.0, -1.0, NAN):
        assert math.isnan(ln_rmse([2.0, prediction], [1.0, 3.0]))
        assert math.isnan(relative_ln_rmse([2.0, prediction], [1.0, 3.0]))
    assert ln_rmse([2.0, -1.0], [1.0, NAN]) == pytest.approx(math.log(2))
    assert math.isnan(relative_ln_rmse([1.0, 2.0], [3.0, 3.0])) and math.isnan(relative_ln_rmse([1.0], [NAN]))
    with pytest.raises(ValueError, match="a concentration of 0 has no logarithm"):
        ln_rmse([1.0, 2.0], [1.0, 0.0])


def test_interval_metrics_equal_a_hand_computation():
    # widths 2, 4, 1; the second reference is 1 below its interval, the third on its bound
    metrics = interval_metrics([0.0, 2.0, 5.0], [2.0, 6.0, 6.0], [1.0, 1.0, 6.0], coverage=0.8)
    assert metrics == pytest.approx(
        {"coverage": 2 / 3, "width": 7 / 3, "interval_score": (7 + 2 / 0.2 * 1) / 3, "n": 3}
    )
    above = interval_metrics([0.0], [1.0], [1.5], coverage=0.9)
    assert above == pytest.approx({"coverage": 0.0, "width": 1.0, "interval_score": 1 + 2 / 0.1 * 0.5, "n": 1})
    missing = interval_metrics([0.0, 0.0], [1.0, 9.0], [1.5, NAN], coverage=0.9)
    assert missing == pytest.approx(above)


def test_the_interval_score_is_least_for_the_true_quantiles():
    references = np.random.default_rng(0).normal(size=100_000)
    scores = {}
    for half_width in np.arange(1.0, 2.5, 0.05).round(2):
        bound = np.full(len(references), half_width)
        metrics = interval_metrics(-bound, bound, references, coverage=0.9)
        scores[half_width] = metrics["interval_score"]
        if half_width == 1.65:
            assert metrics["coverage"] == pytest.approx(0.9, abs=0.003)
    assert min(scores, key=scores.get) == pytest.approx(1.645, abs=0.06)


def test_interval_metrics_refuse_what_is_no_interval():
    with pytest.raises(ValueError, match=r"interval 1 ends \(1\) before it begins \(2\)"):
        interval_metrics([0.0, 2.0], [1.0, 1.0], [0.5, 0.5], coverage=0.9)
    with pytest.raises(ValueError, match="coverage must lie between 0 and 1, but is 90"):
        interval_metrics([0.0], [1.0], [0.5], coverage=90)
    with pytest.raises(ValueError, match=r"their shapes are \(2,\), \(1,\) and \(1,\)"):
        interval_metrics([0.0, 1.0], [1.0], [0.5], coverage=0.9)
    for metrics in (interval_metrics([NAN], [1.0], [0.5], 0.9), interval_metrics([0.0], [1.0], [NAN], 0.9)):
        assert all(math.isnan(metrics[name]) for name in ("coverage", "width", "interval_score"))


def test_evaluate_metric_keeps_missing_labels_and_needs_no_network(tmp_path, monkeypatch):
    def no_network(*arguments):
        raise OSError("a metric has no business on the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    rng = np.random.default_rng(2)
    references = rng.normal(size=(12, 2))
    predictions = references + rng.normal(scale=0.2, size=(12, 2))
    references[3, 1] = references[7, 0] = NAN
    metric = regression_metric(["CaCO3", "TOC"], cache_dir=str(tmp_path))
    report = regression_report(predictions, references, ["CaCO3", "TOC"])
    flat = {f"{target}_{name}": value for target, row in report.items() for name, value in row.items()}

    assert metric.compute(predictions=predictions, references=references) == flat
    for start in range(0, 12, 5):  # batches of 5, 5 and 2, and the metric can be used again
        metric.add_batch(predictions=predictions[start : start + 5], references=references[start : start + 5])
    assert metric.compute() == flat


def test_importing_the_module_loads_no_heavy_package():
    heavy = ("torch", "evaluate", "sklearn", "datasets", "matplotlib")
    code = f"import sys, evaluation_xrf, figures_xrf; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_mean_baseline_predicts_the_mean_of_the_labelled_rows():
    targets = np.array([[1.0, NAN], [3.0, 5.0], [NAN, 7.0]])
    baseline = MeanBaseline().fit(np.ones((3, 8)), targets)
    np.testing.assert_array_equal(baseline.predict(np.ones((2, 8))), [[2.0, 6.0], [2.0, 6.0]])
    with pytest.raises(ValueError, match="target TOC has no laboratory value"):
        MeanBaseline(["CaCO3", "TOC"]).fit(np.ones((2, 8)), [[1.0, NAN], [2.0, NAN]])
    geometric = MeanBaseline(log_target=True).fit(np.ones((3, 8)), [[1.0, NAN], [4.0, 5.0], [NAN, 5.0]])
    np.testing.assert_allclose(geometric.predict(np.ones((1, 8))), [[2.0, 5.0]])
    with pytest.raises(ValueError, match="log_target needs positive labels; TOC has 0"):
        MeanBaseline(["TOC"], log_target=True).fit(np.ones((2, 8)), [0.0, 2.0])


@pytest.mark.parametrize("num_spectra", [20, 150])  # fewer and more spectra than the 64 channels
def test_ridge_equals_the_closed_form_at_its_penalty(num_spectra):
    counts, target = simulated_counts(num_spectra)
    baseline = RidgeBaseline().fit(counts, target)
    features = features_of(counts)
    centred = features - features.mean(axis=0)
    gram = centred.T @ centred + baseline.penalties_[0] * np.eye(64)
    coefficients = np.linalg.solve(gram, centred.T @ (target - target.mean()))
    new_counts, new_target = simulated_counts(40, seed=9)
    expected = (features_of(new_counts) - features.mean(axis=0)) @ coefficients + target.mean()
    predictions = baseline.predict(new_counts)
    assert predictions.shape == (40, 1)
    np.testing.assert_allclose(predictions[:, 0], expected, rtol=1e-6)
    assert regression_metrics(predictions[:, 0], new_target)["r2"] > 0.9


@pytest.mark.parametrize("num_spectra", [4, 20, 150])
def test_penalty_is_the_best_by_explicit_leave_one_out(num_spectra):
    counts, target = simulated_counts(num_spectra, counts_per_channel=5.0)
    features = features_of(counts)
    chosen = RidgeBaseline().fit(counts, target).penalties_[0]
    assert chosen == RidgeCV(alphas=RIDGE_PENALTIES).fit(features, target).alpha_
    errors = [
        np.sum((cross_val_predict(Ridge(alpha=penalty), features, target, cv=LeaveOneOut()) - target) ** 2)
        for penalty in RIDGE_PENALTIES[::4]
    ]
    best = cross_val_predict(Ridge(alpha=chosen), features, target, cv=LeaveOneOut())
    assert np.sum((best - target) ** 2) <= min(errors) * (1 + 1e-6)
    assert RIDGE_PENALTIES[0] < chosen  # noisy enough that shrinking pays, so the choice is a real one


@pytest.mark.parametrize(("num_spectra", "num_groups"), [(24, 3), (24, 8), (200, 8)])
def test_groups_are_held_out_whole_when_the_penalty_is_chosen(num_spectra, num_groups):
    counts, target = simulated_counts(num_spectra, counts_per_channel=5.0)
    groups = np.arange(num_spectra) % num_groups
    target = target + np.random.default_rng(3).normal(scale=5, size=num_groups)[groups]  # cores differ
    features = features_of(counts)

    def chosen_by(cv):
        errors = [
            np.sum((cross_val_predict(Ridge(alpha=penalty), features, target, cv=cv, groups=groups) - target) ** 2)
            for penalty in RIDGE_PENALTIES
        ]
        return RIDGE_PENALTIES[np.argmin(errors)]

    names = np.array([f"core {group}" for group in groups])
    chosen = RidgeBaseline().fit(counts, target, groups=names).penalties_[0]
    assert chosen == chosen_by(GroupKFold(min(5, num_groups)))


def test_groups_matter_to_the_penalty():
    counts, _ = simulated_counts(30, counts_per_channel=1000.0)
    groups = np.repeat(np.arange(6), 5)
    counts = counts[groups * 5] + np.random.default_rng(4).poisson(3, counts.shape)  # neighbours look alike
    target = np.random.default_rng(5).normal(size=6)[groups]  # and share a value the spectrum does not explain
    by_row = RidgeBaseline().fit(counts, target).penalties_[0]
    by_core = RidgeBaseline().fit(counts, target, groups).penalties_[0]
    assert by_core > 10 * by_row


def test_one_group_is_left_one_out():
    counts, target = simulated_counts(15)
    alone = RidgeBaseline().fit(counts, target)
    together = RidgeBaseline().fit(counts, target, groups=["core"] * 15)
    np.testing.assert_array_equal(alone.penalties_, together.penalties_)


@pytest.mark.parametrize("log_target", [False, True])
def test_a_missing_label_is_a_row_left_out_for_that_target_only(log_target):
    counts, target = simulated_counts(40)
    groups = np.arange(40) // 5
    targets = np.stack([target, 40 - target], axis=1)
    targets[::3, 0] = NAN
    targets[1::4, 1] = NAN
    both = RidgeBaseline(log_target=log_target).fit(counts, targets, groups).predict(counts)
    for column in range(2):
        rows = ~np.isnan(targets[:, column])
        alone = RidgeBaseline(log_target=log_target).fit(counts[rows], targets[rows, column], groups[rows])
        np.testing.assert_allclose(both[:, column], alone.predict(counts)[:, 0], rtol=1e-9)


def test_log_target_fits_the_logarithm_and_returns_concentrations():
    counts, target = simulated_counts(40)
    in_log = RidgeBaseline(log_target=True).fit(counts, target)
    of_log = RidgeBaseline().fit(counts, np.log(target))
    np.testing.assert_allclose(in_log.predict(counts), np.exp(of_log.predict(counts)), rtol=1e-12)


def test_ridge_ignores_live_time():
    counts, target = simulated_counts(30)
    baseline = RidgeBaseline().fit(counts, target)
    np.testing.assert_allclose(baseline.predict(counts * 7.5), baseline.predict(counts), rtol=1e-9)


def test_three_labels_are_enough_and_two_are_not():
    counts, target = simulated_counts(10)
    few = target.copy()
    few[3:] = NAN
    assert np.isfinite(RidgeBaseline().fit(counts, few, groups=np.arange(10)).predict(counts)).all()
    few[2] = NAN
    with pytest.raises(ValueError, match="at least 3 labels of a target; CaCO3 has 2"):
        RidgeBaseline(["CaCO3"]).fit(counts, few)


def test_ridge_names_what_it_cannot_fit():
    counts, target = simulated_counts(6)
    constant = np.stack([target, np.full(6, 2.5)], axis=1)
    with pytest.raises(ValueError, match=r"target TOC is constant \(2.5\)"):
        RidgeBaseline(["CaCO3", "TOC"]).fit(counts, constant)
    with pytest.raises(ValueError, match="TOC has 0"):
        RidgeBaseline(["TOC"], log_target=True).fit(counts, [1, 2, 0, 3, 4, 5])
    with pytest.raises(ValueError, match="1 names for 2 targets"):
        RidgeBaseline(["TOC"]).fit(counts, constant)
    with pytest.raises(ValueError, match="6 spectra and groups of shape"):
        RidgeBaseline().fit(counts, target, groups=[1, 2])
    with pytest.raises(ValueError, match="6 spectra and targets of shape"):
        RidgeBaseline().fit(counts, target[:5])
    with pytest.raises(ValueError, match="64 channels and these spectra have 32"):
        RidgeBaseline().fit(counts, target).predict(counts[:, :32])


@pytest.mark.parametrize("fault", [NAN, math.inf, -1.0, "empty"])
def test_bad_spectra_are_named(fault):
    counts, target = simulated_counts(6)
    counts = counts.astype(float)
    counts[4, 10] = 0 if fault == "empty" else fault
    if fault == "empty":
        counts[4] = 0
    with pytest.raises(ValueError, match="spectrum 4 is not"):
        RidgeBaseline().fit(counts, target)


def test_draws_are_nested_labelled_and_set_by_the_seed():
    targets = np.random.default_rng(6).normal(size=(100, 2))
    targets[::2] = NAN  # no label at all
    targets[1::4, 0] = NAN  # one label of two is enough
    draw = draw_labelled(targets, 50, seed=0)
    assert sorted(draw) == list(range(1, 100, 2))
    np.testing.assert_array_equal(draw_labelled(targets, 10, seed=0), draw[:10])
    np.testing.assert_array_equal(draw_labelled(targets, 50, seed=0), draw)
    assert set(draw_labelled(targets, 10, seed=1)) != set(draw[:10])


def test_draws_with_groups_cover_the_groups_first_and_stay_nested():
    groups = np.repeat(["a", "b", "c", "d"], [50, 5, 3, 2])
    targets = np.arange(60.0)
    draw = draw_labelled(targets, 60, seed=3, groups=groups)
    assert sorted(draw) == list(range(60))
    assert set(groups[draw[:4]]) == set(groups[draw[4:8]]) == {"a", "b", "c", "d"}
    assert sorted(groups[draw[8:11]]) == ["a", "b", "c"]
    np.testing.assert_array_equal(draw_labelled(targets, 7, seed=3, groups=groups), draw[:7])


@pytest.mark.parametrize("num_labels", [0, 6])
def test_a_draw_cannot_exceed_the_labels(num_labels):
    with pytest.raises(ValueError, match=f"{num_labels} were asked for and there are 5"):
        draw_labelled([1, 2, NAN, 3, 4, NAN, 5], num_labels, seed=0)


@pytest.mark.parametrize("use_groups", [False, True])
def test_labels_outside_the_draw_change_no_prediction(use_groups):
    counts, target = simulated_counts(60)
    groups = np.arange(60) // 6 if use_groups else None

    def predictions(target):
        drawn = draw_labelled(target, 20, seed=0, groups=groups)
        drawn_groups = None if groups is None else groups[drawn]
        ridge = RidgeBaseline().fit(counts[drawn], target[drawn], drawn_groups)
        return drawn, ridge.predict(counts), MeanBaseline().fit(counts[drawn], target[drawn]).predict(counts)

    drawn, *expected = predictions(target)
    held_out = np.setdiff1d(np.arange(60), drawn)
    permuted = target.copy()
    permuted[held_out] = np.random.default_rng(7).permutation(target[held_out])
    assert not np.array_equal(permuted, target)
    drawn_again, *found = predictions(permuted)
    np.testing.assert_array_equal(drawn_again, drawn)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_ridge_calibrates_real_mudrocks(real_data):
    with np.load(real_data / "labelled" / "mudrock_light_instrument_a.npz", allow_pickle=False) as spectra:
        counts, elements = spectra["counts"], list(spectra["elements"])
        silicon, calcium = (spectra["weight_percent"][:, elements.index(element)] for element in ("Si", "Ca"))
    targets = np.stack([silicon, calcium], axis=1).astype(float)
    predictions = np.empty_like(targets)
    for training, held_out in KFold(5, shuffle=True, random_state=0).split(counts):
        baseline = RidgeBaseline(["Si", "Ca"]).fit(counts[training], targets[training])
        predictions[held_out] = baseline.predict(counts[held_out])
    report = regression_report(predictions, targets, ["Si", "Ca"])
    assert report["Si"]["r2"] > 0.9 and report["Ca"]["r2"] > 0.9


def test_agreement_of_logarithms_knows_no_scale():
    references = np.array([1.0, 10.0, 100.0, np.nan, 3.0])
    assert ln_agreement(2 * references, references) == pytest.approx((1.0, 2.0))
    r, scale = ln_agreement([3.0, 10.0, 30.0, 5.0, 3.0], references)
    expected = np.corrcoef(np.log([3.0, 10.0, 30.0, 3.0]), np.log([1.0, 10.0, 100.0, 3.0]))[0, 1]
    assert (r, scale) == pytest.approx((expected, 1.0))  # ratios 3, 1, 0.3 and 1
    assert np.isnan(ln_agreement([1.0], [2.0])).all()
    assert np.isnan(ln_agreement([1.0, 1.0], [2.0, 3.0])[0])
