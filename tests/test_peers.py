"""Classical calibrations against scikit-learn, closed forms and hand computations, and against what they promise."""

import math

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GroupKFold, KFold, cross_val_predict
from sklearn.svm import SVR

from cnn_peer_xrf import ConvolutionalPeer
from dataset_builder import Spectrum, read_spectra
from evaluation_xrf import MeanBaseline, RidgeBaseline, regression_metrics
from peers_xrf import (
    ANALYTES,
    CHANNEL_METHODS,
    AtLeast,
    ChannelPeer,
    DirectStandardisation,
    NetAreaPeer,
    OnChannels,
    PooledTransfer,
    SlopeBiasCorrection,
    WithoutGroups,
    count_rows,
    emission_line_kev,
    fwhm_kev,
    inner_folds,
    net_areas,
)
from protocols_xrf import Transfer

NAN = float("nan")
CHANNEL_WIDTH_KEV = 0.04


def simulated(
    num_spectra, seed=0, gain_kev=CHANNEL_WIDTH_KEV, resolution=1.0, weight_percent=None, counts=400, num_channels=256
):
    """Spectra of Al, Ca and Fe on a continuum, and their concentrations."""
    rng = np.random.default_rng(seed)
    if weight_percent is None:
        weight_percent = rng.lognormal([1.5, 1.0, 1.0], 0.6, (num_spectra, 3))
    energy_kev = gain_kev * np.arange(num_channels)
    lines_kev = np.array([[1.487], [3.691], [6.404]])
    sd_kev = resolution * fwhm_kev(lines_kev) / 2.3548
    peaks = np.exp(-0.5 * ((energy_kev - lines_kev) / sd_kev) ** 2) / sd_kev * 0.06
    expected = counts * weight_percent @ peaks + 300 * np.exp(-energy_kev / 4) + 2
    spectra = [Spectrum(row, gain_kev, 0.0, tube_kv=12.0) for row in rng.poisson(expected)]
    return spectra, weight_percent


def roots_of(spectra):
    counts = np.stack([spectrum.counts for spectrum in spectra]).astype(float)
    return np.sqrt(counts / counts.sum(axis=1, keepdims=True))


def r2(predictions, references):
    return min(regression_metrics(np.log(p), np.log(r))["r2"] for p, r in zip(predictions.T, references.T))


# --- channels ---


@pytest.mark.parametrize("method", CHANNEL_METHODS)
@pytest.mark.parametrize("log_target", [False, True])
def test_every_channel_peer_calibrates_new_spectra(method, log_target):
    spectra, targets = simulated(40)
    new_spectra, new_targets = simulated(30, seed=1)
    peer = OnChannels(ChannelPeer(method, log_target=log_target), "recorded").fit(spectra, targets)
    predictions = peer.predict(new_spectra)
    assert predictions.shape == (30, 3)
    errors = np.sqrt(np.mean((predictions - new_targets) ** 2, axis=0)) / new_targets.std(axis=0)
    assert (errors < 0.6).all()


@pytest.mark.parametrize("groups", [None, np.arange(24) % 6])
def test_pls_components_are_those_of_an_explicit_inner_search(groups):
    spectra, targets = simulated(24, counts=20)
    roots, labels = roots_of(spectra), np.log(targets[:, 2])
    cv = KFold(5, shuffle=True, random_state=0) if groups is None else GroupKFold(5)
    errors = [
        np.sum((cross_val_predict(PLSRegression(n, scale=False), roots, labels, cv=cv, groups=groups) - labels) ** 2)
        for n in range(1, 13)
    ]
    best = PLSRegression(int(np.argmin(errors)) + 1, scale=False).fit(roots, labels)
    new_spectra, _ = simulated(10, seed=1, counts=20)
    peer = OnChannels(ChannelPeer("pls"), "recorded").fit(spectra, targets[:, 2], groups)
    np.testing.assert_allclose(
        np.log(peer.predict(new_spectra)[:, 0]), best.predict(roots_of(new_spectra)).ravel(), rtol=1e-6
    )
    assert 0 < np.argmin(errors) < 11  # the choice is a real one


