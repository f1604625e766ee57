"""The physics simulation against hand calculations, and its cores."""

import dataclasses
import math
import time

import numpy as np
import pytest
import xraylib

from dataset_builder.simulation import AVAATECH_10KV, TARGET_NAMES, ForwardModel, detector, simulate_sediment_cores
from dataset_builder.simulation.atomic_data import mass_fractions
from dataset_builder.simulation.cores import draw_core, simulate_core, smooth_history
from dataset_builder.simulation.forward import _drift, _pile_up_and_noise
from dataset_builder.simulation.instrument import draw_states, nominal_state
from dataset_builder.simulation.sample import (
    COMPONENTS,
    ELEMENTS,
    component_elements,
    reference_mass_fractions,
    sea_water_elements,
    weight_percent_labels,
    wet_mass_fractions,
)
from dataset_builder.simulation.tube import tube_photons


@pytest.fixture(scope="module")
def model():
    return ForwardModel(AVAATECH_10KV)


def pure(element):
    fractions = np.zeros((1, len(ELEMENTS)))
    fractions[0, ELEMENTS.index(element)] = 1
    return fractions


def with_one_excitation(model, energy_kev):
    """A copy of the model excited only in the bin next to this energy, and the bin's number."""
    copy = ForwardModel.__new__(ForwardModel)
    vars(copy).update(vars(model))
    column = int(np.argmin(np.abs(model.excitation_kev - energy_kev)))
    copy.excitation = np.zeros_like(model.excitation)
    copy.excitation[column] = 1.0
    return copy, column


def test_iron_fluorescence_is_shermans_formula(model):
    single, column = with_one_excitation(model, 8.5)
    energy_kev = single.excitation_kev[column]
    sine = math.sin(math.radians(45))
    emitted = single.emitted(pure("Fe"), np.zeros(1))[0]
    for transition in ("KL3", "KL2", "KM3"):
        code = getattr(xraylib, f"{transition}_LINE")
        line_kev = xraylib.LineEnergy(26, code)
        production = xraylib.CS_FluorLine_Kissel_Cascade(26, code, energy_kev)
        expected = (
            production / (xraylib.CS_Total(26, energy_kev) / sine + xraylib.CS_Total(26, line_kev) / sine) / sine
        )
        (row,) = [i for i, line in enumerate(single.lines) if (line.element, line.transition) == ("Fe", transition)]
        assert emitted[row] == pytest.approx(expected, rel=1e-9)


def test_calcium_in_calcite_below_a_water_film(model):
    single, column = with_one_excitation(model, 6.0)
    energy_kev, line_kev = single.excitation_kev[column], xraylib.LineEnergy(20, xraylib.KL3_LINE)
    sine, film_g_cm2 = math.sin(math.radians(45)), 20e-4
    fractions = np.zeros((1, len(ELEMENTS)))
    for element, fraction in mass_fractions("CaCO3").items():
        fractions[0, ELEMENTS.index(element)] = fraction
    expected = (
        fractions[0, ELEMENTS.index("Ca")]
        * xraylib.CS_FluorLine_Kissel_Cascade(20, xraylib.KL3_LINE, energy_kev)
        / (xraylib.CS_Total_CP("CaCO3", energy_kev) + xraylib.CS_Total_CP("CaCO3", line_kev))
        * math.exp(
            -film_g_cm2 / sine * (xraylib.CS_Total_CP("H2O", energy_kev) + xraylib.CS_Total_CP("H2O", line_kev))
        )
    )
    (row,) = [i for i, line in enumerate(single.lines) if (line.element, line.transition) == ("Ca", "KL3")]
    assert single.emitted(fractions, np.array([20.0]))[0, row] == pytest.approx(expected, rel=1e-6)


