"""Atomic data from xraylib as arrays: attenuation, line production, scattering, and compositions of formulas.

xraylib: T. Schoonjans et al., Spectrochim. Acta B 66, 776 (2011). Energies in keV, cross sections in cm2/g.
"""

from dataclasses import dataclass

import numpy as np
import xraylib
import xraylib_np

K_LINES = ("KL3", "KL2", "KM3", "KM2")
L_LINES = ("L3M5", "L3M4", "L3N5", "L3M1", "L2M4", "L2N4", "L2M1", "L1M3", "L1M2")
LOWEST_ENERGY_KEV = 1.0
"""Window, film and dead layer stop nearly everything below; lighter lines and softer tube photons are left out."""


@dataclass(frozen=True)
class EmissionLine:
    """One characteristic line: element symbol, xraylib's name of the transition, energy and the edge to be excited."""

    element: str
    transition: str
    energy_kev: float
    edge_kev: float

    @property
    def shell(self) -> str:
        return "K" if self.transition[0] == "K" else self.transition[:2]

    @property
    def code(self) -> int:
        return getattr(xraylib, f"{self.transition}_LINE")


def emission_lines(element: str, highest_edge_kev: float) -> list[EmissionLine]:
    """K and L lines of an element above `LOWEST_ENERGY_KEV` whose edge lies below `highest_edge_kev`."""
    atomic_number = xraylib.SymbolToAtomicNumber(element)
    lines = []
    for transition in K_LINES + L_LINES:
        shell = "K" if transition[0] == "K" else transition[:2]
        try:
            energy_kev = xraylib.LineEnergy(atomic_number, getattr(xraylib, f"{transition}_LINE"))
            edge_kev = xraylib.EdgeEnergy(atomic_number, getattr(xraylib, f"{shell}_SHELL"))
            xraylib.RadRate(atomic_number, getattr(xraylib, f"{transition}_LINE"))
        except ValueError:  # xraylib's way to say that the element has no such line
            continue
        if energy_kev > LOWEST_ENERGY_KEV and edge_kev < highest_edge_kev:
            lines.append(EmissionLine(element, transition, energy_kev, edge_kev))
    return lines


def atomic_numbers(elements) -> np.ndarray:
    """Atomic numbers of element symbols, in the integer type xraylib's array functions want."""
    return np.array([xraylib.SymbolToAtomicNumber(element) for element in elements], dtype=np.int64)


def mass_attenuation(elements, energy_kev) -> np.ndarray:
    """Total mass attenuation coefficients in cm2/g, shape `(elements, energies)`."""
    return xraylib_np.CS_Total(atomic_numbers(elements), np.asarray(energy_kev, dtype=np.float64))


def compound_attenuation(formula: str, energy_kev) -> np.ndarray:
    """Mass attenuation coefficient of a compound in cm2/g, shape `(energies,)`."""
    fractions = mass_fractions(formula)
    return np.array(list(fractions.values())) @ mass_attenuation(list(fractions), energy_kev)


def line_production(lines, energy_kev) -> np.ndarray:
    """Production cross section of each line in cm2/g of its element, cascades included, shape `(lines, energies)`."""
    production = np.zeros((len(lines), len(energy_kev)))
    for row, line in enumerate(lines):
        atomic_number = xraylib.SymbolToAtomicNumber(line.element)
        for column in np.flatnonzero(np.asarray(energy_kev) > line.edge_kev):
            production[row, column] = xraylib.CS_FluorLine_Kissel_Cascade(
                atomic_number, line.code, float(energy_kev[column])
            )
    return production


def rayleigh_and_compton(elements, energy_kev, angle_rad: float) -> tuple[np.ndarray, np.ndarray]:
    """Differential scattering cross sections in cm2/g/sr at one angle, each of shape `(elements, energies)`."""
    numbers, energies = atomic_numbers(elements), np.asarray(energy_kev, dtype=np.float64)
    angle = np.array([angle_rad])
    return (
        xraylib_np.DCS_Rayl(numbers, energies, angle)[..., 0],
        xraylib_np.DCS_Compt(numbers, energies, angle)[..., 0],
    )


def mass_fractions(formula: str) -> dict[str, float]:
    """Mass fraction by element symbol of a chemical formula such as `"CaCO3"`; numbers may have decimals."""
    parsed = xraylib.CompoundParser(formula)
    symbols = [xraylib.AtomicNumberToSymbol(number) for number in parsed["Elements"]]
    return dict(zip(symbols, parsed["massFractions"], strict=True))
