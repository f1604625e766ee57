"""What others would use: the classical calibrations that a pretrained model is compared with, fitted the same way.

`ChannelPeer` (partial least squares, support vectors, NMF and support vectors) and the baselines of `evaluation_xrf`
calibrate rows of counts; `OnChannels` lets them work on `Spectrum` objects, on the common energy grid or on channels
as recorded. `NetAreaPeer` works on `Spectrum` objects itself, for it needs the energy scale. `PooledTransfer`,
`SlopeBiasCorrection` and `DirectStandardisation` carry any calibration of `Spectrum` objects to another instrument
with a few samples measured on both.

All choices are made on the rows given to `fit`, by inner cross-validation over whole groups where there are several.
Every target has its own labelled rows and its own choices. With `log_target` (the default) ln(concentration) is fitted
and its exponential returned.

N = spectra, L = channels, T = targets, E = emission lines, K = transfer spectra. A missing laboratory value is NaN.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product

import numpy as np

from dataset_builder.spectrum import Spectrum
from evaluation_xrf import (
    MIN_LABELS,
    NUM_FOLDS,
    checked_groups,
    checked_labels,
    fit_ridge,
    name_targets,
    square_root_unit_sum,
    target_columns,
)

MAX_COMPONENTS = 12  # of partial least squares
# The kernel is exp(-width * squared distance / mean squared distance) and labels are standardised, so that one grid
# suits all spectra and targets.
SVR_WIDTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
SVR_PENALTIES = (1.0, 10.0, 100.0, 1000.0)
SVR_TUBES = (0.01, 0.1)
NMF_RANKS = (5, 8, 11)  # of the range that Lee et al. 2022 searched
MAX_PDS_COMPONENTS = 3
PDS_HALF_WIDTHS = (1, 3, 6)  # channels
GRID_SCALE_KEV = 0.02, 0.0  # width and first channel of the common energy grid, the extractor's default


# --- calibrations of rows of counts ---


class ChannelPeer:
    """A calibration of rows of counts.

    Args:
        method (`str`): a key of `CHANNEL_METHODS`.
        target_names (`Sequence[str]`, *optional*): the names of the T targets, for error messages.
        log_target (`bool`, defaults to `True`): fit ln(concentration); labels must then be positive.
    """

    least_labels = MIN_LABELS

    def __init__(self, method: str, target_names: Sequence[str] | None = None, log_target: bool = True):
        if method not in CHANNEL_METHODS:
            raise ValueError(f"method must be one of {', '.join(CHANNEL_METHODS)}, but is {method!r}.")
        self.method, self.target_names, self.log_target = method, target_names, log_target

    def fit(self, counts, targets, groups=None) -> ChannelPeer:
        """
        Args:
            counts (array-like of shape `(N, L)`): training spectra, counts per channel.
            targets (array-like of shape `(N, T)` or `(N,)`): laboratory values, NaN where missing.
            groups (array-like of shape `(N,)`, *optional*): core or sample of each spectrum.

        Raises:
            ValueError: a spectrum is empty, negative or not finite; a target has fewer than 3 labels, is constant, or
                (with `log_target`) has a label that is not positive.
        """
        fit_target = CHANNEL_METHODS[self.method](square_root_unit_sum(counts))
        self.models_ = _fit_targets(fit_target, targets, groups, len(counts), self.target_names, self.log_target)
        return self

    def predict(self, counts) -> np.ndarray:
        """Predicts the `(N, T)` concentrations of spectra of shape `(N, L)`."""
        return _predict_targets(self.models_, square_root_unit_sum(counts), self.log_target)


def _fit_targets(fit_target: Callable, targets, groups, num_spectra, target_names, log_target) -> list[Callable]:
    """For every target, what `fit_target(rows, labels, groups of the rows, name)` makes of its labelled rows."""
    targets, groups = target_columns(targets, num_spectra), checked_groups(groups, num_spectra)
    models = []
    for column, name in enumerate(name_targets(target_names, targets)):
        rows = np.flatnonzero(~np.isnan(targets[:, column]))
        labels = checked_labels(targets[rows, column], name, log_target)
        models.append(fit_target(rows, labels, None if groups is None else groups[rows], name))
    return models


def _predict_targets(models: Sequence[Callable], features, log_target: bool) -> np.ndarray:
    predictions = np.stack([model(features) for model in models], axis=1)
    return np.exp(predictions) if log_target else predictions


def partial_least_squares(roots: np.ndarray) -> Callable:
    """PLS of one target at a time on centred square roots of unit-sum spectra; the number of components is chosen."""
    from sklearn.cross_decomposition import PLSRegression

    def components(rows, labels, largest):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "y residual is constant")  # nothing is left to explain
            return PLSRegression(largest, scale=False).fit(roots[rows], labels)

    def fit_target(rows, labels, groups, _):
        folds = inner_folds(len(rows), groups)
        largest = min(MAX_COMPONENTS, min(len(training) for training, _ in folds) - 1, roots.shape[1])
        errors = np.zeros(largest)
        for training, held_out in folds:
            model = components(rows[training], labels[training], largest)
            # scores do not depend on how many components follow, so each adds its contribution to those before it
            scores = (roots[rows[held_out]] - roots[rows[training]].mean(axis=0)) @ model.x_rotations_
            path = np.cumsum(scores * model.y_loadings_[0], axis=1) + model.intercept_  # (n, largest)
            errors += np.sum((path - labels[held_out, None]) ** 2, axis=0)
        number = int(np.argmin(errors)) + 1
        model = components(rows, labels, number)
        return lambda new_roots: model.predict(new_roots).reshape(-1)

    return fit_target


def support_vectors(roots: np.ndarray) -> Callable:
    """Support vector regression with a Gaussian kernel on square roots of unit-sum spectra; width, penalty and tube
    are chosen."""
    return _support_vectors({"roots": (roots, lambda new_roots: new_roots)})


def factors_and_support_vectors(roots: np.ndarray) -> Callable:
    """Support vector regression on the weights of a non-negative factorisation of unit-sum spectra (Lee et al. 2022,
    Sci. Rep. 12, 20860); the number of factors is chosen too. The factors are those of all training spectra, with or
    without a label."""
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    features = {}
    for rank in sorted({min(rank, *roots.shape) for rank in NMF_RANKS}):
        model = NMF(rank, init="nndsvda", random_state=0, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # good factors come long before the last digits
            factors = model.fit(roots**2).components_
        weights = _weights(roots, factors)
        scale = np.where(weights.std(axis=0) > 0, weights.std(axis=0), 1.0)
        features[rank] = (weights / scale, lambda new, factors=factors, scale=scale: _weights(new, factors) / scale)
    return _support_vectors(features)


def _weights(roots: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Non-negative weights `(N, rank)` of factors in unit-sum spectra, by least squares spectrum by spectrum: those of
    one do not depend on the others at hand, as they do where all are iterated together."""
    from scipy.optimize import nnls

    return np.stack([nnls(factors.T, row)[0] for row in roots**2])


