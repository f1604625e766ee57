"""Augmentations of native counts that could have happened in an instrument: a lower dose, a drifted energy scale, a
wider peak, more pile-up.

All work photon by photon, in distribution: counts stay whole numbers, and Poisson counts stay Poisson where physics
keeps them so. They change counts and never the calibration, which stays the nominal one that a file would state. An
augmentation is called as

    counts = augmentation(counts, gain_kev, offset_kev, rng)

with counts `(B, channels)`, gain_kev and offset_kev `(B,)` (keV per channel and energy of channel 0, in keV) and a
`numpy.random.Generator`; it returns new counts `(B, channels)`, int64. B = spectra in the batch. Its `changed_targets`
are what it makes untrue of the targets that simulated spectra have.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

FWHM_PER_SIGMA = 2.3548
KERNEL_SIGMAS = 4  # where the Gaussian of `Broadening` is cut off; 6e-5 of it lie beyond


@dataclass(frozen=True)
class Thinning:
    """A lower dose: every photon is kept with the same probability, so Poisson counts stay Poisson.

    Args:
        fraction (`tuple[float, float]`): range of the share of photons that is kept; drawn evenly in its logarithm.
        least_counts (`float`): no spectrum is thinned below this expected total.
    """

    changed_targets: ClassVar = ("count_rate",)
    fraction: tuple[float, float]
    least_counts: float = 100.0

    def __post_init__(self):
        _check_range(self, "fraction", 1)
        if self.fraction[0] == 0:
            raise ValueError(
                "fraction of Thinning must be positive, but begins at 0: give a small share such as 0.01."
            )

    def __call__(self, counts, gain_kev, offset_kev, rng) -> np.ndarray:
        counts, _, _ = _checked(counts, gain_kev, offset_kev)
        fraction = np.exp(rng.uniform(*np.log(self.fraction), len(counts)))
        enough = np.minimum(self.least_counts / np.maximum(counts.sum(axis=1), 1), 1)
        return rng.binomial(counts, np.maximum(fraction, enough)[:, None])


@dataclass(frozen=True)
class Drift:
    """A true energy scale beside the nominal one: gain and zero are off by a normal deviate.

    A photon lies anywhere in its channel with equal probability, so the mean is that of linear rebinning. Photons
    that leave the range are lost.

    Args:
        gain_sd (`float`): relative standard deviation of the gain, 0.003 for 0.3 %.
        zero_sd_ev (`float`): standard deviation of the zero in eV.
    """

    changed_targets: ClassVar = ("gain_drift", "zero_drift", "count_rate")
    gain_sd: float = 0.0
    zero_sd_ev: float = 0.0

    def __post_init__(self):
        if not 0 <= self.gain_sd <= 0.1:
            raise ValueError(f"gain_sd of Drift must lie in [0, 0.1], but is {self.gain_sd}; 0.003 means 0.3 %.")
        if not 0 <= self.zero_sd_ev < np.inf:
            raise ValueError(f"zero_sd_ev of Drift must not be negative, but is {self.zero_sd_ev}; 10 eV is much.")

    def __call__(self, counts, gain_kev, offset_kev, rng) -> np.ndarray:
        counts, gain_kev, _ = _checked(counts, gain_kev, offset_kev)
        gain_drift = np.clip(self.gain_sd * rng.standard_normal(len(counts)), -0.4, 0.4)
        zero_drift_channels = 1e-3 * self.zero_sd_ev * rng.standard_normal(len(counts)) / gain_kev
        drifts = zip(counts, gain_drift, zero_drift_channels, strict=True)
        return np.stack([drifted(photons, gain, zero, rng) for photons, gain, zero in drifts])


def drifted(photons, gain_drift: float, zero_drift_channels: float, rng) -> np.ndarray:
    """One spectrum `(channels,)` as recorded with another gain and zero: a photon at position x, in nominal channels,
    comes to (x - zero_drift_channels) / (1 + gain_drift). `gain_drift` must be above -0.5."""
    # The recorded channels' edges in nominal channels, from the lowest edge: the channel and the part of it below.
    edges = (1 + gain_drift) * (np.arange(len(photons) + 1) - 0.5) + zero_drift_channels + 0.5
    edges = np.clip(edges, 0, len(photons))
    channel = np.minimum(edges.astype(np.int64), len(photons) - 1)
    part = edges - channel
    below_in_channel = rng.binomial(photons[channel], part)
    # Of two edges in one channel the second divides the photons above the first.
    second = 1 + np.flatnonzero((channel[1:] == channel[:-1]) & (part[1:] > 0) & (part[1:] < 1))
    first = second - 1
    above_first = photons[channel[second]] - below_in_channel[first]
    between = rng.binomial(above_first, (part[second] - part[first]) / (1 - part[first]))
    below_in_channel[second] = below_in_channel[first] + between
    below_channel = np.cumsum(photons) - photons
    return np.diff(below_channel[channel] + below_in_channel)


@dataclass(frozen=True)
class Broadening:
    """Worse resolution: every photon is displaced by a Gaussian, as additional electronic noise does.

    The displacement is in whole channels with probabilities proportional to the Gaussian's density, whose variance is
    the Gaussian's own within 1 % from a standard deviation of 0.7 channels on. Photons that leave the range are
    lost.

    Args:
        fwhm_ev (`tuple[float, float]`): range of the full width at half maximum in eV, which adds in quadrature to the
            peaks' own.
    """

    changed_targets: ClassVar = ("fwhm_mn_kalpha", "count_rate")
    fwhm_ev: tuple[float, float]

    def __post_init__(self):
        _check_range(self, "fwhm_ev", np.inf)

    def __call__(self, counts, gain_kev, offset_kev, rng) -> np.ndarray:
        counts, gain_kev, _ = _checked(counts, gain_kev, offset_kev)
        sigma_channels = 1e-3 * rng.uniform(*self.fwhm_ev, len(counts)) / FWHM_PER_SIGMA / gain_kev
        return np.stack([_broadened(row, sigma, rng) for row, sigma in zip(counts, sigma_channels, strict=True)])


def displacement_probabilities(sigma_channels: float) -> tuple[np.ndarray, np.ndarray]:
    """Displacements in channels, the most likely first, and their probabilities."""
    reach = int(np.ceil(KERNEL_SIGMAS * sigma_channels))
    distance = np.arange(-reach, reach + 1)
    distance = distance[np.argsort(np.abs(distance), kind="stable")]
    density = np.exp(-0.5 * np.square(distance / max(sigma_channels, 1e-9)))
    return distance, density / density.sum()


def _broadened(counts, sigma_channels, rng):
    """One spectrum `(channels,)` whose photons are displaced."""
    distance, probabilities = displacement_probabilities(sigma_channels)
    filled = np.flatnonzero(counts)
    displaced = rng.multinomial(counts[filled], probabilities)  # (filled channels, displacements)
    reach = distance.max()
    result = np.zeros(len(counts) + 2 * reach, dtype=np.int64)
    for column, step in enumerate(distance):
        result[filled + step + reach] += displaced[:, column]
    return result[reach : reach + len(counts)]


@dataclass(frozen=True)
class PileUp:
    """Pulses too close in time for the electronics: two photons are recorded as one at the sum of their energies.

    Each photon is part of such a pair with the same probability, and photons pair at random, so N photons give
    N (1 - fraction / 2) recorded pulses on average. Sums above the range are lost.

    Args:
        fraction (`tuple[float, float]`): range of the share of photons that arrive in such pairs.
    """

    changed_targets: ClassVar = ("count_rate",)
    fraction: tuple[float, float]

    def __post_init__(self):
        _check_range(self, "fraction", 1)

    def __call__(self, counts, gain_kev, offset_kev, rng) -> np.ndarray:
        counts, gain_kev, offset_kev = _checked(counts, gain_kev, offset_kev)
        in_pairs = rng.binomial(counts, rng.uniform(*self.fraction, len(counts))[:, None])
        result = counts - in_pairs
        # Channel i lies at offset + gain i, so two photons add up to channel i + j + offset / gain.
        zero_channels = offset_kev / gain_kev
        for row, photons in enumerate(in_pairs):
            result[row] += _paired(photons, zero_channels[row], rng)
        return result


def _paired(counts, zero_channels, rng):
    """Sums of random pairs of all photons `(channels,)`; the odd one out is recorded alone."""
    num_channels = len(counts)
    photons = rng.permutation(np.repeat(np.arange(num_channels), counts))
    pairs = len(photons) // 2
    within = rng.random((2, pairs)).sum(axis=0) - 1  # where in their two channels the photons lie
    sums = np.rint(photons[:pairs] + photons[pairs : 2 * pairs] + zero_channels + within).astype(np.int64)
    sums = sums[(sums >= 0) & (sums < num_channels)]
    return np.bincount(np.concatenate([sums, photons[2 * pairs :]]), minlength=num_channels)


@dataclass(frozen=True)
class Compose:
    """One augmentation after another.

    In an instrument photons are first lost to a lower dose, then pile up, are blurred by noise and put on a drifted
    scale; give them in that order.
    """

    augmentations: tuple[Callable, ...]

    @property
    def changed_targets(self) -> tuple[str, ...]:
        """Of all of them together."""
        return tuple(dict.fromkeys(name for each in self.augmentations for name in each.changed_targets))

    def __call__(self, counts, gain_kev, offset_kev, rng) -> np.ndarray:
        counts, gain_kev, offset_kev = _checked(counts, gain_kev, offset_kev)
        for augmentation in self.augmentations:
            counts = augmentation(counts, gain_kev, offset_kev, rng)
        return counts


AUGMENTATIONS = {"thinning": Thinning, "drift": Drift, "broadening": Broadening, "pile_up": PileUp}


def augmentation_from_config(steps) -> Compose:
    """The augmentations of a recipe.

    Args:
        steps (`list[dict]`): one dictionary per step with its `name`, a key of `AUGMENTATIONS`, and its arguments, as
            in `[{"name": "thinning", "fraction": [0.1, 1]}, {"name": "drift", "gain_sd": 0.003}]`.

    Raises:
        ValueError: an unknown name or argument, a missing one, or a value out of range.
    """
    if not isinstance(steps, (list, tuple)) or not all(isinstance(step, dict) for step in steps):
        raise ValueError(f"augmentation must be a list of steps with a name and arguments, but is {steps!r}.")
    return Compose(tuple(_augmentation(step) for step in steps))


def _augmentation(step: dict):
    arguments = dict(step)
    name = arguments.pop("name", None)
    if name not in AUGMENTATIONS:
        raise ValueError(f"An augmentation must have one of the names {', '.join(AUGMENTATIONS)}, but has {name!r}.")
    fields = {field.name: field for field in dataclasses.fields(AUGMENTATIONS[name])}
    for argument, value in arguments.items():
        if argument not in fields:
            raise ValueError(
                f"The augmentation {name!r} has no argument {argument!r}; its arguments are {', '.join(fields)}."
            )
        values = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(value, bool) or not all(isinstance(number, (int, float)) for number in values):
            raise ValueError(f"{argument} of the augmentation {name!r} must be a number or two, but is {value!r}.")
    for field in fields.values():
        if field.default is dataclasses.MISSING and field.name not in arguments:
            raise ValueError(f"The augmentation {name!r} needs the argument {field.name!r}; add it.")
    return AUGMENTATIONS[name](**arguments)


def _check_range(augmentation, name: str, highest: float) -> None:
    """Make an argument a pair of numbers in rising order within [0, highest]."""
    value = getattr(augmentation, name)
    kind = type(augmentation).__name__
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{name} of {kind} must be a range of two numbers, but is {value!r}.")
    if not 0 <= value[0] <= value[1] <= highest or value[1] == np.inf:
        limit = "not negative" if highest == np.inf else f"between 0 and {highest:g}"
        raise ValueError(f"{name} of {kind} must be a rising range {limit}, but is {value!r}.")
    object.__setattr__(augmentation, name, tuple(value))


def _checked(counts, gain_kev, offset_kev) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts as int64, gains and offsets as float64 `(B,)`, once counts are known to be whole numbers of photons and
    gains to be positive."""
    counts = np.asarray(counts)
    with np.errstate(invalid="ignore"):  # NaN is found below
        photons = counts.astype(np.int64, copy=False)
    bad = photons < 0
    if counts.dtype.kind == "f":
        bad |= photons != counts
    if bad.any():
        row, channel = np.argwhere(bad)[0]
        raise ValueError(
            f"An augmentation needs whole numbers of photons, but spectrum {row} of the batch has "
            f"{counts[row, channel]:g} in channel {channel}; give raw counts, or leave out the augmentation."
        )
    gain_kev, offset_kev = (np.broadcast_to(np.float64(value), len(counts)) for value in (gain_kev, offset_kev))
    for row in np.flatnonzero(~((gain_kev > 0) & np.isfinite(gain_kev) & np.isfinite(offset_kev))):
        raise ValueError(
            f"An augmentation needs a positive gain_kev and an offset_kev, but spectrum {row} of the batch has "
            f"{gain_kev[row]:g} and {offset_kev[row]:g}; supply its calibration."
        )
    return photons, gain_kev, offset_kev
