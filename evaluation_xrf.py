"""Is a calibration any good: regression metrics, the two baselines every result stands beside, and labelled draws.

Plain functions on NumPy arrays compute the numbers; `regression_metric` wraps them once as an `evaluate.Metric` that
needs no network. `MeanBaseline` and `RidgeBaseline` are fitted on the same training rows as a model and predict
the same held-out rows, so a table of results always shows what the pretrained model adds.

N = spectra, L = channels of the common energy grid, T = targets. A missing laboratory value is NaN everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Features are square roots of unit-sum spectra, so every row has norm 1 and one grid fits all count rates.
RIDGE_PENALTIES = np.logspace(-6, 2, 33)
NUM_FOLDS = 5
MIN_LABELS = 3
NORMAL_HALF_WIDTHS = {0.8: 1.2816, 0.9: 1.6449}  # coverage of an interval: its half width in standard deviations

METRIC_NAMES = ("r2", "rmse", "mae", "bias", "rpd", "rpiq", "n")


def regression_metrics(predictions, references) -> dict[str, float]:
    """
    Compares predictions of one target with its laboratory values, in the target's own unit.

    With the errors `e = prediction - reference` of the `n` spectra that have a reference:

    - `r2`: `1 - sum(e**2) / sum((reference - mean(reference))**2)`, against the mean of *these* references, never of
      a training set;
    - `rmse`: `sqrt(mean(e**2))`;
    - `mae`: `mean(abs(e))`;
    - `bias`: `mean(e)`, positive where the model predicts too much;
    - `rpd`: standard deviation of the references (`ddof=1`) over RMSE, the ratio of performance to deviation of
      Williams & Sobering (1993), J. Near Infrared Spectrosc. 1, 25-32, with RMSE in place of their bias-corrected
      error, so that a bias counts;
    - `rpiq`: interquartile range of the references (quartiles by linear interpolation) over RMSE, the ratio of
      performance to interquartile distance of Bellon-Maurel et al. (2010), Trends Anal. Chem. 29, 1073-1081, which
      suits skewed targets better;
    - `n`: the number of references.

    What cannot be known is NaN: `r2`, `rpd` and `rpiq` for fewer than two or for constant references, everything but
    `n` for none. A perfect prediction of varying references has `rpd` and `rpiq` infinite. A prediction that is NaN
    where a reference exists makes the errors NaN; it is not skipped, because a failed prediction is no missing label.

    Args:
        predictions (array-like of shape `(N,)`): predicted values.
        references (array-like of shape `(N,)`): laboratory values in the same unit, NaN where missing.

    Returns:
        `dict[str, float]`: the seven numbers above, `n` as an integer.

    Raises:
        ValueError: if the two shapes differ or are not one-dimensional, or a reference is infinite.
    """
    predictions = np.asarray(predictions, dtype=np.float64)
    references = np.asarray(references, dtype=np.float64)
    if predictions.ndim != 1 or predictions.shape != references.shape:
        raise ValueError(
            f"predictions and references of one target must be two lists of equal length; "
            f"they have shapes {predictions.shape} and {references.shape}: pass one column of each."
        )
    if np.isinf(references).any():
        row = int(np.flatnonzero(np.isinf(references))[0])
        raise ValueError(f"references must be finite, or NaN where missing; row {row} is infinite: correct the label.")

    labelled = ~np.isnan(references)
    predictions, references = predictions[labelled], references[labelled]
    n = len(references)
    if n == 0:
        return dict.fromkeys(METRIC_NAMES, np.nan) | {"n": 0}

    errors = predictions - references
    rmse = float(np.sqrt(np.mean(errors**2)))
    metrics = {"r2": np.nan, "rmse": rmse, "mae": float(np.mean(np.abs(errors))), "bias": float(np.mean(errors))}
    metrics |= {"rpd": np.nan, "rpiq": np.nan, "n": n}
    if np.ptp(references) > 0:
        lower_quartile, upper_quartile = np.percentile(references, [25, 75])
        metrics["r2"] = float(1 - np.sum(errors**2) / np.sum((references - references.mean()) ** 2))
        metrics["rpd"] = _ratio(float(references.std(ddof=1)), rmse)
        metrics["rpiq"] = _ratio(float(upper_quartile - lower_quartile), rmse)
    return metrics


def _ratio(spread: float, rmse: float) -> float:
    if rmse == 0:
        return float("inf") if spread > 0 else float("nan")
    return spread / rmse


def regression_report(predictions, references, target_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """
    `regression_metrics` of each target over the rows where that target has a laboratory value.

    Args:
        predictions (array-like of shape `(N, T)`): predicted values, each column in its target's unit.
        references (array-like of shape `(N, T)`): laboratory values, NaN where missing.
        target_names (`Sequence[str]`): the names of the T columns.

    Returns:
        `dict[str, dict[str, float]]`: target name -> metrics.

    Raises:
        ValueError: if a shape is not `(N, T)`.
    """
    predictions = np.asarray(predictions, dtype=np.float64)
    references = np.asarray(references, dtype=np.float64)
    expected = (len(references), len(target_names))
    if predictions.shape != expected or references.shape != expected:
        raise ValueError(
            f"predictions and references must have a row per spectrum and a column for each of the "
            f"{len(target_names)} targets; they have shapes {predictions.shape} and {references.shape}."
        )
    return {
        name: regression_metrics(predictions[:, column], references[:, column])
        for column, name in enumerate(target_names)
    }


def ln_rmse(predictions, references) -> float:
    """
    Root mean squared error of ln(concentration) of one target: 0.1 means that predictions are about 10 % off, at the
    detection limit as at the top of the range.

    A prediction that is zero or negative has no logarithm and makes the error NaN.

    Args:
        predictions (array-like of shape `(N,)`): predicted concentrations.
        references (array-like of shape `(N,)`): laboratory values in the same unit, NaN where missing.

    Raises:
        ValueError: if the shapes differ or are not one-dimensional, or a reference is infinite or not positive.
    """
    return regression_metrics(*_logarithms(predictions, references))["rmse"]


def relative_ln_rmse(predictions, references) -> float:
    """
    `ln_rmse` over the standard deviation (`ddof=0`) of ln(reference): 1 is what predicting the mean of the test set's
    own ln(reference) would give, 0 is perfect. NaN for fewer than two or for constant references.
    """
    predictions, references = _logarithms(predictions, references)
    spread = float(np.std(references[~np.isnan(references)])) if (~np.isnan(references)).any() else 0.0
    return regression_metrics(predictions, references)["rmse"] / spread if spread > 0 else float("nan")


def ln_agreement(predictions, references) -> tuple[float, float]:
    """
    Whether predictions of one target follow its laboratory values, whatever their scale: the correlation (Pearson's r)
    of ln(prediction) with ln(reference), and the scale itself, the median of prediction / reference.

    NaN for fewer than two references, and r for constant ones; shapes and errors as in `ln_rmse`.
    """
    predictions, references = _logarithms(predictions, references)
    labelled = ~np.isnan(references)
    predictions, references = predictions[labelled], references[labelled]
    if len(references) < 2:
        return float("nan"), float("nan")
    varies = np.ptp(predictions) > 0 and np.ptp(references) > 0
    r = float(np.corrcoef(predictions, references)[0, 1]) if varies else float("nan")
    return r, float(np.exp(np.median(predictions - references)))


def mean_relative_ln_rmse(predictions, references) -> float:
    """`relative_ln_rmse` averaged over the T targets: predictions and references of shape `(N, T)`."""
    columns = zip(np.transpose(predictions), np.transpose(references), strict=True)
    return float(np.mean([relative_ln_rmse(*column) for column in columns]))


def _logarithms(predictions, references) -> tuple[np.ndarray, np.ndarray]:
    predictions = np.asarray(predictions, dtype=np.float64)
    references = np.asarray(references, dtype=np.float64)
    if (references <= 0).any():
        raise ValueError(
            f"a concentration of {references[references <= 0][0]:g} has no logarithm: mark values below detection as "
            "missing (NaN)."
        )
    positive = predictions > 0
    return np.where(positive, np.log(np.where(positive, predictions, 1)), np.nan), np.log(references)


def interval_metrics(lower, upper, references, coverage: float) -> dict[str, float]:
    """
    How honest and how wide the prediction intervals of one target are.

    Over the `n` spectra that have a reference:

    - `coverage`: share of references within their interval, bounds included; honest intervals have about the nominal
      share of them;
    - `width`: mean width, in the target's unit;
    - `interval_score`: mean of `(upper - lower) + 2 / alpha * (distance of the reference outside the interval)` with
      `alpha = 1 - coverage` (Gneiting & Raftery 2007, J. Am. Stat. Assoc. 102, equation 43): lower is better, and
      neither too wide nor too narrow intervals can win;
    - `n`: the number of references.

    All but `n` are NaN where there is no reference; a bound that is NaN where a reference exists makes them NaN.

    Args:
        lower, upper (array-like of shape `(N,)`): bounds in the target's unit.
        references (array-like of shape `(N,)`): laboratory values, NaN where missing.
        coverage (`float`): nominal share, 0.9 for a 90 % interval.

    Raises:
        ValueError: if the shapes differ, the coverage is not between 0 and 1, or an upper bound is below the lower.
    """
    lower, upper, references = (np.asarray(values, dtype=np.float64) for values in (lower, upper, references))
    if references.ndim != 1 or not lower.shape == upper.shape == references.shape:
        raise ValueError(
            "lower, upper and references of one target must be lists of equal length; their shapes are "
            f"{lower.shape}, {upper.shape} and {references.shape}."
        )
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, but is {coverage}; give 0.9 for 90 % intervals.")
    if (upper < lower).any():
        row = int(np.flatnonzero(upper < lower)[0])
        raise ValueError(f"interval {row} ends ({upper[row]:g}) before it begins ({lower[row]:g}): swap its bounds.")
    labelled = ~np.isnan(references)
    lower, upper, references = lower[labelled], upper[labelled], references[labelled]
    if not labelled.any() or np.isnan(lower).any() or np.isnan(upper).any():
        return {"coverage": np.nan, "width": np.nan, "interval_score": np.nan, "n": int(labelled.sum())}
    outside = np.maximum(lower - references, 0) + np.maximum(references - upper, 0)
    return {
        "coverage": float(np.mean(outside == 0)),
        "width": float(np.mean(upper - lower)),
        "interval_score": float(np.mean(upper - lower + 2 / (1 - coverage) * outside)),
        "n": len(references),
    }


def regression_metric(target_names: Sequence[str], cache_dir: str | None = None):
    """
    An `evaluate.Metric` over `regression_report` that needs no network.

    `compute` returns one flat dictionary, `{"<target>_<metric>": value}`, as `Trainer` and trackers want it. Rows can
    be added in batches with `add_batch(predictions=..., references=...)`, each of shape `(n, T)`.

    ```python
    >>> metric = regression_metric(["CaCO3", "TOC"])
    >>> metric.compute(predictions=[[10.0, 1.0], [30.0, 2.0]], references=[[12.0, 1.0], [30.0, float("nan")]])["TOC_n"]
    1
    ```

    Args:
        target_names (`Sequence[str]`): the names of the T columns.
        cache_dir (`str`, *optional*): folder for what `evaluate` stores; its own default otherwise.

    Returns:
        `evaluate.Metric`: the metric, its rows kept in memory (gather them from all processes first).
    """
    import datasets
    import evaluate

    target_names = list(target_names)

    class XRFRegressionMetric(evaluate.Metric):
        """R2, RMSE, MAE, bias, RPD, RPIQ and n of every target."""

        def _info(self):
            # float64: laboratory values and predictions come back exactly as they went in, NaN included.
            row = datasets.List(datasets.Value("float64"))
            return evaluate.MetricInfo(
                description=f"Regression metrics of {', '.join(target_names)}: {', '.join(METRIC_NAMES)}.",
                citation="",
                inputs_description="Rows of one value per target; a NaN reference is a missing label.",
                features=datasets.Features({"predictions": row, "references": row}),
            )

        def _compute(self, predictions, references):
            report = regression_report(predictions, references, target_names)
            return {f"{target}_{name}": value for target, row in report.items() for name, value in row.items()}

    return XRFRegressionMetric(cache_dir=cache_dir, keep_in_memory=True)


class MeanBaseline:
    """
    Predicts the mean of the training labels for every spectrum: the least that a model must beat.

    Args:
        target_names (`Sequence[str]`, *optional*): the names of the T targets, for error messages.
        log_target (`bool`, defaults to `False`): take the geometric mean, that of ln(concentration).
    """

    def __init__(self, target_names: Sequence[str] | None = None, log_target: bool = False):
        self.target_names = target_names
        self.log_target = log_target

    def fit(self, counts, targets, groups=None) -> MeanBaseline:
        """
        Takes the mean of each target over its labelled rows.

        Args:
            counts (array-like of shape `(N, L)`): training spectra, of which only the number is used.
            targets (array-like of shape `(N, T)` or `(N,)`): laboratory values, NaN where missing.
            groups (*optional*): ignored; a mean has nothing to choose. Taken so that all baselines fit alike.

        Raises:
            ValueError: if a target has no label.
        """
        targets = target_columns(targets, len(counts))
        for column, name in enumerate(name_targets(self.target_names, targets)):
            if np.isnan(targets[:, column]).all():
                raise ValueError(f"target {name} has no laboratory value in the training rows: add labels or drop it.")
            if self.log_target and (targets[:, column] <= 0).any():
                raise ValueError(
                    f"log_target needs positive labels; {name} has {np.nanmin(targets[:, column]):g}: mark values "
                    "below detection as missing (NaN) or use log_target=False."
                )
        self.means_ = np.exp(np.nanmean(np.log(targets), axis=0)) if self.log_target else np.nanmean(targets, axis=0)
        return self

    def predict(self, counts) -> np.ndarray:
        """Returns the `(N, T)` training means, one equal row per spectrum."""
        return np.tile(self.means_, (len(counts), 1))


class RidgeBaseline:
    """
    Ridge regression on square-rooted unit-sum spectra, the penalty chosen by cross-validation: the classical baseline.

    The square root of a count has nearly constant variance under Poisson noise, and the unit sum removes live time
    and tube current. Each target has its own labelled rows, penalty and coefficients. The penalty (from
    `RIDGE_PENALTIES`) has the least squared error over

    - leave-one-out, in closed form, where `fit` gets no groups or only one;
    - `min(NUM_FOLDS, number of groups)` folds of whole groups otherwise, so neighbours from one core never vouch for
      each other.

    Nothing but the rows given to `fit` takes part in any choice.

    Args:
        target_names (`Sequence[str]`, *optional*): the names of the T targets, for error messages.
        log_target (`bool`, defaults to `False`):
            Fit ln(concentration), which makes errors relative and predictions positive; the exponential of the
            prediction, a median rather than a mean, is returned. Labels must then be positive.
    """

    def __init__(self, target_names: Sequence[str] | None = None, log_target: bool = False):
        self.target_names = target_names
        self.log_target = log_target

    def fit(self, counts, targets, groups=None) -> RidgeBaseline:
        """
        Chooses the penalty and fits the coefficients of each target.

        Args:
            counts (array-like of shape `(N, L)`): training spectra on the common grid, counts per channel.
            targets (array-like of shape `(N, T)` or `(N,)`): laboratory values, NaN where missing.
            groups (array-like of shape `(N,)`, *optional*): core or sample of each spectrum.

        Raises:
            ValueError: if a spectrum is empty, negative or not finite, or a target has fewer than 3 labels, is
                constant, or (with `log_target`) has a label that is not positive.
        """
        features = square_root_unit_sum(counts)
        targets = target_columns(targets, len(features))
        groups = checked_groups(groups, len(features))
        self.penalties_, coefficients, self.intercepts_ = np.zeros(targets.shape[1]), [], np.zeros(targets.shape[1])
        for column, name in enumerate(name_targets(self.target_names, targets)):
            labelled = ~np.isnan(targets[:, column])
            labels = checked_labels(targets[labelled, column], name, self.log_target)
            fitted = fit_ridge(features[labelled], labels, None if groups is None else groups[labelled])
            coefficients.append(fitted[0])
            self.intercepts_[column], self.penalties_[column] = fitted[1:]
        self.coefficients_ = np.stack(coefficients, axis=1)  # (L, T)
        return self

    def predict(self, counts) -> np.ndarray:
        """Predicts the `(N, T)` concentrations of spectra of shape `(N, L)` on the training grid."""
        features = square_root_unit_sum(counts)
        if features.shape[1] != len(self.coefficients_):
            raise ValueError(
                f"the baseline was fitted on {len(self.coefficients_)} channels and these spectra have "
                f"{features.shape[1]}: rebin them to the same grid."
            )
        predictions = features @ self.coefficients_ + self.intercepts_
        return np.exp(predictions) if self.log_target else predictions


def checked_labels(labels: np.ndarray, name: str, log_target: bool) -> np.ndarray:
    """What a calibration is fitted to: the labels `(n,)` of one target, or their logarithms.

    Raises:
        ValueError: there are fewer than `MIN_LABELS` of them, they are constant, or one has no logarithm.
    """
    if len(labels) < MIN_LABELS:
        raise ValueError(
            f"a calibration needs at least {MIN_LABELS} labels of a target; {name} has {len(labels)} in the "
            "training rows: add labels or drop it."
        )
    if np.ptp(labels) == 0:
        raise ValueError(
            f"target {name} is constant ({labels[0]:g}) over the {len(labels)} training labels, so nothing can be "
            "learnt: add other labels or drop it."
        )
    if not log_target:
        return labels
    if labels.min() <= 0:
        raise ValueError(
            f"log_target needs positive labels; {name} has {labels.min():g}: mark values below detection as "
            "missing (NaN) or use log_target=False."
        )
    return np.log(labels)


def fit_ridge(features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, float, float]:
    """Ridge regression with an intercept, the penalty chosen among `RIDGE_PENALTIES` as in `RidgeBaseline`.

    Args:
        features (`np.ndarray` of shape `(n, L)`): rows of norm near 1.
        labels (`np.ndarray` of shape `(n,)`): what is to be predicted.
        groups (`np.ndarray` of shape `(n,)`, *optional*): core or sample of each row.

    Returns:
        coefficients `(L,)`, intercept and penalty.
    """
    from sklearn.linear_model import Ridge

    penalty = _choose_penalty(features, labels, groups)
    ridge = Ridge(alpha=penalty).fit(features, labels)
    return ridge.coef_, float(ridge.intercept_), penalty


def _choose_penalty(features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None) -> float:
    from sklearn.model_selection import GroupKFold

    num_groups = 1 if groups is None else len(np.unique(groups))
    if num_groups == 1:
        squared_errors = _leave_one_out_errors(features, labels)
    else:
        squared_errors = np.zeros(len(RIDGE_PENALTIES))
        for training, held_out in GroupKFold(n_splits=min(NUM_FOLDS, num_groups)).split(features, labels, groups):
            predictions = _ridge_path(features[training], labels[training], features[held_out])
            squared_errors += np.sum((predictions - labels[held_out, None]) ** 2, axis=0)
    return float(RIDGE_PENALTIES[np.argmin(squared_errors)])


def _leave_one_out_errors(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Sum of squared leave-one-out errors at every penalty, `(n_penalties,)`.

    A linear smoother with hat matrix H leaves row i out with the error `(y_i - (H y)_i) / (1 - H_ii)`
    (Golub, Heath & Wahba 1979); for ridge with an intercept `H = 1/n + U diag(s^2 / (s^2 + penalty)) U'`, where
    `U diag(s) V'` is the centred feature matrix.
    """
    features, mean_label = features - features.mean(axis=0), labels.mean()
    if features.shape[0] <= features.shape[1]:
        eigenvalues, left = np.linalg.eigh(features @ features.T)
        eigenvalues = np.maximum(eigenvalues, 0)
    else:
        eigenvalues, right = np.linalg.eigh(features.T @ features)
        kept = eigenvalues > eigenvalues[-1] * np.finfo(np.float64).eps * len(features)
        eigenvalues = eigenvalues[kept]
        left = features @ right[:, kept] / np.sqrt(eigenvalues)
    shrinkage = eigenvalues[:, None] / (eigenvalues[:, None] + RIDGE_PENALTIES)
    fitted = (left * (labels @ left)) @ shrinkage + mean_label  # (n, n_penalties)
    leverage = left**2 @ shrinkage + 1 / len(labels)
    return np.sum(((labels[:, None] - fitted) / (1 - leverage)) ** 2, axis=0)


def _ridge_path(features: np.ndarray, labels: np.ndarray, new_features: np.ndarray) -> np.ndarray:
    """
    Predictions `(n_new, n_penalties)` of ridge regression at every penalty from one eigendecomposition.

    With centred features X and labels y a new row x gets `x X' (X X' + penalty)^-1 y`, which equals
    `x (X' X + penalty)^-1 X' y` (Hastie, Tibshirani & Friedman 2009, section 18.3.5); the smaller matrix is taken.
    """
    mean_features, mean_label = features.mean(axis=0), labels.mean()
    features, labels, new_features = features - mean_features, labels - mean_label, new_features - mean_features
    if features.shape[0] <= features.shape[1]:
        gram, left, right = features @ features.T, new_features @ features.T, labels
    else:
        gram, left, right = features.T @ features, new_features, features.T @ labels
    eigenvalues, eigenvectors = np.linalg.eigh(gram)
    inverse = 1 / (np.maximum(eigenvalues, 0)[:, None] + RIDGE_PENALTIES)
    return ((left @ eigenvectors) * (right @ eigenvectors)) @ inverse + mean_label


def square_root_unit_sum(counts) -> np.ndarray:
    """Square roots of spectra `(N, L)` scaled to the sum 1: rows of norm 1 whose noise is nearly the same everywhere.

    Raises:
        ValueError: a spectrum is empty, negative or not finite.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.ndim != 2:
        raise ValueError(f"counts must have shape (spectra, channels); they have shape {counts.shape}.")
    invalid = ~np.isfinite(counts).all(axis=1) | (counts < 0).any(axis=1) | (counts.sum(axis=1) == 0)
    if invalid.any():
        raise ValueError(
            f"counts must be finite, non-negative and not all zero; spectrum {np.flatnonzero(invalid)[0]} is not: "
            "leave it out."
        )
    return np.sqrt(counts / counts.sum(axis=1, keepdims=True))


def target_columns(targets, num_spectra: int) -> np.ndarray:
    """Targets as `(N, T)` float64, checked against the number of spectra."""
    targets = np.asarray(targets, dtype=np.float64)
    targets = targets[:, None] if targets.ndim == 1 else targets
    if targets.ndim != 2 or len(targets) != num_spectra:
        raise ValueError(
            f"targets must have one row per spectrum; there are {num_spectra} spectra and targets of shape "
            f"{targets.shape}."
        )
    if np.isinf(targets).any():
        row = int(np.flatnonzero(np.isinf(targets).any(axis=1))[0])
        raise ValueError(f"targets must be finite, or NaN where missing; row {row} is infinite: correct the label.")
    return targets


def checked_groups(groups, num_spectra: int) -> np.ndarray | None:
    """Groups as an array `(N,)`, checked against the number of spectra; `None` stays `None`."""
    if groups is None:
        return None
    groups = np.asarray(groups)
    if groups.shape != (num_spectra,):
        raise ValueError(
            f"groups must name one core or sample per spectrum; there are {num_spectra} spectra and groups of shape "
            f"{groups.shape}."
        )
    return groups


def name_targets(target_names: Sequence[str] | None, targets: np.ndarray) -> Sequence[str]:
    """The names of the columns of `targets`, or their numbers where there are no names."""
    if target_names is None:
        return [str(column) for column in range(targets.shape[1])]
    if len(target_names) != targets.shape[1]:
        raise ValueError(
            f"target_names must name every target; {len(target_names)} names for {targets.shape[1]} targets."
        )
    return target_names


def draw_labelled(targets, num_labels: int, seed: int, groups=None) -> np.ndarray:
    """
    Draws the rows of a few-label experiment: `num_labels` spectra out of those with at least one laboratory value.

    Draws with one seed are nested: the first 10 rows of a draw of 50 are the draw of 10, so a curve over the number
    of labels adds labels and never swaps them.

    Args:
        targets (array-like of shape `(N, T)` or `(N,)`): laboratory values, NaN where missing.
        num_labels (`int`): how many rows to draw.
        seed (`int`): seed of `numpy.random.default_rng`.
        groups (array-like of shape `(N,)`, *optional*):
            Core or sample of each spectrum. If given, the draw goes round the groups in random order, one row of
            each in turn, so that few labels still cover as many cores as they can.

    Returns:
        `np.ndarray` of shape `(num_labels,)`: row indices in the order drawn.

    Raises:
        ValueError: if `num_labels` is below 1 or above the number of labelled rows.
    """
    targets = np.asarray(targets, dtype=np.float64)
    targets = target_columns(targets, len(targets))
    labelled = np.flatnonzero(~np.isnan(targets).all(axis=1))
    if not 1 <= num_labels <= len(labelled):
        raise ValueError(
            f"num_labels must be between 1 and the number of labelled spectra; {num_labels} were asked for and there "
            f"are {len(labelled)}."
        )
    order = np.random.default_rng(seed).permutation(labelled)
    groups = checked_groups(groups, len(targets))
    if groups is not None:
        order = order[np.argsort(_round_of_each(groups[order]), kind="stable")]
    return order[:num_labels]


def _round_of_each(groups: np.ndarray) -> np.ndarray:
    """How many earlier rows belong to the same group: 0 for the first row of each group, 1 for the second, ..."""
    rounds = np.empty(len(groups), dtype=np.int64)
    for group in np.unique(groups):
        members = groups == group
        rounds[members] = np.arange(members.sum())
    return rounds
