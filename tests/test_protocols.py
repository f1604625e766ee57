"""Who learns from whom: every split against its promise, and every method of the benchmark against leaks."""

import numpy as np
import pytest
from conftest import importable_benchmarks

from dataset_builder import Spectrum
from protocols_xrf import (
    CalibrationSet,
    Split,
    between_instruments,
    between_instruments_and_groups,
    few_labels,
    formation,
    k_fold,
    leave_one_group_out,
    leave_one_out,
    measurement_only,
    run_protocol,
)

NAN = float("nan")
with importable_benchmarks():
    import few_labels as benchmark

METHODS = benchmark.methods()


def small_set(num_samples=12, num_groups=4, instruments=("a", "b"), seed=0):
    """Spectra of Al, Ca and Fe lines on a continuum, the same samples on each instrument, whose energy scales
    differ."""
    rng = np.random.default_rng(seed)
    weight_percent = rng.lognormal([1.5, 1.0, 1.0], 0.6, (num_samples, 3))
    lines_kev = np.array([1.487, 3.691, 6.404])
    spectra, targets, samples, groups, names = [], [], [], [], []
    for instrument, gain_kev in zip(instruments, (0.040, 0.0397)):
        energy_kev = 0.01 + gain_kev * np.arange(256)
        peaks = np.exp(-0.5 * ((energy_kev - lines_kev[:, None]) / 0.06) ** 2)
        counts = rng.poisson(100 * weight_percent @ peaks + 300 * np.exp(-energy_kev / 4) + 2)
        for row in range(num_samples):
            name = f"core-{row % num_groups}-{row}"
            spectra.append(
                Spectrum(
                    counts[row], gain_kev, 0.01, tube_kv=12.0, sample=name, core="core", targets={"Al": 1.0},
                    metadata={"depth": "3"}, source="file", instrument=instrument,
                )
            )  # fmt: skip
            samples.append(name)
            groups.append(f"core-{row % num_groups}")
            names.append(instrument)
        targets.append(weight_percent)
    return CalibrationSet(
        spectra,
        np.concatenate(targets),
        ("Al", "Ca", "Fe"),
        np.array(samples),
        groups=np.array(groups),
        instruments=np.array(names),
    )


class Recorder:
    """A method that keeps what it is given and predicts the mean."""

    uses_transfer = True

    def __init__(self):
        self.fits = []

    def fit(self, spectra, targets, groups, transfer):
        self.fits.append((spectra, targets, groups, transfer))
        self.mean = np.nanmean(targets, axis=0) if len(targets) else np.zeros(targets.shape[1])

    def predict(self, spectra):
        values = np.tile(self.mean, (len(spectra), 1))
        return values, {0.8: (values - 1, values + 1), 0.9: (values - 2, values + 2)}


# --- splits ---


def rows_of(splits):
    return sorted(row for split in splits for row in split.test)


def test_leave_one_out_predicts_every_row_from_all_others():
    splits = leave_one_out(5)
    assert [split.test.tolist() for split in splits] == [[0], [1], [2], [3], [4]]
    assert splits[2].training.tolist() == [0, 1, 3, 4]


def test_leave_one_group_out_keeps_groups_whole():
    groups = np.array(["W", "BL-1", "W", "D4R"])
    splits = leave_one_group_out(groups)
    assert [(split.training.tolist(), split.test.tolist()) for split in splits] == [
        ([0, 2, 3], [1]),
        ([0, 1, 2], [3]),
        ([1, 3], [0, 2]),
    ]
    with pytest.raises(ValueError, match="at least two cores or formations"):
        leave_one_group_out(["W", "W"])


