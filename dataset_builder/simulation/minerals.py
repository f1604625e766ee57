"""What samples are made of: formulas of minerals, glasses and organic matter, and the trace elements they carry.

Formulas are idealised: W. A. Deer, R. A. Howie and J. Zussman, "An Introduction to the Rock-Forming Minerals"; J. W.
Anthony et al., "Handbook of Mineralogy". Trace contents are rounded from K. K. Turekian and K. H. Wedepohl, Geol. Soc.
Am. Bull. 72, 175 (1961) and R. L. Rudnick and S. Gao, "Treatise on Geochemistry" 3, 1 (2003); of ore minerals from
N. J. Cook et al., Geochim. Cosmochim. Acta 73, 4761 (2009). Bromine in organic matter: M. Ziegler et al., Geochem.
Geophys. Geosyst. 9, Q05009 (2008).
"""

from functools import cache

import numpy as np

from .atomic_data import ELEMENTS, mass_fractions

MINERALS = {
    # carbonates, sulphates, phosphates, salts
    "calcite": "CaCO3",
    "aragonite": "CaCO3",
    "dolomite": "CaMgC2O6",
    "magnesite": "MgCO3",
    "siderite": "FeCO3",
    "rhodochrosite": "MnCO3",
    "smithsonite": "ZnCO3",
    "cerussite": "PbCO3",
    "malachite": "Cu2CO5H2",
    "gypsum": "CaSO6H4",
    "anhydrite": "CaSO4",
    "barite": "BaSO4",
    "celestine": "SrSO4",
    "jarosite": "KFe3S2O14H6",
    "apatite": "Ca5P3O13H",
    "halite": "NaCl",
    "sylvite": "KCl",
    "fluorite": "CaF2",
    # silica and silicates
    "opal": "SiO2H0.8O0.4",
    "quartz": "SiO2",
    "illite": "K0.7Al2.3Mg0.25Fe0.15Si3.5O12H2",
    "smectite": "Na0.3Al1.6Fe0.5Mg0.4Si3.6O12H2",
    "chlorite": "Mg2.6Fe1.9Al2.8Si2.7O18H8",
    "kaolinite": "Al2Si2O9H4",
    "muscovite": "KAl3Si3O12H2",
    "biotite": "KMg1.4Fe1.5AlSi3O12H2",
    "talc": "Mg3Si4O12H2",
    "serpentine": "Mg2.8Fe0.2Si2O9H4",
    "nickel_serpentine": "Ni1.5Mg1.5Si2O9H4",
    "plagioclase": "Na0.65Ca0.35Al1.35Si2.65O8",
    "albite": "NaAlSi3O8",
    "anorthite": "CaAl2Si2O8",
    "potassium_feldspar": "KAlSi3O8",
    "nepheline": "Na0.8K0.2AlSiO4",
    "zeolite": "Na1.5K0.5Ca0.5Al3Si9O36H24",
    "pyroxene": "Ca0.8Mg0.8Fe0.4Si2O6",
    "orthopyroxene": "Mg1.4Fe0.6Si2O6",
    "aegirine": "NaFeSi2O6",
    "hornblende": "Ca1.9Na0.4Mg3Fe1.7Al2Si6.5O24H2",
    "olivine": "Mg1.7Fe0.3SiO4",
    "garnet": "Fe2.2Mg0.6Ca0.2Al2Si3O12",
    "epidote": "Ca2Al2.2Fe0.8Si3O13H",
    "tourmaline": "NaMg1.5Fe1.5Al6B3Si6O31H4",
    "spodumene": "LiAlSi2O6",
    "lepidolite": "KLi2AlSi4O11F",
    "topaz": "Al2SiO4F2",
    "zircon": "ZrSiO4",
    "titanite": "CaTiSiO5",
    "rhodonite": "MnSiO3",
    "rhyolitic_glass": "Si73Al15.5Na7.5K5.5Ca1Fe1Mg0.4Ti0.2O192",
    "basaltic_glass": "Si47Al17Fe8.5Mg10.5Ca11.5Na4.8K0.6Ti1.3O154",
    # oxides and hydroxides
    "hematite": "Fe2O3",
    "goethite": "FeOOH",
    "magnetite": "Fe3O4",
    "ilmenite": "FeTiO3",
    "rutile": "TiO2",
    "chromite": "Fe0.6Mg0.4Cr1.5Al0.5O4",
    "manganese_oxide": "MnO2",
    "braunite": "Mn7SiO12",
    "gibbsite": "AlO3H3",
    "cassiterite": "SnO2",
    "uraninite": "UO2",
    "columbite": "Fe0.5Mn0.5Nb1.6Ta0.4O6",
    "scheelite": "CaWO4",
    "wolframite": "Fe0.5Mn0.5WO4",
    "monazite": "Ce0.45La0.22Nd0.18Pr0.05Sm0.03Gd0.02Th0.05PO4",
    "xenotime": "Y0.8Dy0.08Er0.06Yb0.06PO4",
    "bastnasite": "Ce0.5La0.3Nd0.15Pr0.05CO3F",
    # sulphides, arsenides and native metals
    "pyrite": "FeS2",
    "pyrrhotite": "Fe7S8",
    "chalcopyrite": "CuFeS2",
    "bornite": "Cu5FeS4",
    "chalcocite": "Cu2S",
    "tetrahedrite": "Cu10Fe1Zn1As1Sb3S13",
    "sphalerite": "Zn0.92Fe0.08S",
    "galena": "PbS",
    "pentlandite": "Fe4.5Ni4.5S8",
    "cobaltite": "CoAsS",
    "arsenopyrite": "FeAsS",
    "molybdenite": "MoS2",
    "stibnite": "Sb2S3",
    "bismuthinite": "Bi2S3",
    "cinnabar": "HgS",
    "gold": "Au0.7Ag0.3",
    # organic matter
    "organic_matter": "C106H175O42N16P",
    "kerogen": "C100H110O12N2.5S2",
    "humus": "C100H110O45N6S0.5",
    "coal_macerals": "C100H75O10N1.5S0.3",
    "cellulose": "C6H10O5",
    "lignin": "C10H12O4",
    "protein": "C40H62N10O12S0.3",
    # salts of plants, made from their nutrients
    "potassium_malate": "K2C4H4O5",
    "calcium_oxalate": "CaC2O5H2",
    "potassium_phosphate": "KPO4H2",
    "magnesium_pectate": "MgC12H14O12",
    "potassium_sulphate": "K2SO4",
    # oxides of glasses
    "silica": "SiO2",
    "alumina": "Al2O3",
    "lime": "CaO",
    "magnesia": "MgO",
    "soda": "Na2O",
    "potash": "K2O",
    "boron_oxide": "B2O3",
    "lead_oxide": "PbO",
    "barium_oxide": "BaO",
    "zinc_oxide": "ZnO",
    "iron_oxide": "Fe2O3",
    "titanium_oxide": "TiO2",
    "strontium_oxide": "SrO",
    "zirconium_oxide": "ZrO2",
    "arsenic_oxide": "As2O3",
    "antimony_oxide": "Sb2O3",
    "lithium_oxide": "Li2O",
}
"""Formula by name of the component. Plagioclase, clays and glasses stand for their common compositions."""