def test_scattering_of_silica_is_single_scattering_of_a_thick_sample(model):
    single, column = with_one_excitation(model, 9.0)
    energy_kev, angle = single.excitation_kev[column], math.pi / 2
    compton_kev = energy_kev / (1 + energy_kev / 510.999)
    fractions = np.zeros((1, len(ELEMENTS)))
    for element, fraction in mass_fractions("SiO2").items():
        fractions[0, ELEMENTS.index(element)] = fraction
    emitted = single.emitted(fractions, np.zeros(1))[0]
    scale = 4 * math.pi * AVAATECH_10KV.scatter_scale
    mu, mu_compton = (xraylib.CS_Total_CP("SiO2", energy) for energy in (energy_kev, compton_kev))
    rayleigh = scale * xraylib.DCS_Rayl_CP("SiO2", energy_kev, angle) / (2 * mu)
    compton = scale * xraylib.DCS_Compt_CP("SiO2", energy_kev, angle) / (mu + mu_compton)
    first = len(single.lines) + column
    assert emitted[first] == pytest.approx(rayleigh, rel=1e-6)
    assert emitted[first + len(single.excitation)] == pytest.approx(compton, rel=1e-6)
    assert single.compton_kev[column] == pytest.approx(compton_kev, rel=1e-6)


@pytest.mark.parametrize(
    ("element", "number"), [("Si", 14), ("K", 19), ("Ca", 20), ("Ti", 22), ("Mn", 25), ("Fe", 26)]
)
def test_lines_stand_at_their_energies(model, element, number):
    counts = model.expected_counts(pure(element), nominal_state(model.instrument, 1))[0]
    doublet = [
        (xraylib.LineEnergy(number, line), xraylib.RadRate(number, line))
        for line in (xraylib.KL3_LINE, xraylib.KL2_LINE)
    ]
    energy_kev = sum(energy * rate for energy, rate in doublet) / sum(rate for _, rate in doublet)
    channel = energy_kev / 0.02
    near = np.arange(round(channel) - 4, round(channel) + 5)
    assert abs(near[np.argmax(counts[near])] - channel) <= 1


def test_calcium_peak_grows_with_carbonate(model):
    """Diluting a carbonate-free mud with calcite raises the Ca peak and lowers the Fe peak, always."""
    elements = component_elements()
    calcite = elements[COMPONENTS.index("calcite")]
    clay = elements[COMPONENTS.index("illite")]
    shares = np.linspace(0, 0.95, 12)[:, None]
    wet = wet_mass_fractions(shares * calcite + (1 - shares) * clay, np.full(12, 0.5))
    counts = model.expected_counts(wet, nominal_state(model.instrument, 12))
    assert (np.diff(counts[:, 178:192].sum(axis=1)) > 0).all()
    assert (np.diff(counts[:, 312:328].sum(axis=1)) < 0).all()


def test_reference_sediment_has_the_reference_counts(model):
    counts = model.expected_counts(reference_mass_fractions()[None], nominal_state(model.instrument, 1))
    assert counts.sum() == pytest.approx(model.instrument.reference_counts)


def test_tube_has_rhodium_lines_and_no_photon_above_its_voltage():
    energy_kev, photons, width_kev = tube_photons("Rh", 10.0)
    assert energy_kev.max() < 10.0
    assert (photons > 0).all()
    lines = width_kev == 0
    strongest = energy_kev[lines][np.argmax(photons[lines])]
    assert strongest == pytest.approx(xraylib.LineEnergy(45, xraylib.L3M5_LINE))
    # A molybdenum tube at 30 kV shows its K lines, the same tube at 15 kV (below the edge at 20.0 keV) does not.
    assert tube_photons("Mo", 30.0)[0][tube_photons("Mo", 30.0)[2] == 0].max() > 17
    assert tube_photons("Mo", 15.0)[0][tube_photons("Mo", 15.0)[2] == 0].max() < 3


def test_tube_window_absorbs_by_lambert_and_beer():
    energy_kev, thin, _ = tube_photons("Rh", 10.0, window_um=100.0)
    _, thick, _ = tube_photons("Rh", 10.0, window_um=300.0)
    expected = [math.exp(-xraylib.CS_Total(4, energy) * 1.848 * 0.02) for energy in energy_kev]
    np.testing.assert_allclose(thick / thin, expected, rtol=1e-9)


