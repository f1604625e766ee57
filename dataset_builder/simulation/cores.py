"""Cores: compositions that vary smoothly with depth, with climate cycles, a trend, turbidites, ash layers and beds.

Every latent of a `SampleModel` follows a history of its own along the core. Its parts add up to unit variance over
many cores, so the samples of cores have the spread that independent samples have; events come on top.
"""

from dataclasses import dataclass

import numpy as np

from .sample import Composition, SampleModel

DEPTH_STEP_MM = 10.0

# Shares of a latent's standard deviation; what is left of its variance is the core's own level.
HISTORY_SHARE = 0.4
TREND_SHARE = 0.2
SCATTER_SHARE = 0.1
CLIMATE_SHARES = {
    "calcite": 0.5,
    "opal": -0.3,
    "organic_matter": -0.25,
    "quartz": -0.35,
    "illite": -0.35,
    "chlorite": -0.35,
    "plagioclase": -0.3,
}
"""Glacial mud is poor in carbonate and rich in detritus in most cores; the sign is drawn for each core."""

MEDIAN_SEDIMENTATION_MM_PER_KYR, SEDIMENTATION_LOG_SD = 40.0, 0.7
ORBITAL_CYCLES_KYR = {41.0: 0.6, 23.0: 0.4}
"""Period and weight of obliquity and precession, beside the saw-tooth of 100 kyr (weight 1)."""
GLACIAL_CYCLE_KYR = 100.0

COMPACTION_SD_PER_M = 0.1
"""How much the fluid's latent falls with depth."""
ORGANIC_DECAY, ORGANIC_DECAY_DEPTH_MM = 0.3, 500.0
"""Share (in ln) of organic matter that is eaten below the surface, and the depth scale of it."""

TURBIDITES_PER_METRE, TURBIDITE_THICKNESS_MM = 0.5, 80.0
COARSE = ("quartz", "plagioclase", "potassium_feldspar", "pyroxene", "ilmenite", "rutile", "zircon")
FINE = ("illite", "smectite", "kaolinite")
ASH_LAYERS_PER_METRE, ASH_THICKNESS_MM, ASH_MIXING_MM = 0.15, 15.0, 25.0
GLASSES = ("rhyolitic_glass", "basaltic_glass")
BED_THICKNESS_MM = 400.0
"""Mean thickness of the beds of a drill core: the stretches that follow one assemblage."""


@dataclass(frozen=True, eq=False)
class Core:
    """Compositions from the top of a core down, at `depth_mm` (`np.ndarray` of shape `(B,)`)."""

    depth_mm: np.ndarray
    composition: Composition


def draw_core(model: SampleModel, num_samples: int, rng: np.random.Generator) -> Core:
    """A core of any sample model; where the model has several assemblages, a drill core through beds of them."""
    depth_mm = DEPTH_STEP_MM * np.arange(num_samples)
    flat = np.full(num_samples, rng.random() < model.flat_share)
    bed = _bed_numbers(depth_mm, rng)
    kind = model.draw_kinds(bed[-1] + 1, rng)[bed]

    climate_share = np.zeros(model.num_latents)
    sensitive = [component for component in CLIMATE_SHARES if component in model.components]
    climate_share[model.latent_columns(sensitive)] = [CLIMATE_SHARES[component] for component in sensitive]
    level_share = np.sqrt(1 - HISTORY_SHARE**2 - TREND_SHARE**2 - SCATTER_SHARE**2 - climate_share**2)

    latents = level_share * rng.standard_normal(model.num_latents)
    latents = latents + HISTORY_SHARE * smooth_history(depth_mm, rng.uniform(100, 800), model.num_latents, rng)
    latents += climate_share * rng.choice([-1.0, 1.0], p=[0.25, 0.75]) * climate_history(depth_mm, rng)[:, None]
    ramp = np.linspace(-1, 1, num_samples)[:, None] * np.sqrt(3)  # unit variance along the core
    latents += TREND_SHARE * ramp * rng.standard_normal(model.num_latents)
    latents += SCATTER_SHARE * rng.standard_normal(latents.shape)
    latents[:, model.latent_columns(["fluid"])] -= COMPACTION_SD_PER_M * 1e-3 * depth_mm[:, None]
    return Core(depth_mm, model.compose(kind, flat, latents, _events(model, depth_mm, rng)))


