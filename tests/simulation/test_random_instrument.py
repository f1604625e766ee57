"""Instruments like a preset: the same make and settings, spread around it, never impossible."""

import numpy as np
import pytest

from dataset_builder.simulation import PRESETS, instrument_model
from dataset_builder.simulation.random_instrument import (
    VARIED_ANGLE_SD_DEG,
    VARIED_CONTAMINATION_LOG_SD,
    VARIED_GAIN_SD,
    VARIED_LOG_SD,
    VARIED_OFFSET_SD_KEV,
    vary_instrument,
)

NUMBER = 2000


def varied(name, number=NUMBER, seed=0):
    rng = np.random.default_rng(seed)
    return [vary_instrument(instrument_model(name), rng) for _ in range(number)]


def test_one_state_of_the_generator_gives_one_instrument():
    first, second = varied("handheld_40kv", 2)
    assert varied("handheld_40kv", 2) == [first, second]
    assert first != second and first != instrument_model("handheld_40kv")
    assert varied("handheld_40kv", 1, seed=1) != [first]


def test_make_and_settings_stay():
    preset = instrument_model("handheld_15kv")
    for instrument in varied("handheld_15kv", 20):
        for name in ("name", "anode", "tube_kv", "filters", "num_channels", "atmosphere", "live_time_s", "film"):
            assert getattr(instrument, name) == getattr(preset, name), name


@pytest.mark.parametrize("name", ["handheld_15kv", "itrax_mo", "m4_tornado"])
def test_what_varies_scatters_around_the_preset_as_stated(name):
    """The median of n normal deviates has a standard error of 1.25 / sqrt(n), their standard deviation one of
    0.71 / sqrt(n); four of them are allowed."""
    preset, instruments = instrument_model(name), varied(name)
    capped = {"tube_takeoff_angle_deg", "residual_air"}

    def check(deviates, sd, spread=True):
        assert np.median(deviates) == pytest.approx(0, abs=4 * 1.25 * sd / np.sqrt(NUMBER))
        if spread:
            assert np.std(deviates) == pytest.approx(sd, rel=4 * 0.71 / np.sqrt(NUMBER))

    for field, sd in VARIED_LOG_SD.items():
        values = np.array([getattr(instrument, field) for instrument in instruments])
        if getattr(preset, field) == 0:  # what is not there does not appear
            assert not values.any(), field
        else:
            check(np.log(values / getattr(preset, field)), sd, spread=field not in capped)
    check([instrument.gain_kev / preset.gain_kev - 1 for instrument in instruments], VARIED_GAIN_SD)
    check([instrument.offset_kev - preset.offset_kev for instrument in instruments], VARIED_OFFSET_SD_KEV)
    for field in ("incidence_angle_deg", "exit_angle_deg"):
        turned = [getattr(instrument, field) - getattr(preset, field) for instrument in instruments]
        check(turned, VARIED_ANGLE_SD_DEG)
    for place, (element, thickness) in enumerate(preset.contamination_ug_cm2):
        found = [instrument.contamination_ug_cm2[place] for instrument in instruments]
        assert {each for each, _ in found} == {element}
        check(np.log([each / thickness for _, each in found]), VARIED_CONTAMINATION_LOG_SD)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_all_presets_can_be_varied_into_possible_instruments(name):
    for instrument in varied(name, 300):  # an impossible one raises ValueError
        assert instrument.residual_air <= 0.9 and instrument.tube_takeoff_angle_deg <= 80
        assert 10 <= instrument.incidence_angle_deg <= 90 and 10 <= instrument.exit_angle_deg <= 90
