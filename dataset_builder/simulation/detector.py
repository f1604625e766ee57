"""A silicon drift detector: efficiency, and the response that spreads a photon energy over channels.

Peak shape after P. Van Espen in "Handbook of X-Ray Spectrometry" (2002), ch. 4: Gaussian, exponential tail and flat
shelf; escape after S. J. B. Reed and N. G. Ware, J. Phys. E 5, 582 (1972).
"""

from math import erf

import numpy as np
import xraylib

from . import atomic_data

PAIR_ENERGY_KEV = 3.65e-3  # mean energy per electron-hole pair in silicon
SILICON_KALPHA_KEV = 1.740
SILICON_EDGE_KEV = 1.839
FWHM_PER_SIGMA = 2.3548

_ERF = np.vectorize(erf, otypes=[np.float64])


def efficiency(energy_kev, window_um: float, dead_layer_um: float, thickness_mm: float) -> np.ndarray:
    """Share of photons that pass beryllium window and dead layer and stop in the silicon, shape `(energies,)`."""
    beryllium, silicon = atomic_data.mass_attenuation(["Be", "Si"], energy_kev)
    beryllium_per_um, silicon_per_um = (1e-4 * xraylib.ElementDensity(number) for number in (4, 14))  # g/cm2
    entering = np.exp(-beryllium * beryllium_per_um * window_um - silicon * silicon_per_um * dead_layer_um)
    return entering * -np.expm1(-silicon * silicon_per_um * 1e3 * thickness_mm)


def escape_fraction(energy_kev) -> np.ndarray:
    """Share of detected photons that lose one silicon K photon through the front face, shape `(energies,)`."""
    energy_kev = np.asarray(energy_kev, dtype=np.float64)
    mu = atomic_data.mass_attenuation(["Si"], energy_kev)[0]
    mu_k = atomic_data.mass_attenuation(["Si"], [SILICON_KALPHA_KEV])[0, 0]
    # Of the absorptions above the K edge, 1 - 1/jump happen in the K shell.
    k_share = (1 - 1 / xraylib.JumpFactor(14, xraylib.K_SHELL)) * xraylib.FluorYield(14, xraylib.K_SHELL)
    fraction = 0.5 * k_share * (1 - mu_k / mu * np.log1p(mu / mu_k))
    return np.where(energy_kev > SILICON_EDGE_KEV, fraction, 0.0)


def peak_sigma_kev(energy_kev, noise_fwhm_ev: float, fano: float) -> np.ndarray:
    """Standard deviation of a peak in keV: electronic noise and Fano statistics in quadrature."""
    return np.sqrt((1e-3 * noise_fwhm_ev / FWHM_PER_SIGMA) ** 2 + fano * PAIR_ENERGY_KEV * np.asarray(energy_kev))


def response_matrix(
    energy_kev,
    extra_sigma_kev,
    channel_edges_kev,
    noise_fwhm_ev: float,
    fano: float,
    tail_fraction: float,
    tail_kev: float,
    shelf_fraction: float,
) -> np.ndarray:
    """Expected counts per channel of one detected photon of each energy, shape `(energies, channels)`.

    Every part is integrated over the channel, so a row whose peak lies inside the channels adds up to 1.

    Args:
        extra_sigma_kev: broadening beyond the detector's own, shape `(energies,)`.
        channel_edges_kev: shape `(channels + 1,)`.
        tail_fraction, tail_kev: share and length of the exponential tail on the low side (incomplete charge).
        shelf_fraction: share of the flat shelf from 0 to the peak.
    """
    energy_kev = np.asarray(energy_kev, dtype=np.float64)[:, None]
    sigma = np.hypot(peak_sigma_kev(energy_kev, noise_fwhm_ev, fano), np.asarray(extra_sigma_kev)[:, None])
    escape = escape_fraction(energy_kev[:, 0])[:, None]
    edges = np.asarray(channel_edges_kev)[None, :]

    peak = _gaussian_cdf(edges, energy_kev, sigma)
    tail = _exponential_tail_cdf(edges, energy_kev, sigma, tail_kev)
    shelf = np.clip(edges / energy_kev, 0, 1)
    escape_peak = _gaussian_cdf(edges, np.maximum(energy_kev - SILICON_KALPHA_KEV, 0), sigma)
    cumulative = (
        (1 - tail_fraction - shelf_fraction - escape) * peak
        + tail_fraction * tail
        + shelf_fraction * shelf
        + escape * escape_peak
    )
    return np.diff(cumulative, axis=1)


def _gaussian_cdf(edges, mean, sigma):
    return 0.5 * (1 + _ERF((edges - mean) / (np.sqrt(2) * sigma)))


def _exponential_tail_cdf(edges, mean, sigma, tail_kev):
    """Cumulative distribution of `mean` minus an exponential of mean `tail_kev`, blurred by the Gaussian."""
    distance = edges - mean
    argument = distance / sigma + sigma / tail_kev
    far_above = argument > 6  # the blurred tail is complete there, and the product below would be inf times 0
    exponent = np.where(far_above, 0.0, distance / tail_kev + 0.5 * (sigma / tail_kev) ** 2)
    remainder = np.where(far_above, 0.0, np.exp(exponent) * 0.5 * (1 - _ERF(argument / np.sqrt(2))))
    return _gaussian_cdf(edges, mean, sigma) + remainder