def test_svr_is_that_of_scikit_learn_at_its_choice():
    spectra, targets = simulated(20)
    new_spectra, _ = simulated(10, seed=1)
    roots, new_roots, labels = roots_of(spectra), roots_of(new_spectra), targets[:, 0]
    unit = np.mean(np.sum((roots[:, None] - roots) ** 2, axis=2))
    standardised = (labels - labels.mean()) / labels.std()
    folds = list(KFold(5, shuffle=True, random_state=0).split(roots))
    models = [
        SVR(gamma=width / unit, C=penalty, epsilon=tube)
        for width in (0.01, 0.03, 0.1, 0.3, 1.0)
        for penalty in (1, 10, 100, 1000)
        for tube in (0.01, 0.1)
    ]
    errors = [
        np.sum((cross_val_predict(model, roots, standardised, cv=folds) - standardised) ** 2) for model in models
    ]
    best = models[int(np.argmin(errors))].fit(roots, standardised)
    peer = OnChannels(ChannelPeer("svr", log_target=False), "recorded").fit(spectra, labels)
    expected = best.predict(new_roots) * labels.std() + labels.mean()
    np.testing.assert_allclose(peer.predict(new_spectra)[:, 0], expected, rtol=2e-3)  # libsvm stops at 1e-3


@pytest.mark.parametrize("method", [*CHANNEL_METHODS, "net_areas"])
def test_missing_labels_of_one_target_leave_the_others_alone(method):
    spectra, targets = simulated(20)
    targets = targets[:, [0, 2]]
    targets[::4, 0] = NAN

    def peer(names):
        return NetAreaPeer(names) if method == "net_areas" else OnChannels(ChannelPeer(method, names), "recorded")

    both = peer(["Al", "Fe"]).fit(spectra, targets).predict(spectra)
    alone = peer(["Fe"]).fit(spectra, targets[:, 1]).predict(spectra)
    np.testing.assert_allclose(both[:, 1], alone[:, 0], rtol=1e-9)
    assert np.isfinite(both).all()
    with pytest.raises(ValueError, match="needs at least 3 labels of a target; Al has 2"):
        peer(["Al", "Fe"]).fit(spectra[:4], np.where([[True, False]], [[NAN], [NAN], [1], [2]], targets[:4]))


def test_inner_folds_keep_groups_whole_where_enough_is_left():
    groups = np.repeat(["a", "b", "c"], [2, 4, 6])
    folds = inner_folds(12, groups)
    assert len(folds) == 3
    for training, held_out in folds:
        assert not set(groups[training]) & set(groups[held_out])
        assert sorted([*training, *held_out]) == list(range(12))
    assert len(inner_folds(12, None)) == 5
    few_left = np.array(["a"] * 10 + ["b"] * 2)  # two rows are too few to learn from
    for folds in (inner_folds(12, few_left), inner_folds(12, np.array(["a"] * 12)), inner_folds(3, None)):
        assert len({len(set(held_out)) for _, held_out in folds} - {1, 2, 3}) == 0
    assert [len(held_out) for _, held_out in inner_folds(3, None)] == [1, 1, 1]


def test_unknown_methods_and_channels_are_refused():
    with pytest.raises(ValueError, match="method must be one of pls, svr, nmf_svr, but is 'lasso'"):
        ChannelPeer("lasso")
    with pytest.raises(ValueError, match="channels must be 'grid' or 'recorded', but is 'raw'"):
        OnChannels(MeanBaseline(), "raw")


def test_the_grid_carries_a_calibration_to_another_energy_scale_and_recorded_channels_do_not():
    spectra, targets = simulated(40, counts=4000)
    shifted, new_targets = simulated(30, seed=1, gain_kev=0.0385, counts=4000)
    on_grid = OnChannels(RidgeBaseline(log_target=True), "grid").fit(spectra, targets).predict(shifted)
    recorded = OnChannels(RidgeBaseline(log_target=True), "recorded").fit(spectra, targets).predict(shifted)
    assert r2(on_grid, new_targets) > 0.9 > 0.5 > r2(recorded, new_targets)
    rows = count_rows(shifted[:1], "grid")
    # all but the half channel below 0 keV lies on the grid
    assert rows.shape == (1, 2048) and rows.sum() == pytest.approx(shifted[0].total_counts, rel=1e-3)
    with pytest.raises(ValueError, match="spectra of 200 and 256 channels cannot share channels as recorded"):
        count_rows([spectra[0], Spectrum(np.ones(200), 0.04, 0.0)], "recorded")


# --- net areas ---