def test_response_conserves_photons_and_has_the_stated_width():
    energy_kev, edges_kev = np.array([3.0, 6.4]), 0.005 * np.arange(4001)
    options = {"noise_fwhm_ev": 100.0, "fano": 0.12, "tail_kev": 0.25}
    full = detector.response_matrix(
        energy_kev, np.zeros(2), edges_kev, tail_fraction=0.03, shelf_fraction=0.01, **options
    )
    np.testing.assert_allclose(full.sum(axis=1), 1, atol=1e-6)
    assert (full > -1e-12).all()
    pure_peak = detector.response_matrix(
        energy_kev, np.zeros(2), edges_kev, tail_fraction=0.0, shelf_fraction=0.0, **options
    )
    centres_kev = 0.5 * (edges_kev[1:] + edges_kev[:-1])
    for row, energy in zip(pure_peak, energy_kev):
        above_half = centres_kev[row > row.max() / 2]
        expected_ev = math.sqrt(100.0**2 + 2.3548**2 * 0.12 * 3.65 * 1e3 * energy)
        assert 1e3 * np.ptp(above_half) == pytest.approx(expected_ev, abs=10)
        escape = row[np.abs(centres_kev - (energy - 1.740)) < 0.2].sum()
        # Reed and Ware: about 1 % of photons just above the silicon edge, 0.3-0.7 % at a few keV.
        assert 0.002 < escape < 0.012


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


def test_pile_up_puts_sums_at_multiples_and_keeps_the_number_of_recorded_pulses():
    ideal = np.zeros((1, 512))
    ideal[0, 100] = 1000.0
    counts = _pile_up_and_noise(ideal, np.array([0.05]), np.zeros(1))[0]
    for number in (1, 2, 3):  # n pulses together with probability (1 - t) t**(n - 1)
        assert counts[100 * number] == pytest.approx(1000 * 0.95 * 0.05 ** (number - 1), rel=1e-6)
    assert counts.sum() == pytest.approx(1000, rel=1e-5)


def test_noise_widens_a_peak_by_its_variance():
    ideal = np.zeros((1, 512))
    ideal[0, 250] = 1.0
    counts = _pile_up_and_noise(ideal, np.zeros(1), np.array([3.0]))[0]
    channels = np.arange(512)
    assert (counts * channels).sum() == pytest.approx(250, abs=1e-6)
    assert (counts * (channels - 250) ** 2).sum() == pytest.approx(9.0, rel=1e-3)


def test_drift_moves_peaks_and_conserves_counts():
    instrument = AVAATECH_10KV
    state = nominal_state(instrument, 1)
    state = dataclasses.replace(state, gain_kev=np.array([0.0202]), offset_kev=np.array([0.01]))
    channels = np.arange(instrument.num_channels)
    nominal = np.exp(-0.5 * ((channels - 320) / 3.0) ** 2)[None]
    moved = _drift(nominal, instrument, state)[0]
    assert moved.sum() == pytest.approx(nominal.sum())
    assert (moved * channels).sum() / moved.sum() == pytest.approx((6.4 - 0.01) / 0.0202, abs=0.01)


def test_counts_are_poisson_around_their_expectation(model):
    """The sum of squared normalised deviations of n counts is n with a standard deviation of sqrt(2 n)."""
    seed, core_index, number = 11, 3, 64
    (spectra,) = simulate_core(model, seed, core_index, number)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(core_index,)))
    core = draw_core(core_index, number, rng)
    expected = model.expected_counts(core.wet, draw_states(model.instrument, number, rng))
    counts = np.stack([spectrum.counts for spectrum in spectra])
    often = expected > 20
    squares = (counts[often] - expected[often]) ** 2 / expected[often]
    assert abs(squares.mean() - 1) < 5 * math.sqrt(2 / often.sum())


def counts_of(**options):
    return [spectrum for batch in simulate_sediment_cores(**options) for spectrum in batch]


def test_same_seed_same_spectra_whatever_the_batches_and_the_other_cores():
    options = {"num_spectra": 310, "num_cores": 2, "seed": 5}
    reference = counts_of(**options)
    assert [spectrum.core for spectrum in reference].count("simulated-00000") == 155
    for other in (
        counts_of(**options, batch_size=7),
        counts_of(**options, core_indices=[0]) + counts_of(**options, core_indices=[1]),
    ):
        assert len(other) == len(reference)
        for left, right in zip(reference, other):
            np.testing.assert_array_equal(left.counts, right.counts)
            assert (left.targets, left.core, left.depth_mm) == (right.targets, right.core, right.depth_mm)
    assert (counts_of(**{**options, "seed": 6})[0].counts != reference[0].counts).any()


