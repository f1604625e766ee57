"""The forward model: what instruments do to spectra."""

import dataclasses
import math
import time

import numpy as np
import pytest
import xraylib

from dataset_builder.simulation.atomic_data import ELEMENTS, mass_fractions
from dataset_builder.simulation.forward import ForwardModel, polycapillary_transmission
from dataset_builder.simulation.instrument import InstrumentModel, draw_states, nominal_state
from dataset_builder.simulation.presets import AVAATECH_10KV
from dataset_builder.simulation.sample import reference_mass_fractions

MICRO_XRF = InstrumentModel(
    name="micro-XRF",
    anode="Rh",
    tube_kv=50.0,
    tube_ua=200.0,
    live_time_s=60.0,
    num_channels=4096,
    gain_kev=0.01,
    offset_kev=-0.955,
    reference_counts=1e6,
    atmosphere="vacuum",
    film_um=0.0,
    noise_fwhm_ev=60.0,
)


@pytest.fixture(scope="module")
def model():
    return ForwardModel(AVAATECH_10KV)


@pytest.fixture(scope="module")
def micro_xrf():
    return ForwardModel(MICRO_XRF)


def composition(**formulas):
    """A sample of compounds in parts, shape `(1, 92)`."""
    fractions = np.zeros((1, len(ELEMENTS)))
    for formula, part in formulas.items():
        for element, share in mass_fractions(formula).items():
            fractions[0, ELEMENTS.index(element)] += share * part / sum(formulas.values())
    return fractions


def counts_of(model, fractions, **state):
    nominal = nominal_state(model.instrument, len(fractions))
    state = {name: np.full(len(fractions), value) for name, value in state.items()}
    return model.expected_counts(fractions, dataclasses.replace(nominal, **state))


def peak(model, counts, energy_kev, half_width_kev=0.15):
    """Counts around an energy, above the line through both ends."""
    centre_kev = model.instrument.offset_kev + model.instrument.gain_kev * np.arange(model.instrument.num_channels)
    inside = np.flatnonzero(np.abs(centre_kev - energy_kev) < half_width_kev)
    return counts[..., inside].sum(axis=-1) - 0.5 * len(inside) * (counts[..., inside[0]] + counts[..., inside[-1]])


@pytest.mark.parametrize(
    ("element", "number"), [("Si", 14), ("K", 19), ("Ca", 20), ("Ti", 22), ("Mn", 25), ("Fe", 26)]
)
def test_lines_stand_at_their_energies(model, element, number):
    counts = counts_of(model, composition(**{element: 1}))[0]
    doublet = [
        (xraylib.LineEnergy(number, line), xraylib.RadRate(number, line))
        for line in (xraylib.KL3_LINE, xraylib.KL2_LINE)
    ]
    energy_kev = sum(energy * rate for energy, rate in doublet) / sum(rate for _, rate in doublet)
    channel = energy_kev / 0.02
    near = np.arange(round(channel) - 4, round(channel) + 5)
    assert abs(near[np.argmax(counts[near])] - channel) <= 1


@pytest.mark.parametrize(
    ("formula", "energy_kev"), [("W", 1.775), ("PbS", 2.345), ("UO2", 3.17), ("Pb", 10.55), ("BaSO4", 32.2)]
)
def test_m_l_and_k_lines_of_heavy_elements(micro_xrf, formula, energy_kev):
    counts = counts_of(micro_xrf, composition(**{formula: 1}))
    assert peak(micro_xrf, counts, energy_kev)[0] > 1e3


def test_every_element_from_sodium_to_uranium_shows_its_line(micro_xrf):
    """2 % in acrylic give a peak of ten standard deviations of the noise at K alpha, or at L alpha from Pr on."""
    elements = ELEMENTS[10:]
    acrylic = composition(C5H8O2=1)
    doped = np.concatenate([0.98 * acrylic + 0.02 * composition(**{element: 1}) for element in elements])
    unseen = []
    for element, counts in zip(elements, counts_of(micro_xrf, doped)):
        number = xraylib.SymbolToAtomicNumber(element)
        energy_kev = xraylib.LineEnergy(number, xraylib.KL3_LINE if number < 59 else xraylib.L3M5_LINE)
        channel = round((energy_kev - MICRO_XRF.offset_kev) / MICRO_XRF.gain_kev)
        if peak(micro_xrf, counts, energy_kev) < 10 * np.sqrt(counts[channel - 15 : channel + 16].sum()):
            unseen.append(element)
    assert unseen == []