ORGANIC = (
    "organic_matter",
    "kerogen",
    "humus",
    "coal_macerals",
    "cellulose",
    "lignin",
    "protein",
    "potassium_malate",
    "calcium_oxalate",
    "magnesium_pectate",
)
"""Components whose carbon is organic."""

CALCIUM_CARBONATE = {"calcite": 1.0, "aragonite": 1.0, "dolomite": 0.5428}
"""Mass of CaCO3 in a mass of mineral."""

_CLAY = {
    "Sc": 20, "V": 160, "Cr": 110, "Mn": 500, "Co": 25, "Ni": 60, "Cu": 50, "Zn": 120, "Ga": 28, "Ge": 2, "As": 9,
    "Br": 3, "Rb": 180, "Sr": 100, "Y": 34, "Zr": 70, "Nb": 18, "Mo": 1.5, "Sn": 4, "Sb": 1, "Cs": 9, "Ba": 500,
    "La": 45, "Ce": 90, "Nd": 40, "Hf": 3, "W": 2.5, "Pb": 24, "Th": 15, "U": 3.5,
}  # fmt: skip

TRACES = {
    "calcite": {"Sr": 1300, "Mg": 2500, "Mn": 300, "Ba": 60, "Zn": 15, "Y": 8, "La": 6, "Pb": 3, "U": 0.8},
    "aragonite": {"Sr": 7500, "Mg": 1000, "U": 2.5, "Ba": 15},
    "dolomite": {"Sr": 250, "Mn": 500, "Fe": 5000, "Zn": 20},
    "gypsum": {"Sr": 1500},
    "anhydrite": {"Sr": 1800},
    "barite": {"Sr": 9000},
    "apatite": {"Sr": 1200, "Y": 500, "La": 300, "Ce": 400, "Nd": 300, "U": 60, "Th": 15, "As": 20, "Cl": 1500},
    "opal": {"Ba": 60, "Zn": 20, "Al": 1000},
    "quartz": {"Ti": 100, "Al": 300},
    "illite": _CLAY,
    "smectite": {**_CLAY, "Rb": 70, "Ba": 400, "Cs": 4},
    "chlorite": {**_CLAY, "Rb": 20, "Cs": 2, "Ni": 150, "Cr": 250, "Mn": 1500, "Zn": 250, "Ba": 100},
    "kaolinite": {**_CLAY, "Rb": 40, "Ba": 200, "Ga": 40, "Mn": 100, "Sr": 60},
    "muscovite": {"Rb": 450, "Ba": 900, "Ga": 70, "Sn": 25, "Cs": 15, "W": 10, "V": 80},
    "biotite": {"Rb": 500, "Ba": 1200, "Zn": 350, "V": 300, "Cr": 150, "Ni": 80, "Co": 45, "Mn": 2000, "Ti": 18000,
                "Ga": 50, "Cs": 25, "Sn": 12, "Nb": 60},
    "serpentine": {"Ni": 2200, "Cr": 2000, "Co": 100, "Mn": 700},
    "nickel_serpentine": {"Cr": 1000, "Co": 400},
    "plagioclase": {"Sr": 500, "Ba": 250, "Ga": 22},
    "albite": {"Sr": 150, "Ba": 150, "Ga": 22},
    "anorthite": {"Sr": 700, "Ba": 150, "Ga": 20},
    "potassium_feldspar": {"Rb": 350, "Ba": 1200, "Pb": 35, "Sr": 150, "Cs": 4, "Ga": 18},
    "zeolite": {"Sr": 300, "Ba": 400, "Rb": 80},
    "pyroxene": {"Cr": 500, "Ni": 120, "V": 250, "Mn": 1500, "Co": 45, "Sc": 90, "Ti": 4000, "Zn": 60},
    "orthopyroxene": {"Cr": 800, "Ni": 500, "Co": 80, "Mn": 2500, "Sc": 25, "Zn": 120},
    "hornblende": {"V": 350, "Cr": 150, "Ni": 80, "Co": 50, "Sc": 60, "Mn": 2500, "Ti": 8000, "Zn": 200, "Y": 40},
    "olivine": {"Ni": 2000, "Co": 170, "Mn": 1500, "Cr": 200, "Zn": 70},
    "garnet": {"Mn": 8000, "Y": 150, "Sc": 90, "Zn": 60},
    "epidote": {"Sr": 1200, "Mn": 1200},
    "zircon": {"Hf": 12000, "Y": 1500, "U": 350, "Th": 200, "Yb": 300},
    "titanite": {"Nb": 1200, "Y": 1500, "Ce": 3000, "Zr": 800},
    "rhyolitic_glass": {"Rb": 140, "Sr": 90, "Y": 30, "Zr": 180, "Nb": 18, "Ba": 750, "Pb": 20, "Th": 15, "U": 5,
                        "Zn": 50, "Ga": 17, "Mn": 450, "Cl": 1000},
    "basaltic_glass": {"Sr": 250, "Zr": 130, "V": 300, "Cr": 250, "Ni": 100, "Cu": 90, "Zn": 100, "Co": 45, "Y": 28,
                       "Nb": 12, "Ba": 150, "Mn": 1400, "P": 900, "Sc": 35, "Ga": 18},
    "hematite": {"Mn": 500, "Ti": 800, "V": 60, "P": 300},
    "goethite": {"P": 3000, "V": 300, "Cr": 250, "Ni": 150, "Cu": 120, "Zn": 250, "As": 80, "Co": 60, "Mo": 6,
                 "Pb": 60, "U": 4, "Sb": 3},
    "magnetite": {"V": 2500, "Ti": 20000, "Cr": 400, "Mn": 2000, "Zn": 500, "Ni": 150, "Co": 80, "Ga": 40},
    "ilmenite": {"V": 1000, "Mn": 8000, "Cr": 300, "Nb": 500, "Zr": 300, "Mg": 5000},
    "rutile": {"Nb": 2000, "V": 2500, "Cr": 1500, "Zr": 1000, "W": 50, "Fe": 4000},
    "chromite": {"Ni": 1000, "Co": 250, "V": 900, "Zn": 700, "Ti": 2000, "Mn": 1700},
    "manganese_oxide": {"Ni": 4000, "Cu": 3000, "Co": 1500, "Zn": 800, "Pb": 500, "Ba": 3000, "Mo": 350, "Sr": 700,
                        "Ce": 500, "As": 100, "V": 400},
    "braunite": {"Ba": 3000, "Sr": 1000, "As": 200, "Co": 200, "Ni": 150, "Zn": 200, "Pb": 300},
    "gibbsite": {"Ga": 60, "V": 250, "Cr": 300, "Nb": 40, "Zr": 300, "Th": 30},
    "cassiterite": {"W": 1500, "Nb": 1500, "Ta": 1500, "Fe": 5000},
    "uraninite": {"Pb": 40000, "Th": 10000, "Y": 5000, "V": 1000},
    "columbite": {"W": 5000, "U": 500, "Sn": 1500, "Ti": 10000},
    "scheelite": {"Mo": 1000, "Sr": 300, "Y": 200},
    "monazite": {"Y": 10000, "U": 2000},
    "organic_matter": {"Br": 4000, "I": 900, "S": 10000, "Mo": 10, "Cu": 100, "Ni": 60, "Zn": 120, "U": 12, "V": 120},
    "kerogen": {"V": 1600, "Mo": 250, "U": 100, "Ni": 800, "Cu": 500, "Zn": 900, "Cr": 300, "Se": 30, "As": 80,
                "Cd": 20, "Ag": 5, "Sb": 30, "Br": 100, "Y": 150, "P": 5000},
    "humus": {"Br": 60, "Ca": 15000, "Fe": 3000, "Cu": 30, "Zn": 60, "Pb": 30, "P": 1500},
    "coal_macerals": {"Br": 8, "V": 15, "Ge": 4, "Ni": 8, "Cu": 8, "Cl": 300, "Sr": 40, "B": 40},
    "pyrite": {"Ni": 400, "Cu": 400, "Zn": 200, "As": 800, "Co": 200, "Mo": 60, "Pb": 150, "Sb": 30, "Se": 30},
    "pyrrhotite": {"Ni": 3000, "Co": 500, "Cu": 500},
    "chalcopyrite": {"Zn": 1500, "Ag": 200, "Se": 100, "Pb": 300, "In": 20},
    "bornite": {"Ag": 400, "Se": 150, "Bi": 150},
    "chalcocite": {"Ag": 500, "Se": 100},
    "tetrahedrite": {"Ag": 8000, "Hg": 1000, "Bi": 1000},
    "sphalerite": {"Cd": 3500, "Cu": 800, "Mn": 1000, "Hg": 30, "Ga": 30, "Ge": 60, "In": 60, "Ag": 30, "Co": 50},
    "galena": {"Ag": 1000, "Sb": 900, "Bi": 400, "Se": 50},
    "pentlandite": {"Co": 8000, "Se": 60, "Cu": 500},
    "arsenopyrite": {"Sb": 800, "Co": 500, "Ni": 300, "Au": 20},
    "molybdenite": {"Re": 300, "W": 100, "Se": 100},
    "stibnite": {"As": 1500, "Pb": 200},
}  # fmt: skip
"""Trace elements by component in microgram per gram, on top of the formula."""