def smooth_history(depth_mm, correlation_mm: float, num_series: int, rng: np.random.Generator) -> np.ndarray:
    """Stationary Ornstein-Uhlenbeck series of unit variance, correlation exp(-distance / correlation_mm).

    Returns:
        `np.ndarray` of shape `(len(depth_mm), num_series)`.
    """
    history = rng.standard_normal((len(depth_mm), num_series))
    memory = np.exp(-np.diff(depth_mm) / correlation_mm)
    for i, keep in enumerate(memory, start=1):
        history[i] = keep * history[i - 1] + np.sqrt(1 - keep**2) * history[i]
    return history


def climate_history(depth_mm, rng: np.random.Generator) -> np.ndarray:
    """Glacial cycles with slow cooling and abrupt terminations, obliquity and precession; unit variance, shape `(D,)`.

    The ages come from a sedimentation rate that is drawn for the core.
    """
    rate = MEDIAN_SEDIMENTATION_MM_PER_KYR * np.exp(SEDIMENTATION_LOG_SD * rng.standard_normal())
    age_kyr = np.asarray(depth_mm) / rate + rng.uniform(0, GLACIAL_CYCLE_KYR)
    history = np.sqrt(12) * ((age_kyr / GLACIAL_CYCLE_KYR) % 1 - 0.5)
    variance = 1.0
    for period_kyr, weight in ORBITAL_CYCLES_KYR.items():
        phase = 2 * np.pi * (age_kyr / period_kyr + rng.random())
        history = history + weight * np.sqrt(2) * np.sin(phase)
        variance += weight**2
    return history / np.sqrt(variance)


def _bed_numbers(depth_mm, rng):
    """Number of the bed at every depth, shape `(D,)`; beds have exponential thicknesses."""
    num_borders = rng.poisson(depth_mm[-1] / BED_THICKNESS_MM)
    return np.searchsorted(np.sort(rng.uniform(0, depth_mm[-1], num_borders)), depth_mm)


def _events(model, depth_mm, rng):
    """What decay, turbidites and ash layers add to the logarithms of the components' masses, shape `(D, C)`."""
    shift = np.zeros((len(depth_mm), len(model.components)))
    columns = {name: model.components.index(name) for name in model.components}
    if "organic_matter" in columns:
        shift[:, columns["organic_matter"]] -= ORGANIC_DECAY * -np.expm1(-depth_mm / ORGANIC_DECAY_DEPTH_MM)
    coarse = [columns[name] for name in COARSE if name in columns]
    fine = [columns[name] for name in FINE if name in columns]
    glasses = [columns[name] for name in GLASSES if name in columns]

    for _ in range(rng.poisson(TURBIDITES_PER_METRE * 1e-3 * depth_mm[-1])):
        # Sharp at its base, the deepest point, and finer upwards.
        base_mm, thickness_mm = rng.uniform(0, depth_mm[-1]), rng.exponential(TURBIDITE_THICKNESS_MM)
        inside = (depth_mm <= base_mm) & (depth_mm > base_mm - thickness_mm)
        height = ((base_mm - depth_mm[inside]) / thickness_mm)[:, None]
        strength = rng.normal(1.2, 0.4) + 0.3 * rng.standard_normal(len(coarse))
        shift[np.ix_(inside, coarse)] += strength * (1 - height)
        shift[np.ix_(inside, fine)] += 0.4 * height

    for _ in range(rng.poisson(ASH_LAYERS_PER_METRE * 1e-3 * depth_mm[-1]) if glasses else 0):
        # Pure at its base; animals mixed the upper part into the mud that settled later.
        base_mm, thickness_mm = rng.uniform(0, depth_mm[-1]), rng.exponential(ASH_THICKNESS_MM)
        above_mm = np.maximum(base_mm - thickness_mm - depth_mm, 0)
        mixed = np.where(depth_mm <= base_mm, np.exp(-above_mm / ASH_MIXING_MM), 0)
        shift[:, rng.choice(glasses)] += np.log1p(np.exp(rng.normal(6, 1)) * mixed)
    return shift
