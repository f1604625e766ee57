"""Rayleigh and Compton scattering of the tube's radiation, once, through one angle.

Fluorescence leaves in all directions: 4 pi puts scattering per steradian on the same scale.
"""

import numpy as np

from . import atomic_data
from .atomic_data import ELEMENTS

ELECTRON_REST_KEV = 510.999
FINE_STRUCTURE = 1 / 137.036
ELECTRON_MOMENTUM = 1.15
"""Root mean square of the momentum component of electrons in light elements, in units of h / (2 pi a0), from their
Compton profiles (F. Biggs et al., At. Data Nucl. Data Tables 16, 201 (1975))."""


def compton_energy_kev(energy_kev, angle_rad: float) -> np.ndarray:
    """Energy after scattering at an electron at rest (A. H. Compton, Phys. Rev. 21, 483 (1923))."""
    energy_kev = np.asarray(energy_kev)
    return energy_kev / (1 + energy_kev / ELECTRON_REST_KEV * (1 - np.cos(angle_rad)))


def compton_doppler_kev(energy_kev, angle_rad: float) -> np.ndarray:
    """Standard deviation of the Compton energy: the electrons' momentum along the momentum transfer."""
    return 2 * np.sin(angle_rad / 2) * FINE_STRUCTURE * ELECTRON_MOMENTUM * np.asarray(energy_kev)


class Scatterer:
    """Cross sections of all elements at the energies of one tube and through one angle.

    Args:
        energy_kev (`np.ndarray` of shape `(E,)`): energies of the tube's photons.
        angle_rad (`float`): angle between the beam and the path to the detector.
        attenuation (`np.ndarray` of shape `(92, E)`): mass attenuation coefficients at `energy_kev`.

    Attributes:
        exit_kev: energies after Rayleigh and after Compton scattering.
        exit_attenuation: mass attenuation coefficients at them, each of shape `(92, E)`.
        cross_sections: 4 pi times the differential cross sections in cm2/g/sr, each of shape `(92, E)`.
    """

    def __init__(self, energy_kev, angle_rad: float, attenuation):
        compton_kev = compton_energy_kev(energy_kev, angle_rad)
        self.exit_kev = (np.asarray(energy_kev), compton_kev)
        self.exit_attenuation = (attenuation, atomic_data.mass_attenuation(ELEMENTS, compton_kev))
        rayleigh_and_compton = atomic_data.rayleigh_and_compton(ELEMENTS, energy_kev, angle_rad)
        self.cross_sections = tuple(4 * np.pi * cross_section for cross_section in rayleigh_and_compton)
