"""Atomic data from xraylib as arrays: attenuation, fluorescence production, scattering, compositions of formulas.

xraylib: T. Schoonjans et al., Spectrochim. Acta B 66, 776 (2011). Energies in keV, cross sections in cm2/g. Whatever
depends on neither instrument nor sample is computed once per process, on one grid of excitation energies.
"""

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
import xraylib
import xraylib_np

ELEMENTS = tuple(xraylib.AtomicNumberToSymbol(number) for number in range(1, 93))
"""H to U: the axis of every composition; the index is the atomic number less 1."""

LOWEST_ENERGY_KEV = 0.9
"""Window, film and dead layer stop nearly everything below; lighter lines and softer tube photons are left out."""
HIGHEST_ENERGY_KEV = 70.0
"""Highest tube voltage in kV that the grid of excitation energies covers."""

SHELLS = ("K", "L1", "L2", "L3", "M1", "M2", "M3", "M4", "M5")
LOWEST_RADIATIVE_RATE = 0.005
"""Share of a shell's photons below which a transition is left out."""
LINE_GROUP_KEV = 0.06
"""Transitions of one shell within this range become one line; detectors resolve 130 eV at best."""

NODES_PER_BIN = 4


@dataclass(frozen=True)
class EmissionLine:
    """One or a few unresolved characteristic lines of one shell of an element.

    Args:
        transitions: xraylib's names, such as `("KL3", "KL2")`.
        energy_kev, spread_kev: mean of their energies weighted by radiative rate, and standard deviation.
        edge_kev: absorption edge of the shell.
        rate: share of the shell's photons that are in this line.
    """

    element: str
    shell: str
    transitions: tuple[str, ...]
    energy_kev: float
    spread_kev: float
    edge_kev: float
    rate: float


@cache
def emission_lines(element: str) -> tuple[EmissionLine, ...]:
    """K, L and M lines of an element above `LOWEST_ENERGY_KEV`, by shell and then by energy.

    M lines are left out where the strongest ones, to M5, are softer than that.
    """
    atomic_number = xraylib.SymbolToAtomicNumber(element)
    lines = []
    for shell in SHELLS:
        if shell[0] == "M" and edge_kev(element, "M5") < LOWEST_ENERGY_KEV:
            continue
        transitions = []
        for name, code in _transitions(shell):
            try:
                energy_kev, rate = xraylib.LineEnergy(atomic_number, code), xraylib.RadRate(atomic_number, code)
            except ValueError:  # xraylib's way to say that the element has no such line
                continue
            if energy_kev > LOWEST_ENERGY_KEV and rate > LOWEST_RADIATIVE_RATE:
                transitions.append((energy_kev, rate, name))
        if transitions:
            lines += [_merge(element, shell, group) for group in _groups(sorted(transitions))]
    return tuple(lines)


@cache
def _transitions(shell: str) -> tuple[tuple[str, int], ...]:
    """xraylib's names and codes of the transitions to a shell from single outer subshells."""
    names = [name.removesuffix("_LINE") for name in dir(xraylib) if name.endswith("_LINE")]
    first = len(shell)
    outer = {f"{letter}{number}" for letter in "LMNOPQ" for number in range(1, 8)}
    return tuple(
        (name, getattr(xraylib, f"{name}_LINE")) for name in names if name[:first] == shell and name[first:] in outer
    )


def _shell_code(shell: str) -> int:
    return getattr(xraylib, f"{shell}_SHELL")


def edge_kev(element: str, shell: str) -> float:
    """Absorption edge of a shell, 0 if the element has no electrons in it."""
    try:
        return xraylib.EdgeEnergy(xraylib.SymbolToAtomicNumber(element), _shell_code(shell))
    except ValueError:
        return 0.0


def _groups(transitions):
    """Split transitions in order of energy so that no group is wider than `LINE_GROUP_KEV`."""
    groups = []
    for transition in transitions:
        if groups and transition[0] - groups[-1][0][0] <= LINE_GROUP_KEV:
            groups[-1].append(transition)
        else:
            groups.append([transition])
    return groups


