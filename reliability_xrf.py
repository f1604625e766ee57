"""What makes an answer honest: prediction intervals from errors that were really made, and the distance at which a
spectrum is no longer like those a model knows.

N = spectra, D = hidden size, T = targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.stats import norm

from attribution_xrf import standardized_view
from modeling_xrf import XRFFamiliarity, XRFForRegression
from training_xrf import LABEL_FLOOR, model_inputs

COVERAGES = (0.8, 0.9)
# Errors that the model expects are counted beside those it made, as if this many had been made: they decide where
# there are few or none.
EXPECTED_ERRORS = 4.0
QUANTILES = np.linspace(0.5, 1, 41)[:-1] + 0.00625  # of the normal distribution that stands for expected errors
RIDGE_SHARE = 1e-3  # of the mean variance of embeddings, added to every variance
MOST_LEFT_OUT = 300  # spectra that are left out one by one to learn how far familiar ones lie
FAMILIAR_SD = 2.326  # standard deviations of ln(distance) that 99 % of familiar spectra lie below


def interval_half_widths(
    errors, expected_sd: float, coverages: Sequence[float] = COVERAGES, weights=None
) -> np.ndarray:
    """Half widths of intervals that hold future errors with the given probabilities.

    With many errors this is split (or, for errors of leaving out, cross) conformal prediction: the smallest of the n
    absolute errors that at least `coverage (n + 1)` of them do not exceed (Lei et al. 2018, J. Am. Stat. Assoc. 113,
    1094-1111; Barber et al. 2021, Ann. Stat. 49, 486-507). Few errors are filled up with `EXPECTED_ERRORS` ones from a
    normal distribution with `expected_sd`, so that any number of them, also none, gives a width.

    Args:
        errors (array-like of shape `(n,)`): of spectra that were not learnt from.
        expected_sd (`float`): standard deviation that the model itself expects of errors.
        weights (array-like of shape `(n,)`, *optional*): how many independent errors each stands for, at most 1, where
            those of one core or formation are alike; by default 1.

    Returns:
        `np.ndarray` of shape `(coverages,)`
    """
    made = np.abs(np.asarray(errors, dtype=np.float64))
    expected = expected_sd * norm.ppf(QUANTILES)
    sizes = np.concatenate([made, expected])
    weights = np.ones(len(made)) if weights is None else np.asarray(weights, dtype=np.float64)
    weights = np.concatenate([weights, np.full(len(expected), EXPECTED_ERRORS / len(expected))])
    order = np.argsort(sizes)
    reached = np.cumsum(weights[order])
    wanted = np.asarray(coverages) * (weights.sum() + 1)  # one more is to come
    places = np.minimum(np.searchsorted(reached, wanted - 1e-9), len(sizes) - 1)
    return sizes[order][places]


@torch.no_grad()
def calibrate(model: XRFForRegression, batches: Iterable[dict], coverages: Sequence[float] = COVERAGES) -> None:
    """Give a model intervals that held for spectra it had not learnt from, and familiarity with them.

    Errors count in units of the standard deviation of a Gaussian head, else of the standardised target. Labels at the
    floor, of elements that are not there, do not count: a model can be as sure of them as it likes.

    Args:
        model: changed in place, and left in training mode.
        batches: of `measured_patches` with `labels`, of a held-out split.
    """
    model.eval()
    view, errors, embeddings = standardized_view(model), [], []
    names = ("target_mean", "target_std")
    mean, std = (torch.tensor(getattr(model.config, name), dtype=torch.float64) for name in names)
    is_log = torch.tensor([transform == "log" for transform in model.config.target_transform])
    for batch in batches:
        inputs = {name: values.to(model.device) for name, values in model_inputs(batch).items()}
        outputs = view(**inputs)
        labels = batch["labels"].double().cpu()
        labels = torch.where(is_log & (labels <= LABEL_FLOOR), torch.nan, labels)
        labels = (torch.where(is_log, labels.log(), labels) - mean) / std
        sd = 1.0 if outputs.standard_deviation is None else outputs.standard_deviation.double().cpu()
        errors.append(((labels - outputs.predictions.double().cpu()) / sd).numpy())
        embeddings.append(model.xrf(**inputs).pooler_output.double().cpu().numpy())
    errors = np.concatenate(errors)
    widths = [interval_half_widths(column[~np.isnan(column)], 1.0, coverages) for column in errors.T]
    model.config.interval_coverages = list(coverages)
    model.config.interval_factors = np.transpose(widths).tolist()
    model.config.interval_floors = None
    make_familiar(model, np.concatenate(embeddings))
    model.train()


def fit_familiarity(embeddings: np.ndarray, like: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """Centre, whitening and threshold of the familiar: Mahalanobis' distance, with a covariance that few spectra have
    in part from elsewhere (as many spectra's worth as there are dimensions; of a multiple of the unit matrix, which
    hides the directions in which spectra hardly vary, the less the more there are).

    Args:
        embeddings (`np.ndarray` of shape `(N, D)`): of at least two familiar spectra.
        like (`np.ndarray` of shape `(D, D)`, *optional*): a covariance of embeddings of many other spectra, whose
            shape, not size, is taken over; by default a multiple of the unit matrix.

    Returns:
        centre `(D,)`, whitening `(D, D)` and the distance beyond which a spectrum is unfamiliar: what 99 % of
        spectra stay below, were ln(distance) of those left out in turn normal.
    """
    embeddings = np.asarray(embeddings, dtype=np.float64)
    number, size = embeddings.shape
    shape, worth = (np.eye(size), size * min(1.0, size / number)) if like is None else (like, size)
    center = embeddings.mean(axis=0)
    scatter = (embeddings - center).T @ (embeddings - center)
    shape = shape * (np.trace(scatter) / max(number - 1, 1)) / np.trace(shape)
    shape = shape + RIDGE_SHARE * np.trace(shape) / size * np.eye(size)
    distances = []
    for row in np.linspace(0, number - 1, min(number, MOST_LEFT_OUT)).astype(int):
        offset = embeddings[row] - center
        others = scatter - number / (number - 1) * np.outer(offset, offset)  # about the centre of the others
        offset = offset * number / (number - 1)  # from it
        distances.append(np.sqrt(offset @ np.linalg.solve((others + worth * shape) / (number - 2 + worth), offset)))
    ln_distances = np.log(np.maximum(distances, 1e-12))
    threshold = float(np.exp(ln_distances.mean() + FAMILIAR_SD * ln_distances.std()))
    values, vectors = np.linalg.eigh(np.linalg.inv((scatter + worth * shape) / (number - 1 + worth)))
    return center, np.sqrt(np.maximum(values, 0))[:, None] * vectors.T, threshold


def make_familiar(model: XRFForRegression, embeddings: np.ndarray, like: np.ndarray | None = None) -> None:
    """Let a model tell how far a spectrum lies from those with these embeddings; see `fit_familiarity`."""
    center, whitening, model.config.familiarity_threshold = fit_familiarity(embeddings, like)
    model.familiarity = XRFFamiliarity(len(center)).to(model.device)
    with torch.no_grad():
        model.familiarity.center.copy_(torch.from_numpy(center))
        model.familiarity.whitening.copy_(torch.from_numpy(whitening))


def embedding_covariance(model) -> np.ndarray | None:
    """The covariance `(D, D)` behind a model's own familiarity; `None` without one."""
    if getattr(model, "familiarity", None) is None:
        return None
    whitening = model.familiarity.whitening.double().cpu().numpy()
    return np.linalg.inv(whitening.T @ whitening)
