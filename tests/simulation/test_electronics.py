"""Pile-up, noise, threshold, zero peak and drift against hand calculations."""

import dataclasses
import math

import numpy as np
import pytest

from dataset_builder.simulation.electronics import drift, pile_up_and_noise, recorded_counts, threshold, zero_peak
from dataset_builder.simulation.instrument import nominal_state
from dataset_builder.simulation.presets import AVAATECH_10KV


def test_pile_up_puts_sums_at_multiples_and_keeps_the_number_of_recorded_pulses():
    ideal = np.zeros((1, 512))
    ideal[0, 100] = 1000.0
    counts = pile_up_and_noise(ideal, np.array([0.05]), np.zeros(1), zero_channel=0.0)[0]
    for number in (1, 2, 3):  # n pulses together with probability (1 - t) t**(n - 1)
        assert counts[100 * number] == pytest.approx(1000 * 0.95 * 0.05 ** (number - 1), rel=1e-6)
    assert counts.sum() == pytest.approx(1000, rel=1e-5)


def test_energies_add_where_channel_0_is_not_0_kev():
    """A pulse 60 channels above a zero channel of 96 stands at 156, two of them at 216."""
    ideal = np.zeros((1, 512))
    ideal[0, 156] = 1000.0
    counts = pile_up_and_noise(ideal, np.array([0.05]), np.zeros(1), zero_channel=96.0)[0]
    assert counts[216] == pytest.approx(1000 * 0.95 * 0.05, rel=1e-6)
    assert counts[312] == pytest.approx(0, abs=1e-6)


def test_pile_up_of_different_lines_is_their_convolution():
    rng = np.random.default_rng(0)
    ideal = np.zeros((2, 256))
    ideal[:, 20:60] = rng.random((2, 40))
    share = np.array([0.01, 0.03])
    counts = pile_up_and_noise(ideal, share, np.zeros(2), zero_channel=0.0)
    for row, single, t in zip(counts, ideal, share):
        total, orders = single.sum(), single / single.sum()
        expected, order = np.zeros(2000), orders
        for n in range(4):
            expected[: len(order)] += total * (1 - t) * t**n * order
            order = np.convolve(order, orders)
        np.testing.assert_allclose(row, expected[:256], atol=total * t**4)


def test_noise_widens_a_peak_by_its_variance():
    ideal = np.zeros((1, 512))
    ideal[0, 250] = 1.0
    counts = pile_up_and_noise(ideal, np.zeros(1), np.array([3.0]), zero_channel=0.0)[0]
    channels = np.arange(512)
    assert (counts * channels).sum() == pytest.approx(250, abs=1e-6)
    assert (counts * (channels - 250) ** 2).sum() == pytest.approx(9.0, rel=1e-3)


def test_drift_moves_peaks_and_conserves_counts():
    instrument = AVAATECH_10KV
    state = nominal_state(instrument, 1)
    state = dataclasses.replace(state, gain_kev=np.array([0.0202]), offset_kev=np.array([0.01]))
    channels = np.arange(instrument.num_channels)
    nominal = np.exp(-0.5 * ((channels - 320) / 3.0) ** 2)[None]
    moved = drift(nominal, instrument, state)[0]
    assert moved.sum() == pytest.approx(nominal.sum())
    assert (moved * channels).sum() / moved.sum() == pytest.approx((6.4 - 0.01) / 0.0202, abs=0.01)


def test_threshold_passes_half_at_its_energy():
    instrument = dataclasses.replace(AVAATECH_10KV, threshold_kev=0.8, threshold_width_kev=0.1)
    passed = threshold(instrument)  # channel i is at 0.02 i keV
    assert passed[40] == pytest.approx(0.5)
    assert passed[45] == pytest.approx(0.5 * (1 + math.erf(1 / math.sqrt(2))))
    assert passed[20] < 1e-4 and passed[70] > 0.9999
    sharp = threshold(dataclasses.replace(instrument, threshold_width_kev=0.0))
    np.testing.assert_array_equal(sharp, np.arange(2048) >= 40)


def test_zero_peak_is_recorded_whatever_the_threshold():
    instrument = dataclasses.replace(
        AVAATECH_10KV,
        gain_kev=0.01,
        offset_kev=-0.955,
        threshold_kev=1.0,
        zero_peak_per_s=300.0,
        live_time_s=20.0,
        noise_fwhm_ev=70.0,
    )
    assert zero_peak(instrument).sum() == pytest.approx(6000)
    counts = recorded_counts(np.ones((1, 2048)), instrument, nominal_state(instrument, 1), 1.0)[0]
    assert np.argmax(counts) in (95, 96)
    assert counts[60:130].sum() == pytest.approx(6000, rel=1e-3)