def test_calcium_peak_grows_with_carbonate(model):
    """Diluting a carbonate-free mud with calcite raises the Ca peak and lowers the Fe peak, always."""
    clay, calcite = composition(**{"K0.7Al2.3Mg0.25Fe0.15Si3.5O12H2": 0.5, "H2O": 0.5}), composition(CaCO3=1, H2O=1)
    shares = np.linspace(0, 0.95, 12)[:, None]
    counts = counts_of(model, shares * calcite + (1 - shares) * clay)
    assert (np.diff(peak(model, counts, 3.69)) > 0).all()
    assert (np.diff(peak(model, counts, 6.40)) < 0).all()


def test_reference_sediment_has_the_reference_counts(model):
    counts = counts_of(model, reference_mass_fractions()[None])
    assert counts.sum() == pytest.approx(model.instrument.reference_counts)


def test_a_water_film_absorbs_soft_lines_by_lambert_and_beer():
    silent = ForwardModel(dataclasses.replace(AVAATECH_10KV, scatter_scale=0.0, residual_air=0.0))
    fractions = composition(Si=1, Fe=1)
    thin, thick = (silent.emission(fractions, np.array([um])) for um in (0.0, 20.0))
    row = [line.element for line in thin.sample.lines].index("Si")
    line_kev = thin.sample.lines[row].energy_kev
    path_g_cm2 = 20e-4 / math.sin(math.radians(45))
    out, soft_in = (math.exp(-path_g_cm2 * xraylib.CS_Total_Kissel_CP("H2O", kev)) for kev in (line_kev, 2.0))
    ratio = thick.fluorescence[0, row] / thin.fluorescence[0, row]
    assert soft_in * out < ratio < out  # most of the exciting photons are harder than 2 keV
    assert thick.fluorescence[0, -1] / thin.fluorescence[0, -1] > 0.9  # Fe K beta


def test_scattering_is_single_scattering_of_a_thick_sample(model):
    emission = model.emission(composition(SiO2=1), np.zeros(1))
    column = int(np.argmin(np.abs(model.axis.energy_kev - 9.0)))
    energy_kev = model.axis.energy_kev[column]
    compton_kev = energy_kev / (1 + energy_kev / 510.999)
    scale = 4 * math.pi * AVAATECH_10KV.scatter_scale * model.excitation[column]
    mu, mu_compton = (xraylib.CS_Total_Kissel_CP("SiO2", energy) for energy in (energy_kev, compton_kev))
    rayleigh = scale * xraylib.DCS_Rayl_CP("SiO2", energy_kev, math.pi / 2) / (2 * mu)
    compton = scale * xraylib.DCS_Compt_CP("SiO2", energy_kev, math.pi / 2) / (mu + mu_compton)
    assert emission.rayleigh[0, column] == pytest.approx(rayleigh, rel=2e-3)
    assert emission.compton[0, column] == pytest.approx(compton, rel=2e-3)


def test_a_deep_water_film_scatters_like_water(model):
    deep = model.emission(composition(Fe=1), np.array([1e5]))
    water = model.emission(composition(H2O=1), np.zeros(1))
    np.testing.assert_allclose(deep.rayleigh, water.rayleigh, rtol=1e-4)
    np.testing.assert_allclose(deep.compton, water.compton, rtol=1e-4)
    assert deep.fluorescence.max() < 1e-6 * model.emission(composition(Fe=1), np.zeros(1)).fluorescence.max()


def test_light_matrices_scatter_more_and_compton_stands_below_rayleigh(micro_xrf):
    """Rhodium's K alpha at 20.2 keV and its Compton peak at 19.4 keV: strong from acrylic, weak from copper."""
    acrylic, copper = (counts_of(micro_xrf, composition(**{formula: 1}))[0] for formula in ("C5H8O2", "Cu"))
    compton, rayleigh = (peak(micro_xrf, acrylic, energy_kev, 0.4) for energy_kev in (19.42, 20.17))
    assert compton > 3 * rayleigh > 0
    assert peak(micro_xrf, copper, 19.42, 0.4) < 0.05 * compton


def test_air_shows_argon_and_hides_sodium_and_magnesium():
    mud = composition(SiO2=10, MgO=3, Na2O=3, Al2O3=4)
    in_air, in_helium = (
        ForwardModel(
            dataclasses.replace(AVAATECH_10KV, noise_fwhm_ev=100.0, noise_sd_ev=5.0, atmosphere=gas, residual_air=0.0)
        )
        for gas in ("air", "helium")
    )
    air, helium = counts_of(in_air, mud), counts_of(in_helium, mud)
    assert peak(in_air, air, 2.957)[0] > peak(in_helium, helium, 2.957)[0] + 100
    silicon = peak(in_helium, helium, 1.74)[0] / peak(in_air, air, 1.74)[0]
    magnesium = peak(in_helium, helium, 1.254, 0.1)[0] / peak(in_air, air, 1.254, 0.1)[0]
    assert magnesium > 1.3 * silicon