def test_batches_have_the_size_asked_for():
    assert [len(batch) for batch in simulate_sediment_cores(50, 5, seed=0, batch_size=20)] == [20, 20, 10]


@pytest.mark.parametrize(("num_spectra", "num_cores"), [(3, 5), (10, 0)])
def test_impossible_sizes_are_refused(num_spectra, num_cores):
    with pytest.raises(ValueError, match="num_cores must be at least 1 and at most num_spectra"):
        next(simulate_sediment_cores(num_spectra, num_cores, seed=0))


def test_labels_by_hand():
    calcite_and_quartz = np.zeros((2, len(COMPONENTS)))
    calcite_and_quartz[0, COMPONENTS.index("calcite")] = 1.0
    calcite_and_quartz[1, COMPONENTS.index("quartz")] = 0.8
    calcite_and_quartz[1, COMPONENTS.index("organic_matter")] = 0.2
    labels = weight_percent_labels(calcite_and_quartz, calcite_and_quartz @ component_elements())
    label = {name: labels[:, i] for i, name in enumerate(TARGET_NAMES)}
    assert label["CaCO3"] == pytest.approx([100, 0])
    # CaO is 56.08 of 100.09 g/mol of calcite, less its traces; C is 1273.2 of 2377.2 g/mol of the organic matter.
    assert label["CaO"][0] == pytest.approx(56.03, rel=0.01)
    assert label["TOC"] == pytest.approx([0, 20 * 1273.2 / 2377.2], rel=1e-3)
    assert label["SiO2"] == pytest.approx([0, 80], rel=1e-3, abs=1e-9)


def test_compositions_add_up():
    np.testing.assert_allclose(component_elements().sum(axis=1), 1, rtol=1e-12)
    assert sea_water_elements().sum() == pytest.approx(1)
    core = draw_core(0, 200, np.random.default_rng(0))
    np.testing.assert_allclose(core.wet.sum(axis=1), 1, rtol=1e-12)
    assert (core.wet >= 0).all()
    assert ((core.labels > 0) & (core.labels < 100)).all()


def test_neighbouring_depths_are_alike_and_cores_differ():
    cores = [draw_core(i, 150, np.random.default_rng(i)) for i in range(30)]
    carbonate = np.log([core.labels[:, 0] for core in cores])
    within = np.abs(np.diff(carbonate, axis=1)).mean()
    between = np.abs(np.subtract.outer(carbonate.mean(axis=1), carbonate.mean(axis=1))).mean()
    assert between > 5 * within


def test_history_has_unit_variance_and_exponential_memory():
    depth_mm = 10.0 * np.arange(60)
    history = smooth_history(depth_mm, 200.0, 20_000, np.random.default_rng(0))
    assert history.var() == pytest.approx(1, abs=0.02)
    for lag in (1, 10, 30):
        assert (history[0] * history[lag]).mean() == pytest.approx(math.exp(-10 * lag / 200), abs=0.03)


def test_a_thousand_spectra_take_about_a_second_of_processor_time():
    start = time.process_time()
    number = len(counts_of(num_spectra=2000, num_cores=10, seed=0))
    # 3,700 spectra/s were measured on one core; the bound only catches a collapse.
    assert number / (time.process_time() - start) > 500


def test_mean_spectrum_resembles_measured_sediment(real_data):
    measured = np.load(real_data / "avaatech" / "channel_statistics.npz", allow_pickle=False)["mean_counts"]
    spectra = counts_of(num_spectra=2000, num_cores=200, seed=0)
    simulated = np.mean([spectrum.counts for spectrum in spectra], axis=0)
    channels = slice(60, 501)  # 1.2 to 10 keV
    deviation = np.abs(np.log(simulated[channels] / measured[channels]))
    assert np.median(deviation) < 0.15
    assert simulated.sum() == pytest.approx(measured.sum(), rel=0.15)
