"""Simulated cores: smooth histories of unit variance, climate cycles, graded layers and beds."""

import math

import numpy as np
import pytest

from dataset_builder.simulation import sample_model
from dataset_builder.simulation.cores import _events, climate_history, draw_core, smooth_history


def test_history_has_unit_variance_and_exponential_memory():
    depth_mm = 10.0 * np.arange(60)
    history = smooth_history(depth_mm, 200.0, 20_000, np.random.default_rng(0))
    assert history.var() == pytest.approx(1, abs=0.02)
    for lag in (1, 10, 30):
        assert (history[0] * history[lag]).mean() == pytest.approx(math.exp(-10 * lag / 200), abs=0.03)


def test_climate_has_unit_variance_and_sharp_terminations():
    depth_mm = 10.0 * np.arange(1000)
    histories = np.stack([climate_history(depth_mm, np.random.default_rng(seed)) for seed in range(400)])
    assert histories.mean() == pytest.approx(0, abs=0.05)
    assert histories.var() == pytest.approx(1, abs=0.05)
    # Down-core is back in time: the index rises slowly with depth and falls at once where a glacial ended.
    steps = np.diff(histories, axis=1)
    assert steps.min() < -2 < 2 > steps.max()


def test_samples_of_cores_spread_as_independent_samples_do():
    model = sample_model("marine_sediment")
    independent = model.draw(20_000, np.random.default_rng(0)).labels
    cores = [draw_core(model, 8, np.random.default_rng(seed)).composition.labels for seed in range(1500)]
    for target in ("CaCO3", "SiO2", "Fe", "Rb"):
        logarithms = np.log(np.concatenate([labels[target] for labels in cores]))
        assert logarithms.mean() == pytest.approx(np.log(independent[target]).mean(), abs=0.15)
        assert logarithms.std() == pytest.approx(np.log(independent[target]).std(), rel=0.12)


def test_neighbouring_depths_are_alike_and_cores_differ():
    model = sample_model("marine_sediment")
    cores = [draw_core(model, 150, np.random.default_rng(seed)) for seed in range(30)]
    carbonate = np.log([core.composition.labels["CaCO3"] for core in cores])
    within = np.abs(np.diff(carbonate, axis=1)).mean()
    between = np.abs(np.subtract.outer(carbonate.mean(axis=1), carbonate.mean(axis=1))).mean()
    assert between > 4 * within
    np.testing.assert_allclose(np.diff(cores[0].depth_mm), 10.0)


def test_turbidites_have_a_sharp_base_and_fine_upwards():
    model = sample_model("marine_sediment")
    depth_mm = 10.0 * np.arange(400)
    zircon, clay = (model.components.index(name) for name in ("zircon", "smectite"))
    found = 0
    for seed in range(20):
        shift = _events(model, depth_mm, np.random.default_rng(seed))
        base = int(np.argmin(np.diff(shift[:, zircon])))  # the largest fall from one depth to the next below
        top = base
        while top > 0 and 0 < shift[top - 1, zircon] < shift[top, zircon]:
            top -= 1
        if base - top < 4:
            continue
        found += 1
        assert shift[base, zircon] - shift[base + 1, zircon] > 0.3
        assert shift[top, zircon] < 0.5 * shift[base, zircon]
        assert shift[top, clay] > shift[base, clay]
    assert found >= 5


def test_ash_layers_are_nearly_pure_glass_that_ends_at_once_below():
    model = sample_model("marine_sediment")
    depth_mm = 10.0 * np.arange(500)
    glass = model.components.index("rhyolitic_glass")
    layers = [_events(model, depth_mm, np.random.default_rng(seed))[:, glass] for seed in range(40)]
    strongest = max(layers, key=np.max)
    base = int(np.argmax(strongest))
    while strongest[base + 1] > 0.5 * strongest[base]:
        base += 1
    assert strongest[base] > 3  # more than 20 times the glass of the mud around
    assert strongest[base + 1] < 0.2 * strongest[base]
    assert (np.diff(strongest[base - 5 : base + 1]) >= 0).all()  # and fades upwards


def test_organic_matter_decays_below_the_surface():
    model = sample_model("marine_sediment")
    organic = model.components.index("organic_matter")
    shift = _events(model, np.array([0.0, 500.0, 1e5]), np.random.default_rng(0))[:, organic]
    np.testing.assert_allclose(shift, [0, -0.3 * (1 - math.exp(-1)), -0.3], atol=1e-9)


def test_drill_cores_pass_through_beds():
    core = draw_core(sample_model("rock"), 600, np.random.default_rng(3))
    kinds = core.composition.kinds
    changes = np.flatnonzero(kinds[1:] != kinds[:-1]).size
    assert 5 < changes < 30  # 6 m of beds of 0.4 m on average, some of them of one kind
    assert set(draw_core(sample_model("rock", flat_share=1.0), 20, np.random.default_rng(0)).composition.kinds) == {
        "random"
    }


def test_a_core_of_one_sample_is_possible():
    core = draw_core(sample_model("marine_sediment"), 1, np.random.default_rng(0))
    assert core.composition.mass_fractions.sum() == pytest.approx(1)
