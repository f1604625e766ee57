"""Augmentations: mean, variance and covariance of many draws against expectations worked out by hand, and what is
refused."""

import numpy as np
import pytest

from dataset_builder.augmentation import (
    AUGMENTATIONS,
    Broadening,
    Compose,
    Drift,
    PileUp,
    Thinning,
    augmentation_from_config,
    displacement_probabilities,
    drifted,
)
from dataset_builder.simulation import TARGET_NAMES

DRAWS = 20_000
GAIN_KEV = 0.02


def draws(augmentation, photons, seed=0, offset_kev=0.0, number=DRAWS):
    """The same spectrum, augmented many times: `(number, channels)`."""
    counts = np.tile(photons, (number, 1))
    return augmentation(counts, GAIN_KEV, offset_kev, np.random.default_rng(seed))


def assert_moments(found, mean, covariance):
    """Mean within 5 and (co)variance within 6 standard errors, every channel and pair of channels."""
    variance = np.diag(covariance)
    assert (np.abs(found.mean(axis=0) - mean) < 5 * np.sqrt(variance / len(found)) + 1e-9).all()
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / len(found))
    few = 1 / np.sqrt(np.maximum(mean, 1e-3) * len(found))  # the fourth moment of small counts
    assert (np.abs(np.cov(found.T) - covariance) < 6 * error + 6 * np.sqrt(np.outer(few, few)) + 1e-9).all()


def multinomial_moments(photons, probabilities):
    """Mean and covariance where a photon of channel i goes to channel j with `probabilities[i, j]`."""
    mean = photons @ probabilities
    return mean, np.diag(mean) - np.einsum("i,ij,ik->jk", photons.astype(float), probabilities, probabilities)


def poisson_spectra(seed=0, number=DRAWS):
    """Poisson counts and their means: a peak on a slope."""
    channels = np.arange(30)
    mean = 40 * np.exp(-channels / 8) + 90 * np.exp(-0.5 * ((channels - 15) / 1.7) ** 2)
    return np.random.default_rng(seed).poisson(mean, (number, len(mean))), mean


# --- thinning ---


def test_thinned_photons_are_binomial():
    photons = np.array([0, 1, 12, 400, 9000])
    found = draws(Thinning((0.3, 0.3), least_counts=0), photons)
    assert_moments(found, 0.3 * photons, np.diag(0.21 * photons))
    assert (found <= photons).all()


def test_thinned_poisson_counts_are_poisson_and_independent():
    counts, mean = poisson_spectra()
    thinned = Thinning((0.2, 0.2), least_counts=0)(counts, GAIN_KEV, 0.0, np.random.default_rng(1))
    assert_moments(thinned, 0.2 * mean, np.diag(0.2 * mean))


def test_fractions_are_even_in_their_logarithm_and_keep_the_least_counts():
    photons = np.full(10, 100_000)
    share = draws(Thinning((0.01, 1.0)), photons, number=4000).sum(axis=1) / photons.sum()
    assert share.min() > 0.0099 and share.max() <= 1
    assert np.quantile(share, [0.25, 0.5, 0.75]) == pytest.approx(10 ** np.array([-1.5, -1.0, -0.5]), rel=0.1)
    assert draws(Thinning((0.01, 0.01), least_counts=500), np.full(10, 200)).sum(axis=1).mean() == pytest.approx(
        500, 1e-2
    )
    np.testing.assert_array_equal(draws(Thinning((0.01, 0.01)), np.full(10, 9), number=3), np.full((3, 10), 9))


# --- drift ---


@pytest.mark.parametrize("gain_drift, zero_drift", [(0.0, 0.3), (0.03, -0.4), (-0.05, 1.2), (0.0, 0.0), (0.3, 4.0)])
def test_drifted_photons_are_spread_over_their_channel(gain_drift, zero_drift):
    photons = np.array([3, 0, 70, 500, 20, 8, 1000, 40, 0, 900, 5, 6])
    channels = len(photons)
    # a channel's photons lie evenly between its edges, and these are recorded at (x - zero) / (1 + gain)
    lower = (np.arange(channels) - 0.5 - zero_drift) / (1 + gain_drift)
    width = 1 / (1 + gain_drift)
    target = np.arange(channels) - 0.5
    overlap = np.minimum(lower[:, None] + width, target + 1) - np.maximum(lower[:, None], target)
    mean, covariance = multinomial_moments(photons, np.clip(overlap, 0, None) / width)
    rng = np.random.default_rng(0)
    found = np.stack([drifted(photons, gain_drift, zero_drift, rng) for _ in range(DRAWS)])
    assert_moments(found, mean, covariance)
    assert found.min() >= 0 and (found.sum(axis=1) <= photons.sum()).all()
    if gain_drift == zero_drift == 0:
        np.testing.assert_array_equal(found[0], photons)


