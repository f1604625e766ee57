"""Marine sediment as a mixture of minerals, organic matter and pore water, and its labels in wt%.

Formulas and trace contents are rounded textbook values (Deer, Howie and Zussman, "An Introduction to the Rock-Forming
Minerals"; average shale of K. H. Wedepohl, 1971). Bromine in organic matter: M. Ziegler et al., Geochem. Geophys.
Geosyst. 9, Q05009 (2008). Dry sediment means free of sea salt.
"""

from functools import cache

import numpy as np

from .atomic_data import atomic_numbers, mass_fractions

MINERALS = {
    "calcite": "CaCO3",
    "opal": "SiO2H0.8O0.4",
    "quartz": "SiO2",
    "illite": "K0.7Al2.3Mg0.25Fe0.15Si3.5O12H2",
    "smectite": "Na0.3Al1.6Fe0.5Mg0.4Si3.6O12H2",
    "chlorite": "Mg2.6Fe1.9Al2.8Si2.7O18H8",
    "kaolinite": "Al2Si2O9H4",
    "plagioclase": "Na0.65Ca0.35Al1.35Si2.65O8",
    "potassium_feldspar": "KAlSi3O8",
    "pyroxene": "Ca0.8Mg0.8Fe0.4Si2O6",
    "goethite": "FeOOH",
    "ilmenite": "FeTiO3",
    "rutile": "TiO2",
    "manganese_oxide": "MnO2",
    "apatite": "Ca5P3O13H",
    "pyrite": "FeS2",
    "barite": "BaSO4",
    "organic_matter": "C106H175O42N16P",
}
COMPONENTS = tuple(MINERALS)
"""The solid components, the axis of every mixture."""

_CLAY_TRACES = {
    "V": 160,
    "Cr": 110,
    "Ni": 60,
    "Cu": 50,
    "Zn": 110,
    "Rb": 180,
    "Sr": 100,
    "Ba": 500,
    "Zr": 120,
    "Pb": 22,
}
TRACE_MICROGRAM_PER_GRAM = {
    "calcite": {"Sr": 1300, "Mg": 2500, "Mn": 300, "Ba": 60},
    "illite": _CLAY_TRACES,
    "smectite": _CLAY_TRACES,
    "chlorite": _CLAY_TRACES,
    "quartz": {"Zr": 250, "Ti": 300},
    "plagioclase": {"Sr": 500, "Ba": 250},
    "potassium_feldspar": {"Rb": 300, "Ba": 900, "Pb": 30},
    "pyroxene": {"Cr": 500, "Ni": 100, "V": 250, "Mn": 1500},
    "ilmenite": {"V": 1000, "Mn": 8000, "Cr": 300},
    "goethite": {"P": 3000, "V": 300},
    "manganese_oxide": {"Ni": 4000, "Cu": 3000, "Zn": 800, "Pb": 500, "Ba": 3000},
    "organic_matter": {"Br": 4000, "S": 10000},
    "pyrite": {"Ni": 200, "Cu": 300, "Zn": 200},
}
# Standard sea water of salinity 35, mass fractions of the ions: F. J. Millero et al., Deep-Sea Res. I 55, 50 (2008).
SEA_SALT_MASS_FRACTIONS = {
    "Cl": 0.019353,
    "Na": 0.010784,
    "Mg": 0.001284,
    "S": 0.000905,
    "Ca": 0.000412,
    "K": 0.000399,
    "Br": 0.000067,
    "Sr": 0.000008,
}

_OCCURRING = {"Ar"}.union(
    SEA_SALT_MASS_FRACTIONS,
    *TRACE_MICROGRAM_PER_GRAM.values(),
    *(mass_fractions(formula) for formula in MINERALS.values()),
)
ELEMENTS = tuple(sorted(_OCCURRING, key=lambda element: atomic_numbers([element])[0]))
"""The element axis of compositions. Argon is in no sediment: it is the air in the instrument's path."""

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
TARGET_NAMES = ("CaCO3", "TOC", *OXIDES)
TARGET_UNITS = dict.fromkeys(TARGET_NAMES, "wt%")