def test_net_area_of_a_gaussian_on_a_slope():
    energy_kev, line_kev, area = 0.005 * np.arange(2000), 6.404, 1e5
    sd_kev = fwhm_kev(line_kev) / 2.3548
    assert fwhm_kev(line_kev) == pytest.approx(0.158, abs=0.001)
    peak = area * 0.005 / (sd_kev * np.sqrt(2 * np.pi)) * np.exp(-0.5 * ((energy_kev - line_kev) / sd_kev) ** 2)
    slope = 500 - 40 * energy_kev

    def within(half_width_fwhm):
        return math.erf(half_width_fwhm * 2.3548 / math.sqrt(2))

    in_bands = within(1.8) - within(1.2)  # both bands together, 1.2 FWHM of them, under a window of 1.6 FWHM
    expected = area * (within(0.8) - in_bands * 1.6 / 1.2)
    assert expected == pytest.approx(0.934 * area, rel=0.001)
    with_slope = net_areas(Spectrum(peak + slope, 0.005, 0.0), [line_kev, 4.0])
    assert with_slope[0] == pytest.approx(expected, rel=1e-3)
    assert abs(with_slope[1]) < 1e-6 * slope.sum()  # a straight background has no area
    # another width and zero of the channels: the same area
    coarse = peak.reshape(-1, 8).sum(axis=1)
    assert net_areas(Spectrum(coarse, 0.04, 0.0175), [line_kev])[0] == pytest.approx(expected, rel=0.01)


def test_lines_are_those_the_tube_excites():
    assert emission_line_kev("Al", 15.0) == pytest.approx(1.487, abs=0.002)
    assert emission_line_kev("Rh", 40.0) == pytest.approx(20.2, abs=0.05)
    assert emission_line_kev("Rh", 15.0) == pytest.approx(2.697, abs=0.005)  # L, as 15 kV does not reach the K edge
    assert emission_line_kev("U", 15.0) is None
    assert emission_line_kev("O", 15.0) is None  # too soft for air
    assert all(emission_line_kev(element, 50.0) for element in ANALYTES)


