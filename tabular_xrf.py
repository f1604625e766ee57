"""Calibrations of tables without an energy axis, such as band reflectances: a Gaussian process, and two peers.

Methods as `protocols_xrf` describes them; the numbers of a row stand where counts would. All choices are made on the
rows given to `fit`.

N = rows, F = inputs, T = targets. A missing laboratory value is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation_xrf import MIN_LABELS, NORMAL_HALF_WIDTHS, checked_labels, name_targets, target_columns
from peers_xrf import inner_folds

MOST_ROWS_FOR_SCALES = 200  # that width and noise are learnt from; the fit itself takes all rows


def input_rows(rows) -> np.ndarray:
    """The inputs `(N, F)` of rows."""
    return np.stack([row.counts for row in rows]).astype(np.float64)


def as_given(inputs: np.ndarray) -> np.ndarray:
    return inputs


def logarithms(inputs: np.ndarray) -> np.ndarray:
    return np.log(inputs)


def shape_and_level(inputs: np.ndarray) -> np.ndarray:
    """Logarithms about their mean, which a common factor (albedo, geometry) leaves as they are, and that mean."""
    logs = np.log(inputs)
    level = logs.mean(axis=1, keepdims=True)
    return np.concatenate([logs - level, level], axis=1)


class GaussianProcess:
    """Gaussian process regression with a squared exponential kernel (Rasmussen & Williams 2006, chapter 2).

    Six models are fitted to each target: inputs as given, their logarithms, or [`shape_and_level`] (the last two for
    positive inputs), each for the target and for its logarithm (for positive labels). Signal, width and noise maximise
    the marginal likelihood under wide priors; the model with the least squared leave-one-out error, in the target's
    unit and in closed form (section 5.4.2), is kept. Predictions are means, for ln(target) those of the log-normal.

    Args:
        target_names (`Sequence[str]`, *optional*): the names of the T targets, for error messages.
    """

    least_labels = MIN_LABELS

    def __init__(self, target_names: Sequence[str] | None = None):
        self.target_names = target_names

    def fit(self, rows, targets, groups=None) -> GaussianProcess:
        """Fits to rows, targets `(N, T)`; `groups` are not needed.

        Raises:
            ValueError: a target has fewer than 3 labels or constant ones.
        """
        inputs, targets = input_rows(rows), target_columns(targets, len(rows))
        self.models_ = []
        for name, column in zip(name_targets(self.target_names, targets), targets.T):
            known = ~np.isnan(column)
            labels = checked_labels(column[known], name, False)
            transforms = [as_given]
            if (inputs[known] > 0).all():
                transforms += [logarithms, shape_and_level]
            models = [
                _Process(inputs[known], labels, transform, log_target)
                for transform in transforms
                for log_target in ((False, True) if (labels > 0).all() else (False,))
            ]
            self.models_.append(min(models, key=lambda model: model.squared_error))
        return self

    def predict(self, rows):
        """Predicts `(N, T)` values and `{coverage: (lower, upper)}`, each `(N, T)`."""
        inputs = input_rows(rows)
        answers = [model.predict(inputs) for model in self.models_]
        values = np.stack([mean for mean, _ in answers], axis=1)
        intervals = {
            coverage: tuple(np.stack([bounds[coverage][side] for _, bounds in answers], axis=1) for side in (0, 1))
            for coverage in NORMAL_HALF_WIDTHS
        }
        return values, intervals

    @property
    def choice(self) -> list[str]:
        """What was chosen for each target, in words."""
        return [
            f"{model.transform.__name__.replace('_', ' ')}, {'ln of the target' if model.log_target else 'the target'}"
            for model in self.models_
        ]


class _Process:
    """One Gaussian process of one target. `squared_error` is its mean squared leave-one-out error."""

    def __init__(self, inputs, labels, transform, log_target):
        from scipy.optimize import minimize

        self.transform, self.log_target, self.floor = transform, log_target, inputs.min(axis=0) / 10
        features = transform(inputs)
        self.center, spread = features.mean(axis=0), features.std(axis=0)
        self.spread = np.where(spread > 0, spread, 1.0)
        self.features = (features - self.center) / self.spread
        values = np.log(labels) if log_target else labels
        self.mean, self.sd = values.mean(), values.std()
        values = (values - self.mean) / self.sd
        distances, usual_width = _squared_distances(self.features, self.features), 0.5 * np.log(features.shape[1])
        some = np.linspace(0, len(labels) - 1, min(len(labels), MOST_ROWS_FOR_SCALES)).astype(int)

        def badness(scales):  # negative logarithm of marginal likelihood times priors, without constants
            covariance = _kernel(distances[np.ix_(some, some)], scales) + np.exp(scales[2]) * np.eye(len(some))
            factor = np.linalg.cholesky(covariance)
            whitened = np.linalg.solve(factor, values[some])
            prior = (scales[0] / 2) ** 2 + (scales[1] - usual_width) ** 2 + ((scales[2] + 3) / 2) ** 2
            return 0.5 * (whitened @ whitened) + np.log(np.diag(factor)).sum() + 0.5 * prior

        # ln of signal variance, of width and of noise variance; the labels' variance is 1
        bounds = [(-4, 6), (np.log(0.1), np.log(100)), (-9, 1)]
        starts = [(0.0, usual_width + shift, -3.0) for shift in (-0.7, 0.4)]
        found = [minimize(badness, start, method="L-BFGS-B", bounds=bounds) for start in starts]
        self.scales = min(found, key=lambda result: result.fun).x
        covariance = _kernel(distances, self.scales) + np.exp(self.scales[2]) * np.eye(len(labels))
        self.inverse = np.linalg.inv(covariance)
        self.weights = self.inverse @ values
        variance = 1 / np.diag(self.inverse)  # of each label given all the others
        left_out = self._mean(values - self.weights * variance, variance)
        self.squared_error = float(np.mean((left_out - labels) ** 2))

    def _mean(self, standardised, variance):
        values = standardised * self.sd + self.mean
        return np.exp(values + variance * self.sd**2 / 2) if self.log_target else values

    def predict(self, inputs):
        if self.transform is not as_given:
            inputs = np.maximum(inputs, self.floor)  # a logarithm needs something positive
        features = (self.transform(inputs) - self.center) / self.spread
        kernel = _kernel(_squared_distances(features, self.features), self.scales)
        standardised = kernel @ self.weights
        variance = np.exp(self.scales[0]) + np.exp(self.scales[2]) - np.sum(kernel @ self.inverse * kernel, axis=1)
        bounds = {}
        for coverage, deviations in NORMAL_HALF_WIDTHS.items():
            half = deviations * np.sqrt(variance)
            ends = [(standardised + sign * half) * self.sd + self.mean for sign in (-1, 1)]
            bounds[coverage] = tuple(np.exp(end) if self.log_target else end for end in ends)
        return self._mean(standardised, variance), bounds


def _squared_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.maximum(np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1) - 2 * left @ right.T, 0)


def _kernel(squared_distances: np.ndarray, scales) -> np.ndarray:
    return np.exp(scales[0] - 0.5 * squared_distances / np.exp(2 * scales[1]))


class TabularPeer:
    """Ridge regression or support vector regression on standardised inputs, choices by inner cross-validation.

    Args:
        method (`str`): `"ridge"` or `"svr"`.
        target_names (`Sequence[str]`, *optional*): the names of the T targets, for error messages.
    """

    least_labels = MIN_LABELS

    def __init__(self, method: str, target_names: Sequence[str] | None = None):
        if method not in ("ridge", "svr"):
            raise ValueError(f"method must be 'ridge' or 'svr', but is {method!r}.")
        self.method, self.target_names = method, target_names

    def fit(self, rows, targets, groups=None) -> TabularPeer:
        """Fits to rows, targets `(N, T)` and groups `(N,)`."""
        from sklearn.linear_model import RidgeCV
        from sklearn.model_selection import GridSearchCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVR

        inputs, targets = input_rows(rows), target_columns(targets, len(rows))
        self.models_ = []
        for name, column in zip(name_targets(self.target_names, targets), targets.T):
            known = np.flatnonzero(~np.isnan(column))
            labels = checked_labels(column[known], name, False)
            if self.method == "ridge":
                model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-4, 4, 33)))
            else:
                folds = inner_folds(len(known), None if groups is None else np.asarray(groups)[known])
                grid = {"svr__C": [1, 10, 100], "svr__gamma": [0.03, 0.1, 0.3], "svr__epsilon": [0.03, 0.1]}
                pipeline = make_pipeline(StandardScaler(), SVR())
                model = GridSearchCV(pipeline, grid, scoring="neg_mean_squared_error", cv=folds)
            self.models_.append(model.fit(inputs[known], labels))
        return self

    def predict(self, rows) -> np.ndarray:
        """Predicts `(N, T)` values."""
        return np.stack([model.predict(input_rows(rows)) for model in self.models_], axis=1)
