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
    """

    def __init__(self, target_names: Sequence[str] | None = None):
        self.target_names = target_names

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
        targets = _target_columns(targets, len(counts))
        for column, name in enumerate(_names(self.target_names, targets)):
            if np.isnan(targets[:, column]).all():
                raise ValueError(f"target {name} has no laboratory value in the training rows: add labels or drop it.")
        self.means_ = np.nanmean(targets, axis=0)
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
        from sklearn.linear_model import Ridge

        features = _square_root_unit_sum(counts)
        targets = _target_columns(targets, len(features))
        groups = _checked_groups(groups, len(features))
        self.penalties_, coefficients, self.intercepts_ = np.zeros(targets.shape[1]), [], np.zeros(targets.shape[1])
        for column, name in enumerate(_names(self.target_names, targets)):
            labelled = ~np.isnan(targets[:, column])
            labels = self._checked_labels(targets[labelled, column], name)
            rows = features[labelled]
            penalty = _choose_penalty(rows, labels, None if groups is None else groups[labelled])
            ridge = Ridge(alpha=penalty).fit(rows, labels)
            self.penalties_[column], self.intercepts_[column] = penalty, ridge.intercept_
            coefficients.append(ridge.coef_)
        self.coefficients_ = np.stack(coefficients, axis=1)  # (L, T)
        return self

    def predict(self, counts) -> np.ndarray:
        """Predicts the `(N, T)` concentrations of spectra of shape `(N, L)` on the training grid."""
        features = _square_root_unit_sum(counts)
        if features.shape[1] != len(self.coefficients_):
            raise ValueError(
                f"the baseline was fitted on {len(self.coefficients_)} channels and these spectra have "
                f"{features.shape[1]}: rebin them to the same grid."
            )
        predictions = features @ self.coefficients_ + self.intercepts_
        return np.exp(predictions) if self.log_target else predictions

    def _checked_labels(self, labels: np.ndarray, name: str) -> np.ndarray:
        if len(labels) < MIN_LABELS:
            raise ValueError(
                f"ridge regression needs at least {MIN_LABELS} labels of a target; {name} has {len(labels)} in the "
                "training rows: add labels or drop it."
            )
        if np.ptp(labels) == 0:
            raise ValueError(
                f"target {name} is constant ({labels[0]:g}) over the {len(labels)} training labels, so nothing can be "
                "learnt: add other labels or drop it."
            )
        if not self.log_target:
            return labels
        if labels.min() <= 0:
            raise ValueError(
                f"log_target needs positive labels; {name} has {labels.min():g}: mark values below detection as "
                "missing (NaN) or use log_target=False."
            )
        return np.log(labels)


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


def _square_root_unit_sum(counts) -> np.ndarray:
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


def _target_columns(targets, num_spectra: int) -> np.ndarray:
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


def _checked_groups(groups, num_spectra: int) -> np.ndarray | None:
    if groups is None:
        return None
    groups = np.asarray(groups)
    if groups.shape != (num_spectra,):
        raise ValueError(
            f"groups must name one core or sample per spectrum; there are {num_spectra} spectra and groups of shape "
            f"{groups.shape}."
        )
    return groups


def _names(target_names: Sequence[str] | None, targets: np.ndarray) -> Sequence[str]:
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
    targets = _target_columns(targets, len(targets))
    labelled = np.flatnonzero(~np.isnan(targets).all(axis=1))
    if not 1 <= num_labels <= len(labelled):
        raise ValueError(
            f"num_labels must be between 1 and the number of labelled spectra; {num_labels} were asked for and there "
            f"are {len(labelled)}."
        )
    order = np.random.default_rng(seed).permutation(labelled)
    groups = _checked_groups(groups, len(targets))
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
