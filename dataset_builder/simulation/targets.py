"""Targets of simulated spectra: what is known of every sample, and of the instrument that measured it."""

import numpy as np

from .atomic_data import ELEMENTS, mass_fractions
from .instrument import STATE_TARGETS

LABEL_ELEMENTS = (
    "Na", "Mg", "Al", "Si", "P", "S", "Cl", "K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu",
    "Zn", "Ga", "Ge", "As", "Se", "Br", "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Ag", "Cd", "Sn", "Sb", "I", "Cs",
    "Ba", "La", "Ce", "Nd", "Hf", "W", "Au", "Hg", "Pb", "Bi", "Th", "U",
)  # fmt: skip
# Label, formula of the oxide and its one element that is analysed.
OXIDES = {
    "SiO2": "Si",
    "Al2O3": "Al",
    "Fe2O3": "Fe",
    "CaO": "Ca",
    "K2O": "K",
    "MgO": "Mg",
    "Na2O": "Na",
    "TiO2": "Ti",
    "MnO": "Mn",
    "P2O5": "P",
}
SAMPLE_TARGETS = ("CaCO3", "TOC", *OXIDES, *LABEL_ELEMENTS)
"""Labels of a composition, in wt% of the dried sample."""
TARGET_UNITS = {**dict.fromkeys(SAMPLE_TARGETS, "wt%"), **STATE_TARGETS}
TARGET_NAMES = tuple(TARGET_UNITS)
"""All labels of a simulated spectrum: of its sample, then of the instrument's state."""


def weight_percent_labels(dried, calcium_carbonate, organic_carbon) -> dict[str, np.ndarray]:
    """Labels of samples in wt%, by name in `SAMPLE_TARGETS`, each of shape `(B,)`.

    An oxide holds all of its element, also what is bound otherwise.

    Args:
        dried (`np.ndarray` of shape `(B, 92)`): mass of each element in a mass of dried sample.
        calcium_carbonate, organic_carbon (`np.ndarray` of shape `(B,)`): mass in a mass of dried sample.
    """
    element = {name: 100 * dried[:, ELEMENTS.index(name)] for name in LABEL_ELEMENTS}
    oxide = {name: element[analysed] / mass_fractions(name)[analysed] for name, analysed in OXIDES.items()}
    return {"CaCO3": 100 * calcium_carbonate, "TOC": 100 * organic_carbon, **oxide, **element}
