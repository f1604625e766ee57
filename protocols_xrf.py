"""Which spectra may be learnt from and which are predicted: the splits of honest few-label comparisons.

A protocol is a function that returns the `Split`s of one repetition: row numbers to learn from and to predict, no row
predicted twice. Another seed is another repetition. `run_protocol` fits any method to the first and asks it for the
second. A method is an object with

- `fit(spectra, targets, groups)`: a list of `Spectrum`, laboratory values `(N, T)` with NaN where missing, and the
  core or sample of each spectrum `(N,)` or `None`. It starts anew at every call and makes every choice here: scaling,
  penalty, components, epochs. `targets` may have no row where the protocol asks for zero labels;
- `predict(spectra)`: predictions `(N, T)` in the targets' units, or a pair of these and `{coverage: (lower, upper)}`,
  intervals of `(N, T)` each;
- `uses_transfer = True` where it can use spectra of the instrument that is predicted; `fit` then takes a fourth
  argument, the `Transfer`, which is `None` where the protocol has none. Other methods do without.

A method sees measurements only: what a spectrum says of its sample, place and composition is removed before.

N = spectra, T = targets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dataset_builder.spectrum import Spectrum
from evaluation_xrf import draw_labelled

NO_ROWS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Spectra with laboratory values.

    Args:
        spectra (`list[Spectrum]`): N measurements.
        targets (`np.ndarray` of shape `(N, T)`): laboratory values, NaN where missing.
        target_names (`Sequence[str]`): the names of the T columns.
        samples (`np.ndarray` of shape `(N,)`): name of what was measured, the same on every instrument.
        groups (`np.ndarray` of shape `(N,)`, *optional*): core or formation; `None` where samples are independent.
        instruments (`np.ndarray` of shape `(N,)`, *optional*): name of the instrument; `None` where there is one.
    """

    spectra: list[Spectrum]
    targets: np.ndarray
    target_names: Sequence[str]
    samples: np.ndarray
    groups: np.ndarray | None = None
    instruments: np.ndarray | None = None

    def __post_init__(self):
        for name, rows in (
            ("targets", self.targets),
            ("samples", self.samples),
            ("groups", self.groups),
            ("instruments", self.instruments),
        ):
            if rows is not None and len(rows) != len(self.spectra):
                raise ValueError(f"{name} must have a row per spectrum ({len(self.spectra)}), but has {len(rows)}.")
        if self.targets.shape != (len(self.spectra), len(self.target_names)):
            raise ValueError(
                f"targets must have a column for each of the {len(self.target_names)} names; their shape is "
                f"{self.targets.shape}."
            )

    def __len__(self):
        return len(self.spectra)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one `CalibrationSet`.

    Args:
        training, test (`np.ndarray`): rows to learn from and rows to predict.
        transfer (`np.ndarray`): rows to learn from that the instrument of the test rows measured, of samples that are
            among the training rows too.
    """

    training: np.ndarray
    test: np.ndarray
    transfer: np.ndarray = field(default_factory=lambda: NO_ROWS)


@dataclass(frozen=True, eq=False)
class Transfer:
    """Labelled spectra of the instrument that is predicted, and what the training instrument saw of the same samples.

    Args:
        spectra (`list[Spectrum]`), targets (`np.ndarray` of shape `(K, T)`), groups (`np.ndarray` of shape `(K,)`,
            *optional*): the K transfer spectra.
        primary_spectra (`list[Spectrum]`): for each, a training spectrum of the same sample.
    """

    spectra: list[Spectrum]
    targets: np.ndarray
    groups: np.ndarray | None
    primary_spectra: list[Spectrum]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a method said of the test rows of a protocol.

    Args:
        rows (`np.ndarray` of shape `(M,)`): the rows that were predicted, ascending.
        values (`np.ndarray` of shape `(M, T)`): predictions in the targets' units.
        intervals (`dict[float, tuple]`): coverage -> (lower, upper), each `(M, T)`; empty where the method has none.
    """

    rows: np.ndarray
    values: np.ndarray
    intervals: dict[float, tuple[np.ndarray, np.ndarray]]


