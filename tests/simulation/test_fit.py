"""`fit_instrument` on spectra whose instrument is known."""

from dataclasses import replace

import numpy as np
import pytest

from dataset_builder import Spectrum
from dataset_builder.simulation import AVAATECH_10KV, ForwardModel, sample_model
from dataset_builder.simulation.atomic_data import ELEMENTS
from dataset_builder.simulation.fit import (
    DEFAULT_PARAMETERS,
    PARAMETERS,
    fit_instrument,
    median_abs_ln_ratio,
    population_states,
)
from dataset_builder.simulation.instrument import nominal_state
from dataset_builder.simulation.sample import reference_mass_fractions

TRUE = replace(
    AVAATECH_10KV, noise_fwhm_ev=120.0, noise_sd_ev=10.0, tail_fraction=0.03, pile_up_fraction=0.015, scatter_scale=1.3
)

EXACT = 0.003
"""Relative error of a model that is the truth but for rounding and interpolation."""


def measured(instrument, fractions, seed=0, **calibration):
    counts = ForwardModel(instrument).expected_counts(fractions, nominal_state(instrument, len(fractions)))
    counts = np.random.default_rng(seed).poisson(counts)
    return [Spectrum(row, live_time_s=instrument.live_time_s, **calibration) for row in counts]


@pytest.fixture(scope="module")
def sediments():
    return sample_model("marine_sediment").draw(3, np.random.default_rng(2)).mass_fractions


def test_a_wrong_start_is_corrected(sediments):
    """Gain 1 % and zero 30 eV off, noise, pile-up, scatter and counts far off: the truth comes back."""
    spectra = measured(TRUE, sediments)
    start = replace(
        TRUE, gain_kev=0.0202, offset_kev=0.03, noise_fwhm_ev=160.0, pile_up_fraction=0.005, scatter_scale=0.8,
        reference_counts=1e5,
    )  # fmt: skip
    names = ("gain_kev", "offset_kev", "noise_fwhm_ev", "pile_up_fraction", "scatter_scale")
    fitted = fit_instrument(spectra, sediments, start, names, relative_model_error=EXACT)
    found = fitted.instrument
    assert found.gain_kev == pytest.approx(0.02, rel=2e-4)
    assert found.offset_kev == pytest.approx(0, abs=0.001)
    assert found.noise_fwhm_ev == pytest.approx(120, rel=0.01)
    assert found.pile_up_fraction == pytest.approx(0.015, rel=0.03)
    assert found.scatter_scale == pytest.approx(1.3, rel=0.02)
    assert found.reference_counts == pytest.approx(TRUE.reference_counts, rel=0.02)
    assert all(each.determined for each in fitted.estimates) and fitted.exchangeable == ()
    # What is left is counting noise.
    noise = median_abs_ln_ratio(np.array([each.counts for each in spectra]), fitted.expected_counts)
    assert fitted.median_abs_ln_ratio == pytest.approx(noise, abs=0.02) and fitted.median_abs_ln_ratio < 0.04
    assert fitted.mass_fractions == pytest.approx(sediments)


def test_abundances_of_an_unknown_sample_are_fitted_along():
    truth = reference_mass_fractions().copy()
    truth[ELEMENTS.index("Ca")] *= 3
    truth[ELEMENTS.index("Fe")] *= 0.4
    truth /= truth.sum()
    fitted = fit_instrument(
        measured(TRUE, truth[None]), None, replace(TRUE, noise_fwhm_ev=140.0), ("noise_fwhm_ev",), ("Ca", "Fe", "K")
    )
    for element in ("Ca", "Fe", "K"):
        i = ELEMENTS.index(element)
        assert fitted.mass_fractions[0, i] == pytest.approx(truth[i], rel=0.05), element
    assert fitted.mass_fractions.sum() == pytest.approx(1)
    assert [each.name for each in fitted.estimates][:3] == ["abundance:Ca", "abundance:Fe", "abundance:K"]


def test_what_the_spectra_do_not_say_stays_and_is_said(sediments):
    """No argon without gas in view, and no channel above 3 keV tells noise from charge statistics well."""
    start = replace(TRUE, residual_air=0.0, gas_view_mm=0.0, dead_layer_um=0.1)
    fitted = fit_instrument(
        measured(start, sediments), sediments, start, ("noise_fwhm_ev", "fano", "dead_layer_um"),
        energy_range_kev=(6.0, 6.8),
    )  # fmt: skip
    by_name = {each.name: each for each in fitted.estimates}
    assert not by_name["dead_layer_um"].determined
    assert by_name["dead_layer_um"].value == pytest.approx(0.1, rel=0.02)
    assert {fitted.exchangeable[0][0], fitted.exchangeable[0][1]} == {"noise_fwhm_ev", "fano"}
    assert fitted.exchangeable[0][2] < -0.95
    assert "dead_layer_um" in fitted.report and "not determined by the spectra" in fitted.report
    assert "are exchangeable (correlation -" in fitted.report


