"""The forward model: composition of a thick sample and state of the instrument to expected counts per channel.

Names of the axes: B spectra, Z elements, E excitation energies (tube continuum and lines), L emission lines.
Fluorescence after J. Sherman, Spectrochim. Acta 7, 283 (1955): primary excitation, thick and flat sample. Secondary
excitation (a few percent for Ca, K and Ti in iron-rich sediment) is left out.
"""

import numpy as np

from . import atomic_data, detector
from .instrument import InstrumentModel, InstrumentState, nominal_state
from .sample import ELEMENTS, reference_mass_fractions
from .tube import tube_photons

ELECTRON_REST_KEV = 510.999
COMPTON_DOPPLER_SHARE = 0.012  # width of the Compton profile relative to the energy, light elements at 90 degrees
POLYPROPYLENE, POLYPROPYLENE_G_CM3 = "C3H6", 0.9
WATER, WATER_G_CM3 = "H2O", 1.0
ARGON_IN_AIR_G_CM3 = 0.0129 * 1.205e-3  # mass share of argon times density of air at 20 C


class ForwardModel:
    """Expected spectra of one instrument; everything that does not depend on the sample is computed once.

    Args:
        instrument (`InstrumentModel`): the instrument.
        elements (sequence of `str`): the Z axis of every composition.
    """

    def __init__(self, instrument: InstrumentModel, elements=ELEMENTS):
        self.instrument, self.elements = instrument, tuple(elements)
        self._sin_in = np.sin(np.radians(instrument.incidence_angle_deg))
        self._sin_out = np.sin(np.radians(instrument.exit_angle_deg))
        self._prepare_excitation()
        self._prepare_emission()
        self._prepare_response()
        self._counts_per_intensity = 1.0
        reference = self.expected_counts(reference_mass_fractions(self.elements)[None], nominal_state(instrument, 1))
        self._counts_per_intensity = instrument.reference_counts / reference.sum()

    def _prepare_excitation(self):
        ins = self.instrument
        energy_kev, photons, width_kev = tube_photons(
            ins.anode,
            ins.tube_kv,
            electron_angle_deg=ins.tube_electron_angle_deg,
            takeoff_angle_deg=ins.tube_takeoff_angle_deg,
            window_um=ins.tube_window_um,
        )
        photons = np.where(width_kev > 0, photons, photons * ins.characteristic_scale)
        photons = photons * self._film_transmission(energy_kev, self._sin_in)
        self.excitation_kev, self.excitation_width_kev = energy_kev, width_kev  # (E,)
        self.excitation = photons / photons.sum()  # (E,)
        self._mu_excitation = atomic_data.mass_attenuation(self.elements, energy_kev)  # (Z, E)
        self._water_excitation = atomic_data.compound_attenuation(WATER, energy_kev)  # (E,)

    def _prepare_emission(self):
        ins = self.instrument
        self.lines = [line for e in self.elements for line in atomic_data.emission_lines(e, ins.tube_kv)]
        self.line_kev = np.array([line.energy_kev for line in self.lines])  # (L,)
        self._line_element = np.array([self.elements.index(line.element) for line in self.lines], dtype=int)  # (L,)
        # Photons of each line per excitation photon and g/cm2 of its element.
        self._production = atomic_data.line_production(self.lines, self.excitation_kev)  # (L, E)
        self._mu_line = atomic_data.mass_attenuation(self.elements, self.line_kev)  # (Z, L)
        self._water_line = atomic_data.compound_attenuation(WATER, self.line_kev)  # (L,)

        angle = np.radians(ins.incidence_angle_deg + ins.exit_angle_deg)
        self.compton_kev = self.excitation_kev / (
            1 + self.excitation_kev / ELECTRON_REST_KEV * (1 - np.cos(angle))
        )  # (E,)
        self._mu_compton = atomic_data.mass_attenuation(self.elements, self.compton_kev)  # (Z, E)
        self._water_compton = atomic_data.compound_attenuation(WATER, self.compton_kev)  # (E,)
        # Fluorescence leaves in all directions: the 4 pi puts scattering per steradian on the same scale.
        rayleigh, compton = atomic_data.rayleigh_and_compton(self.elements, self.excitation_kev, angle)
        self._rayleigh, self._compton = (4 * np.pi * ins.scatter_scale * x for x in (rayleigh, compton))  # (Z, E)

    def _prepare_response(self):
        ins = self.instrument
        bin_sigma_kev = self.excitation_width_kev / np.sqrt(12)
        doppler_kev = COMPTON_DOPPLER_SHARE * self.compton_kev
        energy_kev = np.concatenate([self.line_kev, self.excitation_kev, self.compton_kev])
        extra_sigma_kev = np.concatenate(
            [np.zeros(len(self.line_kev)), bin_sigma_kev, np.hypot(bin_sigma_kev, doppler_kev)]
        )
        detected = detector.efficiency(
            energy_kev, ins.detector_window_um, ins.dead_layer_um, ins.detector_thickness_mm
        ) * self._film_transmission(energy_kev, self._sin_out)
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
        self._response = detected[:, None] * response  # (L + 2E, channels)
        self._air = self._air_argon() @ response  # (channels,)

    def _film_transmission(self, energy_kev, sine):
        path_g_cm2 = POLYPROPYLENE_G_CM3 * 1e-4 * self.instrument.film_um / sine
        return np.exp(-atomic_data.compound_attenuation(POLYPROPYLENE, energy_kev) * path_g_cm2)

    def _air_argon(self):
        """Argon lines of the air in the path, on the scale of `emitted`: a layer too thin to absorb, (L + 2E,)."""
        argon_g_cm2 = ARGON_IN_AIR_G_CM3 * 0.1 * self.instrument.air_path_mm
        intensity = np.zeros(len(self.lines) + 2 * len(self.excitation_kev))
        is_argon = np.array([line.element == "Ar" for line in self.lines])
        intensity[: len(self.lines)] = argon_g_cm2 * is_argon * (self._production @ self.excitation) / self._sin_in
        return intensity

    def emitted(self, mass_fractions, water_film_um) -> np.ndarray:
        """Photons towards the detector per excitation photon, below the film.

        Args:
            mass_fractions (`np.ndarray` of shape `(B, Z)`): of the wet sample, each row adding up to 1.
            water_film_um (`np.ndarray` of shape `(B,)`): water above the sample.

        Returns:
            `np.ndarray` of shape `(B, L + 2E)`: fluorescence by line, then Rayleigh and Compton scattering by
            excitation energy.
        """
        film = WATER_G_CM3 * 1e-4 * np.asarray(water_film_um, dtype=np.float64)[:, None]  # (B, 1) g/cm2
        arriving = self.excitation * np.exp(-film * self._water_excitation / self._sin_in)  # (B, E)
        mu_in = mass_fractions @ self._mu_excitation / self._sin_in  # (B, E)
        mu_out = mass_fractions @ self._mu_line / self._sin_out  # (B, L)
        depth = 1 / (mu_in[:, None, :] + mu_out[:, :, None])  # (B, L, E) g/cm2 seen by beam and detector
        depth *= self._production
        fluorescence = np.matmul(depth, arriving[:, :, None])[:, :, 0]  # (B, L)
        fluorescence *= mass_fractions[:, self._line_element] * np.exp(-film * self._water_line / self._sin_out)

        scattered = []
        for cross_section, mu_exit, water_exit in (
            (self._rayleigh, self._mu_excitation, self._water_excitation),
            (self._compton, self._mu_compton, self._water_compton),
        ):
            total_mu = mu_in + mass_fractions @ mu_exit / self._sin_out
            leaving = np.exp(-film * water_exit / self._sin_out)
            scattered.append(arriving * (mass_fractions @ cross_section) / total_mu * leaving)
        return np.concatenate([fluorescence, *scattered], axis=1) / self._sin_in

    def expected_counts(self, mass_fractions, state: InstrumentState) -> np.ndarray:
        """Mean counts per native channel, shape `(B, num_channels)`; real counts are Poisson draws around them."""
        ideal = self.emitted(mass_fractions, state.water_film_um) @ self._response + self._air  # (B, channels)
        counts = _pile_up_and_noise(
            ideal,
            state.pile_up_fraction,
            np.sqrt(np.maximum(state.noise_fwhm_ev**2 - self.instrument.lowest_noise_fwhm_ev**2, 0))
            * 1e-3
            / detector.FWHM_PER_SIGMA
            / self.instrument.gain_kev,
        )
        counts = _drift(counts, self.instrument, state)
        return counts * (self._counts_per_intensity * state.intensity)[:, None]