def run_protocol(method, splits: Sequence[Split], data: CalibrationSet) -> Predictions:
    """Fit the method anew to the training rows of every split and predict its test rows.

    Raises:
        ValueError: a row is learnt from and tested in one split, or tested twice; the method predicts another shape;
            a transfer sample was not measured among the training rows; whatever the method refuses.
    """
    _check_splits(splits)
    measurements = [measurement_only(spectrum) for spectrum in data.spectra]
    rows, values, intervals = [], [], []
    for split in splits:
        fit_arguments = [*_labelled(measurements, data, split.training)]
        if getattr(method, "uses_transfer", False):
            fit_arguments.append(_transfer(measurements, data, split))
        method.fit(*fit_arguments)
        predicted = method.predict([measurements[row] for row in split.test])
        predicted, bounds = predicted if isinstance(predicted, tuple) else (predicted, {})
        expected = (len(split.test), len(data.target_names))
        for array in (predicted, *(bound for pair in bounds.values() for bound in pair)):
            if np.shape(array) != expected:
                raise ValueError(
                    f"{type(method).__name__} must predict a row per spectrum and a column per target, {expected}; "
                    f"it returned {np.shape(array)}."
                )
        rows.append(split.test)
        values.append(predicted)
        intervals.append(bounds)
    order = np.argsort(np.concatenate(rows))
    return Predictions(
        np.concatenate(rows)[order],
        np.concatenate(values)[order],
        {
            coverage: tuple(np.concatenate([bounds[coverage][side] for bounds in intervals])[order] for side in (0, 1))
            for coverage in intervals[0]
        },
    )


def measurement_only(spectrum: Spectrum) -> Spectrum:
    """The spectrum without anything that tells which sample it is of."""
    unknown = dict.fromkeys(("sample", "core", "depth_mm", "x_mm", "y_mm", "source"))
    return replace(spectrum, targets={}, target_units={}, metadata={}, **unknown)


def _labelled(measurements, data, rows):
    groups = None if data.groups is None else data.groups[rows]
    return [measurements[row] for row in rows], data.targets[rows], groups


def _transfer(measurements, data, split) -> Transfer | None:
    if len(split.transfer) == 0:
        return None
    training_row_of = {data.samples[row]: row for row in reversed(split.training)}
    for sample in data.samples[split.transfer]:
        if sample not in training_row_of:
            raise ValueError(f"transfer sample {sample} has no training spectrum; only pairs of instruments help.")
    primary = [measurements[training_row_of[sample]] for sample in data.samples[split.transfer]]
    return Transfer(*_labelled(measurements, data, split.transfer), primary)


def _check_splits(splits: Sequence[Split]) -> None:
    if not splits:
        raise ValueError("there is no split to run; choose another protocol.")
    tested = np.concatenate([split.test for split in splits])
    if len(np.unique(tested)) < len(tested):
        raise ValueError("a row is tested twice in one repetition; give each repetition its own call.")
    for split in splits:
        learnt = np.concatenate([split.training, split.transfer])
        if shared := set(learnt) & set(split.test):
            raise ValueError(f"row {min(shared)} is learnt from and tested in one split; take it out of one of them.")


# --- protocols ---


def leave_one_out(num_rows: int) -> list[Split]:
    """Every row is predicted from all the others."""
    return [_rest_and(test, num_rows) for test in np.arange(num_rows)[:, None]]


def leave_one_group_out(groups) -> list[Split]:
    """Every core or formation is predicted from all the others.

    Args:
        groups (array-like of shape `(N,)`): the group of each row.
    """
    groups = _several(groups)
    return [_rest_and(np.flatnonzero(groups == group), len(groups)) for group in np.unique(groups)]


def k_fold(num_rows: int, num_folds: int, seed: int, groups=None) -> list[Split]:
    """Every fold is predicted from the others; repeated K-fold is one call per seed.

    Groups, where given, stay whole: in random order, each goes to the fold that is smallest so far.

    Args:
        num_rows (`int`), num_folds (`int`): N rows in so many folds.
        seed (`int`): of the random order.
        groups (array-like of shape `(N,)`, *optional*): core or formation of each row.
    """
    rng = np.random.default_rng(seed)
    members = np.arange(num_rows)[:, None] if groups is None else _members(_several(groups))
    if not 2 <= num_folds <= len(members):
        raise ValueError(
            f"num_folds must be between 2 and the {len(members)} rows or groups there are, but is {num_folds}."
        )
    folds = [[] for _ in range(num_folds)]
    for index in rng.permutation(len(members)):
        min(folds, key=len).extend(members[index])
    return [_rest_and(np.sort(fold), num_rows) for fold in folds]


def few_labels(targets, test, num_labels: int | None, seed: int, groups=None) -> list[Split]:
    """The same test rows whatever is drawn: so many labelled rows out of the others, or all of them.

    Draws of one seed are nested and go round the groups, as `evaluation_xrf.draw_labelled` has it. No row of a group
    with test rows is drawn.

    Args:
        targets (array-like of shape `(N, T)`): laboratory values; a row with one of them can be drawn.
        test (array-like of `int`): rows to predict.
        num_labels (`int`, *optional*): rows to draw; 0 draws none, `None` all.
        seed (`int`): of the draw.
        groups (array-like of shape `(N,)`, *optional*): core or formation of each row.
    """
    targets, test = np.asarray(targets, dtype=np.float64), np.asarray(test)
    groups = None if groups is None else np.asarray(groups)
    candidate = ~np.isnan(targets).all(axis=1)
    candidate[test] = False
    if groups is not None:
        candidate &= ~np.isin(groups, groups[test])
    candidates = np.flatnonzero(candidate)
    if num_labels == 0:
        return [Split(NO_ROWS, test)]
    drawn = draw_labelled(
        targets[candidates],
        len(candidates) if num_labels is None else num_labels,
        seed,
        None if groups is None else groups[candidates],
    )
    return [Split(candidates[drawn], test)]


