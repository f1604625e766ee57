"""`SimulatedSource`: spectra of simulated samples under simulated instruments, unit by unit.

A unit is a core, or a block of independent samples, on one instrument. It has its own random stream, made from the
seed and the unit's number, so it is the same whatever other units are simulated, in which order and in which process.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..spectrum import Spectrum
from .cores import Core, draw_core
from .forward import ForwardModel
from .instrument import InstrumentModel, draw_states, state_labels
from .presets import instrument_model
from .random_instrument import draw_instrument, vary_instrument
from .sample import SampleModel, sample_model
from .targets import TARGET_NAMES, TARGET_UNITS

BLOCK_SIZE = 128
"""Spectra of a unit computed at a time; fixed, so that rounding never depends on a caller."""
RANDOM_INSTRUMENT = "random"
VARIED = "varied "
"""Before the name of a preset: another instrument of its kind for every unit."""


@dataclass(frozen=True, eq=False)
class SimulatedBatch:
    """Spectra of one unit (B spectra, one instrument).

    Args:
        counts (`np.ndarray` of `int32`, shape `(B, channels)`): recorded counts.
        instrument (`InstrumentModel`): with the nominal calibration that a file would state.
        labels (`dict[str, np.ndarray]`): by name in `TARGET_NAMES`, each of shape `(B,)`; NaN without a meaning.
        depth_mm (`np.ndarray` of shape `(B,)`): depth in the core, NaN for samples of no core.
        kinds (`np.ndarray` of `str`, shape `(B,)`): assemblage of each sample.
        unit_name, sample_model, source (`str`): name of the core or block, of the sample model, and the seed in words.
        first_row (`int`): position of the first spectrum in the unit.
    """

    counts: np.ndarray
    instrument: InstrumentModel
    labels: dict[str, np.ndarray]
    depth_mm: np.ndarray
    kinds: np.ndarray
    unit_name: str
    sample_model: str
    source: str
    first_row: int

    def __len__(self):
        return len(self.counts)

    @property
    def gain_kev(self) -> np.ndarray:
        """Nominal channel width in keV, shape `(B,)`."""
        return np.full(len(self), self.instrument.gain_kev)

    @property
    def offset_kev(self) -> np.ndarray:
        """Nominal energy of channel 0 in keV, shape `(B,)`."""
        return np.full(len(self), self.instrument.offset_kev)

    @property
    def tube_kv(self) -> np.ndarray:
        """Tube voltage in kV, shape `(B,)`."""
        return np.full(len(self), self.instrument.tube_kv)

    def spectra(self) -> list[Spectrum]:
        """The batch as `Spectrum` objects; targets without meaning are left out."""
        shared, samples = self._shared_fields(), self.sample_names()
        depths_mm = [None if np.isnan(depth_mm) else depth_mm for depth_mm in self.depth_mm.tolist()]
        columns = [self.labels[name].tolist() for name in TARGET_NAMES]
        spectra = []
        for i, values in enumerate(zip(*columns, strict=True)):
            targets = {n: value for n, value in zip(TARGET_NAMES, values, strict=True) if not np.isnan(value)}
            spectra.append(
                Spectrum(
                    counts=self.counts[i],
                    sample=samples[i],
                    depth_mm=depths_mm[i],
                    targets=targets,
                    target_units={name: TARGET_UNITS[name] for name in targets},
                    metadata=self._metadata(self.kinds[i]),
                    **shared,
                )
            )
        return spectra

    def table(self):
        """The batch as a `pyarrow.Table` with the schema `table_schema(TARGET_NAMES)`."""
        import pyarrow as pa

        from ..features import table_schema

        schema = table_schema(TARGET_NAMES)
        num_spectra, num_channels = self.counts.shape
        ends = pa.array(num_channels * np.arange(num_spectra + 1, dtype=np.int32))
        columns = {
            "counts": pa.ListArray.from_arrays(ends, pa.array(self.counts.ravel().astype(np.float32))),
            "sample": pa.array(self.sample_names()),
            "depth_mm": pa.array(self.depth_mm.astype(np.float32), from_pandas=True),
            "metadata": pa.array([json.dumps(self._metadata(kind)) for kind in self.kinds.tolist()]),
            "target_units": pa.repeat(json.dumps(TARGET_UNITS), num_spectra),
        }
        for name, value in self._shared_fields().items():
            columns[name] = pa.repeat(pa.scalar(value, schema.field(name).type), num_spectra)
        for name in TARGET_NAMES:
            columns[name] = pa.array(self.labels[name].astype(np.float32), from_pandas=True)
        arrays = [
            columns[field.name].cast(field.type) if field.name in columns else pa.nulls(num_spectra, field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def sample_names(self) -> list[str]:
        """Name of every sample: the core and its depth, or the block and a number."""
        if np.isnan(self.depth_mm[0]):
            return [f"{self.unit_name}-{row:04d}" for row in range(self.first_row, self.first_row + len(self))]
        return [f"{self.unit_name} {depth_mm:.0f} mm" for depth_mm in self.depth_mm.tolist()]

    def _metadata(self, kind):
        return {"sample_model": self.sample_model, "kind": str(kind)}

    def _shared_fields(self):
        """Fields of `Spectrum` that the whole batch has in common."""
        instrument = self.instrument
        return {
            "gain_kev": instrument.gain_kev,
            "offset_kev": instrument.offset_kev,
            "live_time_s": instrument.live_time_s,
            "tube_kv": instrument.tube_kv,
            "tube_ua": instrument.tube_ua,
            "anode": instrument.anode,
            "filter": instrument.filter_name or None,
            "instrument": instrument.name,
            "core": self.unit_name,
            "source": self.source,
        }


class SimulatedSource:
    """Simulated spectra in units that can be made independently.

    Args:
        samples (`str`, `SampleModel`, or a sequence of them): sample models, by name as in `sample.SAMPLE_MODELS`.
        instruments (`str`, `InstrumentModel`, or a sequence of them): instruments, by name as in `presets.PRESETS`;
            for every unit `"random"` draws a new one, and `"varied handheld_15kv"` one like that preset.
        num_spectra, num_cores (`int`): spectra in all, and the number of units they are spread over evenly.
        seed (`int`): the same seed gives the same spectra.
        flat_share (`float`, *optional*): share of compositions without natural correlations, instead of the sample
            models' own (see `SampleModel`).
        drill_cores (`bool`): make every unit a core, of models that are not `layered` too.

    Each unit draws one of the samples and one of the instruments; name one twice and it is drawn twice as often.

    Raises:
        ValueError: a name is not known, or there are no units, or fewer spectra than units.
    """

    def __init__(
        self,
        samples="marine_sediment",
        instruments="avaatech_10kv",
        num_spectra: int = 10_000,
        num_cores: int = 50,
        seed: int = 0,
        flat_share: float | None = None,
        drill_cores: bool = False,
    ):
        if num_cores < 1 or num_spectra < num_cores:
            raise ValueError(
                f"num_cores must be at least 1 and at most num_spectra; got {num_cores} cores for {num_spectra} "
                "spectra."
            )
        self.samples = [_as_sample_model(sample, flat_share) for sample in _as_list(samples, SampleModel)]
        self.instruments = [_as_instrument(each) for each in _as_list(instruments, InstrumentModel)]
        self.num_spectra, self.num_units, self.seed, self.drill_cores = num_spectra, num_cores, seed, drill_cores

    def unit_names(self) -> list[str]:
        """Core or block names of the first `num_units` units: the groups that splits keep together."""
        return [self.unit_name(unit) for unit in range(self.num_units)]

    def unit_name(self, unit: int) -> str:
        """Core or block name of any unit, such as `simulated-rock-00012`."""
        return f"simulated-{self._choose(unit)[0].name}-{unit:05d}"

    def unit_size(self, unit: int) -> int:
        """Number of spectra in any unit; beyond `num_units` the sizes repeat."""
        shorter, longer = divmod(self.num_spectra, self.num_units)
        return shorter + (unit % self.num_units < longer)

    def simulate(self, unit: int) -> Iterator[SimulatedBatch]:
        """Spectra of a unit in batches of `BLOCK_SIZE`; numbers beyond `num_units` give further, fresh units."""
        model, instrument, rng = self._choose(unit)
        if instrument == RANDOM_INSTRUMENT:
            instrument = draw_instrument(rng)
        elif isinstance(instrument, str):
            instrument = vary_instrument(instrument_model(instrument.removeprefix(VARIED)), rng)
        num_spectra, unit_name = self.unit_size(unit), self.unit_name(unit)
        if model.layered or self.drill_cores:
            core = draw_core(model, num_spectra, rng)
        else:
            core = Core(np.full(num_spectra, np.nan), model.draw(num_spectra, rng))
        states = draw_states(instrument, num_spectra, rng)
        physics = forward_model(instrument)
        for start in range(0, num_spectra, BLOCK_SIZE):
            rows = slice(start, min(start + BLOCK_SIZE, num_spectra))
            composition, state = core.composition[rows], states[rows]
            counts = rng.poisson(physics.expected_counts(composition.mass_fractions, state)).astype(np.int32)
            yield SimulatedBatch(
                counts=counts,
                instrument=instrument,
                labels={**composition.labels, **state_labels(instrument, state, counts.sum(axis=1))},
                depth_mm=core.depth_mm[rows],
                kinds=composition.kinds,
                unit_name=unit_name,
                sample_model=model.name,
                source=f"simulation, seed {self.seed}",
                first_row=start,
            )

    def _choose(self, unit):
        """Sample model and instrument of a unit, and the stream of random numbers for the rest of it."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(unit,)))
        sample, instrument = (choices[rng.integers(len(choices))] for choices in (self.samples, self.instruments))
        return sample, instrument, rng


@lru_cache(maxsize=4)
def forward_model(instrument: InstrumentModel) -> ForwardModel:
    """The forward model of an instrument, kept for the next unit with the same one."""
    return ForwardModel(instrument)


def _as_list(given, single):
    items = [given] if isinstance(given, (str, single)) else list(given)
    if not items:
        raise ValueError("samples and instruments must name at least one each; one of them is empty.")
    return items


def _as_sample_model(sample, flat_share):
    if isinstance(sample, str):
        return sample_model(sample, flat_share)
    return sample if flat_share is None else sample.with_flat_share(flat_share)


def _as_instrument(instrument):
    if isinstance(instrument, InstrumentModel) or instrument == RANDOM_INSTRUMENT:
        return instrument
    if instrument.startswith(VARIED):
        instrument_model(instrument.removeprefix(VARIED))  # a name that is not known is found out now
        return instrument
    return instrument_model(instrument)
