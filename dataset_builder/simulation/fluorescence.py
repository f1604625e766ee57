"""Fluorescence of thick, flat, homogeneous samples: primary and secondary excitation with self-absorption.

J. Sherman, Spectrochim. Acta 7, 283 (1955); T. Shiraiwa and N. Fujino, Jpn. J. Appl. Phys. 5, 886 (1966). Tertiary
excitation and the photoelectrons' own ionisation are left out.

Names of the axes: B spectra, Z elements, E excitation energies, L emission lines, J lines that excite others.
"""

import numpy as np

from . import atomic_data
from .atomic_data import ELEMENTS, ExcitationAxis

SECONDARY_MASS_FRACTION = 0.002
"""Elements that nowhere in a batch exceed this excite no other elements."""
SECONDARY_RATE = 0.1
"""Lines with less of their shell's photons excite no other elements."""
BLOCK_VALUES = 100_000
"""Size of the largest intermediate array, so that it stays in the processor's cache."""


class ThickSample:
    """Emission lines of samples made of given elements, under a given excitation and geometry.

    Args:
        elements (`tuple[str, ...]`): the Z axis of the samples' compositions.
        axis (`ExcitationAxis`): the E axis.
        incidence_angle_deg, exit_angle_deg (`float`): beam and detector to the sample's surface.

    Attributes:
        lines (`list[EmissionLine]`): the L axis, only lines that `axis` can excite.
        line_kev (`np.ndarray` of shape `(L,)`): their energies.
    """

    def __init__(self, elements, axis: ExcitationAxis, incidence_angle_deg=45.0, exit_angle_deg=45.0):
        self.elements, self.axis = tuple(elements), axis
        self._sin_in = np.sin(np.radians(incidence_angle_deg))
        self._sin_out = np.sin(np.radians(exit_angle_deg))
        rows = [ELEMENTS.index(element) for element in self.elements]
        self._mu_in = axis.attenuation()[rows].astype(np.float32)  # (Z, E)

        highest_kev = max((axis.energy_kev + 0.5 * axis.width_kev).max(), axis.tube_kv)
        lines, production = [], []
        for element in self.elements:
            excitable = [line for line in atomic_data.emission_lines(element) if line.edge_kev < highest_kev]
            by_shell = dict(zip(atomic_data.SHELLS, axis.shell_production(element), strict=True)) if excitable else {}
            lines += excitable
            production += [line.rate * by_shell[line.shell] for line in excitable]
        self.lines = lines
        self.line_kev = np.array([line.energy_kev for line in lines])
        self._element = np.array([self.elements.index(line.element) for line in lines], dtype=int)  # (L,)
        # Photons of each line per excitation photon and g/cm2 of its element.
        self.production = np.array(production).reshape(len(lines), len(axis.energy_kev)).astype(np.float32)
        self._mu_line = atomic_data.mass_attenuation_at_lines(self.elements, self.line_kev).astype(
            np.float32
        )  # (Z, L)
        self._prepare_secondary()

    def _prepare_secondary(self):
        """Which lines may excite others, and the production of every line L by photons of each such line J."""
        exciting = [i for i, line in enumerate(self.lines) if line.shell[0] in "KL" and line.rate > SECONDARY_RATE]
        exciting_kev = tuple(float(self.line_kev[i]) for i in exciting)
        shells = {
            element: dict(
                zip(atomic_data.SHELLS, atomic_data.shell_production_at_lines(element, exciting_kev), strict=True)
            )
            for element in {line.element for line in self.lines}
        }
        by_lines = np.array([line.rate * shells[line.element][line.shell] for line in self.lines])
        by_lines = by_lines.reshape(len(self.lines), len(exciting)).astype(np.float32)
        useful = by_lines.any(axis=0)
        self._exciting = np.array(exciting, dtype=int)[useful]  # (J,)
        self._production_by_lines = by_lines[:, useful]  # (L, J)

    def intensities(self, mass_fractions, excitation, secondary: bool = True) -> np.ndarray:
        """Photons of every line that leave the sample per photon in the beam, were all directions like the detector's.

        Args:
            mass_fractions (`np.ndarray` of shape `(B, Z)`): rows adding up to 1.
            excitation (`np.ndarray` of shape `(B, E)`): photons that arrive at the sample.
            secondary (`bool`): whether fluorescence excites fluorescence.

        Returns:
            `np.ndarray` of shape `(B, L)`, float32: 4 pi times the photons per steradian towards the detector.
        """
        fractions, excitation = np.asarray(mass_fractions, np.float32), np.asarray(excitation, np.float32)
        exciting = np.zeros(0, dtype=int)
        if secondary:
            contents = fractions.max(axis=0)[self._element[self._exciting]]
            exciting = np.flatnonzero(contents > SECONDARY_MASS_FRACTION)
        step = max(1, BLOCK_VALUES // max(1, self.production.size))
        blocks = [slice(start, start + step) for start in range(0, len(fractions), step)]
        return np.concatenate([self._block(fractions[rows], excitation[rows], exciting) for rows in blocks])

    def _block(self, fractions, excitation, exciting):
        mu_in = fractions @ self._mu_in / self._sin_in  # (B, E) along the path, per g/cm2 of depth
        mu_line = fractions @ self._mu_line  # (B, L)
        mu_out = mu_line / self._sin_out
        depth = mu_in[:, None, :] + mu_out[:, :, None]  # (B, L, E)
        np.reciprocal(depth, out=depth)  # g/cm2 seen by beam and detector
        produced = np.matmul(depth * self.production, excitation[:, :, None])[:, :, 0]  # (B, L)
        if len(exciting):
            produced += self._secondary(fractions, excitation, exciting, mu_in, mu_line, mu_out, depth)
        return produced * fractions[:, self._element] / self._sin_in

    def _secondary(self, fractions, excitation, exciting, mu_in, mu_line, mu_out, depth):
        """What lines J add to lines L, shape `(B, L)`.

        Along the beam's and the detector's path a line's own isotropic radiation reaches ln(1 + m / mu_j) / m g/cm2
        with m the slanted attenuation of beam or emitted line: the two logarithms of Shiraiwa and Fujino.
        """
        rows = self._exciting[exciting]
        mu_exciting = mu_line[:, rows]  # (B, J)
        emitted = excitation[:, None, :] * self.production[rows]  # (B, J, E)
        emitted *= 0.5 * fractions[:, self._element[rows], None]
        reach_in = np.log(1 + mu_in[:, None, :] / mu_exciting[:, :, None])
        reach_in /= mu_in[:, None, :]  # (B, J, E)
        reach_out = np.log(1 + mu_out[:, :, None] / mu_exciting[:, None, :])
        reach_out /= mu_out[:, :, None]  # (B, L, J)
        both = np.concatenate([emitted * reach_in, emitted], axis=1)  # (B, 2J, E)
        seen = np.matmul(depth, both.transpose(0, 2, 1))  # (B, L, 2J)
        num = len(rows)
        return ((seen[:, :, :num] + reach_out * seen[:, :, num:]) * self._production_by_lines[:, exciting]).sum(axis=2)


def thin_layer(element: str, axis: ExcitationAxis, excitation) -> tuple[list, np.ndarray]:
    """Lines of a layer too thin to absorb, per g/cm2 along the beam.

    Args:
        excitation (`np.ndarray` of shape `(E,)`): photons in the beam.

    Returns:
        `(lines, intensities)`: of length L and shape `(L,)`, on the scale of `ThickSample.intensities`.
    """
    sample = ThickSample((element,), axis)
    return sample.lines, sample.production @ excitation