def test_drifted_poisson_counts_are_poisson_and_independent():
    counts, mean = poisson_spectra()
    rng = np.random.default_rng(1)
    found = np.stack([drifted(photons, 0.04, -0.7, rng) for photons in counts])
    cumulative = np.concatenate([[0], np.cumsum(mean)])
    edges = 1.04 * (np.arange(31) - 0.5) - 0.7 + 0.5
    expected = np.diff(np.interp(edges, np.arange(31), cumulative))
    assert_moments(found, expected, np.diag(expected))


def test_drifts_have_the_given_standard_deviations():
    photons = np.zeros(1200, dtype=int)
    photons[[100, 1000]] = 100_000
    found = draws(Drift(gain_sd=0.002, zero_sd_ev=15.0), photons, number=2000)
    channels = np.arange(1200)
    low, high = ((found[:, part] @ channels[part]) / 100_000 for part in (slice(0, 500), slice(500, None)))
    zero_sd = 15 / 20  # channels
    # position (x - zero) / (1 + gain): zero in both alike, gain in proportion to the channel
    assert low.std() == pytest.approx(np.hypot(zero_sd, 0.002 * 100), rel=0.08)
    assert high.std() == pytest.approx(np.hypot(zero_sd, 0.002 * 1000), rel=0.08)
    assert np.corrcoef(low, high)[0, 1] == pytest.approx(
        (zero_sd**2 + 0.002**2 * 1e5) / (low.std() * high.std()), abs=0.1
    )
    assert low.mean() == pytest.approx(100, abs=0.1) and high.mean() == pytest.approx(1000, abs=0.3)


# --- broadening ---


@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.3, 4.0])
def test_displacements_are_gaussian(sigma):
    distance, probabilities = displacement_probabilities(sigma)
    assert probabilities.sum() == pytest.approx(1) and (np.diff(probabilities) <= 1e-15).all()
    assert probabilities @ distance == pytest.approx(0, abs=1e-12)
    assert probabilities @ distance**2 == pytest.approx(sigma**2, rel=0.01)
    if sigma > 1:
        assert probabilities @ distance**4 == pytest.approx(3 * sigma**4, rel=0.02)


def test_broadened_photons_are_multinomial():
    fwhm_ev = 60.0
    sigma = fwhm_ev / 2.3548 / 20  # channels
    photons = np.array([0, 3, 0, 0, 50, 2000, 10, 0, 0, 0, 400, 0, 0, 1])
    distance = np.arange(14) - np.arange(14)[:, None]
    kernel = np.exp(-0.5 * (distance / sigma) ** 2) * (np.abs(distance) <= 4 * sigma + 1)
    kernel /= np.exp(-0.5 * (np.arange(-20, 21) / sigma) ** 2).sum()  # what leaves the range is lost
    mean, covariance = multinomial_moments(photons, kernel)
    assert_moments(draws(Broadening((fwhm_ev, fwhm_ev)), photons), mean, covariance)


def test_broadened_poisson_counts_are_poisson_and_independent():
    counts, mean = poisson_spectra()
    found = Broadening((80.0, 80.0))(counts, GAIN_KEV, 0.0, np.random.default_rng(1))
    kernel = np.exp(-0.5 * (np.arange(-14, 15) * 2.3548 * 20 / 80) ** 2)
    expected = np.convolve(mean, kernel / kernel.sum(), mode="same")
    assert_moments(found, expected, np.diag(expected))


def test_widths_add_in_quadrature():
    channels = np.arange(400)
    peak = np.rint(1e6 * np.exp(-0.5 * ((channels - 200) * 2.3548 * 20 / 140) ** 2)).astype(int)  # FWHM of 140 eV
    (found,) = draws(Broadening((75.0, 75.0)), peak, number=1)
    centre = found @ channels / found.sum()
    fwhm_ev = 20 * 2.3548 * np.sqrt(found @ (channels - centre) ** 2 / found.sum())
    assert fwhm_ev == pytest.approx(np.hypot(140, 75), rel=1e-3) and found.sum() == peak.sum()
    assert centre == pytest.approx(200, abs=0.01)


# --- pile-up ---


def pair_sums(photons, zero_channels, num_channels):
    """Expected number of pairs at each sum, per pair, for two photons drawn without replacement, by going through all
    pairs of channels. Both photons lie evenly in their channels, so their sum has a triangular distribution."""
    total = photons.sum()

    def triangle(x):  # its cumulative distribution on [-1, 1]
        x = np.clip(x, -1, 1)
        return np.where(x < 0, 0.5 * (1 + x) ** 2, 1 - 0.5 * (1 - x) ** 2)

    expected = np.zeros(num_channels)
    channels = np.arange(num_channels)
    for i, first in enumerate(photons):
        for j, second in enumerate(photons - (np.arange(len(photons)) == i)):
            distance = channels - (i + j + zero_channels)
            expected += first * second / (total * (total - 1)) * (triangle(distance + 0.5) - triangle(distance - 0.5))
    return expected


