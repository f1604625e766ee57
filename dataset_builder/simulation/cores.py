"""Simulated sediment cores: composition that varies smoothly down-core, measured by a drifting instrument.

Every core has its own random stream, made from the seed and the core's number, so a core is the same whatever other
cores are simulated, in which process, and in what batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..spectrum import Spectrum
from .forward import ForwardModel
from .instrument import AVAATECH_10KV, InstrumentModel, draw_states
from .sample import (
    COMPONENTS,
    REFERENCE_SOLIDS,
    REFERENCE_WATER,
    TARGET_NAMES,
    TARGET_UNITS,
    component_elements,
    weight_percent_labels,
    wet_mass_fractions,
)

BLOCK_SIZE = 128
"""Spectra of a core computed at a time; fixed, so that rounding never depends on how a caller batches."""

# Standard deviations of ln(mass) between cores, the biogenic and redox-sensitive components varying the most.
CORE_LOG_SD = {
    "calcite": 1.6,
    "opal": 0.8,
    "organic_matter": 0.6,
    "pyrite": 0.8,
    "manganese_oxide": 0.9,
    "barite": 0.6,
    "pyroxene": 0.8,
}
OTHER_CORE_LOG_SD = 0.3
DOWNCORE_SHARE = 0.45
"""Down-core standard deviation of ln(mass) relative to that between cores."""
EVENTS_PER_METRE = 0.6
"""Turbidites and ash layers: intervals in which the detrital part is multiplied."""
DETRITAL = ("quartz", "plagioclase", "potassium_feldspar", "pyroxene", "ilmenite", "rutile")
DEPTH_STEP_MM = 10.0


@dataclass(frozen=True)
class SedimentCore:
    """Composition of one core at its measured depths (D depths).

    Args:
        name (`str`): core name.
        depth_mm (`np.ndarray` of shape `(D,)`): depth of each spectrum.
        wet (`np.ndarray` of shape `(D, elements)`): mass fractions of the wet sediment.
        labels (`np.ndarray` of shape `(D, len(TARGET_NAMES))`): wt% of dry sediment.
    """

    name: str
    depth_mm: np.ndarray
    wet: np.ndarray
    labels: np.ndarray


def core_name(core_index: int) -> str:
    """Name of the simulated core with this number."""
    return f"simulated-{core_index:05d}"


def spectra_per_core(num_spectra: int, num_cores: int) -> list[int]:
    """Lengths of the cores, as equal as they can be.

    Raises:
        ValueError: there are no cores, or fewer spectra than cores.
    """
    if num_cores < 1 or num_spectra < num_cores:
        raise ValueError(
            f"num_cores must be at least 1 and at most num_spectra; got {num_cores} cores for {num_spectra} spectra."
        )
    shorter, longer = divmod(num_spectra, num_cores)
    return [shorter + (core < longer) for core in range(num_cores)]


def draw_core(core_index: int, num_spectra: int, rng: np.random.Generator) -> SedimentCore:
    """Draw provenance, down-core history, events and pore water of one core."""
    depth_mm = DEPTH_STEP_MM * np.arange(num_spectra)
    core_sd = np.array([CORE_LOG_SD.get(component, OTHER_CORE_LOG_SD) for component in COMPONENTS])
    log_mass = np.log([REFERENCE_SOLIDS[component] for component in COMPONENTS])
    log_mass = log_mass + core_sd * rng.standard_normal(len(COMPONENTS))
    history = smooth_history(depth_mm, rng.uniform(100, 800), len(COMPONENTS), rng)  # (D, components)
    log_mass = log_mass + DOWNCORE_SHARE * core_sd * history
    log_mass = log_mass + 0.05 * rng.standard_normal(log_mass.shape)
    log_mass = log_mass + _events(depth_mm, rng)

    # Anoxic, organic-rich mud keeps its sulphide: pyrite follows organic matter.
    organic, pyrite = COMPONENTS.index("organic_matter"), COMPONENTS.index("pyrite")
    log_mass[:, pyrite] += 0.7 * (log_mass[:, organic] - np.log(REFERENCE_SOLIDS["organic_matter"]))
    solids = np.exp(log_mass)
    solids /= solids.sum(axis=1, keepdims=True)

    # Soft organic and siliceous mud holds more pore water, compacted mud less.
    opal = COMPONENTS.index("opal")
    logit = np.log(REFERENCE_WATER / (1 - REFERENCE_WATER)) + 0.25 * rng.standard_normal()
    logit = logit + 0.25 * (log_mass[:, organic] - np.log(REFERENCE_SOLIDS["organic_matter"]))
    logit = logit + 0.8 * (solids[:, opal] - REFERENCE_SOLIDS["opal"])
    logit = logit - 0.3 * depth_mm / 1e4 + 0.08 * rng.standard_normal(num_spectra)
    pore_water = 1 / (1 + np.exp(-logit))

    dry = solids @ component_elements()
    return SedimentCore(
        core_name(core_index), depth_mm, wet_mass_fractions(dry, pore_water), weight_percent_labels(solids, dry)
    )


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


def _events(depth_mm, rng):
    """What event layers add to ln(mass), shape `(D, components)`."""
    shift = np.zeros((len(depth_mm), len(COMPONENTS)))
    detrital = [COMPONENTS.index(component) for component in DETRITAL]
    for _ in range(rng.poisson(EVENTS_PER_METRE * depth_mm[-1] / 1e3)):
        top, thickness = rng.uniform(0, depth_mm[-1]), rng.exponential(60.0)
        inside = (depth_mm >= top) & (depth_mm < top + thickness)
        shift[np.ix_(inside, detrital)] += rng.normal(0.9, 0.4) + 0.3 * rng.standard_normal(len(detrital))
    return shift


@lru_cache(maxsize=4)
def forward_model(instrument: InstrumentModel) -> ForwardModel:
    """The forward model of an instrument, made once a process: a builder asks for core after core."""
    return ForwardModel(instrument)


def simulate_core(model: ForwardModel, seed: int, core_index: int, num_spectra: int) -> Iterator[list[Spectrum]]:
    """Spectra of one core from its top down, in lists of at most `BLOCK_SIZE`."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(core_index,)))
    core = draw_core(core_index, num_spectra, rng)
    states = draw_states(model.instrument, num_spectra, rng)
    instrument = model.instrument
    for start in range(0, num_spectra, BLOCK_SIZE):
        rows = slice(start, min(start + BLOCK_SIZE, num_spectra))
        counts = rng.poisson(model.expected_counts(core.wet[rows], states[rows])).astype(np.int32)
        yield [
            Spectrum(
                counts=counts[i],
                gain_kev=instrument.gain_kev,
                offset_kev=instrument.offset_kev,
                live_time_s=instrument.live_time_s,
                tube_kv=instrument.tube_kv,
                tube_ua=instrument.tube_ua,
                anode=instrument.anode,
                instrument=instrument.name,
                sample=f"{core.name} {depth_mm:.0f} mm",
                core=core.name,
                depth_mm=float(depth_mm),
                targets=dict(zip(TARGET_NAMES, labels.tolist(), strict=True)),
                target_units=TARGET_UNITS,
                source=f"simulation, seed {seed}",
            )
            for i, (depth_mm, labels) in enumerate(zip(core.depth_mm[rows], core.labels[rows], strict=True))
        ]