@pytest.mark.parametrize("log_target", [False, True])
def test_net_areas_hold_on_another_energy_scale(log_target):
    spectra, targets = simulated(60, gain_kev=0.02, counts=4000, num_channels=600)
    peer = NetAreaPeer(["Al2O3", "CaCO3", "Fe"], log_target).fit(spectra, targets, np.arange(60) // 4)
    _, new_targets = simulated(30, seed=1)
    same, other = (
        peer.predict(simulated(30, 1, gain_kev, weight_percent=new_targets, counts=4000, num_channels=600)[0])
        for gain_kev in (0.02, 0.0195)
    )
    correlations = [np.corrcoef(same[:, column], new_targets[:, column])[0, 1] for column in range(3)]
    assert min(correlations) > 0.7
    assert (np.median(np.abs(other / same - 1), axis=0) < 0.1).all()


def test_a_target_owns_the_first_line_in_its_name():
    spectra, targets = simulated(8)
    peer = NetAreaPeer(["Al2O3", "TOC", "Sr/Ca"]).fit(spectra, targets)
    lines = list(peer.lines_kev_)
    assert [peer._own_line(name) for name in ("Al2O3", "CaCO3", "TOC")] == [lines.index("Al"), lines.index("Ca"), None]
    assert peer.predict(spectra).shape == (8, 3)


# --- around a calibration ---


def test_choices_without_groups_are_those_over_rows():
    spectra, targets = simulated(24, counts=3)
    groups = np.arange(24) // 4

    def predictions(peer, groups):
        return peer.fit(spectra, targets, groups).predict(spectra)

    plain = OnChannels(RidgeBaseline(), "recorded")
    by_row, without = predictions(plain, None), predictions(plain, groups)
    np.testing.assert_array_equal(predictions(WithoutGroups(OnChannels(RidgeBaseline(), "recorded")), groups), by_row)
    assert not np.array_equal(by_row, without)


def test_predictions_are_raised_to_half_the_least_label():
    class Minus:
        def fit(self, spectra, targets, groups=None):
            return self

        def predict(self, spectra):
            return np.array([[-1.0, 5.0], [0.3, 0.7]])

    floored = AtLeast(Minus()).fit([0, 0], np.array([[1.0, 2.0], [NAN, 4.0]])).predict([0, 0])
    np.testing.assert_array_equal(floored, [[0.5, 5.0], [0.5, 1.0]])


# --- from instrument to instrument ---


def two_instruments(num_transfer, seed=0):
    """Training spectra on one instrument, transfer pairs and new spectra on another with a 1.5 % other gain and
    broader peaks."""
    spectra, targets = simulated(30, seed, counts=4000)
    other = {"gain_kev": CHANNEL_WIDTH_KEV * 0.985, "resolution": 1.2, "counts": 4000}
    paired, _ = simulated(num_transfer, seed + 1, weight_percent=targets[:num_transfer], **other)
    new, new_targets = simulated(30, seed + 2, **other)
    transfer = Transfer(paired, targets[:num_transfer], np.arange(num_transfer), spectra[:num_transfer])
    return spectra, targets, transfer, new, new_targets


def ln_rmse(predictions, references):
    return np.sqrt(np.mean((np.log(predictions) - np.log(references)) ** 2))


@pytest.mark.parametrize("channels", ["grid", "recorded"])
def test_piecewise_standardisation_recovers_a_shift_and_broadening(channels):
    spectra, targets, transfer, new, new_targets = two_instruments(8)
    plain = OnChannels(RidgeBaseline(log_target=True), channels).fit(spectra, targets)
    pds = DirectStandardisation(
        OnChannels(RidgeBaseline(log_target=True), channels), piecewise=True, channels=channels
    )
    pds.fit(spectra, targets, np.arange(30), transfer)
    better = {"grid": 0.85, "recorded": 0.3}[channels]  # the grid has undone the shift already
    assert ln_rmse(pds.predict(new), new_targets) < better * ln_rmse(plain.predict(new), new_targets)
    standardised = pds.standardise(new)
    assert [spectrum.total_counts for spectrum in standardised] == pytest.approx([s.total_counts for s in new])
    assert len(standardised[0].counts) == (2048 if channels == "grid" else 256)
    # the transfer spectra come out as the primary instrument saw them
    error = np.abs(roots_of(pds.standardise(transfer.spectra)) - _on(transfer.primary_spectra, channels)).mean()
    assert error < 0.5 * np.abs(_on(transfer.spectra, channels) - _on(transfer.primary_spectra, channels)).mean()


def _on(spectra, channels):
    counts = count_rows(spectra, channels)
    return np.sqrt(counts / counts.sum(axis=1, keepdims=True))


def test_direct_standardisation_is_regression_on_principal_components():
    spectra, targets, transfer, new, _ = two_instruments(8)
    ds = DirectStandardisation(OnChannels(RidgeBaseline(), "recorded"), channels="recorded")
    ds.fit(spectra, targets, None, transfer)
    _, components = ds.choice_
    secondary, primary = roots_of(transfer.spectra), roots_of(transfer.primary_spectra)
    pca = PCA(components).fit(secondary)
    scores = LinearRegression().fit(pca.transform(secondary), primary)
    expected = np.maximum(scores.predict(pca.transform(roots_of(new))), 0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(roots_of(ds.standardise(new)), expected, atol=1e-9)
    errors = {}  # leave one pair out, for every number of components that could have been chosen
    for number in range(1, 7):
        errors[number] = 0
        for pair in range(8):
            others = np.arange(8) != pair
            pca = PCA(number).fit(secondary[others])
            scores = LinearRegression().fit(pca.transform(secondary[others]), primary[others])
            errors[number] += np.sum((scores.predict(pca.transform(secondary[[pair]])) - primary[pair]) ** 2)
    assert components == min(errors, key=errors.get)


class Scaled:
    """Predicts a power of a number that the spectra carry."""

    least_labels = 0

    def __init__(self, factor, power):
        self.factor, self.power = factor, power

    def fit(self, spectra, targets, groups=None):
        return self

    def predict(self, spectra):
        return self.factor * np.array([[spectrum.live_time_s] for spectrum in spectra]) ** self.power


def timed(values):
    return [Spectrum(np.ones(4), live_time_s=float(value)) for value in values]


def test_slope_and_bias_undo_a_power_law_and_a_factor():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    transfer = Transfer(timed(values), values[:, None], None, timed(values))
    for peer in (Scaled(2.0, 1.0), Scaled(3.0, 0.5)):
        corrected = SlopeBiasCorrection(peer).fit([], np.zeros((0, 1)), None, transfer)
        np.testing.assert_allclose(corrected.predict(timed([5.0, 7.0]))[:, 0], [5.0, 7.0])
    one = Transfer(timed([2.0]), np.array([[2.0]]), None, timed([2.0]))
    corrected = SlopeBiasCorrection(Scaled(2.0, 1.0)).fit([], np.zeros((0, 1)), None, one)
    np.testing.assert_allclose(corrected.predict(timed([5.0]))[:, 0], [5.0])  # one sample corrects a factor
    offset = SlopeBiasCorrection(Scaled(2.0, 1.0), log_target=False).fit([], np.zeros((0, 1)), None, one)
    np.testing.assert_allclose(offset.predict(timed([5.0]))[:, 0], [8.0])  # 2 x 5, less the 2 too much at 2


def test_a_slope_that_leave_one_out_does_not_support_is_not_used():
    values = np.array([1.0, 1.1, 1.2, 1.3])
    labels = values * np.exp([0.2, -0.2, -0.2, 0.2])  # scatter, no slope beyond 1
    transfer = Transfer(timed(values), labels[:, None], None, timed(values))
    corrected = SlopeBiasCorrection(Scaled(1.0, 1.0)).fit([], np.zeros((0, 1)), None, transfer)
    np.testing.assert_allclose(corrected.lines_, [[1.0, 0.0]], atol=1e-12)


def test_pooling_is_a_fit_to_both():
    spectra, targets, transfer, new, _ = two_instruments(5)
    groups = np.arange(30) // 3
    pooled = PooledTransfer(OnChannels(RidgeBaseline())).fit(spectra, targets, groups, transfer).predict(new)
    both = OnChannels(RidgeBaseline()).fit(
        [*spectra, *transfer.spectra], np.concatenate([targets, targets[:5]]), np.concatenate([groups, np.arange(5)])
    )
    np.testing.assert_allclose(pooled, both.predict(new))


@pytest.mark.parametrize(
    ("wrap", "least"), [(PooledTransfer, 1), (SlopeBiasCorrection, 1), (DirectStandardisation, 3)]
)
def test_too_few_transfer_spectra_are_refused(wrap, least):
    spectra, targets, transfer, *_ = two_instruments(least)
    too_few = Transfer(transfer.spectra[1:], transfer.targets[1:], transfer.groups[1:], transfer.primary_spectra[1:])
    for given in (None, too_few):
        with pytest.raises(ValueError, match=f"at least {least} spectra of the new instrument, but has {least - 1}|0"):
            wrap(OnChannels(RidgeBaseline())).fit(spectra, targets, None, given)
    wrap(OnChannels(RidgeBaseline())).fit(spectra, targets, np.arange(30), transfer)


# --- the convolutional network ---


def test_convolutional_network_learns_and_repeats_itself():
    spectra, targets = simulated(60)
    new_spectra, new_targets = simulated(30, seed=1)
    torch.manual_seed(3)
    expected_draw = torch.rand(1)
    torch.manual_seed(3)
    peer = OnChannels(ConvolutionalPeer(max_epochs=40), "recorded").fit(spectra, targets, np.arange(60) // 5)
    assert torch.rand(1) == expected_draw  # other random numbers are left alone
    predictions = peer.predict(new_spectra)
    assert r2(predictions, new_targets) > 0.6
    assert 5 < peer.calibration.epochs_ <= 40
    np.testing.assert_array_equal(peer.predict(new_spectra[:1]).shape, (1, 3))
    short = [
        OnChannels(ConvolutionalPeer(max_epochs=3, seed=seed), "recorded").fit(spectra, targets).predict(new_spectra)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(short[0], short[1])
    assert not np.allclose(short[0], short[2], rtol=1e-3)


def test_convolutional_network_ignores_missing_labels():
    spectra, targets = simulated(20)
    targets[::2, 1] = NAN
    predictions = OnChannels(ConvolutionalPeer(max_epochs=3), "recorded").fit(spectra, targets).predict(spectra)
    assert np.isfinite(predictions).all()
    with pytest.raises(ValueError, match="Fe has 2"):
        OnChannels(ConvolutionalPeer(["Al", "Ca", "Fe"])).fit(
            spectra, np.where((np.arange(20) < 2)[:, None] | [True, True, False], targets, NAN)
        )


def test_ridge_and_net_areas_calibrate_real_obsidians(real_data):
    spectra = read_spectra(real_data / "labelled" / "obsidian_instrument_c.npz")
    names = ["Fe", "Rb", "Zr"]
    targets = np.array([[spectrum.targets[name] for name in names] for spectrum in spectra])
    for peer in (OnChannels(RidgeBaseline(names, log_target=True)), NetAreaPeer(names)):
        predictions = np.empty_like(targets)
        for training, held_out in KFold(5, shuffle=True, random_state=0).split(targets):
            peer.fit([spectra[row] for row in training], targets[training])
            predictions[held_out] = peer.predict([spectra[row] for row in held_out])
        assert r2(predictions, targets) > 0.7