def test_contamination_adds_its_lines_to_every_spectrum():
    clean, dirty = (
        ForwardModel(dataclasses.replace(MICRO_XRF, contamination_ug_cm2=layers)) for layers in ((), (("Cu", 2.0),))
    )
    acrylic = composition(C5H8O2=1)
    assert peak(dirty, counts_of(dirty, acrylic), 8.04)[0] > 100
    assert abs(peak(clean, counts_of(clean, acrylic), 8.04)[0]) < 20


def test_a_filter_removes_the_soft_beam():
    """50 um of silver stop the tube's rhodium L lines, so that Cl and S are hardly excited, but not Sr."""
    open_beam, filtered = (
        ForwardModel(dataclasses.replace(MICRO_XRF, filters=filters)) for filters in ((), (("Ag", 50.0),))
    )
    column = int(np.argmin(np.abs(open_beam.axis.energy_kev - 22.0)))
    sample = composition(NaCl=10, SrO=1, SiO2=20)
    ratio = [
        peak(model, counts_of(model, sample), 2.62)[0] / peak(model, counts_of(model, sample), 14.14)[0]
        for model in (open_beam, filtered)
    ]
    assert ratio[1] < 0.05 * ratio[0]
    energy_kev = open_beam.axis.energy_kev
    expected = [
        math.exp(-xraylib.CS_Total_Kissel(47, energy) * 10.5 * 50e-4) for energy in energy_kev[column : column + 3]
    ]
    transmitted = (filtered.excitation / open_beam.excitation)[column : column + 3]
    np.testing.assert_allclose(transmitted / transmitted[0], np.array(expected) / expected[0], rtol=1e-3)


def test_polycapillary_passes_half_at_its_energy_and_falls_as_the_square_above():
    passed = polycapillary_transmission([1.0, 15.0, 150.0, 300.0], 15.0)
    assert passed[0] > 0.99
    assert passed[1] == 0.5
    assert passed[3] / passed[2] == pytest.approx(0.25, rel=0.01)
    with_optic = ForwardModel(dataclasses.replace(MICRO_XRF, polycapillary_half_kev=10.0))
    without = ForwardModel(MICRO_XRF)
    ratio = with_optic.excitation / without.excitation
    soft, hard = (int(np.argmin(np.abs(without.axis.energy_kev - energy))) for energy in (10.0, 40.0))
    assert ratio[hard] / ratio[soft] == pytest.approx(2 / 17, rel=0.02)


def test_counts_do_not_depend_on_batches_or_on_what_was_simulated_before():
    fractions = np.concatenate([composition(CaCO3=1, Fe2O3=0.2), composition(SiO2=1, CaCO3=0.5, Fe2O3=0.1)])
    fresh, used = ForwardModel(AVAATECH_10KV), ForwardModel(AVAATECH_10KV)
    for element in ELEMENTS[11:30]:
        counts_of(used, composition(**{element: 1}))
    np.testing.assert_array_equal(counts_of(fresh, fractions), counts_of(used, fractions))
    np.testing.assert_allclose(
        counts_of(fresh, fractions[1:])[0], counts_of(fresh, fractions)[1], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("shape", [(92,), (3, 28)])
def test_compositions_of_another_shape_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"mass_fractions must have shape \(B, 92\)"):
        model.expected_counts(np.ones(shape), nominal_state(AVAATECH_10KV, 3))


def test_a_thousand_spectra_take_less_than_a_second_of_processor_time(model):
    """2,800 spectra/s, Poisson draws included, were measured on one quiet core; the bound catches a collapse."""
    rng = np.random.default_rng(0)
    fractions = reference_mass_fractions() * np.exp(0.3 * rng.standard_normal((128, 92)))
    fractions /= fractions.sum(axis=1, keepdims=True)
    states = draw_states(AVAATECH_10KV, 128, rng)
    model.expected_counts(fractions, states)
    start = time.process_time()
    for _ in range(3):
        rng.poisson(model.expected_counts(fractions, states))
    assert 3 * 128 / (time.process_time() - start) > 500


def test_a_new_instrument_takes_a_fraction_of_a_second(micro_xrf):
    """0.14 s were measured for 4096 channels at 50 kV once the process is warm."""
    start = time.process_time()
    ForwardModel(dataclasses.replace(MICRO_XRF, anode="Mo", tube_kv=49.0, filters=(("Al", 100.0),)))
    assert time.process_time() - start < 1.0
