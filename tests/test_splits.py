"""Splits by group."""

import numpy as np
import pytest

from dataset_builder import check_groups_separated, group_names, split_by_group
from dataset_builder.splits import cores_and_samples

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def random_groups(seed, num_groups=60):
    rng = np.random.default_rng(seed)
    groups = np.repeat([f"core {i}" for i in range(num_groups)], rng.integers(1, 40, num_groups))
    rng.shuffle(groups)
    return groups


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_two_sides_and_shares_are_met(seed):
    groups = random_groups(seed)
    splits = split_by_group(groups, FRACTIONS, seed)
    check_groups_separated(groups, splits)
    for name, fraction in FRACTIONS.items():
        # The greedy assignment misses a share by less than the largest group.
        assert abs((splits == name).sum() - fraction * len(groups)) < 40


def test_assignment_does_not_depend_on_the_order_of_rows():
    groups = random_groups(1)
    order = np.random.default_rng(2).permutation(len(groups))
    np.testing.assert_array_equal(
        split_by_group(groups, FRACTIONS, 3)[order], split_by_group(groups[order], FRACTIONS, 3)
    )


def test_seed_changes_the_assignment():
    groups = random_groups(1)
    assert (split_by_group(groups, FRACTIONS, 0) != split_by_group(groups, FRACTIONS, 1)).any()


def test_every_split_gets_a_group_when_there_are_few():
    assert sorted(split_by_group(["a", "b", "c"], FRACTIONS, 0)) == ["test", "train", "validation"]


def test_a_share_of_zero_stays_empty():
    splits = split_by_group(random_groups(0), {"train": 0.9, "validation": 0.1, "test": 0.0}, 0)
    assert set(splits) == {"train", "validation"}


def test_fewer_groups_than_splits_is_refused():
    with pytest.raises(ValueError, match="3 splits need at least as many .* there are 2"):
        split_by_group(["a", "a", "b"], FRACTIONS, 0)


@pytest.mark.parametrize("fractions", [{"train": 0.8, "test": 0.1}, {"train": 1.2, "test": -0.2}])
def test_fractions_that_are_no_shares_are_refused(fractions):
    with pytest.raises(ValueError, match="add up to 1"):
        split_by_group(["a", "b"], fractions, 0)


def test_the_group_is_the_core_or_else_the_sample():
    assert group_names(["c1", None, "c1"], ["s1", "s2", "s3"]) == ["c1", "s2", "c1"]
    with pytest.raises(ValueError, match="Row 1 has neither core nor sample"):
        group_names(["c1", None], ["s1", None])


def test_leakage_is_found_and_named():
    with pytest.raises(ValueError, match="Group b is in the splits train and test"):
        check_groups_separated(["a", "b", "b"], ["train", "train", "test"])


def test_the_core_is_found_in_the_sample_name_where_the_file_names_none():
    cores, samples = cores_and_samples(["c1", None, None], ["BL-1-5", "BL-1-5", "W17"], ["a", "a", "a"], r"^(.+)-\d+$")
    assert (cores, samples) == (["c1", "BL-1", None], ["BL-1-5", "BL-1-5", "W17"])
    cores, _ = cores_and_samples([None] * 3, ["Glass/1", "Fe 2", "other"], ["a"] * 3, r"^(Glass)/|^(Fe)")
    assert cores == ["Glass", "Fe", None]


def test_names_that_count_within_a_file_are_qualified_by_it():
    samples = ["point 7", "point 7", "point 8", "point 7", "Point_8", "BL-7", "7"]
    sources = ["a.npz", "a.npz", "a.npz", "b.npz", "b.npz", "b.npz", "b.npz"]
    assert cores_and_samples([None] * 7, samples, sources)[1] == [
        "a.npz point 7",
        "a.npz point 7",
        "a.npz point 8",
        "b.npz point 7",
        "b.npz Point_8",
        "BL-7",
        "7",
    ]


def test_files_of_one_point_each_are_qualified_by_their_folder():
    """Two detectors of one point, each in its own file, stay one sample."""
    sources = ["map1/7_A.msa", "map1/7_B.msa", "map2/7_A.msa", "top.msa"]
    assert cores_and_samples([None] * 4, ["point 7"] * 4, sources)[1] == [
        "map1 point 7",
        "map1 point 7",
        "map2 point 7",
        "point 7",
    ]


def test_a_core_is_never_qualified_and_a_nameless_spectrum_is_named_by_its_source():
    assert cores_and_samples(["12", None], ["point 1", None], ["a.npz", "b.npz"]) == (
        ["12", None],
        ["point 1", "b.npz"],
    )