REFERENCE_SOLIDS = {
    "calcite": 0.08,
    "opal": 0.20,
    "quartz": 0.16,
    "illite": 0.13,
    "smectite": 0.10,
    "chlorite": 0.06,
    "kaolinite": 0.03,
    "plagioclase": 0.15,
    "potassium_feldspar": 0.03,
    "pyroxene": 0.01,
    "goethite": 0.009,
    "ilmenite": 0.0025,
    "rutile": 0.0024,
    "manganese_oxide": 0.0008,
    "apatite": 0.0032,
    "pyrite": 0.003,
    "barite": 0.0004,
    "organic_matter": 0.004,
}
"""Mass fractions of a hemipelagic mud: the centre of the simulated sediments and the anchor of absolute counts."""
REFERENCE_WATER = 0.6
"""Mass fraction of pore water in the wet reference sediment."""


@cache
def component_elements(elements: tuple = ELEMENTS) -> np.ndarray:
    """Mass fraction of every element in every solid component, shape `(components, elements)`, rows adding up to 1."""
    matrix = np.zeros((len(COMPONENTS), len(elements)))
    for row, component in enumerate(COMPONENTS):
        traces = {e: 1e-6 * ppm for e, ppm in TRACE_MICROGRAM_PER_GRAM.get(component, {}).items()}
        for element, fraction in mass_fractions(MINERALS[component]).items():
            matrix[row, elements.index(element)] += fraction * (1 - sum(traces.values()))
        for element, fraction in traces.items():
            matrix[row, elements.index(element)] += fraction
    return matrix


@cache
def sea_water_elements(elements: tuple = ELEMENTS) -> np.ndarray:
    """Mass fraction of every element in sea water, shape `(elements,)`."""
    fractions = dict(SEA_SALT_MASS_FRACTIONS)
    for element, fraction in mass_fractions("H2O").items():
        fractions[element] = fraction * (1 - sum(SEA_SALT_MASS_FRACTIONS.values()))
    return np.array([fractions.get(element, 0.0) for element in elements])


def wet_mass_fractions(dry, pore_water, elements: tuple = ELEMENTS) -> np.ndarray:
    """Composition of the wet sediment.

    Args:
        dry (`np.ndarray` of shape `(B, elements)`): mass fractions of the solids, rows adding up to 1.
        pore_water (`np.ndarray` of shape `(B,)`): mass fraction of sea water in the wet sediment.

    Returns:
        `np.ndarray` of shape `(B, elements)`, rows adding up to 1.
    """
    pore_water = np.asarray(pore_water)[:, None]
    return (1 - pore_water) * dry + pore_water * sea_water_elements(elements)


def reference_mass_fractions(elements: tuple = ELEMENTS) -> np.ndarray:
    """Composition of the wet reference sediment, shape `(elements,)`."""
    solids = np.array([REFERENCE_SOLIDS[component] for component in COMPONENTS])
    dry = (solids / solids.sum()) @ component_elements(elements)
    return wet_mass_fractions(dry[None], np.array([REFERENCE_WATER]), elements)[0]


def weight_percent_labels(solids, dry, elements: tuple = ELEMENTS) -> np.ndarray:
    """Labels of dry sediment in wt%, shape `(B, len(TARGET_NAMES))`.

    CaCO3 is the calcite, TOC the carbon of organic matter, an oxide all of its element.

    Args:
        solids (`np.ndarray` of shape `(B, components)`): mass fractions.
        dry (`np.ndarray` of shape `(B, elements)`): mass fractions of the elements in them.
    """
    calcite, organic = COMPONENTS.index("calcite"), COMPONENTS.index("organic_matter")
    carbon = mass_fractions(MINERALS["organic_matter"])["C"]
    columns = [solids[:, calcite], carbon * solids[:, organic]]
    for oxide, element in OXIDES.items():
        columns.append(dry[:, elements.index(element)] / mass_fractions(oxide)[element])
    return 100 * np.stack(columns, axis=1)