CRUST = {
    "Sc": 14, "V": 97, "Cr": 92, "Mn": 770, "Co": 17, "Ni": 47, "Cu": 28, "Zn": 67, "Ga": 17, "Ge": 1.4, "As": 4.8,
    "Br": 1.6, "Rb": 84, "Sr": 320, "Y": 21, "Zr": 193, "Nb": 12, "Mo": 1.1, "Sn": 2.1, "Sb": 0.4, "Cs": 4.9,
    "Ba": 628, "La": 31, "Ce": 63, "Nd": 27, "Hf": 5.3, "W": 1.9, "Pb": 17, "Th": 10.5, "U": 2.7, "P": 650,
    "S": 300, "Cl": 200, "F": 550,
    "Na": 1200, "Mg": 750, "Al": 4000, "Si": 15000, "K": 1200, "Ca": 1300, "Ti": 200, "Fe": 2000,
}  # fmt: skip
"""Upper continental crust in microgram per gram: what dust and impurities bring. Of the main elements, which the
components hold, a twentieth."""

# Standard sea water of salinity 35, mass fractions of the ions: F. J. Millero et al., Deep-Sea Res. I 55, 50 (2008).
SEA_SALT = {
    "Cl": 0.019353,
    "Na": 0.010784,
    "Mg": 0.001284,
    "S": 0.000905,
    "Ca": 0.000412,
    "K": 0.000399,
    "Br": 0.000067,
    "Sr": 0.000008,
}
PORE_FLUIDS = {"water": {}, "sea_water": SEA_SALT}
"""Dissolved mass fractions by pore fluid."""


