"""Materials between tube, sample and detector: windows, filters, foils and gases.

Densities of compounds are the usual ones of the foils sold for XRF; gases are at 20 C and 1013 hPa.
"""

from dataclasses import dataclass

import numpy as np
import xraylib

from . import atomic_data

COMPOUNDS = {
    "polypropylene": ("C3H6", 0.90),
    "polyethylene": ("C2H4", 0.92),
    "polyester": ("C10H8O4", 1.38),
    "polyimide": ("C22H10N2O5", 1.42),
    "polycarbonate": ("C16H14O3", 1.20),
    "acrylic": ("C5H8O2", 1.18),
    "brass": ("Cu0.63Zn0.37", 8.5),
    "water": ("H2O", 1.0),
}
"""Formula (in moles) and density in g/cm3 of the materials that are no elements."""

AIR_MASS_FRACTIONS = {"N": 0.7553, "O": 0.2318, "Ar": 0.0129}
AIR_G_CM3, HELIUM_G_CM3 = 1.205e-3, 1.66e-4
ATMOSPHERES = ("air", "helium", "vacuum")


@dataclass(frozen=True)
class Material:
    """Mass fraction by element symbol, and density in g/cm3."""

    mass_fractions: dict[str, float]
    density_g_cm3: float

    def attenuation(self, energy_kev) -> np.ndarray:
        """Mass attenuation coefficient in cm2/g, shape `(energies,)`."""
        fractions = np.array(list(self.mass_fractions.values()))
        return fractions @ atomic_data.mass_attenuation(tuple(self.mass_fractions), energy_kev)

    def transmission(self, energy_kev, path_cm: float) -> np.ndarray:
        """Share of photons that pass a path through the material (Lambert and Beer), shape `(energies,)`."""
        return np.exp(-self.attenuation(energy_kev) * self.density_g_cm3 * path_cm)


def material(name: str) -> Material:
    """An element or one of `COMPOUNDS`.

    Raises:
        ValueError: the name is neither.
    """
    if name in COMPOUNDS:
        formula, density_g_cm3 = COMPOUNDS[name]
        return Material(atomic_data.mass_fractions(formula), density_g_cm3)
    if name in atomic_data.ELEMENTS:
        return Material({name: 1.0}, xraylib.ElementDensity(xraylib.SymbolToAtomicNumber(name)))
    raise ValueError(f"material {name!r} is neither an element nor one of {', '.join(COMPOUNDS)}.")


def gas(atmosphere: str, residual_air: float) -> Material:
    """The gas in the path: air, helium or vacuum with a volume fraction of air left in the last two."""
    air_share = 1.0 if atmosphere == "air" else residual_air
    helium_g_cm3 = HELIUM_G_CM3 * (1 - air_share) if atmosphere == "helium" else 0.0
    air_g_cm3 = AIR_G_CM3 * air_share
    density_g_cm3 = helium_g_cm3 + air_g_cm3
    if density_g_cm3 == 0:
        return Material({}, 0.0)
    fractions = {element: air_g_cm3 / density_g_cm3 * share for element, share in AIR_MASS_FRACTIONS.items()}
    return Material({"He": helium_g_cm3 / density_g_cm3, **fractions}, density_g_cm3)
