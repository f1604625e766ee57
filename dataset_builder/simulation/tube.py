"""Spectrum of an X-ray tube after Ebel: continuum and characteristic lines.

H. Ebel, X-Ray Spectrom. 28, 255 (1999) for the continuum and K lines; H. Ebel, X-Ray Spectrom. 32, 46 (2003) and
Adv. X-ray Anal. 49, 267 (2006) for L lines. Intensities are in photons per second, mA and steradian.
"""

import numpy as np
import xraylib

from . import atomic_data

CONTINUUM_CONSTANT = 1.35e9  # photons / (s mA sr keV)
K_LINE_CONSTANT = 5.0e13  # photons / (s mA sr)
L_LINE_CONSTANTS = {"L1": 0.71e13, "L2": 2.70e13, "L3": 4.94e13}  # photons / (s mA sr)
STOPPING_FACTORS = {"K": 2 * 0.35, "L": 8 * 0.25}  # number of electrons in the shell times b


def tube_photons(
    anode: str,
    tube_kv: float,
    bin_width_kev: float = 0.1,
    electron_angle_deg: float = 60.0,
    takeoff_angle_deg: float = 30.0,
    window_um: float = 125.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photons that leave the tube through its beryllium window.

    Args:
        anode: element symbol.
        tube_kv: tube voltage, the highest photon energy in keV.
        bin_width_kev: width of the continuum's bins.
        electron_angle_deg, takeoff_angle_deg: of the electrons and of the used beam, both to the anode's surface.
        window_um: thickness of the beryllium window in micrometre.

    Returns:
        `(energy_kev, photons, bin_width_kev)`, each of shape `(bins + lines,)`: first the continuum by bin centre,
        then the characteristic lines, whose width is 0.
    """
    edges_kev = np.linspace(
        atomic_data.LOWEST_ENERGY_KEV, tube_kv, 1 + round((tube_kv - atomic_data.LOWEST_ENERGY_KEV) / bin_width_kev)
    )
    energy_kev, width_kev = 0.5 * (edges_kev[1:] + edges_kev[:-1]), np.diff(edges_kev)
    lines = atomic_data.emission_lines(anode, tube_kv)
    line_kev = np.array([line.energy_kev for line in lines])

    geometry = np.sin(np.radians(electron_angle_deg)) / np.sin(np.radians(takeoff_angle_deg))
    atomic_number = xraylib.SymbolToAtomicNumber(anode)
    exponent = 1.109 - 0.00435 * atomic_number + 0.00175 * tube_kv
    escape = _escape(anode, tube_kv, energy_kev, energy_kev, geometry)
    continuum = CONTINUUM_CONSTANT * atomic_number * (tube_kv / energy_kev - 1) ** exponent * escape * width_kev

    edge_kev = np.array([line.edge_kev for line in lines])
    characteristic = _line_yields(anode, lines, tube_kv) * _escape(anode, tube_kv, line_kev, edge_kev, geometry)

    energies = np.concatenate([energy_kev, line_kev])
    window_g_cm2 = xraylib.ElementDensity(4) * window_um * 1e-4
    transmission = np.exp(-atomic_data.mass_attenuation(["Be"], energies)[0] * window_g_cm2)
    photons = np.concatenate([continuum, characteristic]) * transmission
    return energies, photons, np.concatenate([width_kev, np.zeros(len(lines))])


def _escape(anode, tube_kv, photon_kev, ionised_kev, geometry):
    """Share of photons that escape self-absorption in the anode; the mean depth follows Love and Scott (1978).

    `ionised_kev` is the energy down to which an electron can make the photon: the photon's own for the continuum, the
    edge for a line.
    """
    atomic_number = xraylib.SymbolToAtomicNumber(anode)
    ionisation_kev = 0.0135 * atomic_number
    log_z = np.log(atomic_number)
    power = 0.1382 - 0.9211 / np.sqrt(atomic_number)
    backscatter = tube_kv**power * (0.1904 - 0.2236 * log_z + 0.1292 * log_z**2 - 0.0149 * log_z**3)
    range_g_cm2 = (
        xraylib.AtomicWeight(atomic_number)
        / atomic_number
        * (0.787e-5 * np.sqrt(ionisation_kev) * tube_kv**1.5 + 0.735e-6 * tube_kv**2)
    )
    log_overvoltage = np.log(tube_kv / ionised_kev)
    mean_depth_g_cm2 = (
        range_g_cm2
        * log_overvoltage
        * (0.49269 - 1.0987 * backscatter + 0.78557 * backscatter**2)
        / (0.70256 - 1.09865 * backscatter + 1.0046 * backscatter**2 + log_overvoltage)
    )
    depth = 2 * atomic_data.mass_attenuation([anode], photon_kev)[0] * mean_depth_g_cm2 * geometry
    return -np.expm1(-depth) / depth


def _line_yields(anode, lines, tube_kv) -> np.ndarray:
    """Photons per second, mA and steradian made in the anode in each line, before self-absorption."""
    atomic_number = xraylib.SymbolToAtomicNumber(anode)
    ionisation_kev = 0.0135 * atomic_number
    l_correction = 1.0 if atomic_number >= 80 else -0.4814 + 0.03781 * atomic_number - 2.413e-4 * atomic_number**2
    yields = np.zeros(len(lines))
    for i, line in enumerate(lines):
        overvoltage = tube_kv / line.edge_kev
        slowing = overvoltage * np.log(overvoltage) + 1 - overvoltage
        relativistic = (np.sqrt(overvoltage) * np.log(overvoltage) + 2 * (1 - np.sqrt(overvoltage))) / slowing
        stopping = (
            STOPPING_FACTORS[line.shell[0]]
            / atomic_number
            * slowing
            * (1 + 16.05 * np.sqrt(ionisation_kev / line.edge_kev) * relativistic)
        )
        backscattering = (
            1
            - 0.0081517 * atomic_number
            + 3.613e-5 * atomic_number**2
            + 0.009583 * atomic_number * np.exp(-overvoltage)
            + 0.001141 * tube_kv
        )
        if line.shell == "K":
            constant, shell = K_LINE_CONSTANT, xraylib.K_SHELL
        else:
            # Ebel's constants go with one mean fluorescence yield of the L shell; xraylib's L3 yield stands for it.
            constant, shell = L_LINE_CONSTANTS[line.shell], xraylib.L3_SHELL
            constant *= 1.0 if line.shell == "L3" else l_correction
        yields[i] = (
            constant
            * stopping
            * backscattering
            * xraylib.FluorYield(atomic_number, shell)
            * xraylib.RadRate(atomic_number, line.code)
        )
    return yields