def _merge(element, shell, group) -> EmissionLine:
    energies, rates = np.array([[energy, rate] for energy, rate, _ in group]).T
    mean = np.average(energies, weights=rates)
    spread = np.sqrt(np.average((energies - mean) ** 2, weights=rates))
    names = tuple(name for _, _, name in group)
    return EmissionLine(
        element, shell, names, float(mean), float(spread), edge_kev(element, shell), float(rates.sum())
    )


def atomic_numbers(elements) -> np.ndarray:
    """Atomic numbers of element symbols, in the integer type xraylib's array functions want."""
    return np.array([xraylib.SymbolToAtomicNumber(element) for element in elements], dtype=np.int64)


def mass_attenuation(elements, energy_kev) -> np.ndarray:
    """Total mass attenuation coefficients in cm2/g, shape `(elements, energies)`.

    With L. Kissel's photoionisation cross sections, as in `shell_production`: xraylib's others, `CS_Total`, are
    splines that swing by up to 10 % just above some K edges (Cr at 6.4 keV, Na at 1.1 keV).
    """
    return xraylib_np.CS_Total_Kissel(atomic_numbers(elements), np.asarray(energy_kev, dtype=np.float64))


def shell_production(element: str, energy_kev) -> np.ndarray:
    """Photons emitted by each of `SHELLS` per excitation photon and g/cm2, shape `(9, energies)`.

    Photoionisation (L. Kissel's cross sections), then vacancies moved outwards by radiative, Auger and Coster-Kronig
    transitions, then fluorescence yield. A line is its radiative rate times this.
    """
    codes = np.array([_shell_code(shell) for shell in SHELLS], dtype=np.int64)
    energies = np.asarray(energy_kev, dtype=np.float64)
    return xraylib_np.CS_FluorShell_Kissel_Cascade(atomic_numbers([element]), codes, energies)[0]


def mass_attenuation_at_lines(elements, line_kev) -> np.ndarray:
    """`mass_attenuation` at energies that many instruments have in common, each asked once per process."""
    rows = [ELEMENTS.index(element) for element in elements]
    return np.array([_attenuation_at(float(energy)) for energy in line_kev]).reshape(-1, len(ELEMENTS)).T[rows]


@cache
def _attenuation_at(energy_kev: float) -> np.ndarray:
    return mass_attenuation(ELEMENTS, [energy_kev])[:, 0]


def shell_production_at_lines(element: str, line_kev) -> np.ndarray:
    """`shell_production` at energies that many instruments have in common, each asked once per process."""
    columns = [_production_at(element, float(energy)) for energy in line_kev]
    return np.array(columns).reshape(-1, len(SHELLS)).T


@cache
def _production_at(element: str, energy_kev: float) -> np.ndarray:
    return shell_production(element, [energy_kev])[:, 0]


def rayleigh_and_compton(elements, energy_kev, angle_rad: float) -> tuple[np.ndarray, np.ndarray]:
    """Differential scattering cross sections in cm2/g/sr at one angle, each of shape `(elements, energies)`."""
    numbers, energies = atomic_numbers(elements), np.asarray(energy_kev, dtype=np.float64)
    angle = np.array([angle_rad])
    return (
        xraylib_np.DCS_Rayl(numbers, energies, angle)[..., 0],
        xraylib_np.DCS_Compt(numbers, energies, angle)[..., 0],
    )


@cache
def _formula(formula: str) -> tuple[tuple[str, float], ...]:
    parsed = xraylib.CompoundParser(formula)
    symbols = [xraylib.AtomicNumberToSymbol(number) for number in parsed["Elements"]]
    return tuple(zip(symbols, parsed["massFractions"], strict=True))


def mass_fractions(formula: str) -> dict[str, float]:
    """Mass fraction by element symbol of a chemical formula such as `"CaCO3"`; numbers may have decimals."""
    return dict(_formula(formula))


