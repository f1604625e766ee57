"""Spectrum of an X-ray tube after Ebel: continuum and characteristic K and L lines.

H. Ebel, X-Ray Spectrom. 28, 255 (1999) for the continuum and K lines; H. Ebel, X-Ray Spectrom. 32, 46 (2003) and
Adv. X-ray Anal. 49, 267 (2006) for L lines. Intensities are in photons per second, mA and steradian. The anode's M
lines (W: 1.8 keV) are left out.
"""

import numpy as np
import xraylib

from . import atomic_data
from .atomic_data import ExcitationAxis
from .materials import material

CONTINUUM_CONSTANT = 1.35e9  # photons / (s mA sr keV)
LINE_CONSTANTS = {"K": 5.0e13, "L1": 0.71e13, "L2": 2.70e13, "L3": 4.94e13}  # photons / (s mA sr)
STOPPING_FACTORS = {"K": 2 * 0.35, "L": 8 * 0.25}  # number of electrons in the shell times b


def tube_photons(
    anode: str,
    tube_kv: float,
    electron_angle_deg: float = 60.0,
    takeoff_angle_deg: float = 30.0,
    window_um: float = 125.0,
) -> tuple[ExcitationAxis, np.ndarray]:
    """Photons that leave the tube through its beryllium window.

    Args:
        anode: element symbol.
        tube_kv: tube voltage, the highest photon energy in keV.
        electron_angle_deg, takeoff_angle_deg: of the electrons and of the used beam, both to the anode's surface.
        window_um: thickness of the beryllium window in micrometre.

    Returns:
        `(axis, photons)`: bins of the continuum and the anode's lines, and the photons in each, of shape `(E,)`.
    """
    lines = anode_lines(anode, tube_kv)
    axis = ExcitationAxis(tube_kv, tuple(line.energy_kev for line in lines))
    geometry = np.sin(np.radians(electron_angle_deg)) / np.sin(np.radians(takeoff_angle_deg))

    node_kev = np.minimum(axis.nodes_kev.ravel(), tube_kv * (1 - 1e-9))  # the last bin may reach above the voltage
    atomic_number = xraylib.SymbolToAtomicNumber(anode)
    exponent = 1.109 - 0.00435 * atomic_number + 0.00175 * tube_kv
    continuum = CONTINUUM_CONSTANT * atomic_number * (tube_kv / node_kev - 1) ** exponent
    continuum *= _escape(anode, tube_kv, node_kev, node_kev, geometry)
    continuum = continuum.reshape(axis.nodes_kev.shape).mean(axis=1) * axis.width_kev[: axis.num_bins]

    line_kev, edge_kev = np.array([[line.energy_kev, line.edge_kev] for line in lines]).reshape(-1, 2).T
    characteristic = _line_yields(anode, lines, tube_kv) * _escape(anode, tube_kv, line_kev, edge_kev, geometry)
    transmission = material("Be").transmission(axis.energy_kev, 1e-4 * window_um)
    return axis, np.concatenate([continuum, characteristic]) * transmission


def anode_lines(anode: str, tube_kv: float) -> list[atomic_data.EmissionLine]:
    """The K and L lines that the tube's electrons excite in the anode."""
    return [line for line in atomic_data.emission_lines(anode) if line.shell[0] in "KL" and line.edge_kev < tube_kv]


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
        # Ebel's constants go with one mean fluorescence yield of the L shell; xraylib's L3 yield stands for it.
        shell = xraylib.K_SHELL if line.shell == "K" else xraylib.L3_SHELL
        correction = l_correction if line.shell in ("L1", "L2") else 1.0
        yields[i] = LINE_CONSTANTS[line.shell] * correction * stopping * backscattering * line.rate
        yields[i] *= xraylib.FluorYield(atomic_number, shell)
    return yields
