"""A guessed energy scale is right where it says so, says when it cannot know, and changes nothing by itself."""

import dataclasses

import numpy as np
import pytest
from synthetic_spectrum import MUDROCK, synthetic

from dataset_builder import Spectrum, guess_calibration, iter_spectra
from dataset_builder.calibration import _find_peaks

RIGHT_KEV = 0.03  # at 6.4 keV: a fifth of a peak's width there


def error_kev(guess, gain_kev, offset_kev, at_kev=6.4):
    channel = (at_kev - offset_kev) / gain_kev
    return guess.offset_kev + guess.gain_kev * channel - at_kev


@pytest.mark.parametrize("gain_kev", [0.008, 0.01027, 0.02, 0.025])
@pytest.mark.parametrize("offset_kev", [-0.03, 0.0, 0.025])
def test_gain_and_offset_of_a_mudrock(gain_kev, offset_kev):
    guess = guess_calibration(synthetic(gain_kev, offset_kev, num_channels=int(26 / gain_kev)))
    assert guess.confidence > 0.9
    for at_kev in (2.0, 6.4, 20.0):
        assert abs(error_kev(guess, gain_kev, offset_kev, at_kev)) < RIGHT_KEV
    found = {line.name: line for line in guess.lines}
    assert {"Si Kα", "Ca Kα", "Ca Kβ", "Fe Kα", "Fe Kβ"} <= set(found)
    iron = found["Fe Kα"]
    assert iron.channel == pytest.approx((6.403 - offset_kev) / gain_kev, abs=0.5)
    assert iron.energy_kev == pytest.approx(6.40, abs=0.01)
    assert iron.residual_kev == pytest.approx(guess.offset_kev + guess.gain_kev * iron.channel - iron.energy_kev)


def test_a_zero_far_into_the_spectrum_is_found_by_the_zero_peak():
    guess = guess_calibration(synthetic(0.01, -0.955, MUDROCK | {0.0: 1e6}, num_channels=3000))
    assert error_kev(guess, 0.01, -0.955) == pytest.approx(0, abs=0.02)
    assert guess.confidence > 0.9
    assert "zero peak" in {line.name for line in guess.lines}


def test_what_is_known_of_the_scale_narrows_the_search():
    # The lines of one unusual element alone fit many scales; with the gain of the spectrum they fit one.
    barium = synthetic(0.02, 0.01, {4.466: 3e5, 4.828: 2e5, 5.157: 4e4})  # L-alpha, L-beta 1, L-beta 2
    assert guess_calibration(barium).confidence < 0.5
    with_gain = guess_calibration(dataclasses.replace(barium, gain_kev=0.02), elements=["Ba"])
    assert error_kev(with_gain, 0.02, 0.01) == pytest.approx(0, abs=0.05)
    assert with_gain.gain_kev == pytest.approx(0.02, rel=0.012)
    ranges = {"gain_range_kev": (0.0199, 0.0201), "offset_range_kev": (0, 0.02)}
    within = guess_calibration(barium, elements=["Ba"], **ranges)
    assert error_kev(within, 0.02, 0.01, 4.5) == pytest.approx(0, abs=0.02)


def test_peaks_that_are_no_lines_get_no_confidence():
    """Gaussians at random places: a confidence of 0.9 must be wrong one time in ten at most; here every one is."""
    rng = np.random.default_rng(0)
    confidences = []
    for seed in range(40):
        lines = dict(zip(rng.uniform(1, 15, 8), 10 ** rng.uniform(3, 6, 8), strict=True))
        confidences.append(guess_calibration(synthetic(0.02, 0, lines, seed=seed)).confidence)
    assert np.mean(np.array(confidences) > 0.9) <= 0.05
    assert np.median(confidences) < 0.2


def test_apply_returns_a_marked_copy_and_leaves_the_spectrum_alone():
    spectrum = synthetic(0.02, 0.0, sample="BL-1", metadata={"operator": "Ada"})
    guess = guess_calibration(spectrum)
    calibrated = guess.apply(spectrum)
    assert (spectrum.gain_kev, spectrum.offset_kev, spectrum.metadata) == (None, None, {"operator": "Ada"})
    assert (calibrated.gain_kev, calibrated.offset_kev) == (guess.gain_kev, guess.offset_kev)
    assert (calibrated.sample, calibrated.metadata["operator"]) == ("BL-1", "Ada")
    assert calibrated.metadata["energy_calibration"] == (
        f"guessed from {len(guess.lines)} lines, confidence {guess.confidence:.2f}"
    )
    np.testing.assert_array_equal(calibrated.counts, spectrum.counts)
    assert "confidence 1.00" in str(guess) and "Ca Kα" in str(guess)


