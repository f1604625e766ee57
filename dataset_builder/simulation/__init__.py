"""Physics simulation of XRF spectra: samples of known composition under a modelled instrument."""

from .forward import ForwardModel
from .instrument import InstrumentModel
from .presets import AVAATECH_10KV, PRESETS, instrument_model
from .sample import SAMPLE_MODELS, SampleModel, sample_model
from .source import SimulatedBatch, SimulatedSource
from .targets import TARGET_NAMES, TARGET_UNITS

__all__ = [
    "AVAATECH_10KV",
    "ForwardModel",
    "InstrumentModel",
    "PRESETS",
    "SAMPLE_MODELS",
    "SampleModel",
    "SimulatedBatch",
    "SimulatedSource",
    "TARGET_NAMES",
    "TARGET_UNITS",
    "instrument_model",
    "sample_model",
]
