"""Physics simulation of XRF spectra: sediment cores of known composition under a modelled instrument."""

from .cores import simulate_sediment_cores
from .forward import ForwardModel
from .instrument import AVAATECH_10KV, InstrumentModel
from .sample import TARGET_NAMES, TARGET_UNITS

__all__ = [
    "AVAATECH_10KV",
    "ForwardModel",
    "InstrumentModel",
    "TARGET_NAMES",
    "TARGET_UNITS",
    "simulate_sediment_cores",
]