def _support_vectors(features: dict) -> Callable:
    """SVR on the best of several features: name -> (features of the training spectra, function that makes them of the
    square roots of others)."""
    from sklearn.svm import SVR

    distances = {name: _squared_distances(rows, rows) for name, (rows, _) in features.items()}
    unit = {name: max(np.mean(matrix), np.finfo(float).tiny) for name, matrix in distances.items()}
    candidates = list(product(features, SVR_WIDTHS, SVR_PENALTIES, SVR_TUBES))

    def fit_target(rows, labels, groups, _):
        center, spread = labels.mean(), labels.std()
        standardised = (labels - center) / spread
        kernels = {
            (name, width): np.exp(-width / unit[name] * matrix[np.ix_(rows, rows)])
            for name, matrix in distances.items()
            for width in SVR_WIDTHS
        }
        errors = np.zeros(len(candidates))
        for training, held_out in inner_folds(len(rows), groups):
            for index, (name, width, penalty, tube) in enumerate(candidates):
                kernel = kernels[name, width][:, training]
                model = SVR(kernel="precomputed", C=penalty, epsilon=tube)
                model.fit(kernel[training], standardised[training])
                errors[index] += np.sum((model.predict(kernel[held_out]) - standardised[held_out]) ** 2)
        name, width, penalty, tube = candidates[int(np.argmin(errors))]
        model = SVR(kernel="precomputed", C=penalty, epsilon=tube).fit(kernels[name, width], standardised)
        known, transform = features[name]

        def predict(new_roots):
            kernel = np.exp(-width / unit[name] * _squared_distances(transform(new_roots), known[rows]))
            return model.predict(kernel) * spread + center

        return predict

    return fit_target


