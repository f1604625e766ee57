"""Near-identical spectra: closer than counting noise lets two measurements be, so one is a copy of the other.

Two honest measurements of one material differ by counting noise: the chi-squared of their difference, per degree of
freedom, scatters about 1. A spectrum that was exported again, rescaled, rounded, or put on another grid keeps the
noise of its original, and its chi-squared is far below. Spectra are compared on a coarse energy grid, after scaling to
equal totals; the counting noise is that of Poisson counts, or less where a spectrum is visibly smoother than that
(counts per second, averages), which `counting_noise` measures.
"""

from collections.abc import Iterator

import numpy as np

BIN_WIDTH_KEV = 0.08  # half the width of a peak
NUM_BINS = 512
LEAST_COUNTS = 10.0
"""Bins with fewer photons in one of the two spectra are not compared: their noise is not Gaussian."""
LEAST_BINS = 8
SMALL_DISPERSION = 0.5
LEAST_ROUNDED_COUNTS = 2.0  # a channel, where counts were rounded after rescaling
MOST_CHI_SQUARED = 0.5
CHANCE_SIGMAS = 6.5
"""No two honest spectra of a million come this far below the expected chi-squared by chance."""
SKETCH_SIZE = 16
NUM_NEIGHBOURS = 6
QUERIES_AT_A_TIME = 1024

_FOURTH_DIFFERENCE = np.array([1.0, -4.0, 6.0, -4.0, 1.0])
_MEDIAN_OF_CHI_SQUARED = 0.4549  # one degree of freedom


def coarse_counts(counts, gain_kev: float, offset_kev: float) -> np.ndarray:
    """Counts on the coarse grid of `NUM_BINS` bins of `BIN_WIDTH_KEV` from 0 keV; what lies outside is left out.

    The cumulative counts are interpolated by cubic polynomials through the four nearest channel edges, so that two
    exports of one spectrum on different grids come out alike.

    Args:
        counts (`np.ndarray` of shape `(channels,)`): native counts.
        gain_kev, offset_kev (`float`): energy calibration.

    Returns:
        `np.ndarray` of shape `(NUM_BINS,)`, float32, not negative.
    """
    num_channels = len(counts)
    below = np.concatenate([[0.0, 0.0], np.cumsum(counts, dtype=np.float64), [0.0]])  # one more edge on either side
    below[-1] = below[-2]
    edges = (BIN_WIDTH_KEV * np.arange(NUM_BINS + 1) - offset_kev) / gain_kev + 0.5  # in channels from the lowest edge
    edges = np.clip(edges, 0, num_channels)
    whole = np.minimum(edges.astype(np.int64), num_channels - 1)
    t = edges - whole
    cumulative = (
        below[whole] * (-t * (t - 1) * (t - 2) / 6)
        + below[whole + 1] * ((t + 1) * (t - 1) * (t - 2) / 2)
        + below[whole + 2] * (-(t + 1) * t * (t - 2) / 2)
        + below[whole + 3] * ((t + 1) * t * (t - 1) / 6)
    )
    return np.maximum(np.diff(cumulative), 0).astype(np.float32)