def test_calibrations_of_the_spectra_are_kept_apart(sediments):
    """One spectrum drifted by 0.5 %: its file says so, and the common instrument is found all the same."""
    steady = measured(TRUE, sediments[:1], gain_kev=0.02, offset_kev=0.0)
    drifted = measured(replace(TRUE, gain_kev=0.0201), sediments[1:2], gain_kev=0.0201, offset_kev=0.0)
    fitted = fit_instrument(steady + drifted, sediments[:2], replace(TRUE, gain_kev=0.5), DEFAULT_PARAMETERS)
    assert fitted.instrument.gain_kev == pytest.approx(0.02005, rel=2e-4)
    assert fitted.instrument.noise_fwhm_ev == pytest.approx(120, rel=0.02)
    assert fitted.median_abs_ln_ratio < 0.04


def test_pairs_of_filters_and_contamination(sediments):
    truth = replace(TRUE, filters=(("Al", 30.0),), contamination_ug_cm2=(("Cu", 2.0), ("Ni", 0.5)))
    start = replace(TRUE, filters=(("Al", 20.0),), contamination_ug_cm2=(("Cu", 0.2), ("Ni", 0.5)))
    names = ("filters:Al", "contamination_ug_cm2:Cu")
    fitted = fit_instrument(measured(truth, sediments), sediments, start, names, relative_model_error=EXACT)
    assert dict(fitted.instrument.filters)["Al"] == pytest.approx(30, rel=0.05)
    assert dict(fitted.instrument.contamination_ug_cm2)["Cu"] == pytest.approx(2, rel=0.1)
    assert dict(fitted.instrument.contamination_ug_cm2)["Ni"] == 0.5


def test_the_mean_of_a_population_is_fitted_as_a_mean():
    fractions = sample_model("marine_sediment").draw(24, np.random.default_rng(3)).mass_fractions
    states = population_states(TRUE, 24)
    mean = ForwardModel(TRUE).expected_counts(fractions, states).mean(axis=0)
    fitted = fit_instrument(
        Spectrum(mean), fractions, replace(TRUE, pile_up_fraction=0.005), ("pile_up_fraction",), mean=True
    )
    assert fitted.instrument.pile_up_fraction == pytest.approx(0.015, rel=0.01)
    assert fitted.median_abs_ln_ratio < 0.002
    # The spectrum of the mean composition is another one.
    alone = fit_instrument(Spectrum(mean), fractions.mean(axis=0), TRUE, ("pile_up_fraction",))
    assert alone.median_abs_ln_ratio > 0.01


def test_every_parameter_is_a_field_that_changes_the_spectrum():
    full = replace(
        TRUE, polycapillary_half_kev=8.0, scatter_angle_deg=100.0, zero_peak_per_s=100.0, water_film_um=5.0,
        residual_air=0.2,
    )  # fmt: skip
    base = None
    for name, parameter in {"": None, **PARAMETERS}.items():
        instrument = full
        if parameter is not None:
            instrument = replace(full, **{name: getattr(full, name) * 1.02 + 0.01})
        counts = ForwardModel(instrument).expected_counts(
            reference_mass_fractions()[None], population_states(instrument, 1)
        )[0]
        if base is None:
            base = counts
        else:
            assert np.abs(counts - base).max() > 1e-6 * base.max(), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": ("gain",)}, r"'gain' cannot be fitted; choose from tube_kv, gain_kev, "),
        ({"parameters": ("filters:Cu",)}, r"filters:Cu can only be fitted if filters of the start names Cu; add it"),
        ({"parameters": ("scatter_angle_deg",)}, r"scatter_angle_deg is None in the start, .* give it a first value"),
        ({"parameters": ("fano", "fano")}, r"must name each quantity once, and at least one in all"),
        ({"parameters": ()}, r"must name each quantity once, and at least one in all"),
        ({"free_elements": ("Xx",)}, r"free_elements must name elements from H to U; got 'Xx'"),
        ({"mass_fractions": np.full((1, 92), 1.0)}, r"add up to 1; .* give fractions, not percent"),
        ({"mass_fractions": np.full((2, 92), 1 / 92)}, r"must have shape \(1, 92\), H to U; got \(2, 92\)"),
        (
            {"energy_range_kev": (60.0, 70.0)},
            r"there must be counts between 60 and 70 keV to fit; ",
        ),
        ({"spectra": []}, r"needs at least one spectrum; got none"),
        ({"spectra": [Spectrum(np.zeros(2048))]}, r"every spectrum of a fit must have counts; spectrum 0 is empty"),
        ({"spectra": [Spectrum(np.ones(8)), Spectrum(np.ones(9))]}, r"equally many channels; got 8 and 9"),
        ({"spectra": [Spectrum(np.ones(8))] * 2, "mean": True}, r"with mean=True give one spectrum, .* got 2"),
    ],
)
def test_errors_are_one_sentence(changes, message):
    spectrum = Spectrum(np.ones(2048))
    arguments = {"spectra": spectrum, "mass_fractions": None, "start": AVAATECH_10KV, "parameters": ("fano",)}
    with pytest.raises(ValueError, match=message) as caught:
        fit_instrument(**{**arguments, **changes})
    assert "\n" not in str(caught.value)