@dataclass(frozen=True)
class ExcitationAxis:
    """The E axis of everything excited by a tube: bins of the continuum, then single energies.

    All axes share one grid of bins, so what xraylib says about an element is asked once per process. The bins end at
    every K and L3 edge, where cross sections jump; inside a bin a quantity is the mean over `NODES_PER_BIN` energies.

    Args:
        tube_kv: bins are those that begin below; 0 for none.
        line_kev: single energies, those of the anode's lines.
    """

    tube_kv: float
    line_kev: tuple[float, ...]

    @property
    def num_bins(self) -> int:
        return int(np.searchsorted(_bin_edges_kev(), self.tube_kv, side="left")) if self.tube_kv else 0

    @cached_property
    def energy_kev(self) -> np.ndarray:
        """Bin centres, then line energies, shape `(E,)`."""
        edges = _bin_edges_kev()[: self.num_bins + 1]
        return np.concatenate([0.5 * (edges[1:] + edges[:-1]), self.line_kev])

    @cached_property
    def width_kev(self) -> np.ndarray:
        """Width of the bins, and 0 for lines, shape `(E,)`."""
        return np.concatenate([np.diff(_bin_edges_kev()[: self.num_bins + 1]), np.zeros(len(self.line_kev))])

    @property
    def nodes_kev(self) -> np.ndarray:
        """Energies inside the bins, shape `(num_bins, NODES_PER_BIN)`."""
        return _nodes_kev()[: self.num_bins]

    def attenuation(self) -> np.ndarray:
        """Mass attenuation coefficients of all `ELEMENTS` in cm2/g, shape `(92, E)`."""
        return np.concatenate([_bin_attenuation()[:, : self.num_bins], _line_attenuation(self.line_kev)], axis=1)

    def shell_production(self, element: str) -> np.ndarray:
        """`shell_production` of one element on this axis, shape `(9, E)`."""
        return np.concatenate(
            [_bin_production(element)[:, : self.num_bins], _line_production(element, self.line_kev)], axis=1
        )


@cache
def _bin_edges_kev() -> np.ndarray:
    """Steps of 0.1 keV up to 10 keV, then of 1 % up to 0.2 keV, giving way to K and L3 edges."""
    steps = [LOWEST_ENERGY_KEV]
    while steps[-1] < HIGHEST_ENERGY_KEV:
        steps.append(steps[-1] + float(np.clip(0.01 * steps[-1], 0.1, 0.2)))
    edges = []
    for shell, apart_kev in (("K", 0.0), ("L3", 0.01)):  # an L3 edge beside a K edge shares its place
        for energy_kev in (edge_kev(element, shell) for element in ELEMENTS):
            apart = all(abs(energy_kev - other) > apart_kev for other in edges)
            if LOWEST_ENERGY_KEV < energy_kev < steps[-1] and apart:
                edges.append(energy_kev)
    edges = np.array(edges)
    kept = [step for step in steps[1:] if np.abs(edges - step).min() > 0.04]
    return np.sort(np.concatenate([[LOWEST_ENERGY_KEV], edges, kept]))


@cache
def _nodes_kev() -> np.ndarray:
    edges = _bin_edges_kev()
    inside = (np.arange(NODES_PER_BIN) + 0.5) / NODES_PER_BIN
    return edges[:-1, None] + np.diff(edges)[:, None] * inside


def _bin_mean(values):
    return values.reshape(len(values), -1, NODES_PER_BIN).mean(axis=2)


@cache
def _bin_attenuation() -> np.ndarray:
    return _bin_mean(mass_attenuation(ELEMENTS, _nodes_kev().ravel()))


@cache
def _bin_production(element: str) -> np.ndarray:
    return _bin_mean(shell_production(element, _nodes_kev().ravel()))


@lru_cache(maxsize=64)
def _line_attenuation(line_kev: tuple[float, ...]) -> np.ndarray:
    return mass_attenuation(ELEMENTS, line_kev)


@lru_cache(maxsize=4096)
def _line_production(element: str, line_kev: tuple[float, ...]) -> np.ndarray:
    return shell_production(element, line_kev)
