"""The forward model: composition of a thick sample and state of the instrument to expected counts per channel.

Names of the axes: B spectra, Z elements, E excitation energies (tube continuum and lines), L emission lines.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

from . import detector, electronics
from .atomic_data import ELEMENTS
from .fluorescence import ThickSample, thin_layer
from .instrument import InstrumentModel, InstrumentState, nominal_state
from .materials import gas, material
from .sample import reference_mass_fractions
from .scattering import Scatterer, compton_doppler_kev
from .tube import anode_lines, tube_photons

KEPT_SAMPLES = 8
"""Sets of elements whose tables are kept."""


@dataclass(frozen=True)
class Emission:
    """Photons towards the detector before they enter the path to it, per photon in the beam and times 4 pi.

    Args:
        sample (`ThickSample`): its `lines` are the L axis.
        fluorescence (`np.ndarray` of shape `(B, L)`): by line.
        rayleigh, compton (`np.ndarray` of shape `(B, E)`): by energy before scattering.
    """

    sample: ThickSample
    fluorescence: np.ndarray
    rayleigh: np.ndarray
    compton: np.ndarray


class ForwardModel:
    """Expected spectra of one instrument; everything that does not depend on the sample is computed once.

    Args:
        instrument (`InstrumentModel`): the instrument.
    """

    def __init__(self, instrument: InstrumentModel):
        self.instrument = instrument
        self._sin_in = np.sin(np.radians(instrument.incidence_angle_deg))
        self._sin_out = np.sin(np.radians(instrument.exit_angle_deg))
        self._gas = gas(instrument.atmosphere, instrument.residual_air)
        self._film = material(instrument.film)
        self._samples = {}
        self._prepare_excitation()
        self._prepare_scattering()
        self._counts_per_intensity = 1.0
        self.instrument = replace(instrument, zero_peak_per_s=0.0)  # only photons belong to the reference counts
        reference = self.expected_counts(reference_mass_fractions()[None], nominal_state(instrument, 1))
        self._counts_per_intensity = instrument.reference_counts / reference.sum()
        self.instrument = instrument

    def _prepare_excitation(self):
        ins = self.instrument
        self.axis, photons = tube_photons(
            ins.anode, ins.tube_kv, ins.tube_electron_angle_deg, ins.tube_takeoff_angle_deg, ins.tube_window_um
        )
        energy_kev = self.axis.energy_kev
        photons[self.axis.num_bins :] *= ins.characteristic_scale
        for name, thickness_um in ins.filters:
            photons *= material(name).transmission(energy_kev, 1e-4 * thickness_um)
        if ins.polycapillary_half_kev is not None:
            photons *= polycapillary_transmission(energy_kev, ins.polycapillary_half_kev, ins.polycapillary_power)
        photons *= self._gas.transmission(energy_kev, 0.1 * ins.beam_path_mm)
        photons *= self._film.transmission(energy_kev, 1e-4 * ins.film_um / self._sin_in)
        self.excitation = photons / photons.sum()  # (E,)

    def _prepare_scattering(self):
        ins, axis = self.instrument, self.axis
        attenuation = axis.attenuation()
        self.scatterer = Scatterer(axis.energy_kev, ins.scattering_angle_rad, attenuation)
        self._mu_in = attenuation.astype(np.float32)  # (92, E)
        self._mu_scattered = [mu.astype(np.float32) for mu in self.scatterer.exit_attenuation]
        self._scattering = [(ins.scatter_scale * x).astype(np.float32) for x in self.scatterer.cross_sections]

        spread_kev = axis.width_kev / np.sqrt(12)
        spread_kev[axis.num_bins :] = [line.spread_kev for line in anode_lines(ins.anode, ins.tube_kv)]
        doppler_kev = compton_doppler_kev(axis.energy_kev, ins.scattering_angle_rad)
        self._scatter_response = [
            self._response(energy_kev, sigma_kev)
            for energy_kev, sigma_kev in zip(
                self.scatterer.exit_kev, (spread_kev, np.hypot(spread_kev, doppler_kev)), strict=True
            )
        ]  # Rayleigh and Compton, each (E, channels)
        self._fixed = self._scattered_by_path() + self._fluorescence_of_path()  # (channels,)

    def _response(self, energy_kev, extra_sigma_kev) -> np.ndarray:
        """Counts per channel of a photon that leaves the sample, shape `(energies, channels)`, float32."""
        ins = self.instrument
        response = detector.response_matrix(
            energy_kev,
            extra_sigma_kev,
            ins.channel_edges_kev,
            ins.lowest_noise_fwhm_ev,
            ins.fano,
            ins.tail_fraction,
            ins.tail_kev,
            ins.shelf_fraction,
        )
        arriving = self._film.transmission(energy_kev, 1e-4 * ins.film_um / self._sin_out)
        arriving = arriving * self._gas.transmission(energy_kev, 0.1 * ins.exit_path_mm)
        arriving = arriving * detector.efficiency(
            energy_kev, ins.detector_window, ins.detector_window_um, ins.dead_layer_um, ins.detector_thickness_mm
        )
        return arriving[:, None].astype(np.float32) * response

    def _scattered_by_path(self):
        """Scatter of film and gas, layers too thin to absorb, shape `(channels,)`."""
        ins = self.instrument
        layers = (
            (self._film, 1e-4 * ins.film_um / self._sin_in),
            (self._gas, 0.1 * ins.gas_view_mm),
        )
        counts = np.zeros(ins.num_channels)
        for layer, path_cm in layers:
            per_g = _rows(layer.mass_fractions)
            for cross_section, response in zip(self._scattering, self._scatter_response, strict=True):
                counts += (layer.density_g_cm3 * path_cm * (per_g @ cross_section) * self.excitation) @ response
        return counts

    def _fluorescence_of_path(self):
        """Lines of the gas (argon) and of contamination, layers too thin to absorb, shape `(channels,)`."""
        ins = self.instrument
        gas_g_cm2 = 0.1 * ins.gas_view_mm * self._gas.density_g_cm3
        layers = [(element, gas_g_cm2 * share) for element, share in self._gas.mass_fractions.items()]
        layers += [(element, 1e-6 * thickness) for element, thickness in ins.contamination_ug_cm2]
        counts = np.zeros(ins.num_channels)
        for element, g_cm2 in layers:
            lines, intensities = thin_layer(element, self.axis, self.excitation)
            if lines:
                energy_kev, spread_kev = np.array([[line.energy_kev, line.spread_kev] for line in lines]).T
                counts += g_cm2 * intensities @ self._response(energy_kev, spread_kev)
        return counts

    def _sample(self, present: tuple[int, ...]):
        """Tables of the samples made of these elements (indices), and the response to their lines."""
        if present not in self._samples:
            if len(self._samples) == KEPT_SAMPLES:
                del self._samples[next(iter(self._samples))]
            ins = self.instrument
            elements = tuple(ELEMENTS[i] for i in present)
            sample = ThickSample(elements, self.axis, ins.incidence_angle_deg, ins.exit_angle_deg)
            response = self._response(sample.line_kev, np.array([line.spread_kev for line in sample.lines]))
            self._samples[present] = sample, response
        return self._samples[present]

    def emission(self, mass_fractions, water_film_um) -> Emission:
        """What the samples send towards the detector.

        Args:
            mass_fractions (`np.ndarray` of shape `(B, 92)`): of the wet sample, each row adding up to 1.
            water_film_um (`np.ndarray` of shape `(B,)`): water above the sample.
        """
        present = tuple(np.flatnonzero(mass_fractions.max(axis=0) > 0).tolist())
        sample, _ = self._sample(present)
        fractions = np.ascontiguousarray(mass_fractions[:, present], dtype=np.float32)  # (B, Z)
        water = material("water")
        film = (water.density_g_cm3 * 1e-4 * np.asarray(water_film_um, dtype=np.float32))[:, None]  # (B, 1) g/cm2

        into_film = self._water(self._mu_in) / self._sin_in  # (E,)
        arriving = (self.excitation * np.exp(-film * into_film)).astype(np.float32)  # (B, E)
        fluorescence = sample.intensities(fractions, arriving)  # (B, L)
        fluorescence *= np.exp(-film * (water.attenuation(sample.line_kev) / self._sin_out).astype(np.float32))

        scattered = []
        mu_in = fractions @ self._mu_in[present, :] / self._sin_in
        for cross_section, mu_exit in zip(self._scattering, self._mu_scattered, strict=True):
            through_film = into_film + self._water(mu_exit) / self._sin_out  # (E,) there and back
            film_share = np.exp(-film * through_film)  # (B, E)
            depth = 1 / (mu_in + fractions @ mu_exit[present, :] / self._sin_out)  # (B, E) g/cm2
            below = fractions @ cross_section[present, :] * depth * film_share
            within = self._water(cross_section) * (1 - film_share) / through_film
            scattered.append(self.excitation * (below + within) / self._sin_in)
        return Emission(sample, fluorescence, *scattered)

    @staticmethod
    def _water(per_element):
        """Water's value of a quantity per gram, from an array of shape `(92, E)`."""
        return (_rows(material("water").mass_fractions) @ per_element).astype(np.float32)

    def expected_counts(self, mass_fractions, state: InstrumentState) -> np.ndarray:
        """Mean counts per native channel, shape `(B, num_channels)`; real counts are Poisson draws around them.

        Args:
            mass_fractions (`np.ndarray` of shape `(B, 92)`): of the wet samples, each row adding up to 1.
            state (`InstrumentState`): the instrument at each of the B spectra.
        """
        mass_fractions = np.asarray(mass_fractions)
        if mass_fractions.ndim != 2 or mass_fractions.shape[1] != len(ELEMENTS):
            raise ValueError(
                f"mass_fractions must have shape (B, {len(ELEMENTS)}), H to U; got {mass_fractions.shape}."
            )
        with _linear_algebra().limit(limits=1, user_api="blas"):
            ideal = self._ideal_counts(mass_fractions, state.water_film_um)
        return electronics.recorded_counts(ideal, self.instrument, state, self._counts_per_intensity)

    def _ideal_counts(self, mass_fractions, water_film_um):
        """Counts of a detector with perfect electronics per photon in the beam, shape `(B, channels)`."""
        emission = self.emission(mass_fractions, water_film_um)
        _, response = self._sample(tuple(ELEMENTS.index(element) for element in emission.sample.elements))
        ideal = emission.fluorescence @ response + self._fixed  # (B, channels)
        for scattered, scatter_response in zip(
            (emission.rayleigh, emission.compton), self._scatter_response, strict=True
        ):
            ideal += scattered.astype(np.float32) @ scatter_response
        return ideal


def polycapillary_transmission(energy_kev, half_kev: float, power: float = 2.0) -> np.ndarray:
    """Transmission of a focusing polycapillary relative to low energies, shape `(energies,)`.

    The critical angle of total reflection falls as 1 / E, the accepted solid angle as its square (`power` 2), once the
    channels no longer accept the whole source; bends lose hard photons faster (C. A. MacDonald and W. M. Gibson, X-Ray
    Spectrom. 32, 258 (2003)), which a higher power describes.
    """
    return 1 / (1 + (np.asarray(energy_kev) / half_kev) ** power)


@cache
def _linear_algebra() -> ThreadpoolController:
    """Holds numpy's matrix products to one thread: several would wait for each other over products this small, and
    make the last digits, and with them the drawn counts, depend on the machine."""
    return ThreadpoolController()


def _rows(fractions: dict[str, float]) -> np.ndarray:
    """Mass fractions by symbol as an array on the axis of `ELEMENTS`, shape `(92,)`."""
    return np.array([fractions.get(element, 0.0) for element in ELEMENTS])