@pytest.mark.parametrize("groups", [None, np.arange(23) // 3])
def test_folds_cover_every_row_once_and_differ_by_seed(groups):
    splits = k_fold(23, 5, seed=1, groups=groups)
    assert len(splits) == 5 and rows_of(splits) == list(range(23))
    for split in splits:
        assert not set(split.training) & set(split.test) and len(split.training) + len(split.test) == 23
        if groups is not None:
            assert not set(groups[split.training]) & set(groups[split.test])
    sizes = [len(split.test) for split in splits]
    assert max(sizes) - min(sizes) <= (1 if groups is None else 3)
    again, other = k_fold(23, 5, seed=1, groups=groups), k_fold(23, 5, seed=2, groups=groups)
    assert [split.test.tolist() for split in splits] == [split.test.tolist() for split in again]
    assert [split.test.tolist() for split in splits] != [split.test.tolist() for split in other]
    with pytest.raises(ValueError, match="num_folds must be between 2 and the 3"):
        k_fold(6, 4, seed=0, groups=[0, 0, 1, 1, 2, 2])


def test_few_labels_keep_the_test_rows_and_nest_the_draws():
    groups = np.repeat(list("abcdef"), 5)
    targets = np.arange(1.0, 31.0)[:, None]
    targets[3] = NAN  # no label to draw
    test = np.arange(25, 28)  # of group f, so its other rows are out of bounds too
    draws = {number: few_labels(targets, test, number, 0, groups)[0] for number in (0, 5, 10, None)}
    assert all(split.test.tolist() == [25, 26, 27] for split in draws.values())
    assert len(draws[0].training) == 0
    assert set(draws[5].training) < set(draws[10].training) < set(draws[None].training)
    assert sorted(draws[None].training) == [row for row in range(25) if row != 3]
    assert set(groups[draws[5].training]) == set("abcde")  # one of each group before a second of any
    assert set(few_labels(targets, test, 5, 1, groups)[0].training) != set(draws[5].training)
    with pytest.raises(ValueError, match="25 were asked for and there are 24"):
        few_labels(targets, test, 25, 0, groups)


def test_transfer_samples_are_never_tested_and_the_test_rows_do_not_depend_on_their_number():
    data = small_set()
    splits = {number: between_instruments(data, "a", "b", number, 5, seed=3)[0] for number in (0, 2, 5)}
    for number, split in splits.items():
        assert set(data.instruments[split.training]) == {"a"} and len(split.training) == 12
        assert set(data.instruments[split.test]) == {"b"} and split.test.tolist() == splits[0].test.tolist()
        assert len(split.transfer) == number and set(data.instruments[split.transfer]) <= {"b"}
        assert not set(data.samples[split.transfer]) & set(data.samples[split.test])
    assert len(splits[0].test) == 7 and set(splits[2].transfer) < set(splits[5].transfer)
    other = between_instruments(data, "a", "b", 5, 5, seed=4)[0]
    assert other.test.tolist() != splits[5].test.tolist()
    with pytest.raises(ValueError, match="13 transfer samples were asked for; 12 were measured on both"):
        between_instruments(data, "a", "b", 0, 13, seed=0)
    with pytest.raises(ValueError, match=r"num_transfer \(6\) must not exceed num_reserved \(5\)"):
        between_instruments(data, "a", "b", 6, 5, seed=0)
    with pytest.raises(ValueError, match="no spectrum is of instrument 'c'; the set has a, b"):
        between_instruments(data, "a", "c", 0, 0, seed=0)


def test_new_groups_on_a_new_instrument_are_known_from_neither():
    data = small_set()
    splits = between_instruments_and_groups(data, "a", "b", 3, seed=0)
    assert rows_of(splits) == list(range(12, 24))
    for split in splits:
        assert len(set(data.groups[split.test])) == 1 and set(data.instruments[split.test]) == {"b"}
        learnt = np.concatenate([split.training, split.transfer])
        assert not set(data.groups[learnt]) & set(data.groups[split.test])
        assert len(split.transfer) == 3 and set(data.samples[split.transfer]) <= set(data.samples[split.training])


@pytest.mark.parametrize(
    ("sample", "group"),
    [("BL-1-122", "BL-1"), ("RTC-W-21", "RTC-W"), ("W17", "W"), ("SDO-1", "SDO"), ("D4R-83", "D4R")],
)
def test_formation_is_the_name_before_the_depth(sample, group):
    assert formation(sample) == group


def test_a_sample_without_a_number_has_no_formation():
    with pytest.raises(ValueError, match="'blank' has no depth"):
        formation("blank")


# --- running them ---


def test_predictions_are_rows_in_order_with_their_intervals():
    data = small_set(num_samples=6, num_groups=3, instruments=("a",))
    predictions = run_protocol(Recorder(), leave_one_group_out(data.groups), data)
    np.testing.assert_array_equal(predictions.rows, np.arange(6))
    for row in range(6):
        others = data.targets[data.groups != data.groups[row]].mean(axis=0)
        np.testing.assert_allclose(predictions.values[row], others)
        np.testing.assert_allclose(predictions.intervals[0.8][0][row], others - 1)
        np.testing.assert_allclose(predictions.intervals[0.9][1][row], others + 2)


def test_a_method_sees_the_measurement_and_nothing_of_the_sample():
    data = small_set()
    recorder = Recorder()
    run_protocol(recorder, between_instruments(data, "a", "b", 2, 2, seed=0), data)
    (spectra, targets, groups, transfer), *rest = recorder.fits
    assert not rest and targets.shape == (12, 3) and set(groups) == {"core-0", "core-1", "core-2", "core-3"}
    for spectrum in [*spectra, *transfer.spectra, *transfer.primary_spectra]:
        hidden = (spectrum.sample, spectrum.core, spectrum.depth_mm, spectrum.source)
        assert hidden == (None,) * 4 and not spectrum.targets and not spectrum.metadata
        assert spectrum.tube_kv == 12.0 and spectrum.gain_kev in (0.040, 0.0397)
    assert measurement_only(data.spectra[0]).counts is data.spectra[0].counts
    # pairs are of one sample: its counts correlate more with each other than with the noise of others
    for first, second, labels in zip(transfer.primary_spectra, transfer.spectra, transfer.targets):
        row = next(index for index in range(12) if data.spectra[index].counts is first.counts)
        assert data.spectra[row + 12].counts is second.counts
        np.testing.assert_array_equal(labels, data.targets[row])


def test_a_method_without_transfer_is_not_given_any():
    class Plain:
        def fit(self, spectra, targets, groups):
            self.shape = targets.shape

        def predict(self, spectra):
            return np.ones((len(spectra), self.shape[1]))

    data = small_set()
    values = run_protocol(Plain(), between_instruments(data, "a", "b", 2, 2, seed=0), data)
    assert values.values.shape == (10, 3) and values.intervals == {}
    none = run_protocol(Plain(), [Split(np.array([], dtype=int), np.array([1, 0]))], data)
    assert none.rows.tolist() == [0, 1]  # zero labels are a protocol too


def test_unfair_splits_and_wrong_shapes_are_refused():
    data = small_set(num_samples=4, instruments=("a",))
    with pytest.raises(ValueError, match="row 1 is learnt from and tested"):
        run_protocol(Recorder(), [Split(np.array([0, 1]), np.array([1, 2]))], data)
    with pytest.raises(ValueError, match="row 2 is learnt from and tested"):
        run_protocol(Recorder(), [Split(np.array([0, 1]), np.array([2]), np.array([2]))], data)
    with pytest.raises(ValueError, match="a row is tested twice"):
        run_protocol(Recorder(), [Split(np.array([0]), np.array([1])), Split(np.array([2]), np.array([1]))], data)
    with pytest.raises(ValueError, match="transfer sample core-2-2 has no training spectrum"):
        run_protocol(Recorder(), [Split(np.array([0, 1]), np.array([3]), np.array([2]))], data)
    with pytest.raises(ValueError, match="no split"):
        run_protocol(Recorder(), [], data)

    class Transposed(Recorder):
        def predict(self, spectra):
            return np.zeros((3, len(spectra)))

    with pytest.raises(ValueError, match=r"\(2, 3\); it returned \(3, 2\)"):
        run_protocol(Transposed(), [Split(np.array([0, 1]), np.array([2, 3]))], data)
    with pytest.raises(ValueError, match=r"groups must have a row per spectrum \(4\), but has 1"):
        CalibrationSet(data.spectra, data.targets, data.target_names, data.samples, groups=np.array(["a"]))


# --- leaks ---


@pytest.mark.parametrize("name", METHODS)
def test_no_method_learns_from_what_is_held_out(name):
    """Other labels of all held-out rows, and other spectra of all held-out rows but one, leave the prediction of that
    one as it is; other training labels do not."""
    data = small_set()
    split = between_instruments_and_groups(data, "a", "b", 4, seed=0)[0]
    watched = split.test[0]
    learnt = np.concatenate([split.training, split.transfer])
    held_out = np.setdiff1d(np.arange(len(data)), learnt)
    rng = np.random.default_rng(5)

    def prediction(spectra, targets):
        method = METHODS[name].make(data.target_names, 0)
        if hasattr(getattr(method, "calibration", None), "max_epochs"):
            method.calibration.max_epochs = 4
        changed = CalibrationSet(spectra, targets, data.target_names, data.samples, data.groups, data.instruments)
        return run_protocol(method, [split], changed).values[0]

    expected = prediction(data.spectra, data.targets)
    assert np.isfinite(expected).all()

    spectra, targets = list(data.spectra), data.targets.copy()
    targets[held_out] = rng.lognormal(size=(len(held_out), 3))
    for row in set(held_out) - {watched}:
        spectra[row] = Spectrum(rng.poisson(50, 256), 0.0391, 0.02, tube_kv=9.0)
    np.testing.assert_allclose(prediction(spectra, targets), expected, rtol=1e-9)

    targets = data.targets.copy()
    targets[learnt] = targets[rng.permutation(learnt)] * 1.5
    assert not np.allclose(prediction(data.spectra, targets), expected, rtol=1e-3)


def test_real_mudrocks_have_seven_formations(real_data):
    data = benchmark.mudrocks(real_data, "light", "ab")
    assert sorted(set(data.groups)) == ["BL-1", "D4R", "LEP", "RTC-W", "SARM", "SDO", "W"]
    assert len(data) == 52 and data.targets.shape == (52, 12) and (data.targets > 0).all()
    splits = between_instruments(data, "a", "b", 5, 10, seed=0)
    assert len(splits[0].training) == 26 and len(splits[0].test) == 16 and len(splits[0].transfer) == 5
