"""The simulation against genuine spectra: the numbers of `benchmarks/SIMULATION.md`, kept from getting worse."""

import numpy as np
import pytest

from dataset_builder.simulation import PRESETS, ForwardModel, instrument_model
from dataset_builder.simulation.atomic_data import ELEMENTS
from dataset_builder.simulation.instrument import nominal_state
from dataset_builder.simulation.sample import reference_mass_fractions

BENCHMARK = "simulation"


def comparison(benchmark, preset):
    return next(each for each in benchmark.COMPARISONS if each.preset == preset)


def test_mean_of_marine_sediments(benchmark, real_data):
    """0.045 was measured; the composition that is fitted along stays that of a wet marine sediment."""
    spectra, fitted = benchmark.compare(comparison(benchmark, "avaatech_10kv"), real_data)
    assert fitted.fitted_channels.sum() == pytest.approx((18 - 1.2) / 0.02, abs=2)
    assert fitted.median_abs_ln_ratio <= 0.06
    channels = fitted.fitted_channels
    ratio = np.log(spectra[0].counts[channels] / fitted.expected_counts[0, channels])
    assert np.median(np.abs(ratio)) == pytest.approx(fitted.median_abs_ln_ratio)  # all channels count
    percent = dict(zip(ELEMENTS, 100 * fitted.mass_fractions.mean(axis=0), strict=True))
    for element, low, high in (("Si", 5, 20), ("Al", 1, 6), ("Ca", 1, 8), ("Fe", 0.5, 4), ("K", 0.3, 2), ("H", 4, 9)):
        assert low < percent[element] < high, element

    measured_sd, simulated_sd = benchmark.spread_between_spectra(real_data, fitted)
    relative = np.log(simulated_sd[channels] / measured_sd[channels])
    assert np.median(np.abs(relative)) < 0.5  # 0.21 was measured


def test_sensitivity_is_the_same_for_six_certified_materials(benchmark, real_data):
    """Relative standard deviation over OREAS materials of an instrument that nothing was fitted to; 1 is perfect."""
    found = benchmark.sensitivities(real_data, benchmark.unfitted(instrument_model("epsilon1_12kv")))
    assert {element: len(values) for element, values in found.items()} == {"K": 5, "Ca": 5, "Ti": 5, "Mn": 5, "Fe": 6}
    for element, values in found.items():
        assert benchmark.relative_sd(values) <= 0.07, element
        assert benchmark.largest_deviation(values) <= 0.12, element


@pytest.mark.parametrize(
    ("preset", "most"),
    [("handheld_15kv", 0.06), ("handheld_40kv", 0.07), ("m4_tornado", 0.07), ("pixl", 0.05), ("itrax_mo", 0.09)],
)
def test_presets_describe_genuine_spectra(benchmark, real_data, preset, most):
    _, fitted = benchmark.compare(comparison(benchmark, preset), real_data)
    assert fitted.median_abs_ln_ratio <= most


def test_net_area_by_hand(benchmark):
    """A triangle of 10 counts on a sloping background, in channels of 10 eV."""
    energy_kev = np.arange(0, 2, 0.01)
    counts = 5 + 3 * energy_kev
    peak = np.maximum(0, 1 - np.abs(energy_kev - 1.0) / 0.05)
    assert benchmark.net_area(energy_kev, counts + 2 * peak, 1.0) == pytest.approx(2 * peak.sum(), rel=1e-9)


def test_compositions_of_certified_materials_close(benchmark, real_data):
    materials = benchmark.oreas_materials(real_data)
    for name, fractions in materials.items():
        assert fractions.sum() == pytest.approx(1) and fractions.min() >= 0, name
    silica = materials["22d"][ELEMENTS.index("Si")] / 0.4674
    assert silica == pytest.approx(0.985, abs=0.01)  # OREAS 22d is a quartz blank
    assert materials["45e"][ELEMENTS.index("Fe")] == pytest.approx(0.2412, abs=1e-4)


@pytest.mark.parametrize("preset", ["avaatech_10kv", "m4_tornado"])
def test_total_counts_scatter_as_poisson(preset):
    """The source draws each channel from a Poisson distribution, so totals are Poisson too: variance = mean."""
    instrument = PRESETS[preset]
    mean = ForwardModel(instrument).expected_counts(reference_mass_fractions()[None], nominal_state(instrument, 1))[0]
    rng = np.random.default_rng(1)
    totals = np.array([rng.poisson(mean).sum() for _ in range(2000)])
    assert totals.mean() == pytest.approx(mean.sum(), abs=5 * np.sqrt(mean.sum() / 2000))
    assert totals.var(ddof=1) == pytest.approx(mean.sum(), rel=5 * np.sqrt(2 / 2000))
