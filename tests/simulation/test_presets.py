"""Named and random instruments."""

import time

import numpy as np
import pytest

from dataset_builder.simulation import PRESETS, ForwardModel, instrument_model
from dataset_builder.simulation.atomic_data import ELEMENTS
from dataset_builder.simulation.forward import polycapillary_transmission
from dataset_builder.simulation.instrument import nominal_state
from dataset_builder.simulation.random_instrument import draw_instrument
from dataset_builder.simulation.sample import reference_mass_fractions


def expected(instrument, mass_fractions=None):
    fractions = reference_mass_fractions() if mass_fractions is None else mass_fractions
    counts = ForwardModel(instrument).expected_counts(fractions[None], nominal_state(instrument, 1))[0]
    return instrument.offset_kev + instrument.gain_kev * np.arange(instrument.num_channels), counts


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset_sees_calcium_and_iron_at_their_energies(name):
    energy_kev, counts = expected(instrument_model(name))
    assert np.isfinite(counts).all() and counts.min() >= 0
    zero_peak = PRESETS[name].zero_peak_per_s * PRESETS[name].live_time_s
    # Pile-up and drift push a little out of the last channel.
    assert counts.sum() == pytest.approx(PRESETS[name].reference_counts + zero_peak, rel=0.02)
    for line_kev in (3.691, 6.400):
        near = np.abs(energy_kev - line_kev) < 0.15
        peak = energy_kev[near][np.argmax(counts[near])]
        assert peak == pytest.approx(line_kev, abs=0.03)
        beside = (np.abs(energy_kev - line_kev) > 0.35) & (np.abs(energy_kev - line_kev) < 0.45)
        assert counts[near].max() > 1.2 * counts[beside].min()


@pytest.mark.parametrize(
    ("name", "element", "line_kev"),
    [
        ("itrax_mo", "Sr", 14.14),
        ("avaatech_30kv", "Sr", 14.14),
        ("avaatech_50kv", "Ba", 32.07),
        ("handheld_40kv", "Rb", 13.37),
        ("handheld_15kv", "Si", 1.74),
        ("epsilon1_50kv", "Sr", 14.14),
        ("pixl", "Ti", 4.51),
        ("m4_tornado", "Na", 1.04),
        ("itrax_cr", "K", 3.31),
    ],
)
def test_preset_sees_what_it_is_used_for(name, element, line_kev):
    """1 wt% more of the element adds a peak of at least five standard deviations."""
    instrument = instrument_model(name)
    richer = reference_mass_fractions().copy()
    richer[ELEMENTS.index(element)] += 0.01
    energy_kev, before = expected(instrument)
    _, after = expected(instrument, richer / richer.sum())
    near = np.abs(energy_kev - line_kev) < 0.1
    assert (after - before)[near].sum() > 5 * np.sqrt(before[near].sum())


def test_unknown_preset_is_one_sentence_with_the_choices():
    with pytest.raises(ValueError, match=r"no instrument 'avatech'; choose one of avaatech_10kv, .*pixl\."):
        instrument_model("avatech")


def test_zero_peak_does_not_count_as_photons():
    """The M4's photons are the reference counts, however many pulses its zero peak has."""
    energy_kev, counts = expected(instrument_model("m4_tornado"))
    assert counts[np.abs(energy_kev) > 0.3].sum() == pytest.approx(6e6, rel=0.02)
    assert energy_kev[counts.argmax()] == pytest.approx(0, abs=0.011)


def test_steeper_polycapillary_passes_half_at_the_same_energy():
    energy_kev = np.array([5.0, 10.0, 20.0])
    assert polycapillary_transmission(energy_kev, 10.0, 4.0) == pytest.approx([16 / 17, 0.5, 1 / 17])


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(11)
    return [draw_instrument(rng) for _ in range(200)]


def test_random_instruments_make_valid_spectra_quickly(drawn):
    seconds = []
    for instrument in drawn:
        start = time.process_time()
        model = ForwardModel(instrument)
        seconds.append(time.process_time() - start)
        counts = model.expected_counts(reference_mass_fractions()[None], nominal_state(instrument, 1))[0]
        assert np.isfinite(counts).all() and counts.min() >= 0
        assert counts.sum() == pytest.approx(instrument.reference_counts, rel=0.05)
        energy_kev = instrument.offset_kev + instrument.gain_kev * np.arange(instrument.num_channels)
        above_sum_peaks = energy_kev > 3 * instrument.tube_kv
        assert counts[above_sum_peaks].sum() < 0.001 * counts.sum()
    assert np.median(seconds[20:]) < 0.2  # 0.08 s were measured


def test_random_instruments_cover_the_ranges_of_real_ones(drawn):
    def values(name):
        return np.array([getattr(each, name) for each in drawn])

    assert set(values("anode")) == {"Rh", "Mo", "Cr", "Ag", "W"}
    assert {name for each in drawn for name, _ in each.filters} == {"Al", "Ag", "Cu", "Pd", "Ti"}
    assert set(values("num_channels")) == {1024, 2048, 4096}
    assert set(values("atmosphere")) == {"air", "helium", "vacuum"}
    for name, low, high in (
        ("tube_kv", 8, 50),
        ("gain_kev", 0.008, 0.025),
        ("offset_kev", -0.03, 0.03),
        ("noise_fwhm_ev", 70, 190),
        ("pile_up_fraction", 0.002, 0.03),
        ("water_film_um", 0, 50),
    ):
        found, tenth = values(name), 0.1 * (high - low)
        assert low <= found.min() < low + tenth and high - tenth < found.max() <= high, name
    decades = np.log10(values("reference_counts"))
    assert 4 <= decades.min() < 4.2 and 6.5 < decades.max() <= np.log10(5e6)
    # Log-uniform: as many below the middle decade as above.
    assert np.mean(decades < 0.5 * (4 + np.log10(5e6))) == pytest.approx(0.5, abs=0.1)
    assert values("gain_sd").max() <= 0.01


def test_random_instruments_are_combinations_that_somebody_builds(drawn):
    for each in drawn:
        names = [name for name, _ in each.filters]
        assert not names or each.tube_kv >= 12
        assert not (each.anode == "Cr" and set(names) & {"Cu", "Pd", "Ag"})
        assert not ({"Cu", "Pd", "Ag"} & set(names) and each.tube_kv < 25)
        assert each.water_film_um == 0 or "core scanner" in each.name
        assert (each.polycapillary_half_kev is not None) == ("micro-XRF" in each.name)


def test_a_seed_is_an_instrument():
    assert draw_instrument(np.random.default_rng(3)) == draw_instrument(np.random.default_rng(3))
    assert draw_instrument(np.random.default_rng(3)) != draw_instrument(np.random.default_rng(4))