def element_vector(fractions: dict[str, float]) -> np.ndarray:
    """Amounts by element symbol on the axis `ELEMENTS`, shape `(92,)`."""
    vector = np.zeros(len(ELEMENTS))
    for element, fraction in fractions.items():
        vector[ELEMENTS.index(element)] += fraction
    return vector


@cache
def formula_vector(component: str) -> np.ndarray:
    """Mass fractions of a component's formula on the axis `ELEMENTS`, shape `(92,)`; do not write to it.

    Args:
        component (`str`): a name of `MINERALS`, or `pure_` and the symbol of an element.

    Raises:
        ValueError: there is no such component.
    """
    if component.startswith("pure_"):
        return element_vector({component.removeprefix("pure_"): 1.0})
    if component not in MINERALS:
        raise ValueError(f"component {component!r} is unknown: add its formula to minerals.MINERALS.")
    return element_vector(mass_fractions(MINERALS[component]))


def trace_vector(component: str) -> np.ndarray:
    """Trace elements of a component as mass fractions on the axis `ELEMENTS`, shape `(92,)`."""
    return 1e-6 * element_vector(TRACES.get(component, {}))


def organic_carbon(component: str) -> float:
    """Mass of organic carbon in a mass of the component."""
    return formula_vector(component)[ELEMENTS.index("C")] if component in ORGANIC else 0.0
