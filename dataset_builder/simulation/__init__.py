"""Physics simulation of XRF spectra: samples of known composition under a modelled instrument."""

from .fit import FittedInstrument, fit_instrument
from .forward import ForwardModel
from .instrument import InstrumentModel
from .presets import AVAATECH_10KV, PRESETS, instrument_model
from .random_instrument import draw_instrument
from .sample import SAMPLE_MODELS, SampleModel, sample_model
from .source import SimulatedBatch, SimulatedSource
from .targets import TARGET_NAMES, TARGET_UNITS

__all__ = [
    "AVAATECH_10KV",
    "FittedInstrument",
    "ForwardModel",
    "InstrumentModel",
    "PRESETS",
    "SAMPLE_MODELS",
    "SampleModel",
    "SimulatedBatch",
    "SimulatedSource",
    "TARGET_NAMES",
    "TARGET_UNITS",
    "draw_instrument",
    "fit_instrument",
    "instrument_model",
    "sample_model",
]
