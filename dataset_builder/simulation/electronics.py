"""From the detector's pulses to recorded counts: pile-up, noise, threshold, zero peak, drifting calibration."""

import numpy as np
from scipy import fft
from scipy.special import erf

from .detector import FWHM_PER_SIGMA
from .instrument import InstrumentModel, InstrumentState


def recorded_counts(ideal, instrument: InstrumentModel, state: InstrumentState, counts_per_intensity: float):
    """Mean counts per native channel, shape `(B, num_channels)`.

    Args:
        ideal (`np.ndarray` of shape `(B, num_channels)`): intensity per channel at `instrument.lowest_noise_fwhm_ev`,
            without pile-up, at the nominal calibration.
        instrument (`InstrumentModel`), state (`InstrumentState`): the electronics.
        counts_per_intensity (`float`): scale of `ideal` when `state.intensity` is 1.
    """
    missing_ev2 = np.maximum(state.noise_fwhm_ev**2 - instrument.lowest_noise_fwhm_ev**2, 0)
    sigma_channels = 1e-3 * np.sqrt(missing_ev2) / FWHM_PER_SIGMA / instrument.gain_kev
    zero_channel = -instrument.offset_kev / instrument.gain_kev
    counts = pile_up_and_noise(ideal, state.pile_up_fraction, sigma_channels, zero_channel)
    counts *= (counts_per_intensity * state.intensity)[:, None]
    counts *= threshold(instrument)
    if instrument.zero_peak_per_s > 0:
        counts += zero_peak(instrument)
    return drift(counts, instrument, state)


def pile_up_and_noise(ideal, pile_up_fraction, sigma_channels, zero_channel: float) -> np.ndarray:
    """Pile-up and additional Gaussian noise, both as products of Fourier transforms.

    With share t of pulses joined by the next one, a recorded pulse is the sum of n with probability
    (1 - t) t**(n - 1): the transform f of the single-pulse distribution becomes f (1 - t) / (1 - t f).

    Args:
        ideal (`np.ndarray` of shape `(B, channels)`): intensity per channel.
        pile_up_fraction, sigma_channels (`np.ndarray` of shape `(B,)`): share t, and the noise in channels.
        zero_channel (`float`): channel of energy 0; energies add, channel numbers do so from there.
    """
    num_channels = ideal.shape[1]
    length = 2 * num_channels
    transform = fft.rfft(ideal, length, axis=1)
    frequency = 2 * np.pi * fft.rfftfreq(length)
    fraction = pile_up_fraction[:, None]
    joined = transform * (fraction / transform[:, :1].real)
    joined *= np.exp(1j * zero_channel * frequency)  # the next pulse's channel, counted from energy 0
    transform *= (1 - fraction) * np.exp(-0.5 * (sigma_channels[:, None] * frequency) ** 2)
    transform /= 1 - joined
    return np.maximum(fft.irfft(transform, length, axis=1)[:, :num_channels], 0)


def threshold(instrument: InstrumentModel) -> np.ndarray:
    """Share of pulses that the low-level discriminator lets pass: a step blurred by noise, shape `(num_channels,)`."""
    edges = instrument.channel_edges_kev
    centre_kev = 0.5 * (edges[1:] + edges[:-1])
    if instrument.threshold_width_kev == 0:
        return (centre_kev >= instrument.threshold_kev).astype(float)
    return 0.5 * (1 + erf((centre_kev - instrument.threshold_kev) / (np.sqrt(2) * instrument.threshold_width_kev)))


def zero_peak(instrument: InstrumentModel) -> np.ndarray:
    """Counts of the noise peak at 0 keV that some electronics record on purpose, shape `(num_channels,)`."""
    sigma_kev = 1e-3 * instrument.noise_fwhm_ev / FWHM_PER_SIGMA
    below = 0.5 * (1 + erf(instrument.channel_edges_kev / (np.sqrt(2) * sigma_kev)))
    return instrument.zero_peak_per_s * instrument.live_time_s * np.diff(below)


def drift(counts, instrument: InstrumentModel, state: InstrumentState) -> np.ndarray:
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