@pytest.mark.parametrize("offset_kev", [0.0, 0.02, -0.033])
def test_pile_up_is_the_convolution_of_the_spectrum_with_itself(offset_kev):
    photons = np.array([0, 40, 0, 300, 80, 10, 0, 0, 0, 5, 0, 0])
    total, fraction = photons.sum(), 0.2
    found = draws(PileUp((fraction, fraction)), photons, offset_kev=offset_kev)
    # the odd photon out is recorded alone: half a pair less in about half of the draws
    pairs = (total * fraction - 0.5) / 2
    sums = pair_sums(photons, offset_kev / GAIN_KEV, len(photons))
    expected = photons * (1 - 2 * pairs / total) + pairs * sums
    error = found.std(axis=0) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - expected) < 5 * error + 1e-9).all()


def test_number_of_recorded_pulses():
    photons = np.zeros(90, dtype=int)
    photons[[5, 12, 40]] = 3000, 5000, 2000
    recorded = draws(PileUp((0.1, 0.1)), photons, number=5000).sum(axis=1)
    # N photons, Binomial(N, f) of them in pairs: N (1 - f / 2) pulses with variance N f (1 - f) / 4
    assert recorded.mean() == pytest.approx(10_000 * 0.95 + 0.25, abs=5 * np.sqrt(225 / 5000))
    assert recorded.var() == pytest.approx(10_000 * 0.1 * 0.9 / 4, rel=0.12)
    assert not (photons - draws(PileUp((0.0, 0.0)), photons, number=2)).any()
    everything = draws(PileUp((1.0, 1.0)), photons, number=2)
    assert (everything.sum(axis=1) == 5000).all() and not everything[:, [5, 12, 40]].any()


def test_energy_is_conserved_within_the_range():
    photons = np.zeros(300, dtype=int)
    photons[[40, 60, 90]] = 100_000, 50_000, 20_000
    energy_kev = -0.5 + GAIN_KEV * np.arange(300)
    (found,) = draws(PileUp((0.3, 0.3)), photons, offset_kev=-0.5, number=1)
    assert found @ energy_kev == pytest.approx(photons @ energy_kev, rel=1e-3)


# --- together ---


