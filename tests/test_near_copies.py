"""Near-identical spectra: copies are found however they were exported, honest repetitions are not."""

import numpy as np
import pytest

from dataset_builder import read_spectra
from dataset_builder.near_copies import (
    BIN_WIDTH_KEV,
    NUM_BINS,
    chi_squared_limit,
    coarse_counts,
    counting_noise,
    near_copies,
    reduced_chi_squared,
)

GAIN_KEV, OFFSET_KEV = 0.02, -0.01


def expected_spectrum(rng, channels=1024, total=1e6):
    """A smooth continuum with twelve peaks of 150 eV, of random heights."""
    energy_kev = OFFSET_KEV + GAIN_KEV * np.arange(channels)
    shape = 0.05 * np.exp(-np.square((energy_kev - 8) / 5))
    for place_kev in np.linspace(1.5, 18, 12):
        shape = shape + rng.lognormal() * np.exp(-0.5 * np.square((energy_kev - place_kev) / 0.064))
    return total * shape / shape.sum()


def described(spectra, gain_kev=GAIN_KEV, offset_kev=OFFSET_KEV):
    coarse = np.stack([coarse_counts(counts, gain_kev, offset_kev) for counts in spectra])
    return coarse, np.array([counting_noise(counts, gain_kev) for counts in spectra])


def test_coarse_counts_are_those_of_the_energy_interval():
    counts = np.zeros(400)
    counts[98:106] = 100.0  # channels from 1.95 to 2.11 keV, where offset and half a channel are taken into account
    coarse = coarse_counts(counts, 0.02, 0.0)
    assert coarse.shape == (NUM_BINS,)
    # one coarse bin reaches from 2.00 to 2.08 keV: four channels that are full
    assert coarse[round(2.0 / BIN_WIDTH_KEV)] == pytest.approx(400, rel=1e-4)
    assert coarse.sum() == pytest.approx(800, rel=1e-2)


def test_coarse_counts_of_a_spectrum_that_begins_above_zero_or_ends_below_the_grid():
    assert coarse_counts(np.full(100, 5.0), 0.02, 10.0).sum() == pytest.approx(500, rel=1e-5)
    assert coarse_counts(np.full(100, 5.0), 1.0, 0.0).sum() == pytest.approx(5 * NUM_BINS * BIN_WIDTH_KEV, rel=5e-3)


def test_noise_of_counts_of_rates_and_of_smooth_curves():
    rng = np.random.default_rng(0)
    expected = expected_spectrum(rng)
    counts = rng.poisson(expected).astype(float)
    assert counting_noise(counts, GAIN_KEV) == (pytest.approx(1, abs=0.15), 0)
    assert counting_noise(counts / 60, GAIN_KEV) == (pytest.approx(1 / 60, rel=0.15), 0)
    assert counting_noise(expected, GAIN_KEV)[0] < 0.01
    dispersion, rounding = counting_noise(np.rint(counts / 10), GAIN_KEV)
    assert dispersion == pytest.approx(0.1, rel=0.25)
    assert rounding == pytest.approx(4 / 12)  # four channels a bin
    assert counting_noise(np.ones(8), GAIN_KEV) == (1, 0)  # too short to tell


def test_chi_squared_of_repetitions_scatters_about_one():
    rng = np.random.default_rng(1)
    expected = expected_spectrum(rng)
    coarse, noise = described(rng.poisson(expected, (200, 1024)).astype(float))
    found, freedom = reduced_chi_squared(coarse[:100], coarse[100:], noise[:100], noise[100:])
    assert found.mean() == pytest.approx(1, abs=0.07)
    assert found.std() == pytest.approx(np.sqrt(2 / freedom.mean()), rel=0.25)
    # another dose and a rate instead of counts change nothing
    lower, lower_noise = described(rng.poisson(0.3 * expected, (100, 1024)) / 25.0)
    found, _ = reduced_chi_squared(coarse[:100], lower, noise[:100], lower_noise)
    assert found.mean() == pytest.approx(1, abs=0.07)


def test_limit_is_out_of_reach_of_chance():
    from scipy.stats import chi2

    freedom = np.array([8, 20, 50, 100, 200, 1000])
    limit = chi_squared_limit(freedom)
    assert (chi2.cdf(limit * freedom, freedom) < 1e-9).all()
    assert limit[-1] == 0.5


COPIES = {
    "rescaled": lambda counts: counts * 0.37,
    "rescaled and rounded": lambda counts: np.rint(counts * 0.1),
    "counts per second with two decimals": lambda counts: np.round(counts / 17.3, 2),
    "scaled up and rounded": lambda counts: np.rint(counts * 2.5),
}


@pytest.fixture(scope="module")
def mixtures():
    """Spectra of 300 materials, and 40 of them measured again."""
    rng = np.random.default_rng(2)
    expected = np.stack([expected_spectrum(rng) for _ in range(300)])
    return rng.poisson(expected).astype(float), rng.poisson(expected[:40]).astype(float)


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_repetitions_are_not(mixtures, kind):
    spectra, repeated = mixtures
    others = np.concatenate([repeated, COPIES[kind](spectra[100:140])])
    parts = [described(spectra), described(others)]
    coarse, noise = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    sides = np.array([0] * 300 + [1] * 80)
    assert {(b, a) for a, b, _ in near_copies(coarse, noise, sides)} == {(100 + i, 340 + i) for i in range(40)}


def test_copies_on_another_grid_are_found(mixtures):
    spectra, _ = mixtures
    parts = [described(spectra), described(spectra[:40].reshape(40, 512, 2).sum(axis=2), 0.04, 0.0)]
    coarse, noise = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    found = list(near_copies(coarse, noise, np.array(["train"] * 300 + ["test"] * 40)))
    assert {(b, a) for a, b, _ in found} == {(i, 300 + i) for i in range(40)}


def test_copies_within_one_side_do_not_matter(mixtures):
    coarse, noise = described(np.concatenate([mixtures[0][:50], mixtures[0][:50]]))
    assert list(near_copies(coarse, noise, np.zeros(100))) == []


def test_no_pair_of_genuine_repetitions_is_taken_for_copies(real_data):
    """The glass SRM 1831 measured 200 times: every chi-squared is that of honest measurements."""
    spectra = read_spectra(real_data / "unlabelled" / "m4_tornado_srm1831.npz")
    coarse = np.stack([coarse_counts(s.counts, s.gain_kev, s.offset_kev) for s in spectra])
    noise = np.array([counting_noise(s.counts, s.gain_kev) for s in spectra])
    first, second = np.triu_indices(len(spectra), 1)
    lowest = np.inf
    for start in range(0, len(first), 2000):
        pair = first[start : start + 2000], second[start : start + 2000]
        found, freedom = reduced_chi_squared(coarse[pair[0]], coarse[pair[1]], noise[pair[0]], noise[pair[1]])
        assert (found > chi_squared_limit(freedom)).all()
        lowest = min(lowest, found.min())
    assert 0.7 < lowest < 1
