"""Sample models: closure, labels by hand, correlations, the flat prior, real samples inside the simulated spread."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from dataset_builder.simulation import SAMPLE_MODELS, SampleModel, sample_model
from dataset_builder.simulation.assemblages import Assemblage
from dataset_builder.simulation.atomic_data import ELEMENTS, mass_fractions
from dataset_builder.simulation.minerals import (
    CALCIUM_CARBONATE,
    MINERALS,
    ORGANIC,
    TRACES,
    formula_vector,
    trace_vector,
)
from dataset_builder.simulation.sample import reference_mass_fractions
from dataset_builder.simulation.targets import LABEL_ELEMENTS, OXIDES, SAMPLE_TARGETS

RATIOS = "Si/Al K/Al Ti/Al Fe/Al Mg/Ca Sr/Ca Rb/K Zr/Ti Mn/Fe Ni/Fe V/Cr Th/U Y/Zr Zn/Fe Cu/Zn P/Ca S/Fe K/Ca Ca/Fe"


def model_of(*assemblages, **options):
    return SampleModel("test", assemblages, **options)


@pytest.mark.parametrize("name", SAMPLE_MODELS)
def test_compositions_add_up_and_labels_fit_them(name):
    model = sample_model(name, flat_share=0.2)
    composition = model.draw(400, np.random.default_rng(0))
    np.testing.assert_allclose(composition.mass_fractions.sum(axis=1), 1, rtol=1e-9)
    assert composition.mass_fractions.min() >= 0
    assert tuple(composition.labels) == SAMPLE_TARGETS
    assert {len(values) for values in composition.labels.values()} == {400}
    for target in SAMPLE_TARGETS:
        values = composition.labels[target]
        assert np.isnan(values).all() if target in model.without else (values >= 0).all()
    # Drying only takes water: an element that water has none of keeps its ratio to any other.
    si, fe = (composition.mass_fractions[:, ELEMENTS.index(element)] for element in ("Si", "Fe"))
    np.testing.assert_allclose(composition.labels["Si"] * fe, composition.labels["Fe"] * si, rtol=1e-9)


def test_every_component_can_be_looked_up():
    for component in MINERALS:
        assert formula_vector(component).sum() == pytest.approx(1)
    assert set(TRACES) | set(ORGANIC) | set(CALCIUM_CARBONATE) <= set(MINERALS)
    used = {component for model in SAMPLE_MODELS.values() for component in model.components}
    assert set(MINERALS) <= used
    with pytest.raises(ValueError, match="component 'unobtainium' is unknown"):
        formula_vector("unobtainium")


def test_labels_by_hand():
    solids = {"calcite": (30.0, 0.0), "dolomite": (20.0, 0.0), "quartz": (40.0, 0.0), "organic_matter": (10.0, 0.0)}
    labels = model_of(Assemblage("dry", solids, trace_log_sd=0.0)).draw(1, np.random.default_rng(0)).labels
    traces = sum(share * trace_vector(name).sum() for name, (share, _) in solids.items()) / 100
    scale = 1 / (1 + traces)
    # Half of dolomite's formula (100.09 of 184.40 g/mol) is CaCO3; organic matter holds 1273.2 g C in 2377.2 g.
    assert labels["CaCO3"][0] == pytest.approx(scale * (30 + 20 * 100.09 / 184.40), rel=1e-3)
    assert labels["TOC"][0] == pytest.approx(scale * 10 * 1273.2 / 2377.2, rel=1e-3)
    assert labels["SiO2"][0] == pytest.approx(scale * 40, rel=2e-3)
    assert labels["CaO"][0] == pytest.approx(scale * (30 * 56.08 / 100.09 + 20 * 56.08 / 184.40), rel=1e-3)
    # 1300 ppm Sr of calcite, 250 ppm of dolomite
    assert labels["Sr"][0] == pytest.approx(scale * 1e-4 * (0.3 * 1300 + 0.2 * 250), rel=1e-6)
    assert labels["Au"][0] == 0


def test_oxides_hold_all_of_their_element():
    labels = sample_model("ore").draw(50, np.random.default_rng(0)).labels
    # Molar masses: 159.69 g of Fe2O3 hold 2 x 55.845 g of Fe; 60.08 g of SiO2 hold 28.086 g.
    np.testing.assert_allclose(labels["Fe2O3"], labels["Fe"] * 159.69 / (2 * 55.845), rtol=1e-3)
    np.testing.assert_allclose(labels["SiO2"], labels["Si"] * 60.08 / 28.086, rtol=1e-3)
    assert {mass_fractions(oxide)[element] < 1 for oxide, element in OXIDES.items()} == {True}


def test_wet_sample_is_mud_and_sea_water_and_dries_to_mud_and_salt():
    wet = Assemblage("wet", {"quartz": (1.0, 0.0)}, trace_log_sd=0, fluid="sea_water", fluid_share=0.5)
    composition = model_of(wet).draw(1, np.random.default_rng(0))
    chlorine = composition.mass_fractions[0, ELEMENTS.index("Cl")]
    assert chlorine == pytest.approx(0.5 * 0.019353)
    # Salinity 35: 0.5 g of sea water leaves 0.5 x 0.0332 g of these ions beside 0.5 g of quartz.
    assert composition.labels["Cl"][0] == pytest.approx(100 * chlorine / (0.5 + 0.5 * 0.033212), rel=1e-4)
    assert composition.labels["SiO2"][0] == pytest.approx(100 / 1.033212, rel=1e-3)


def test_bulk_traces_replace_the_crust():
    quartz = {"opal": (1.0, 0.0)}
    crust = Assemblage("crust", quartz, crust=0.5, traces={"Rb": 1000.0}, trace_log_sd=0.0)
    labels = model_of(crust).draw(1, np.random.default_rng(0)).labels
    assert labels["Rb"][0] / labels["Zr"][0] == pytest.approx(1000 / (0.5 * 193))
    assert labels["Rb"][0] == pytest.approx(0.1, rel=0.03)  # of the opal; a little less of all


def test_spread_and_factors_are_those_of_the_assemblage():
    assemblage = Assemblage(
        "two",
        {"quartz": (1.0, 0.3), "calcite": (1.0, 0.4)},
        trace_log_sd=0.2,
        factors=({"calcite": 0.5, "Sr": 1.0, "fluid": 0.7},),
        fluid_share=0.3,
    )
    composition = model_of(assemblage).draw(20_000, np.random.default_rng(0))
    labels = composition.labels
    ratio = np.log(labels["CaCO3"] / (100 - labels["CaCO3"]))
    assert ratio.std() == pytest.approx(np.sqrt(0.3**2 + 0.4**2 + 0.5**2), rel=0.03)
    strontium = np.log(labels["Sr"] / labels["CaCO3"])
    assert strontium.std() == pytest.approx(np.sqrt(0.2**2 + 1.0**2), rel=0.03)
    # The shared factor alone makes them covary: 0.5 x 1.0.
    assert np.cov(ratio, strontium)[0, 1] == pytest.approx(0.5, abs=0.03)
    hydrogen = composition.mass_fractions[:, ELEMENTS.index("H")]
    fluid = hydrogen / mass_fractions("H2O")["H"]
    assert np.log(fluid / (1 - fluid)).std() == pytest.approx(0.7, rel=0.03)


def test_kinds_follow_their_shares():
    assemblages = [Assemblage(name, {"quartz": (1.0, 0.0)}, share=share) for name, share in (("a", 3.0), ("b", 1.0))]
    kinds = model_of(*assemblages, flat_share=0.2).draw(10_000, np.random.default_rng(0)).kinds
    for kind, share in (("a", 0.6), ("b", 0.2), ("random", 0.2)):
        assert (kinds == kind).mean() == pytest.approx(share, abs=0.02)


def test_flat_prior_is_log_uniform_and_has_no_correlations():
    labels = sample_model("rock", flat_share=1.0).draw(4000, np.random.default_rng(0)).labels
    rubidium = np.log10(labels["Rb"])
    # Log-uniform between 1 ug/g and 3 % of the components' mass.
    quartiles = np.quantile(rubidium, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(np.diff(quartiles), (np.log10(0.03) + 6) / 4, rtol=0.1)
    independent = np.corrcoef(np.log([labels[e] for e in ("Rb", "Sr", "Zn", "Zr", "Pb", "Th", "Br", "Ni")]))
    assert np.abs(independent - np.eye(8)).max() < 0.1
    natural = sample_model("rock").draw(4000, np.random.default_rng(0)).labels
    assert np.corrcoef(np.log(natural["Rb"]), np.log(natural["K"]))[0, 1] > 0.7
    assert np.corrcoef(np.log(labels["Rb"]), np.log(labels["K"]))[0, 1] < 0.2


def test_reference_is_the_centre_of_marine_sediment():
    reference = reference_mass_fractions()
    model = sample_model("marine_sediment")
    still = replace(
        model.assemblages[0],
        solids={name: (mass, 0.0) for name, (mass, _) in model.assemblages[0].solids.items()},
        trace_log_sd=0.0,
        factors=(),
        fluid_logit_sd=0.0,
    )
    drawn = model_of(still).draw(3, np.random.default_rng(0)).mass_fractions
    np.testing.assert_allclose(drawn, np.tile(reference, (3, 1)), rtol=1e-9)
    assert reference[ELEMENTS.index("O")] > 0.6  # mostly water
    assert sum(reference > 0) > 40


def test_same_seed_same_samples():
    first, again, other = (sample_model("soil").draw(20, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.mass_fractions, again.mass_fractions)
    assert (first.mass_fractions != other.mass_fractions).any()
    np.testing.assert_array_equal(first[5:8].labels["Fe"], first.labels["Fe"][5:8])


def test_wrong_names_and_shares_are_refused():
    with pytest.raises(ValueError, match="there is no sample model 'mud'; choose one of .*marine_sediment"):
        sample_model("mud")
    with pytest.raises(ValueError, match="flat_share is a share and must lie in"):
        sample_model("rock", flat_share=1.5)
    with pytest.raises(ValueError, match="test has no 'calcit'"):
        model_of(Assemblage("x", {"quartz": (1.0, 0.0)}, factors=({"calcit": 1.0},))).draw(1, np.random.default_rng(0))


def test_carbonate_and_organic_carbon_are_as_in_measured_cores(real_data):
    measured = np.load(real_data / "avaatech" / "channel_statistics.npz", allow_pickle=False)
    labels = sample_model("marine_sediment").draw(20_000, np.random.default_rng(0)).labels
    for target, key in (("CaCO3", "caco3_mean_std"), ("TOC", "toc_mean_std")):
        mean, sd = measured[key]
        assert labels[target].mean() == pytest.approx(mean, rel=0.15)
        assert labels[target].std() == pytest.approx(sd, rel=0.2)


def laboratory_values(path):
    """Elements in wt% of a labelled set, NaN where not determined (0 in the file)."""
    archive = np.load(path, allow_pickle=False)
    values = np.where(archive["weight_percent"] > 0, archive["weight_percent"], np.nan).astype(float)
    return {str(element): values[:, i] for i, element in enumerate(archive["elements"])}


def outside_central_99_percent(simulated, measured):
    """How many measured values there are, and which elements and ratios lie outside the simulated ones."""
    ratios = [ratio.split("/") for ratio in RATIOS.split() if set(ratio.split("/")) <= set(measured)]
    number, outside = 0, []
    with np.errstate(divide="ignore", invalid="ignore"):
        quantities = {name: (simulated[name], values) for name, values in measured.items() if name in simulated}
        for above, below in ratios:
            pair = (simulated[above] / simulated[below], measured[above] / measured[below])
            quantities[f"{above}/{below}"] = pair
    for name, (drawn, values) in quantities.items():
        values = values[np.isfinite(values)]
        low, high = np.percentile(drawn[np.isfinite(drawn)], [0.5, 99.5])
        number += values.size
        outside += [name] * int(((values < low) | (values > high)).sum())
    return number, outside


def test_measured_mudrocks_lie_within_the_rocks(real_data):
    folder = real_data / "labelled"
    measured = laboratory_values(folder / "mudrock_light_instrument_a.npz")
    measured |= laboratory_values(folder / "mudrock_trace_instrument_a.npz")
    rocks = sample_model("rock").draw(20_000, np.random.default_rng(0))
    number, outside = outside_central_99_percent(rocks.labels, measured)
    assert number > 1000
    assert len(outside) <= 0.01 * number, outside

    # Their own kinds hold them too, and are not so wide that this says nothing: in units of the simulated spread the
    # measured values scatter by about 1.
    kinds = ["mudrock", "siliceous mudrock", "limestone", "dolostone", "sandstone"]
    own = rocks[np.isin(rocks.kinds, kinds)].labels
    number, outside = outside_central_99_percent(own, measured)
    assert len(outside) <= 0.02 * number, outside
    spreads = []
    for element in set(measured) & set(LABEL_ELEMENTS):
        values = np.log(measured[element][np.isfinite(measured[element])])
        if values.size > 20:
            spreads.append(values.std() / np.log(own[element]).std())
    assert 0.6 < np.median(spreads) < 1.2


def test_measured_obsidians_lie_within_the_rocks(real_data):
    measured = laboratory_values(real_data / "labelled" / "obsidian_instrument_c.npz")
    rocks = sample_model("rock").draw(20_000, np.random.default_rng(0))
    number, outside = outside_central_99_percent(rocks.labels, measured)
    assert number > 800
    assert len(outside) <= 0.01 * number, outside
    own = rocks[np.isin(rocks.kinds, ["obsidian", "peralkaline obsidian"])].labels
    number, outside = outside_central_99_percent(own, measured)
    assert len(outside) <= 0.03 * number, outside  # two of the 40 are basaltic or island-arc glasses


def test_reference_materials_lie_within_rock_soil_and_ore(real_data):
    measured = {}
    with open(real_data / "formats" / "panalytical_mp2" / "oreas_concentrations.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["value"] != "NA":
                measured.setdefault(row["element"], {})[row["standard"]] = 1e-4 * float(row["value"])
    standards = sorted({standard for values in measured.values() for standard in values})
    table = {e: np.array([values.get(name, np.nan) for name in standards]) for e, values in measured.items()}
    rng = np.random.default_rng(0)
    for model, members in (("rock", "oreas 22d, oreas 24b, oreas 24c"), ("soil", "oreas 25a, oreas 45d, oreas 45e")):
        rows = [standards.index(name) for name in members.split(", ")]
        labels = sample_model(model).draw(20_000, rng).labels
        drawn = {name: values for name, values in labels.items() if np.median(values) > 0}
        number, outside = outside_central_99_percent(drawn, {e: v[rows] for e, v in table.items() if e in drawn})
        assert number > 90
        assert len(outside) <= 0.02 * number, (model, outside)