def simulate_sediment_cores(
    num_spectra: int,
    num_cores: int,
    seed: int,
    instrument: InstrumentModel | None = None,
    batch_size: int = 256,
    core_indices=None,
) -> Iterator[list[Spectrum]]:
    """Simulate marine sediment cores on a core scanner, a batch at a time (memory stays flat).

    Args:
        num_spectra, num_cores (`int`): spectra in all, spread evenly over the cores, one every `DEPTH_STEP_MM`.
        seed (`int`): the same seed gives the same spectra.
        instrument (`InstrumentModel`, *optional*): `AVAATECH_10KV` if not given.
        batch_size (`int`): spectra in every list but the last; has no influence on them.
        core_indices (sequence of `int`, *optional*): simulate only these of the `num_cores` cores.

    Yields:
        `list[Spectrum]`: core after core, each from its top down, with targets `TARGET_NAMES` in wt% of dry sediment.
    """
    lengths = spectra_per_core(num_spectra, num_cores)
    model = forward_model(instrument or AVAATECH_10KV)
    waiting = []
    for core_index in range(num_cores) if core_indices is None else core_indices:
        for block in simulate_core(model, seed, core_index, lengths[core_index]):
            waiting.extend(block)
            while len(waiting) >= batch_size:
                yield waiting[:batch_size]
                waiting = waiting[batch_size:]
    if waiting:
        yield waiting
