"""Efficiency and response of the detector against hand calculations."""

import math

import numpy as np
import pytest
import xraylib

from dataset_builder.simulation import detector

SHAPE = {"noise_fwhm_ev": 100.0, "fano": 0.12, "tail_kev": 0.25}


def test_efficiency_by_hand():
    energy_kev = 5.9
    beryllium, silicon = (xraylib.CS_Total_Kissel(number, energy_kev) for number in (4, 14))
    expected = math.exp(-beryllium * 1.848 * 8e-4 - silicon * 2.33 * 0.2e-4) * (1 - math.exp(-silicon * 2.33 * 0.05))
    actual = detector.efficiency([energy_kev], "Be", window_um=8.0, dead_layer_um=0.2, thickness_mm=0.5)
    assert actual[0] == pytest.approx(expected, rel=1e-3)


def test_efficiency_falls_at_both_ends_and_a_thin_polymer_window_helps_the_soft_end():
    energy_kev = [1.04, 8.0, 30.0]
    beryllium = detector.efficiency(energy_kev, "Be", 12.5, 0.1, 0.5)
    polymer = detector.efficiency(energy_kev, "polyimide", 0.4, 0.1, 0.5)
    assert beryllium[1] > 0.9
    assert beryllium[0] < 0.5 and beryllium[2] < 0.3
    assert polymer[0] > 1.5 * beryllium[0]
    assert polymer[2] == pytest.approx(beryllium[2], rel=0.01)


def test_response_conserves_photons_and_has_the_stated_width():
    energy_kev, edges_kev = np.array([3.0, 6.4]), 0.005 * np.arange(4001)
    full = detector.response_matrix(
        energy_kev, np.zeros(2), edges_kev, tail_fraction=0.03, shelf_fraction=0.01, **SHAPE
    )
    np.testing.assert_allclose(full.sum(axis=1), 1, atol=1e-5)
    assert (full >= 0).all()
    pure_peak = detector.response_matrix(
        energy_kev, np.zeros(2), edges_kev, tail_fraction=0.0, shelf_fraction=0.0, **SHAPE
    )
    centres_kev = 0.5 * (edges_kev[1:] + edges_kev[:-1])
    for row, energy in zip(pure_peak, energy_kev):
        above_half = centres_kev[row > row.max() / 2]
        expected_ev = math.sqrt(100.0**2 + 2.3548**2 * 0.12 * 3.65 * 1e3 * energy)
        assert 1e3 * np.ptp(above_half) == pytest.approx(expected_ev, abs=10)
        assert detector.fwhm_ev(energy, 100.0, 0.12) == pytest.approx(expected_ev, rel=1e-6)
        escape = row[np.abs(centres_kev - (energy - 1.740)) < 0.2].sum()
        # Reed and Ware: about 1 % of photons just above the silicon edge, 0.3-0.7 % at a few keV.
        assert 0.002 < escape < 0.012


def test_silicon_does_not_escape_below_its_edge():
    escape = detector.escape_fraction([1.74, 1.83, 1.85, 5.9, 17.4])
    assert (escape[:2] == 0).all()
    assert (np.diff(escape[2:]) < 0).all()
    assert escape[3] == pytest.approx(0.005, abs=0.0015)  # the textbook value for Mn K alpha


def test_shelf_is_even_from_zero_to_the_peak():
    edges_kev = -0.055 + 0.01 * np.arange(1001)  # channel 5 begins at -0.005 keV
    options = {**SHAPE, "tail_fraction": 0.0}
    with_shelf, without = (
        detector.response_matrix(np.array([6.4]), np.zeros(1), edges_kev, shelf_fraction=share, **options)[0]
        for share in (0.01, 0.0)
    )
    np.testing.assert_allclose(with_shelf[10:400], 0.01 * 0.01 / 6.4, rtol=1e-4)
    assert with_shelf[5] == pytest.approx(0.5 * 0.01 * 0.01 / 6.4, rel=1e-3)
    assert (with_shelf[:5] == 0).all()
    assert without[10:400].sum() == 0


def test_photons_beyond_the_channels_are_lost():
    row = detector.response_matrix(
        np.array([6.4, 12.0, 25.0]),
        np.zeros(3),
        0.01 * np.arange(1001),
        tail_fraction=0.03,
        shelf_fraction=0.01,
        **SHAPE,
    ).sum(axis=1)
    assert row[0] == pytest.approx(1, abs=1e-4)
    assert row[1] == pytest.approx(0.01 * 10 / 12, abs=2e-3)
    assert row[2] == pytest.approx(0.01 * 10 / 25, rel=1e-3)


def test_exponential_tail_equals_a_numerical_convolution():
    sigma, tail_kev, mean = 0.06, 0.25, 6.4
    edges_kev = np.arange(3.0, 8.0, 0.01)
    fine = np.linspace(0, 12 * tail_kev, 20001)
    weights = np.exp(-fine / tail_kev)
    weights /= weights.sum()
    cdf = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))
    expected = [(weights * cdf((edge - (mean - fine)) / sigma)).sum() for edge in edges_kev[::25]]
    actual = detector._exponential_tail_cdf(edges_kev[::25], mean, sigma, tail_kev)
    np.testing.assert_allclose(actual, expected, atol=1e-3)