def test_augmentations_follow_each_other_and_repeat_with_the_seed():
    counts, _ = poisson_spectra(number=5)
    steps = (Thinning((0.1, 1.0)), Drift(0.003, 10.0), Broadening((0.0, 60.0)), PileUp((0.0, 0.05)))
    composed = Compose(steps)(counts, GAIN_KEV, 0.0, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    expected = counts
    for step in steps:
        expected = step(expected, GAIN_KEV, 0.0, rng)
    np.testing.assert_array_equal(composed, expected)
    assert composed.dtype == np.int64 and composed.min() >= 0
    assert (composed != Compose(steps)(counts, GAIN_KEV, 0.0, np.random.default_rng(8))).any()
    np.testing.assert_array_equal(Compose(())(counts, GAIN_KEV, 0.0, rng), counts)


def test_every_spectrum_has_its_own_calibration():
    photons = np.zeros((2, 200), dtype=int)
    photons[:, 50] = 100_000
    found = Broadening((100.0, 100.0))(photons, np.array([0.02, 0.01]), np.zeros(2), np.random.default_rng(0))
    channels = np.arange(200)
    fwhm_channels = [2.3548 * np.sqrt(row @ (channels - 50) ** 2 / 100_000) for row in found]
    assert fwhm_channels == pytest.approx([5, 10], rel=0.01)
    found = PileUp((1.0, 1.0))(photons, np.array([0.02, 0.02]), np.array([0.0, 0.4]), np.random.default_rng(0))
    assert found.argmax(axis=1).tolist() == [100, 120]


def test_input_is_left_alone_and_whole_floats_are_counts():
    counts = poisson_spectra(number=3)[0].astype(np.float32)
    before = counts.copy()
    for augmentation in (Thinning((0.5, 0.5)), Drift(0.003, 10.0), Broadening((40, 40)), PileUp((0.1, 0.1))):
        found = augmentation(counts, GAIN_KEV, 0.0, np.random.default_rng(0))
        np.testing.assert_array_equal(found, augmentation(before.astype(int), GAIN_KEV, 0.0, np.random.default_rng(0)))
        np.testing.assert_array_equal(counts, before)


def test_recipe_steps():
    steps = [
        {"name": "thinning", "fraction": [0.1, 1], "least_counts": 50},
        {"name": "drift", "gain_sd": 0.003},
        {"name": "broadening", "fwhm_ev": [0, 60.0]},
        {"name": "pile_up", "fraction": [0.0, 0.02]},
    ]
    expected = (Thinning((0.1, 1), 50), Drift(gain_sd=0.003), Broadening((0, 60.0)), PileUp((0.0, 0.02)))
    assert augmentation_from_config(steps) == Compose(expected)
    assert {step["name"] for step in steps} == set(AUGMENTATIONS)
    assert augmentation_from_config([]) == Compose(())


def test_what_is_no_longer_true_of_a_simulated_spectrum():
    changed = {name: set(kind.changed_targets) for name, kind in AUGMENTATIONS.items()}
    assert all("count_rate" in targets for targets in changed.values())  # photons are lost
    assert {name for name in changed if "zero_drift" in changed[name]} == {"drift"}
    assert {name for name in changed if "fwhm_mn_kalpha" in changed[name]} == {"broadening"}
    assert set().union(*changed.values()) <= set(TARGET_NAMES)
    both = Compose((Drift(), Thinning((0.5, 1))))
    assert both.changed_targets == ("gain_drift", "zero_drift", "count_rate") and Compose(()).changed_targets == ()


@pytest.mark.parametrize(
    "steps, sentence",
    [
        ({"name": "drift"}, "augmentation must be a list of steps with a name and arguments, but is"),
        (["drift"], "augmentation must be a list of steps with a name and arguments, but is"),
        ([{"name": "blur"}], "one of the names thinning, drift, broadening, pile_up, but has 'blur'"),
        ([{"gain_sd": 0.1}], "one of the names thinning, drift, broadening, pile_up, but has None"),
        ([{"name": "drift", "gain": 0.1}], "'drift' has no argument 'gain'; its arguments are gain_sd, zero_sd_ev"),
        ([{"name": "thinning"}], "'thinning' needs the argument 'fraction'; add it"),
        ([{"name": "drift", "gain_sd": "0.1"}], "gain_sd of the augmentation 'drift' must be a number or two"),
        ([{"name": "drift", "gain_sd": True}], "gain_sd of the augmentation 'drift' must be a number or two"),
        ([{"name": "drift", "gain_sd": 3}], r"gain_sd of Drift must lie in \[0, 0.1\], but is 3"),
        ([{"name": "drift", "zero_sd_ev": -1}], "zero_sd_ev of Drift must not be negative, but is -1"),
        ([{"name": "thinning", "fraction": 0.5}], "fraction of Thinning must be a range of two numbers, but is 0.5"),
        ([{"name": "thinning", "fraction": [0.5]}], "fraction of Thinning must be a range of two numbers"),
        ([{"name": "thinning", "fraction": [0.0, 1]}], "fraction of Thinning must be positive, but begins at 0"),
        ([{"name": "thinning", "fraction": [0.5, 1.5]}], "must be a rising range between 0 and 1, but is"),
        ([{"name": "pile_up", "fraction": [0.2, 0.1]}], "fraction of PileUp must be a rising range between 0 and 1"),
        (
            [{"name": "broadening", "fwhm_ev": [0, float("inf")]}],
            "fwhm_ev of Broadening must be a rising range not ",
        ),
        ([{"name": "broadening", "fwhm_ev": [float("nan"), 3]}], "fwhm_ev of Broadening must be a rising range"),
    ],
)
def test_bad_recipe_steps_are_one_sentence(steps, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        augmentation_from_config(steps)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value, gain_kev, sentence",
    [
        (0.5, GAIN_KEV, "whole numbers of photons, but spectrum 1 of the batch has 0.5 in channel 2"),
        (-1.0, GAIN_KEV, "whole numbers of photons, but spectrum 1 of the batch has -1 in channel 2"),
        (np.nan, GAIN_KEV, "whole numbers of photons, but spectrum 1 of the batch has nan in channel 2"),
        (3.0, [0.02, 0.0], "a positive gain_kev and an offset_kev, but spectrum 1 of the batch has 0 and 0"),
        (3.0, [0.02, np.nan], "a positive gain_kev and an offset_kev, but spectrum 1 of the batch has nan and 0"),
    ],
)
@pytest.mark.parametrize("augmentation", [Thinning((0.5, 1)), Drift(0.001), Broadening((1, 2)), PileUp((0, 0.1))])
def test_what_is_no_spectrum_of_photons_is_refused(augmentation, value, gain_kev, sentence):
    counts = np.ones((2, 4))
    counts[1, 2] = value
    with pytest.raises(ValueError, match=sentence):
        augmentation(counts, gain_kev, 0.0, np.random.default_rng(0))
