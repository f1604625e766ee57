"""`InstrumentModel`: everything about an instrument that shapes a spectrum, and how it varies between spectra."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class InstrumentModel:
    """An energy-dispersive spectrometer over a thick sample.

    Args:
        name: instrument's name, written into every spectrum.
        anode, tube_kv, tube_ua, live_time_s: tube (element symbol, kV, microampere) and counting time.
        tube_window_um, tube_electron_angle_deg, tube_takeoff_angle_deg: beryllium window and geometry of the tube.
        characteristic_scale: the tube's characteristic lines relative to Ebel's formula.
        incidence_angle_deg, exit_angle_deg: beam and detector to the sample's surface.
        film_um: polypropylene film on the sample, passed on the way in and out.
        air_path_mm: air left in the helium path between sample and detector; its argon fluoresces.
        water_film_um, water_film_log_sd: median thickness of the water between film and sediment, and the standard
            deviation of its logarithm from spectrum to spectrum.
        detector_window_um, dead_layer_um, detector_thickness_mm: of the silicon detector with its beryllium window.
        noise_fwhm_ev, fano: electronic noise (full width at half maximum) and Fano factor.
        tail_fraction, tail_kev, shelf_fraction: incomplete charge collection (see `detector.response_matrix`).
        pile_up_fraction: share of pulses that another one joins within the pulse-pair resolution.
        scatter_scale: scattered tube radiation relative to single scattering at the mean angle.
        num_channels, gain_kev, offset_kev: the native channels.
        reference_counts: total counts of the reference sediment.
        gain_sd, offset_sd_kev, noise_sd_ev, intensity_sd, pile_up_sd: relative or absolute standard deviations of the
            drifts between cores; within a core a tenth of gain and offset drift remains.
    """

    name: str
    anode: str
    tube_kv: float
    tube_ua: float
    live_time_s: float
    num_channels: int
    gain_kev: float
    offset_kev: float
    reference_counts: float
    tube_window_um: float = 125.0
    tube_electron_angle_deg: float = 60.0
    tube_takeoff_angle_deg: float = 30.0
    characteristic_scale: float = 1.0
    incidence_angle_deg: float = 45.0
    exit_angle_deg: float = 45.0
    film_um: float = 4.0
    air_path_mm: float = 0.0
    water_film_um: float = 10.0
    water_film_log_sd: float = 0.4
    detector_window_um: float = 12.5
    dead_layer_um: float = 0.1
    detector_thickness_mm: float = 0.5
    noise_fwhm_ev: float = 100.0
    fano: float = 0.12
    tail_fraction: float = 0.02
    tail_kev: float = 0.3
    shelf_fraction: float = 0.005
    pile_up_fraction: float = 0.01
    scatter_scale: float = 1.0
    gain_sd: float = 0.002
    offset_sd_kev: float = 0.004
    noise_sd_ev: float = 4.0
    intensity_sd: float = 0.03
    pile_up_sd: float = 0.1

    @property
    def channel_edges_kev(self) -> np.ndarray:
        """Energies between channels, shape `(num_channels + 1,)`; channel i reaches half a gain to both sides."""
        return self.offset_kev + self.gain_kev * (np.arange(self.num_channels + 1) - 0.5)

    @property
    def lowest_noise_fwhm_ev(self) -> float:
        """Noise below which no spectrum is drawn: three standard deviations under the mean."""
        return max(self.noise_fwhm_ev - 3 * self.noise_sd_ev, 1.0)


AVAATECH_10KV = InstrumentModel(
    name="Avaatech core scanner (simulated)",
    anode="Rh",
    tube_kv=10.0,
    tube_ua=150.0,
    live_time_s=10.0,
    num_channels=2048,
    gain_kev=0.02,
    offset_kev=0.0,
    reference_counts=0.95e6,
    characteristic_scale=1.5,
    water_film_um=12.0,
    air_path_mm=0.6,
    noise_fwhm_ev=140.0,
    noise_sd_ev=25.0,
    fano=0.18,
    tail_fraction=0.035,
    tail_kev=0.22,
    shelf_fraction=0.005,
    pile_up_fraction=0.02,
    scatter_scale=1.3,
    gain_sd=0.001,
    offset_sd_kev=0.002,
)
"""Avaatech at 10 kV without filter, 10 s: the condition MAX was trained on.

Noise, Fano factor (an effective one: short shaping widens peaks beyond charge statistics), tail, pile-up, water film
and the scales were fitted, with the mean composition, to the mean of 55,211 measured spectra and then rounded; such a
fit is degenerate, so they describe spectra, not the hardware.
"""


@dataclass(frozen=True)
class InstrumentState:
    """The instrument at the moment of each of B spectra; every array has shape `(B,)`."""

    gain_kev: np.ndarray
    offset_kev: np.ndarray
    noise_fwhm_ev: np.ndarray
    intensity: np.ndarray
    pile_up_fraction: np.ndarray
    water_film_um: np.ndarray

    def __getitem__(self, rows) -> "InstrumentState":
        return InstrumentState(**{name: values[rows] for name, values in vars(self).items()})


def nominal_state(instrument: InstrumentModel, num_spectra: int) -> InstrumentState:
    """The instrument without any drift."""
    return InstrumentState(
        gain_kev=np.full(num_spectra, instrument.gain_kev),
        offset_kev=np.full(num_spectra, instrument.offset_kev),
        noise_fwhm_ev=np.full(num_spectra, instrument.noise_fwhm_ev),
        intensity=np.ones(num_spectra),
        pile_up_fraction=np.full(num_spectra, instrument.pile_up_fraction),
        water_film_um=np.full(num_spectra, instrument.water_film_um),
    )


def draw_states(instrument: InstrumentModel, num_spectra: int, rng: np.random.Generator) -> InstrumentState:
    """Drifting states of the spectra of one core: an offset of its own, and a tenth of it between spectra."""

    def drift(standard_deviation):
        return standard_deviation * (rng.standard_normal() + 0.1 * rng.standard_normal(num_spectra))

    noise_fwhm_ev = instrument.noise_fwhm_ev + drift(instrument.noise_sd_ev)
    return InstrumentState(
        gain_kev=instrument.gain_kev * (1 + drift(instrument.gain_sd)),
        offset_kev=instrument.offset_kev + drift(instrument.offset_sd_kev),
        noise_fwhm_ev=np.maximum(noise_fwhm_ev, instrument.lowest_noise_fwhm_ev),
        intensity=np.exp(drift(instrument.intensity_sd)),
        pile_up_fraction=instrument.pile_up_fraction * np.exp(drift(instrument.pile_up_sd)),
        water_film_um=instrument.water_film_um
        * np.exp(instrument.water_film_log_sd * rng.standard_normal(num_spectra)),
    )