def _squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    products = left @ right.T
    return np.maximum(np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1) - 2 * products, 0)


def inner_folds(num_rows: int, groups: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, held out) rows for choices inside the training part: up to 5 folds of whole groups.

    Rows are dealt at random (always alike) where there are no groups, or so few that too little would be left to learn
    from.
    """
    from sklearn.model_selection import GroupKFold, KFold

    if groups is not None and (num_groups := len(np.unique(groups))) > 1:
        folds = list(GroupKFold(min(NUM_FOLDS, num_groups)).split(np.zeros(num_rows), groups=groups))
        if min(len(training) for training, _ in folds) >= MIN_LABELS:
            return folds
    return list(KFold(min(NUM_FOLDS, num_rows), shuffle=True, random_state=0).split(np.zeros(num_rows)))


CHANNEL_METHODS = {
    "pls": partial_least_squares,
    "svr": support_vectors,
    "nmf_svr": factors_and_support_vectors,
}


class OnChannels:
    """Lets a calibration of rows of counts work on `Spectrum` objects.

    Args:
        calibration: an object with `fit(counts, targets, groups)` and `predict(counts)`.
        channels (`str`, defaults to `"grid"`): `"grid"` rebins to the common energy grid, counts conserved;
            `"recorded"` takes channel i of one spectrum for channel i of another, whatever their calibration.
    """

    def __init__(self, calibration, channels: str = "grid"):
        _check_channels(channels)
        self.calibration, self.channels = calibration, channels
        self.least_labels = getattr(calibration, "least_labels", MIN_LABELS)

    def fit(self, spectra: Sequence[Spectrum], targets, groups=None) -> OnChannels:
        """Fits to spectra, targets `(N, T)` and groups `(N,)`."""
        self.calibration.fit(count_rows(spectra, self.channels), targets, groups)
        return self

    def predict(self, spectra: Sequence[Spectrum]) -> np.ndarray:
        """Predicts `(N, T)` concentrations."""
        return self.calibration.predict(count_rows(spectra, self.channels))


def _check_channels(channels: str) -> None:
    if channels not in ("grid", "recorded"):
        raise ValueError(f"channels must be 'grid' or 'recorded', but is {channels!r}.")


def count_rows(spectra: Sequence[Spectrum], channels: str) -> np.ndarray:
    """Counts `(N, L)` on the common energy grid (2048 channels of 20 eV) or in channels as recorded.

    Raises:
        ValueError: a spectrum has no energy calibration (grid), or the numbers of channels differ (recorded).
    """
    if channels == "grid":
        from feature_extraction_xrf import XRFFeatureExtractor

        counts, gains, offsets = zip(
            *((spectrum.counts, spectrum.gain_kev, spectrum.offset_kev) for spectrum in spectra)
        )
        return XRFFeatureExtractor().rebin(list(counts), gains, offsets)[0]
    lengths = {len(spectrum.counts) for spectrum in spectra}
    if len(lengths) > 1:
        raise ValueError(
            f"spectra of {' and '.join(map(str, sorted(lengths)))} channels cannot share channels as recorded; "
            "use channels='grid'."
        )
    return np.stack([spectrum.counts for spectrum in spectra]).astype(np.float64)


# --- element net areas ---

# Elements whose lines are looked for; argon is of the air, rhodium of most tubes.
ANALYTES = (
    *("Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar", "K", "Ca", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn"),
    *("Ga", "As", "Br", "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Rh", "Sn", "Sb", "Ba", "Pb", "Th", "U"),
)
LEAST_ENERGY_KEV = 0.9  # below, air and window leave nothing of a line


class NetAreaPeer:
    """Calibration on net peak areas in which the other elements act on the slope (after Lucas-Tooth & Price 1961,
    Metallurgia 64, 149-152).

    The K-alpha (or else L-alpha) line of each of `ANALYTES` that the tube excites is measured in the native channels
    by `net_areas`, over all counts. A target is linear in the E areas and in the products of its own line's area with
    each of them; its own element is the first in its name that has a line (Al of `Al2O3`, Ca of `CaCO3`, none of
    `TOC`). Coefficients are shrunk by a ridge penalty, chosen as in `evaluation_xrf.RidgeBaseline`.

    Args:
        target_names (`Sequence[str]`): the names of the T targets.
        log_target (`bool`, defaults to `True`):
            Fit ln(concentration) to square roots of areas, negative ones keeping their sign, rather than
            concentrations to areas.
    """

    least_labels = MIN_LABELS

    def __init__(self, target_names: Sequence[str], log_target: bool = True):
        self.target_names, self.log_target = target_names, log_target

    def fit(self, spectra: Sequence[Spectrum], targets, groups=None) -> NetAreaPeer:
        """Fits to spectra with a calibration, targets `(N, T)` and groups `(N,)`.

        Raises:
            ValueError: a target has too few labels, constant ones or (with `log_target`) one that is not positive.
        """
        # an unknown tube voltage excites whatever the spectrum shows
        tube_kv = min(spectrum.tube_kv or spectrum.energy_kev[-1] for spectrum in spectra)
        lines = {element: emission_line_kev(element, tube_kv) for element in ANALYTES}
        self.lines_kev_ = {element: energy_kev for element, energy_kev in lines.items() if energy_kev is not None}
        areas = self._areas(spectra)

        def fit_target(rows, labels, groups, name):
            own = self._own_line(name)
            columns = _with_products(areas[rows], own)
            center = columns.mean(axis=0)
            # one scale for all areas and one for all products: lines that are not there stay without influence
            variances = columns.var(axis=0).reshape(-1, len(self.lines_kev_)).sum(axis=1)
            scale = np.repeat(np.sqrt(np.maximum(variances, 1e-24) * len(variances)), len(self.lines_kev_))
            coefficients, intercept, _ = fit_ridge((columns - center) / scale, labels, groups)
            return lambda new: (_with_products(new, own) - center) / scale @ coefficients + intercept

        self.models_ = _fit_targets(fit_target, targets, groups, len(spectra), self.target_names, self.log_target)
        return self

    def predict(self, spectra: Sequence[Spectrum]) -> np.ndarray:
        """Predicts `(N, T)` concentrations."""
        return _predict_targets(self.models_, self._areas(spectra), self.log_target)

    def _areas(self, spectra) -> np.ndarray:
        energies_kev = list(self.lines_kev_.values())
        areas = np.stack([net_areas(spectrum, energies_kev) / spectrum.total_counts for spectrum in spectra])
        return np.sign(areas) * np.sqrt(np.abs(areas)) if self.log_target else areas

    def _own_line(self, target_name: str) -> int | None:
        elements = list(self.lines_kev_)
        found = (elements.index(name) for name in re.findall("[A-Z][a-z]?", target_name) if name in elements)
        return next(found, None)


def _with_products(areas: np.ndarray, own: int | None) -> np.ndarray:
    return areas if own is None else np.hstack([areas, areas * areas[:, [own]]])


@lru_cache
def emission_line_kev(element: str, tube_kv: float) -> float | None:
    """Energy in keV of the K-alpha or else L-alpha line of an element that a tube at this voltage excites and a
    detector in air sees; `None` where there is no such line."""
    import xraylib

    number = xraylib.SymbolToAtomicNumber(element)
    for shell, line in ((xraylib.K_SHELL, xraylib.KA_LINE), (xraylib.L3_SHELL, xraylib.LA_LINE)):
        try:
            energy_kev, edge_kev = xraylib.LineEnergy(number, line), xraylib.EdgeEnergy(number, shell)
        except ValueError:  # the element has no such line
            continue
        if energy_kev > LEAST_ENERGY_KEV and edge_kev < tube_kv:
            return energy_kev
    return None


def fwhm_kev(energy_kev):
    """Full width at half maximum in keV of a peak in a silicon detector: 100 eV of electronic noise and the
    statistics of 3.65 eV per charge pair with a Fano factor of 0.115, 138 eV at 1.74 keV ... 158 eV at 6.4 keV."""
    return np.sqrt(0.1**2 + 8 * np.log(2) * 0.115 * 0.00365 * np.asarray(energy_kev))


def net_areas(spectrum: Spectrum, energies_kev) -> np.ndarray:
    """Net counts `(E,)` of peaks at the given energies.

    Gross counts within 0.8 FWHM of the line, less the mean level of two bands 1.2 to 1.8 FWHM away on either side.
    Channels count in part where a bound cuts them. An area on the flank of another peak is often negative, and is left
    so.
    """
    energies_kev = np.asarray(energies_kev, dtype=np.float64)
    width_kev = fwhm_kev(energies_kev)
    edges_kev = spectrum.offset_kev + spectrum.gain_kev * (np.arange(len(spectrum.counts) + 1) - 0.5)
    below = np.concatenate([[0.0], np.cumsum(spectrum.counts, dtype=np.float64)])

    def counts_between(first, last):
        return np.diff(np.interp(energies_kev + np.outer([first, last], width_kev), edges_kev, below), axis=0)[0]

    background = (counts_between(-1.8, -1.2) + counts_between(1.2, 1.8)) / 1.2  # counts per FWHM
    return counts_between(-0.8, 0.8) - 1.6 * background


# --- around any calibration of `Spectrum` objects ---


class WithoutGroups:
    """Lets a calibration make its choices over single rows, as if no two were of one group."""

    def __init__(self, calibration):
        self.calibration = calibration
        self.least_labels = getattr(calibration, "least_labels", 0)

    def fit(self, spectra: Sequence[Spectrum], targets, groups=None) -> WithoutGroups:
        """Fits to spectra and targets `(N, T)`."""
        self.calibration.fit(spectra, targets, None)
        return self

    def predict(self, spectra: Sequence[Spectrum]) -> np.ndarray:
        """Predicts `(N, T)` concentrations."""
        return self.calibration.predict(spectra)


class AtLeast:
    """Raises predictions below half of a target's least training label to that: a line fitted to concentrations knows
    no zero, and what is not positive has no logarithm to be judged by."""

    def __init__(self, calibration):
        self.calibration = calibration
        self.least_labels = getattr(calibration, "least_labels", 0)

    def fit(self, spectra: Sequence[Spectrum], targets, groups=None) -> AtLeast:
        """Fits to spectra, targets `(N, T)` and groups `(N,)`."""
        self.calibration.fit(spectra, targets, groups)
        self.least_ = np.nanmin(targets, axis=0) / 2
        return self

    def predict(self, spectra: Sequence[Spectrum]) -> np.ndarray:
        """Predicts `(N, T)` concentrations."""
        return np.maximum(self.calibration.predict(spectra), self.least_)


# --- from instrument to instrument ---


class PooledTransfer:
    """Fits a calibration to the spectra of both instruments, as if they were of one.

    Args:
        calibration: a calibration of `Spectrum` objects.
    """

    uses_transfer = True
    least_transfer = 1

    def __init__(self, calibration):
        self.calibration = calibration
        self.least_labels = getattr(calibration, "least_labels", 0)

    def fit(self, spectra: Sequence[Spectrum], targets, groups, transfer) -> PooledTransfer:
        """Fits to spectra, targets `(N, T)`, groups `(N,)` and a `protocols_xrf.Transfer`."""
        _check_transfer(transfer, self.least_transfer)
        groups = None if groups is None else np.concatenate([groups, transfer.groups])
        targets = np.concatenate([targets, transfer.targets])
        self.calibration.fit([*spectra, *transfer.spectra], targets, groups)
        return self

    def predict(self, spectra: Sequence[Spectrum]) -> np.ndarray:
        """Predicts `(N, T)` concentrations."""
        return self.calibration.predict(spectra)


class SlopeBiasCorrection:
    """Corrects what a calibration of the primary instrument predicts from spectra of the secondary one: a straight
    line from its predictions of the transfer spectra to their labels, for each target.

    The line has a slope where leave-one-out over the transfer samples is for it, and is a shift otherwise.

    Args:
        calibration: a calibration of `Spectrum` objects.
        log_target (`bool`, defaults to `True`): the line is one between logarithms.
    """

    uses_transfer = True
    least_transfer = 1

    def __init__(self, calibration, log_target: bool = True):
        self.calibration, self.log_target = calibration, log_target
        self.least_labels = getattr(calibration, "least_labels", 0)

    def fit(self, spectra: Sequence[Spectrum], targets, groups, transfer) -> SlopeBiasCorrection:
        """Fits to spectra, targets `(N, T)`, groups `(N,)` and a `protocols_xrf.Transfer`."""
        _check_transfer(transfer, self.least_transfer)
        self.calibration.fit(spectra, targets, groups)
        predictions, labels = self._predictions(transfer.spectra), transfer.targets
        labels = np.log(labels) if self.log_target else labels
        present = ~np.isnan(labels)
        self.lines_ = [
            _slope_and_shift(predictions[rows, column], labels[rows, column]) for column, rows in enumerate(present.T)
        ]
        return self

    def predict(self, spectra: Sequence[Spectrum]) -> np.ndarray:
        """Predicts `(N, T)` concentrations."""
        slopes, shifts = np.transpose(self.lines_)
        corrected = self._predictions(spectra) * slopes + shifts
        return np.exp(corrected) if self.log_target else corrected

    def _predictions(self, spectra):
        predictions = self.calibration.predict(spectra)
        return np.log(predictions) if self.log_target else predictions


def _slope_and_shift(predictions: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    if len(labels) == 0:
        return 1.0, 0.0
    shift = 1.0, float(np.mean(labels - predictions))
    if len(labels) < MIN_LABELS or np.ptp(predictions) == 0:
        return shift

    def line(x, y):
        slope = np.sum((x - x.mean()) * (y - y.mean())) / np.sum((x - x.mean()) ** 2)
        return float(slope), float(y.mean() - slope * x.mean())

    shift_error = line_error = 0.0
    for row, (x, y) in enumerate(zip(predictions, labels)):
        others_x, others_y = np.delete(predictions, row), np.delete(labels, row)
        shift_error += (np.mean(others_y - others_x) + x - y) ** 2
        if np.ptp(others_x) == 0:
            return shift
        slope, intercept = line(others_x, others_y)
        line_error += (slope * x + intercept - y) ** 2
    return line(predictions, labels) if line_error < shift_error else shift


class DirectStandardisation:
    """Turns spectra of the secondary instrument into what the primary one would have recorded, and leaves the
    calibration of that one as it is (Wang, Veltkamp & Kowalski 1991, Anal. Chem. 63, 2750-2756).

    Both are square roots of unit-sum spectra, centred on the means of the K pairs of transfer spectra. Direct: all
    channels of the primary from all of the secondary, by regression on principal components. Piecewise (PDS): each
    channel from a window of the secondary's channels around it, likewise. The number of components and the width of
    the window have the least squared error when each pair in turn is left out.

    Args:
        calibration: a calibration of `Spectrum` objects.
        piecewise (`bool`, defaults to `False`): PDS in place of DS.
        channels (`str`, defaults to `"grid"`): the channels that are mapped, as in `OnChannels`; recorded ones get the
            energy scale of the first training spectrum.
    """

    uses_transfer = True
    least_transfer = 3

    def __init__(self, calibration, piecewise: bool = False, channels: str = "grid"):
        _check_channels(channels)
        self.calibration, self.piecewise, self.channels = calibration, piecewise, channels
        self.least_labels = getattr(calibration, "least_labels", 0)

    def fit(self, spectra: Sequence[Spectrum], targets, groups, transfer) -> DirectStandardisation:
        """Fits to spectra, targets `(N, T)`, groups `(N,)` and a `protocols_xrf.Transfer`."""
        _check_transfer(transfer, self.least_transfer)
        self.calibration.fit(spectra, targets, groups)
        self._primary = spectra[0]
        secondary, primary = (
            square_root_unit_sum(count_rows(pair, self.channels))
            for pair in (transfer.spectra, transfer.primary_spectra)
        )
        fit_map = _piecewise_map if self.piecewise else _direct_map
        num_pairs = len(primary)
        half_widths = PDS_HALF_WIDTHS if self.piecewise else (None,)
        most = min(num_pairs - 2, MAX_PDS_COMPONENTS if self.piecewise else num_pairs)
        candidates = list(product(half_widths, range(1, most + 1)))
        errors = np.zeros(len(candidates))
        for pair in range(num_pairs):
            others = np.arange(num_pairs) != pair
            for index, candidate in enumerate(candidates):
                mapped = fit_map(secondary[others], primary[others], *candidate)(secondary[[pair]])
                errors[index] += np.sum((mapped - primary[pair]) ** 2)
        self.choice_ = candidates[int(np.argmin(errors))]
        self._map = fit_map(secondary, primary, *self.choice_)
        return self

    def predict(self, spectra: Sequence[Spectrum]) -> np.ndarray:
        """Predicts `(N, T)` concentrations from spectra of the secondary instrument."""
        return self.calibration.predict(self.standardise(spectra))

    def standardise(self, spectra: Sequence[Spectrum]) -> list[Spectrum]:
        """The spectra as the primary instrument would have recorded them, with their own total counts."""
        roots = self._map(square_root_unit_sum(count_rows(spectra, self.channels)))
        shares = np.maximum(roots, 0) ** 2
        shares /= shares.sum(axis=1, keepdims=True)
        scale = (self._primary.gain_kev, self._primary.offset_kev) if self.channels == "recorded" else GRID_SCALE_KEV
        return [
            Spectrum(counts, *scale, tube_kv=self._primary.tube_kv)
            for counts in shares * [[spectrum.total_counts] for spectrum in spectra]
        ]


def _check_transfer(transfer, least: int) -> None:
    found = 0 if transfer is None else len(transfer.spectra)
    if found < least:
        raise ValueError(f"this transfer needs at least {least} spectra of the new instrument, but has {found}.")


def _direct_map(secondary: np.ndarray, primary: np.ndarray, _, components: int) -> Callable:
    """Regression of all channels of the primary `(K, L)` on `components` principal components of the secondary."""
    center, target_center = secondary.mean(axis=0), primary.mean(axis=0)
    left, singular, right = np.linalg.svd(secondary - center, full_matrices=False)
    kept = min(components, np.count_nonzero(singular > singular[0] * np.finfo(np.float64).eps * max(secondary.shape)))
    scores_to_primary = (left[:, :kept] / singular[:kept]).T @ (primary - target_center)
    return lambda spectra: (spectra - center) @ right[:kept].T @ scores_to_primary + target_center


def _piecewise_map(secondary: np.ndarray, primary: np.ndarray, half_width: int, components: int) -> Callable:
    """Regression of each channel of the primary `(K, L)` on `components` principal components of the secondary's
    channels at most `half_width` away."""

    def windows(spectra):  # (L, n, 2 * half_width + 1)
        padded = np.pad(spectra, ((0, 0), (half_width, half_width)))
        return np.lib.stride_tricks.sliding_window_view(padded, 2 * half_width + 1, axis=1).swapaxes(0, 1)

    center, target_center = secondary.mean(axis=0), primary.mean(axis=0)
    left, singular, right = np.linalg.svd(windows(secondary - center), full_matrices=False)
    left, singular, right = left[..., :components], singular[:, :components], right[:, :components]
    # a channel in which the pairs do not differ keeps the primary's mean
    inverse = np.where(singular > 1e-9, 1 / np.maximum(singular, 1e-9), 0.0)
    scores = np.einsum("lkc,kl->lc", left, primary - target_center) * inverse  # (L, components)
    coefficients = np.einsum("lc,lcw->lw", scores, right)  # (L, 2 * half_width + 1)
    return lambda spectra: np.einsum("lnw,lw->nl", windows(spectra - center), coefficients) + target_center