def _pile_up_and_noise(ideal, pile_up_fraction, sigma_channels):
    """Pile-up and additional Gaussian noise, both as products of Fourier transforms.

    With share t of pulses joined by the next one, a recorded pulse is the sum of n with probability
    (1 - t) t**(n - 1): the transform f of the single-pulse distribution becomes f (1 - t) / (1 - t f). Channel 0 lies
    near 0 keV, so energies add as channel numbers.
    """
    num_channels = ideal.shape[1]
    length = 2 * num_channels
    transform = np.fft.rfft(ideal, length, axis=1)
    total = transform[:, :1].real
    single = transform / total
    fraction = pile_up_fraction[:, None]
    piled = single * (1 - fraction) / (1 - fraction * single)
    frequency = 2 * np.pi * np.fft.rfftfreq(length)
    piled *= np.exp(-0.5 * (sigma_channels[:, None] * frequency) ** 2)
    return np.maximum(np.fft.irfft(piled * total, length, axis=1)[:, :num_channels], 0)


def _drift(counts, instrument, state):
    """Move counts from the nominal calibration to each state's; linear in the cumulative, so none are lost inside.

    A photon of energy E falls at channel (E - offset) / gain: the recorded channel's edges are looked up on the
    nominal axis. The files still carry the nominal calibration, as real ones do.
    """
    num_channels = counts.shape[1]
    edge = np.arange(num_channels + 1) - 0.5
    energy_kev = state.offset_kev[:, None] + state.gain_kev[:, None] * edge
    position = (energy_kev - instrument.offset_kev) / instrument.gain_kev + 0.5  # (B, channels + 1) nominal edges
    position = np.clip(position, 0, num_channels)
    lower = np.minimum(position.astype(np.int64), num_channels - 1)
    cumulative = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)], axis=1)
    below = np.take_along_axis(cumulative, lower, axis=1)
    within = np.take_along_axis(counts, lower, axis=1) * (position - lower)
    return np.maximum(np.diff(below + within, axis=1), 0)