def counting_noise(counts, gain_kev: float) -> tuple[float, float]:
    """Noise of a spectrum: the variance of a coarse bin of n counts is `dispersion * n + rounding`.

    Fourth differences between channels remove the spectrum, which varies slowly, and leave the noise. Its variance
    would be, for Poisson counts, the sum of the five counts weighted by the squared coefficients (1, 16, 36, 16, 1).

    Args:
        counts (`np.ndarray` of shape `(channels,)`): native counts.
        gain_kev (`float`): channel width.

    Returns:
        dispersion: 1 for counts, 1/t for counts per second over t seconds, near 0 without noise; at most 1, and 1
        where too few channels hold counts to tell. rounding: where whole numbers vary less than counts do, they were
        rounded, which adds a variance of 1/12 a channel; else 0.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.size < 2 * _FOURTH_DIFFERENCE.size:
        return 1.0, 0.0
    filled = np.convolve(counts > 0, np.ones(5), mode="valid") > 4.5
    if filled.sum() < 32:
        return 1.0, 0.0
    differences = np.convolve(counts, _FOURTH_DIFFERENCE, mode="valid")[filled]
    variances = np.convolve(counts, _FOURTH_DIFFERENCE**2, mode="valid")[filled]
    dispersion = float(min(np.median(differences**2 / variances) / _MEDIAN_OF_CHI_SQUARED, 1.0))
    rounded = dispersion < SMALL_DISPERSION and bool((counts == np.rint(counts)).all())
    return dispersion, BIN_WIDTH_KEV / gain_kev / 12 if rounded else 0.0


def reduced_chi_squared(first, second, first_noise, second_noise) -> tuple[np.ndarray, np.ndarray]:
    """Chi-squared per degree of freedom between pairs of spectra, scaled to equal totals, and the degrees of freedom.

    With proportions p = n / N of the compared bins, the variance of the difference of two is
    v_1 / N_1^2 + v_2 / N_2^2, where v is the variance of n that `counting_noise` gives.

    Args:
        first, second (`np.ndarray` of shape `(pairs, bins)`): counts on the coarse grid.
        first_noise, second_noise (`np.ndarray` of shape `(pairs, 2)`): see `counting_noise`.

    Returns:
        two `np.ndarray` of shape `(pairs,)`; infinite where fewer than `LEAST_BINS` bins can be compared.
    """
    compared, sides = True, []
    for counts, noise in ((first, first_noise), (second, second_noise)):
        counts = np.asarray(counts, np.float64)
        dispersion, rounding = np.asarray(noise, np.float64).T[:, :, None]
        dispersion = np.maximum(dispersion, 1e-12)
        # photons enough for a Gaussian, and channels that rounding leaves more than nothing of
        compared = compared & (counts >= LEAST_COUNTS * dispersion) & (counts >= LEAST_ROUNDED_COUNTS * 12 * rounding)
        sides.append((counts, dispersion, rounding))
    difference, variance = 0.0, 0.0
    for (counts, dispersion, rounding), sign in zip(sides, (1, -1), strict=True):
        total = np.maximum(np.where(compared, counts, 0.0).sum(axis=1, keepdims=True), 1e-12)
        difference = difference + sign * counts / total
        variance = variance + (dispersion * counts + rounding) / total**2
    freedom = compared.sum(axis=1) - 1
    ratio = np.divide(difference**2, variance, out=np.zeros_like(variance), where=compared).sum(axis=1)
    return np.where(freedom >= LEAST_BINS - 1, ratio / np.maximum(freedom, 1), np.inf), freedom


def chi_squared_limit(freedom) -> np.ndarray:
    """Chi-squared per degree of freedom below which two spectra are no independent measurements.

    `MOST_CHI_SQUARED`, and for few degrees of freedom the quantile that chance does not reach, by the approximation of
    Wilson and Hilferty (1931).
    """
    spread = 2 / (9 * np.maximum(freedom, 1))
    quantile = np.maximum(1 - spread - CHANCE_SIGMAS * np.sqrt(spread), 0) ** 3
    return np.minimum(quantile, MOST_CHI_SQUARED)


def sketches(coarse) -> np.ndarray:
    """Random projection of the shape of spectra: what is alike is close.

    Square roots weigh peaks and continuum as counting noise does; their lowest part, which rounding destroys, is cut.

    Args:
        coarse (`np.ndarray` of shape `(spectra, NUM_BINS)`).

    Returns:
        `np.ndarray` of shape `(spectra, SKETCH_SIZE)`, float32.
    """
    shapes = np.sqrt(np.asarray(coarse, dtype=np.float32))
    shapes = np.maximum(shapes - 0.05 * shapes.max(axis=1, keepdims=True), 0)
    shapes /= np.maximum(np.linalg.norm(shapes, axis=1, keepdims=True), 1e-12)
    directions = np.random.default_rng(0).standard_normal((NUM_BINS, SKETCH_SIZE)) / np.sqrt(SKETCH_SIZE)
    return shapes @ directions.astype(np.float32)


def near_copies(coarse, noise, sides) -> Iterator[tuple[int, int, float]]:
    """Pairs of near-identical spectra on different sides of a split.

    Every spectrum of a smaller side is compared with its `NUM_NEIGHBOURS` nearest of each larger one.

    Args:
        coarse (`np.ndarray` of shape `(spectra, NUM_BINS)`): coarse counts, may be memory-mapped.
        noise (`np.ndarray` of shape `(spectra, 2)`): see `counting_noise`.
        sides (`np.ndarray` of shape `(spectra,)`): the side of every spectrum.

    Yields:
        `(row, row, chi-squared per degree of freedom)`.
    """
    from scipy.spatial import cKDTree

    blocks = range(0, len(coarse), QUERIES_AT_A_TIME)
    sketch = np.concatenate([sketches(coarse[start : start + QUERIES_AT_A_TIME]) for start in blocks])
    names, sizes = np.unique(sides, return_counts=True)
    names = names[np.argsort(-sizes, kind="stable")]
    for large, name in enumerate(names):
        rows = np.flatnonzero(sides == name)
        tree = cKDTree(sketch[rows])
        queries = np.flatnonzero(np.isin(sides, names[large + 1 :]))
        for start in range(0, len(queries), QUERIES_AT_A_TIME):
            query = queries[start : start + QUERIES_AT_A_TIME]
            neighbours = tree.query(sketch[query], k=[*range(1, min(NUM_NEIGHBOURS, len(rows)) + 1)])[1]
            for nearest in rows[neighbours].T:
                found, freedom = reduced_chi_squared(coarse[query], coarse[nearest], noise[query], noise[nearest])
                for i in np.flatnonzero(found < chi_squared_limit(freedom)):
                    yield int(query[i]), int(nearest[i]), float(found[i])
