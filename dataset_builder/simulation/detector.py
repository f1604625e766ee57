"""A silicon drift detector: efficiency, and the response that spreads a photon energy over channels.

Peak shape after P. Van Espen in "Handbook of X-Ray Spectrometry" (2002), ch. 4: Gaussian, exponential tail and flat
shelf; escape after S. J. B. Reed and N. G. Ware, J. Phys. E 5, 582 (1972).
"""

import numpy as np
import xraylib
from scipy.special import erf

from . import atomic_data
from .materials import material

PAIR_ENERGY_KEV = 3.65e-3  # mean energy per electron-hole pair in silicon
SILICON_KALPHA_KEV = 1.740
SILICON_EDGE_KEV = 1.839
FWHM_PER_SIGMA = 2.3548
SIGMAS = 5.5  # a Gaussian is complete within so many standard deviations
TAIL_LENGTHS = 14.0  # and an exponential within so many lengths


def efficiency(energy_kev, window: str, window_um: float, dead_layer_um: float, thickness_mm: float) -> np.ndarray:
    """Share of photons that pass window and dead layer and stop in the silicon, shape `(energies,)`."""
    silicon = material("Si")
    entering = material(window).transmission(energy_kev, 1e-4 * window_um)
    entering = entering * silicon.transmission(energy_kev, 1e-4 * dead_layer_um)
    return entering * (1 - silicon.transmission(energy_kev, 0.1 * thickness_mm))


def escape_fraction(energy_kev) -> np.ndarray:
    """Share of detected photons that lose one silicon K photon through the front face, shape `(energies,)`."""
    energy_kev = np.asarray(energy_kev, dtype=np.float64)
    mu = atomic_data.mass_attenuation(["Si"], energy_kev)[0]
    mu_k = atomic_data.mass_attenuation(["Si"], [SILICON_KALPHA_KEV])[0, 0]
    # Of the absorptions above the K edge, 1 - 1/jump happen in the K shell.
    k_share = (1 - 1 / xraylib.JumpFactor(14, xraylib.K_SHELL)) * xraylib.FluorYield(14, xraylib.K_SHELL)
    fraction = 0.5 * k_share * (1 - mu_k / mu * np.log1p(mu / mu_k))
    return np.where(energy_kev > SILICON_EDGE_KEV, fraction, 0.0)


def fwhm_ev(energy_kev, noise_fwhm_ev, fano: float) -> np.ndarray:
    """Full width at half maximum of a peak in eV: electronic noise and Fano statistics in quadrature."""
    return np.hypot(noise_fwhm_ev, 1e3 * FWHM_PER_SIGMA * np.sqrt(fano * PAIR_ENERGY_KEV * np.asarray(energy_kev)))


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
    """Expected counts per channel of one detected photon of each energy, shape `(energies, channels)`, float32.

    Every part is integrated over the channel, so a row whose peak lies inside the channels adds up to 1.

    Args:
        energy_kev (`np.ndarray` of shape `(energies,)`): photon energies.
        extra_sigma_kev (`np.ndarray` of shape `(energies,)`): broadening beyond the detector's own.
        channel_edges_kev (`np.ndarray` of shape `(channels + 1,)`): evenly spaced.
        noise_fwhm_ev, fano: see `fwhm_ev`.
        tail_fraction, tail_kev: share and length of the exponential tail on the low side (incomplete charge).
        shelf_fraction: share of the flat shelf from 0 to the peak.
    """
    mean = np.asarray(energy_kev, dtype=np.float64)[:, None]
    sigma = 1e-3 / FWHM_PER_SIGMA * fwhm_ev(mean, noise_fwhm_ev, fano)
    sigma = np.hypot(sigma, np.asarray(extra_sigma_kev)[:, None])
    escape = escape_fraction(mean[:, 0])[:, None]
    edges = np.asarray(channel_edges_kev)

    matrix = _shelf(mean, edges, shelf_fraction)
    reach = SIGMAS * sigma
    full = 1 - tail_fraction - shelf_fraction - escape
    _add(matrix, edges, mean - reach, mean + reach, full, lambda x: _gaussian_cdf(x, mean, sigma))
    if tail_fraction > 0:
        _add(
            matrix,
            edges,
            mean - reach - TAIL_LENGTHS * tail_kev,
            mean + reach,
            tail_fraction,
            lambda x: _exponential_tail_cdf(x, mean, sigma, tail_kev),
        )
    lower = mean - SILICON_KALPHA_KEV
    _add(matrix, edges, lower - reach, lower + reach, escape, lambda x: _gaussian_cdf(x, lower, sigma))
    return matrix[:, :-1]


def _shelf(mean, edges, shelf_fraction):
    """Even from 0 keV to `mean`, shape `(energies, channels + 1)`: the last column is a spare."""
    spacing = edges[1] - edges[0]
    matrix = np.zeros((len(mean), len(edges)), dtype=np.float32)
    np.subtract(mean / spacing, edges[:-1] / spacing, out=matrix[:, :-1], casting="same_kind")
    np.clip(matrix, 0, 1, out=matrix)  # share of each channel below the peak
    above_zero = np.clip(edges[1:] / spacing, 0, 1)  # and above 0 keV
    matrix[:, :-1] *= above_zero.astype(np.float32)
    matrix *= (shelf_fraction * spacing / mean).astype(np.float32)
    return matrix


def _add(matrix, edges, low, high, share, cumulative):
    """Add `share` of a distribution that is complete between `low` and `high` to the rows of `matrix`, in place.

    Only the channels between are computed. The last column of `matrix` takes what lies beyond the last channel.
    """
    num_channels = len(edges) - 1
    spacing = edges[1] - edges[0]
    first = np.clip(np.floor((low - edges[0]) / spacing), 0, num_channels).astype(int)
    last = np.clip(np.ceil((high - edges[0]) / spacing), 0, num_channels).astype(int)
    columns = np.minimum(first + np.arange((last - first).max(initial=0) + 1), num_channels)  # (R, W + 1) edges
    inside = columns[:, :-1]  # every channel once, but for the spare column
    increase = share * np.diff(cumulative(edges[columns]), axis=1)
    rows = np.arange(len(matrix))[:, None]
    matrix[rows, inside] += increase


def _gaussian_cdf(edges, mean, sigma):
    return 0.5 * (1 + erf((edges - mean) / (np.sqrt(2) * sigma)))


def _exponential_tail_cdf(edges, mean, sigma, tail_kev):
    """Cumulative distribution of `mean` minus an exponential of mean `tail_kev`, blurred by the Gaussian."""
    distance = edges - mean
    argument = distance / sigma + sigma / tail_kev
    far_above = argument > SIGMAS  # the blurred tail is complete there, and the product below would be inf times 0
    exponent = np.where(far_above, 0.0, distance / tail_kev + 0.5 * (sigma / tail_kev) ** 2)
    remainder = np.where(far_above, 0.0, np.exp(exponent) * 0.5 * (1 - erf(argument / np.sqrt(2))))
    return _gaussian_cdf(edges, mean, sigma) + remainder