def between_instruments(
    data: CalibrationSet, primary: str, secondary: str, num_transfer: int, num_reserved: int, seed: int
) -> list[Split]:
    """All spectra of the primary instrument to learn from, those of the secondary instrument to predict.

    Samples measured on both are set aside at random, going round the groups: `num_reserved` of them are never tested,
    and the spectra that the secondary instrument took of the first `num_transfer` of them may be learnt from. So runs
    with 0 to `num_reserved` transfer samples are tested on the same spectra. The other samples may be known from the
    primary instrument: this tells how a calibration moves, not what it knows of new samples.

    Args:
        data: with `instruments`.
        primary, secondary (`str`): names of instruments in it.
        num_transfer, num_reserved (`int`): numbers of samples.
        seed (`int`): of the choice of samples.
    """
    on_primary, on_secondary = _rows_of(data, primary), _rows_of(data, secondary)
    reserved = _shared_samples(data, on_primary, on_secondary, num_reserved, seed)
    if num_transfer > num_reserved:
        raise ValueError(f"num_transfer ({num_transfer}) must not exceed num_reserved ({num_reserved}).")
    transfer = on_secondary[np.isin(data.samples[on_secondary], reserved[:num_transfer])]
    test = on_secondary[~np.isin(data.samples[on_secondary], reserved)]
    return [Split(on_primary, test, transfer)]


def between_instruments_and_groups(
    data: CalibrationSet, primary: str, secondary: str, num_transfer: int, seed: int
) -> list[Split]:
    """Every core or formation on the secondary instrument is predicted from the other ones on the primary instrument,
    and from `num_transfer` samples of those other ones on the secondary: a new instrument and new rocks at once.

    Args:
        data: with `instruments` and `groups`.
        primary, secondary (`str`): names of instruments in it.
        num_transfer (`int`): number of samples, drawn at random, going round the groups.
        seed (`int`): of the draw.
    """
    on_primary, on_secondary = _rows_of(data, primary), _rows_of(data, secondary)
    splits = []
    for group in np.unique(_several(data.groups)):
        training = on_primary[data.groups[on_primary] != group]
        others = on_secondary[data.groups[on_secondary] != group]
        samples = _shared_samples(data, training, others, num_transfer, seed)
        test = on_secondary[data.groups[on_secondary] == group]
        if len(test):
            splits.append(Split(training, test, others[np.isin(data.samples[others], samples)]))
    return splits


def formation(sample: str) -> str:
    """Core or formation in the name of a sample, the name before the depth or number: `BL-1` of `BL-1-122`, `W` of
    `W17`."""
    match = re.fullmatch(r"(.+?)-?\d+", sample)
    if match is None:
        raise ValueError(f"sample {sample!r} has no depth or number after the name; name its group yourself.")
    return match[1]


def _rest_and(test: np.ndarray, num_rows: int) -> Split:
    return Split(np.setdiff1d(np.arange(num_rows), test), np.asarray(test))


def _several(groups) -> np.ndarray:
    groups = np.asarray(groups)
    if groups.ndim != 1 or len(np.unique(groups)) < 2:
        raise ValueError("groups must name at least two cores or formations, one name per row; use leave_one_out.")
    return groups


def _members(groups: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(groups == group) for group in np.unique(groups)]


def _rows_of(data: CalibrationSet, instrument: str) -> np.ndarray:
    rows = NO_ROWS if data.instruments is None else np.flatnonzero(data.instruments == instrument)
    if len(rows) == 0:
        known = "none" if data.instruments is None else ", ".join(np.unique(data.instruments))
        raise ValueError(f"no spectrum is of instrument {instrument!r}; the set has {known}.")
    return rows


def _shared_samples(data, on_primary, on_secondary, num_samples: int, seed: int) -> np.ndarray:
    """Names of samples measured on both instruments, in the order drawn."""
    rows = on_secondary[np.isin(data.samples[on_secondary], data.samples[on_primary])]
    rows = rows[np.unique(data.samples[rows], return_index=True)[1]]  # one row of each sample
    if num_samples > len(rows):
        raise ValueError(
            f"{num_samples} transfer samples were asked for; {len(rows)} were measured on both instruments."
        )
    if num_samples == 0:
        return data.samples[NO_ROWS]
    drawn = draw_labelled(data.targets[rows], num_samples, seed, None if data.groups is None else data.groups[rows])
    return data.samples[rows[drawn]]