def test_rates_are_as_good_as_counts():
    spectrum = synthetic(0.02, 0.0, dose=0.05)
    rates = dataclasses.replace(spectrum, counts=spectrum.counts / 171.9)
    from_counts, from_rates = guess_calibration(spectrum), guess_calibration(rates)
    assert from_rates.gain_kev == pytest.approx(from_counts.gain_kev, rel=1e-9)
    assert from_rates.confidence == pytest.approx(from_counts.confidence, abs=1e-6)


def test_positions_and_widths_of_peaks():
    x = np.arange(1000)
    counts = 50 + 4000 * np.exp(-0.5 * ((x - 300.3) / 5) ** 2) + 2000 * np.exp(-0.5 * ((x - 700.8) / 5) ** 2)
    peaks = _find_peaks(np.random.default_rng(0).poisson(counts).astype(float))
    assert peaks.channel == pytest.approx([300.3, 700.8], abs=0.3)
    assert peaks.width == pytest.approx([5, 5], rel=0.1)
    assert peaks.significance[0] > peaks.significance[1] > 20
    assert len(_find_peaks(np.random.default_rng(1).poisson(100, 4096).astype(float)).channel) == 0


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        (np.full(1000, 100), {}, "At least two clear peaks are needed"),
        (np.array([5]), {}, "At least two clear peaks are needed"),
        (np.zeros(100), {}, "At least two clear peaks are needed"),
        (np.arange(10), {"elements": ["Xx"]}, "elements must be chemical symbols such as 'Fe'; found 'Xx'"),
        (np.arange(10), {"gain_range_kev": (0.0, 0.1)}, "gain_range_kev must be positive"),
        (np.arange(10), {"offset_range_kev": (0.1, -0.1)}, "both ranges rise"),
        (np.arange(10), {"offset_range_kev": (-1000, 1000)}, "too many calibrations"),
    ],
)
def test_what_cannot_be_guessed_is_refused(counts, options, message):
    with pytest.raises(ValueError, match=message):
        guess_calibration(Spectrum(counts=counts), **options)


LABELLED = ("mudrock_light_instrument_a", "mudrock_light_instrument_b", "mudrock_trace_instrument_a",
            "mudrock_trace_instrument_b", "obsidian_instrument_c")  # fmt: skip
UNLABELLED = ("coal_benchtop", "handheld_heavy_minerals", "m4_tornado_elements_and_glass", "m4_tornado_srm1831",
              "pixl_beaujeu", "pixl_breadboard_map", "pixl_flight_calibration", "lunar_orbit_class")  # fmt: skip


def test_genuine_spectra(real_data):
    """Of the guesses that claim 0.9 at most a tenth may be wrong; and easy sets must reach it."""
    confident, right, reached = 0, 0, {}
    for name in (*LABELLED, *UNLABELLED):
        folder = "labelled" if name in LABELLED else "unlabelled"
        spectra = list(iter_spectra(real_data / folder / f"{name}.npz", on_reject=lambda error: None))
        claims = []
        for spectrum in spectra[:: max(1, len(spectra) // 10)]:
            try:
                guess = guess_calibration(dataclasses.replace(spectrum, gain_kev=None, offset_kev=None))
            except ValueError:
                continue
            if guess.confidence > 0.9:
                claims.append(abs(error_kev(guess, spectrum.gain_kev, spectrum.offset_kev)) < RIGHT_KEV)
        confident, right = confident + len(claims), right + sum(claims)
        reached[name] = len(claims)
    assert right >= 0.97 * confident
    assert all(reached[name] >= 9 for name in (*LABELLED, "coal_benchtop", "m4_tornado_srm1831", "pixl_beaujeu"))
    assert reached["lunar_orbit_class"] == 0  # a few photons of the Moon's rocks: nobody can say


def test_an_anode_that_is_no_element_is_taken_for_the_usual_one():
    named = guess_calibration(synthetic(0.02, 0.0, anode="unknown"))
    assert named.gain_kev == guess_calibration(synthetic(0.02, 0.0)).gain_kev
