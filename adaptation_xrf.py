"""Few-label adaptation: what the pretrained model says already, corrected by labels, and a ridge regression beside it.

For each target, its labels (or their logarithms) are modelled by a Gaussian process,

    label = prior + bias + slope + embedding + group + noise

`prior` is the pretrained model's own prediction where it knows the target, else the labels' mean. Every term after it
has a linear kernel and a variance of its own; the variances are the most probable ones given the labels (Rasmussen &
Williams 2006, sections 2.7 and 5.4). `group` is what the spectra of one core or formation have in common, so that many
spectra of one do not pass for many samples.

A ridge regression on the spectrum itself makes other errors than the process, so the answer is the mean of both, each
weighted by the inverse of its mean squared error on what was left out (Bates & Granger 1969, Oper. Res. Q. 20,
451-468). Without labels it is the prior; a few shift it; many let the spectrum say where it knows better.

Labels over decades are fitted as logarithms, except those of a main constituent: of a sediment that is carbonate for
the most part, an error counts in wt%. Then a linear fit competes, and the prior with nothing but a bias, which goes
beyond the labels at hand without harm where all else may not; what is left out decides.

All is linear in the embedding and the scaled spectrum, so the result is an ordinary [`XRFForRegression`] with
`spectrum_skip`. Intervals come from the errors of leaving out each group, or each spectrum where there are none; those
of a main constituent are as wide at any low value.

N = spectra, D = hidden size, L = channels, T = targets. A missing laboratory value is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize

from evaluation_xrf import fit_ridge
from finetuning_xrf import ROWS_IN_A_BATCH, LabelledSpectra, embed, model_around
from modeling_xrf import XRFForRegression, XRFModel
from reliability_xrf import COVERAGES, embedding_covariance, interval_half_widths, make_familiar

# Prior medians of the terms' standard deviations: of ln(value) for a target that the pretrained model knows, else as a
# share of the labels' own standard deviation. The logarithm of each is normal with `LN_SD_SPREAD`.
KNOWN_SD = {"bias": 0.15, "slope": 0.1, "embedding": 0.3, "group": 0.2, "noise": 0.3}
UNKNOWN_SD = {"bias": 1.0, "embedding": 0.7, "group": 0.2, "noise": 0.2}
LN_SD_SPREAD = 1.0
LARGEST_LN_SD_CHANGE = 4.0
MOST_LABELS = 2000  # of one target; of more, this many are drawn, for time and memory
# What a wt% counts in other units; where labels have another one, the model does not know the target.
PER_WEIGHT_PERCENT = {"wt%": 1.0, "%": 1.0, "g/kg": 10.0, "ppm": 1e4, "mg/kg": 1e4, "ug/g": 1e4, "µg/g": 1e4}
LEAST_FOR_RIDGE = 5  # labels from which on a ridge regression of the spectrum is worth a thought
LUCKY_LABELS = 25  # with so many, the precision of the ridge regression is taken for half of what it seems
FREE_MEAN = 1e3  # variance of the mean of labels in a ridge regression, in units of that of a spectrum's share
DECADE = 10.0  # labels that are positive and span more than this factor are fitted by their logarithms
EVEN_SHARE = 0.3  # of its largest label: where the two parts of a main constituent's noise are equal
MAIN_CONSTITUENT = 10.0  # wt% that a target reaches in some sample, from where on its errors count in its unit
LINEAR_FIT = 50.0  # wt%, likewise, from where on a linear fit is worth a thought


def adapt(
    base: XRFForRegression | XRFModel,
    spectra: LabelledSpectra,
    target_names: Sequence[str],
    target_units: Sequence[str],
    seed: int = 0,
) -> XRFForRegression:
    """A new regression model that predicts the targets with intervals; the base is not changed.

    A target whose name the base predicts too (and whose unit is a mass share) has the base's prediction as its prior
    and needs no label; another one needs two.

    Args:
        base: pretrained model or encoder.
        spectra ([`LabelledSpectra`]): N spectra, of which some may have no label; they still count as familiar.
        target_names, target_units (`Sequence[str]`): of the T columns of labels.
        seed (`int`): of the draw where there are more than `MOST_LABELS` labels.

    Raises:
        ValueError: a target has too few labels.
    """
    labels = spectra.labels.double().numpy()
    known = [_known_row(base, name, unit) for name, unit in zip(target_names, target_units, strict=True)]
    for name, row, column in zip(target_names, known, labels.T, strict=True):
        found = np.unique(column[~np.isnan(column)])
        if row is None and len(found) < 2:
            raise ValueError(
                f"{name} is no target of the pretrained model and has {len(found)} different labels; give two or more."
            )
    if np.isnan(labels).all():
        return _without_labels(base, target_names, target_units, known)
    rng = np.random.default_rng(seed)
    model = _new_model(getattr(base, "xrf", base), target_names, target_units)
    embeddings = embed(model, spectra, ROWS_IN_A_BATCH)
    spectrum = spectra.input_values.double().numpy()
    groups = None if spectra.groups is None else np.asarray(spectra.groups)
    columns, fits = [], []
    for row, unit, column in zip(known, target_units, labels.T, strict=True):
        ways = _ways_to_fit(column, row is not None, unit, rng)
        # the prior is a logarithm, so a linear fit does without
        found = [_fit(way, row if way.is_log else None, unit, base, embeddings, spectrum, groups) for way in ways]
        best = int(np.argmin([way.mean_squared_error(fit.errors) for way, fit in zip(ways, found, strict=True)]))
        columns.append(ways[best])
        fits.append(found[best])
    _write(model, columns, fits)
    if len(embeddings) > 2:
        make_familiar(model, embeddings, embedding_covariance(base))
    return model


def _known_row(base, name: str, unit: str) -> int | None:
    """Which target of the base predicts ln(value) of this one, but for the unit; `None` if there is none."""
    if isinstance(base, XRFModel) or unit not in PER_WEIGHT_PERCENT or name not in base.config.target_names:
        return None
    row = base.config.target_names.index(name)
    config = base.config
    return row if (config.target_transform[row], config.target_units[row]) == ("log", "wt%") else None


@dataclass(frozen=True)
class _Column:
    """The labels of one target that are used: their rows `(n,)`, values `(n,)`, transformed, whether these are
    logarithms, whether the target is a main constituent, and whether its prior is shifted and nothing more."""

    rows: np.ndarray
    labels: np.ndarray
    is_log: bool
    is_main: bool
    is_shifted: bool = False

    @property
    def floor(self) -> float | None:
        """Of a main constituent's logarithms: the value where the part of an error that is the same at any value is as
        large as the part in proportion to it."""
        return EVEN_SHARE * float(np.exp(self.labels.max())) if self.is_main and self.is_log else None

    def noise_shape(self) -> np.ndarray:
        """Variance of the noise of each label in units of the noise term's `(n,)`; both parts of a main constituent's
        (see `floor`), of which the even one counts more in a small value's logarithm."""
        if self.floor is None:
            return np.ones(len(self.labels))
        return 1 + np.square(self.floor / np.exp(self.labels))

    def mean_squared_error(self, errors: np.ndarray) -> float:
        """Of predictions that miss the transformed labels by `errors` `(n,)`: in the unit of a main constituent, else
        of transformed labels. 0 without labels."""
        if self.floor is not None:
            errors = np.exp(self.labels) - np.exp(self.labels - errors)
        return float(np.mean(errors**2)) if len(errors) else 0.0

    def half_widths(self, errors: np.ndarray, expected_sd: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Of intervals, `(coverages,)`: in transformed labels, and with a floor in units of sqrt(p^2 + floor^2) of the
        prediction p; from errors `(n,)`, their expected sizes `(n,)` or `(1,)`, and what each counts."""
        if self.floor is not None:
            labels, predictions = np.exp(self.labels), np.exp(self.labels - errors)
            errors = (labels - predictions) / np.hypot(predictions, self.floor)
            expected_sd = expected_sd * labels / np.hypot(labels, self.floor)
        return interval_half_widths(errors, np.sqrt(np.mean(expected_sd**2)), weights=counts)


def _ways_to_fit(labels: np.ndarray, is_known: bool, unit: str, rng) -> list[_Column]:
    """The labels `(N,)` of a target as they may be fitted: as logarithms, as they are, or the best of these and of the
    prior but shifted."""
    present = ~np.isnan(labels)
    positive = present & (np.nan_to_num(labels) > 0)
    values = labels[positive]
    least, most = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    as_logarithms = is_known or bool((positive == present).all() and most > DECADE * least)
    weight_percent = most / PER_WEIGHT_PERCENT.get(unit, np.inf)
    is_main = bool(weight_percent > MAIN_CONSTITUENT)
    compete = is_main and as_logarithms and len(np.unique(labels[present])) > 1
    ways = []
    for logarithms in (True, False) if compete and weight_percent > LINEAR_FIT else (as_logarithms,):
        rows = np.flatnonzero(positive if logarithms else present)  # a zero is below detection, and has no logarithm
        if len(rows) > MOST_LABELS:
            rows = np.sort(rng.choice(rows, MOST_LABELS, replace=False))
        ways.append(_Column(rows, np.log(labels[rows]) if logarithms else labels[rows], logarithms, is_main))
    if compete and is_known:
        ways.append(replace(ways[0], is_shifted=True))
    return ways


def _without_labels(base, target_names, target_units, known) -> XRFForRegression:
    """The base's own rows for these targets, in these units, with its own intervals and familiarity."""
    own = base.config
    rows = np.array(known)
    shifts = [float(np.log(PER_WEIGHT_PERCENT[unit])) for unit in target_units]
    model = model_around(
        base.xrf,
        target_names,
        target_units,
        target_transform=["log"] * len(rows),
        target_mean=[own.target_mean[row] + shift for row, shift in zip(rows, shifts, strict=True)],
        target_std=[own.target_std[row] for row in rows],
        regression_loss=own.regression_loss,
        spectrum_skip=own.spectrum_skip,
        pooling=own.pooling,
        interval_coverages=own.interval_coverages,
        interval_factors=own.interval_factors and [[factors[row] for row in rows] for factors in own.interval_factors],
        interval_floors=own.interval_floors
        and [
            None if own.interval_floors[row] is None else own.interval_floors[row] * float(np.exp(shift))
            for row, shift in zip(rows, shifts, strict=True)
        ],
        familiarity_threshold=own.familiarity_threshold,
        calibration=own.calibration,
    )
    outputs = rows if own.regression_loss == "mse" else np.concatenate([rows, rows + len(own.target_names)])
    with torch.no_grad():
        model.head.weight.copy_(base.head.weight[outputs])
        model.head.bias.copy_(base.head.bias[outputs])
        if own.spectrum_skip:
            model.spectrum_head.weight.copy_(base.spectrum_head.weight[rows])
    if own.familiarity_threshold is not None:
        model.familiarity.load_state_dict(base.familiarity.state_dict())
    return model


def _new_model(encoder, target_names, target_units) -> XRFForRegression:
    """A model whose heads and transforms of targets are still to be written."""
    return model_around(
        encoder,
        target_names,
        target_units,
        regression_loss="mse",
        spectrum_skip=True,
        pooling=encoder.config.embedding_pooling,
        interval_coverages=list(COVERAGES),
        interval_factors=[[1.0] * len(target_names) for _ in COVERAGES],
        interval_floors=None,
        familiarity_threshold=None,
        calibration=None,
    )


@dataclass(frozen=True)
class _Linear:
    """A target as a linear function, in transformed units: of the embedding `(D,)`, of the spectrum `(L,)`, constant;
    what is known of its errors on labels that were left out (see `left_out_errors`)."""

    weight: np.ndarray
    spectrum_weight: np.ndarray
    constant: float
    errors: np.ndarray
    expected_sd: np.ndarray
    counts: np.ndarray


def _fit(column: _Column, row: int | None, unit: str, base, embeddings, spectrum, groups) -> _Linear:
    """One target, from embeddings `(N, D)`, spectra `(N, L)` and groups `(N,)` of all spectra."""
    groups = None if groups is None else groups[column.rows]
    process = _fit_process(column, row, unit, base, embeddings, spectrum, groups)
    if column.is_shifted or len(column.labels) < LEAST_FOR_RIDGE or np.ptp(column.labels) == 0:
        return process
    ridge = _fit_spectrum(column.labels, spectrum[column.rows], groups, embeddings.shape[1])
    precision = [1 / column.mean_squared_error(part.errors) for part in (process, ridge)]
    # its penalty was chosen by errors like these: with few labels they look better than they are
    precision[1] *= len(column.labels) / (len(column.labels) + LUCKY_LABELS)
    share = precision[0] / sum(precision)

    def mixed(name):
        return share * getattr(process, name) + (1 - share) * getattr(ridge, name)

    names = ("weight", "spectrum_weight", "constant", "errors", "expected_sd", "counts")
    return _Linear(*map(mixed, names))


def _fit_process(column: _Column, row, unit: str, base, embeddings, spectrum, groups) -> _Linear:
    """The Gaussian process. A term is `A A'` of features A `(n, k)`; its posterior mean has the weights
    `variance A' alpha` with `alpha = (covariance of labels)^-1 (label - prior)`."""
    size, length = embeddings.shape[1], spectrum.shape[1]
    if row is None:
        prior_weight, prior_spectrum, prior_constant = np.zeros(size), np.zeros(length), np.mean(column.labels)
        prior_sd = {name: sd * np.std(column.labels) for name, sd in UNKNOWN_SD.items()}
    else:
        prior_weight, prior_spectrum, prior_constant = _own_prediction(base, row)
        prior_constant += np.log(PER_WEIGHT_PERCENT[unit])
        prior_sd = {name: KNOWN_SD[name] for name in (("bias", "noise") if column.is_shifted else KNOWN_SD)}
    if len(column.labels) == 0:
        expected_sd = np.array([np.linalg.norm(list(KNOWN_SD.values()))])
        return _Linear(prior_weight, prior_spectrum, prior_constant, np.zeros(0), expected_sd, np.zeros(0))

    embedding = embeddings[column.rows]
    own = embedding @ prior_weight + spectrum[column.rows] @ prior_spectrum
    own_center, center = own.mean(), embedding.mean(axis=0)
    scale = _root_mean_square(embedding - center)
    features = {
        "bias": np.ones((len(own), 1)),
        "slope": (own - own_center)[:, None],
        "embedding": (embedding - center) / scale,
    }
    residual = column.labels - own - prior_constant
    variances, covariance = most_probable_variances(features, groups, residual, prior_sd, column.noise_shape())
    inverse = np.linalg.inv(covariance)
    alpha = inverse @ residual
    slope = 1 + variances["slope"] * (features["slope"].T @ alpha)[0]
    weight = variances["embedding"] * (features["embedding"].T @ alpha) / scale
    constant = prior_constant + variances["bias"] * alpha.sum() + (1 - slope) * own_center - weight @ center
    return _Linear(
        slope * prior_weight + weight,
        slope * prior_spectrum,
        float(constant),
        *left_out_errors(inverse, alpha, groups),
    )


def _fit_spectrum(labels: np.ndarray, spectrum: np.ndarray, groups, size: int) -> _Linear:
    """Ridge regression on the spectrum `(n, L)`, the penalty chosen by leaving out single spectra: where formations
    differ, a penalty chosen by leaving out whole ones came out too large to use what tells samples apart."""
    scale = _root_mean_square(spectrum)
    coefficients, intercept, penalty = fit_ridge(spectrum / scale, labels, None)
    centred = (spectrum - spectrum.mean(axis=0)) / scale
    # the same as a process whose mean is as good as free
    covariance = centred @ centred.T + penalty * np.eye(len(labels)) + FREE_MEAN
    inverse = np.linalg.inv(covariance)
    alpha = inverse @ (labels - labels.mean())
    errors, _, counts = left_out_errors(inverse, alpha, groups)
    # it knows the size of its errors by those it made only
    expected_sd = np.array([np.sqrt(np.mean(errors**2))])
    return _Linear(np.zeros(size), coefficients / scale, intercept, errors, expected_sd, counts)


def _own_prediction(base: XRFForRegression, row: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The base's prediction of one of its targets, ln(wt%), as a linear function: of the embedding `(D,)`, of the
    spectrum `(L,)`, constant."""
    std, config = base.config.target_std[row], base.config

    def weights(values):
        return std * values[row].detach().double().cpu().numpy()

    spectrum = weights(base.spectrum_head.weight) if config.spectrum_skip else np.zeros(config.spectrum_length)
    return weights(base.head.weight), spectrum, float(weights(base.head.bias)) + config.target_mean[row]


def _root_mean_square(features: np.ndarray) -> float:
    """Root of the mean squared norm of the rows; 1 where all are zero, as those of a single spectrum are."""
    size = float(np.sqrt(np.mean(np.sum(features**2, axis=1))))
    return size if size > 0 else 1.0


def most_probable_variances(
    features: dict, groups, residual: np.ndarray, prior_sd: dict, noise_shape: np.ndarray | None = None
) -> tuple[dict, np.ndarray]:
    """The variances of all terms that are most probable given the residuals, and the covariance they give.

    The logarithm of each standard deviation has a normal prior around that of `prior_sd`.

    Args:
        features (`dict[str, np.ndarray]`): term -> features `(n, k)`.
        groups (`np.ndarray` of shape `(n,)`, *optional*): of the term `group`.
        residual (`np.ndarray` of shape `(n,)`): labels less their prior mean.
        prior_sd (`dict[str, float]`): of the terms and of `group` and `noise`; a term without one is left out.
        noise_shape (`np.ndarray` of shape `(n,)`, *optional*): variance of each residual's noise relative to the
            term's; by default 1.

    Returns:
        variance of each term, and the covariance `(n, n)` of the residuals, noise included.
    """
    kernels = {name: values @ values.T for name, values in features.items()}
    if groups is not None:
        kernels["group"] = (groups[:, None] == groups).astype(np.float64)
    kernels["noise"] = np.diag(np.ones(len(residual)) if noise_shape is None else noise_shape)
    names = [name for name in kernels if name in prior_sd]
    stack = np.stack([kernels[name] for name in names])
    start = np.log([prior_sd[name] for name in names])

    def loss(ln_sd):
        variances = np.exp(2 * ln_sd)
        covariance = np.tensordot(variances, stack, 1)
        root = np.linalg.cholesky(covariance)
        inverse_root = np.linalg.inv(root)
        inverse = inverse_root.T @ inverse_root
        alpha = inverse @ residual
        change = (ln_sd - start) / LN_SD_SPREAD
        value = 0.5 * residual @ alpha + np.log(np.diag(root)).sum() + 0.5 * change @ change
        slopes = np.einsum("tij,ij->t", stack, inverse) - np.einsum("tij,i,j->t", stack, alpha, alpha)
        return value, slopes * variances + change / LN_SD_SPREAD

    bounds = [(value - LARGEST_LN_SD_CHANGE, value + LARGEST_LN_SD_CHANGE) for value in start]
    variances = np.exp(2 * minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x)
    found = dict.fromkeys(kernels, 0.0) | dict(zip(names, variances.tolist(), strict=True))
    return found, np.tensordot(variances, stack, 1)


def left_out_errors(inverse: np.ndarray, alpha: np.ndarray, groups) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors `(n,)` of the labels of each group, or each label without groups, when all of the group are left out; the
    standard deviation `(n,)` that the process expects of each; and how many independent ones it stands for, `(n,)`.

    With the inverse covariance P and alpha = P residual, leaving out the rows g gives them the errors
    `P_gg^-1 alpha_g` with the covariance `P_gg^-1` (Rasmussen & Williams 2006, equation 5.12, for several rows). Of m
    errors with the mean correlation rho, each stands for 1 / (1 + (m - 1) rho) (Kish 1965, Survey Sampling, 5.4).
    """
    groups = np.arange(len(alpha)) if groups is None or len(np.unique(groups)) < 2 else groups
    errors, variances, weights = np.empty((3, len(alpha)))
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        covariance = np.linalg.inv(inverse[np.ix_(rows, rows)])
        errors[rows], variances[rows] = covariance @ alpha[rows], np.diag(covariance)
        sd = np.sqrt(variances[rows])
        correlations = (covariance / np.outer(sd, sd)).sum() - len(rows)  # of all pairs, each twice
        weights[rows] = 1 / (1 + max(correlations, 0.0) / len(rows))
    return errors, np.sqrt(variances), weights


@torch.no_grad()
def _write(model: XRFForRegression, columns: Sequence[_Column], fits: Sequence[_Linear]) -> None:
    """Put the linear functions, the transforms and the intervals into the model; its targets are standardised by their
    labels."""
    mean = np.array([column.labels.mean() if len(column.labels) else 0.0 for column in columns])
    std = np.array([np.std(column.labels) or 1.0 if len(column.labels) else 1.0 for column in columns])
    model.config.target_transform = ["log" if column.is_log else "linear" for column in columns]
    model.config.target_mean, model.config.target_std = mean.tolist(), std.tolist()
    model.head.weight.copy_(torch.from_numpy(np.stack([fit.weight for fit in fits]) / std[:, None]))
    model.head.bias.copy_(torch.from_numpy((np.array([fit.constant for fit in fits]) - mean) / std))
    model.spectrum_head.weight.copy_(torch.from_numpy(np.stack([fit.spectrum_weight for fit in fits]) / std[:, None]))
    factors = [
        column.half_widths(fit.errors, fit.expected_sd, fit.counts) for column, fit in zip(columns, fits, strict=True)
    ]
    model.config.interval_factors = (np.stack(factors, axis=1) / std).tolist()
    if any(column.floor is not None for column in columns):
        model.config.interval_floors = [column.floor for column in columns]
