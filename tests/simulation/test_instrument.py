"""Instruments: validation, presets, states and their labels."""

import dataclasses

import numpy as np
import pytest

from dataset_builder.simulation.instrument import STATE_TARGETS, draw_states, nominal_state, state_labels
from dataset_builder.simulation.presets import AVAATECH_10KV, PRESETS, instrument_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anode": "Cu"}, "anode must be one of Rh, Mo, Cr, Ag, W; got 'Cu'"),
        ({"tube_kv": 120.0}, "tube_kv must lie in"),
        ({"tube_kv": float("nan")}, "tube_kv must lie in"),
        ({"gain_kev": 0.0}, "gain_kev must be positive; got 0.0"),
        ({"film_um": -1.0}, "film_um must be 0 or more; got -1.0"),
        ({"pile_up_fraction": 1.0}, "pile_up_fraction is a share"),
        ({"exit_angle_deg": 120.0}, "exit_angle_deg must lie in"),
        ({"atmosphere": "argon"}, "atmosphere must be one of air, helium, vacuum"),
        ({"film": "cling film"}, "material 'cling film' is neither"),
        ({"filters": (("Ag", 50.0), ("steel", 1.0))}, "material 'steel' is neither"),
        ({"contamination_ug_cm2": (("Fx", 1.0),)}, "must name elements from H to U; got 'Fx'"),
    ],
)
def test_impossible_instruments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(AVAATECH_10KV, **changes)


def test_presets_are_found_by_name():
    assert instrument_model("avaatech_10kv") is AVAATECH_10KV
    assert all(instrument_model(name) is instrument for name, instrument in PRESETS.items())
    with pytest.raises(ValueError, match="there is no instrument 'avatech'; choose one of .*avaatech_10kv"):
        instrument_model("avatech")


def test_filter_name():
    instrument = dataclasses.replace(AVAATECH_10KV, filters=(("Al", 200.0), ("Ti", 25.0)))
    assert instrument.filter_name == "Al 200 um + Ti 25 um"
    assert AVAATECH_10KV.filter_name == ""


def test_scattering_angle_is_the_sum_of_both_angles_unless_given():
    instrument = dataclasses.replace(AVAATECH_10KV, incidence_angle_deg=60.0, exit_angle_deg=40.0)
    assert np.degrees(instrument.scattering_angle_rad) == pytest.approx(100)
    assert np.degrees(dataclasses.replace(instrument, scatter_angle_deg=120.0).scattering_angle_rad) == pytest.approx(
        120
    )


def test_state_labels_by_hand():
    instrument = dataclasses.replace(AVAATECH_10KV, noise_fwhm_ev=90.0, fano=0.115, live_time_s=10.0)
    state = dataclasses.replace(
        nominal_state(instrument, 2),
        gain_kev=np.array([0.02, 0.0201]),
        offset_kev=np.array([0.0, -0.004]),
        noise_fwhm_ev=np.array([90.0, 120.0]),
    )
    labels = state_labels(instrument, state, np.array([1e6, 5e5]))
    assert labels.keys() == STATE_TARGETS.keys()
    np.testing.assert_allclose(labels["gain_drift"], [0, 0.5], atol=1e-9)
    np.testing.assert_allclose(labels["zero_drift"], [0, -4])
    np.testing.assert_allclose(labels["count_rate"], [1e5, 5e4])
    # A silicon detector of Fano factor 0.115 adds 117 eV at 5.9 keV to its noise.
    np.testing.assert_allclose(labels["fwhm_mn_kalpha"], np.hypot([90, 120], 117.2), rtol=3e-3)


def test_drawn_states_vary_as_stated():
    instrument, rng = AVAATECH_10KV, np.random.default_rng(0)
    cores = [draw_states(instrument, 50, rng) for _ in range(400)]
    gains = np.array([core.gain_kev for core in cores]) / instrument.gain_kev - 1
    assert gains.mean(axis=1).std() == pytest.approx(instrument.gain_sd, rel=0.15)
    assert gains.std(axis=1).mean() == pytest.approx(0.1 * instrument.gain_sd, rel=0.1)
    assert min(core.noise_fwhm_ev.min() for core in cores) >= instrument.lowest_noise_fwhm_ev
