"""Splits by group: spectra of one core (or one sample) are correlated, so they stay on one side of every split."""

import hashlib
import re
from collections import Counter, defaultdict
from pathlib import PurePosixPath

import numpy as np

LOCAL_NAME = re.compile(
    r"(acquisition|line|measurement|pixel|pmc|point|position|pt|row|scan|spectrum|spot)[\s._#-]*\d+", re.IGNORECASE
)
"""Names that count the measurements of one map or session; point 7 of two maps is not the same point."""


def cores_and_samples(cores, samples, sources, core_pattern: str | None = None) -> tuple[list, list]:
    """Names that mean the same everywhere in a corpus, from those that stand in the files.

    A spectrum without a core gets the one that `core_pattern` finds in its sample's name. Where it has none, a
    sample's name of the form `LOCAL_NAME` is preceded by the source, or by the source's folder where the source has
    one sample only; a spectrum with neither core nor sample is named by its source. All spectra of a source must be
    given together.

    Args:
        cores, samples, sources (sequences of `str` or `None`, same length).
        core_pattern (`str`, *optional*): regular expression whose group is the core; of several groups, the first that
            takes part.

    Returns:
        lists of cores and of samples.
    """
    samples_of_source = defaultdict(set)
    for sample, source in zip(samples, sources, strict=True):
        samples_of_source[source].add(sample)
    new_cores, new_samples = [], []
    for core, sample, source in zip(cores, samples, sources, strict=True):
        if not core and sample and core_pattern is not None:
            match = re.search(core_pattern, sample)
            core = next((group for group in match.groups() if group), None) if match else None
        if not core and not sample:
            sample = source
        elif not core and source and LOCAL_NAME.fullmatch(sample):
            place = PurePosixPath(source if len(samples_of_source[source]) > 1 else PurePosixPath(source).parent)
            sample = f"{place} {sample}" if place.name else sample
        new_cores.append(core or None)
        new_samples.append(sample)
    return new_cores, new_samples


def group_names(cores, samples) -> list[str]:
    """The group of every spectrum: its core, or its sample where it has no core.

    Args:
        cores, samples (sequences of `str` or `None`, same length).

    Raises:
        ValueError: a spectrum has neither.
    """
    groups = []
    for row, (core, sample) in enumerate(zip(cores, samples, strict=True)):
        group = core or sample
        if not group:
            raise ValueError(
                f"Row {row} has neither core nor sample, so it cannot stay on one side of a split: name one of them."
            )
        groups.append(group)
    return groups


def split_by_group(groups, fractions: dict[str, float], seed: int) -> np.ndarray:
    """Assign every spectrum to a split so that no group is on two sides.

    Groups are visited in the order of a hash of seed and name, and each goes to the split that is furthest below its
    share of spectra. The result depends on the set of groups, their sizes and the seed, not on the order of rows.

    Args:
        groups (sequence of `str`): the group of every spectrum (`group_names`).
        fractions (`dict[str, float]`): share of the spectra by split name; must add up to 1. A split of 0 stays empty.
        seed (`int`): another seed gives another assignment.

    Returns:
        `np.ndarray` of `str`, shape `(len(groups),)`: the split of every spectrum.

    Raises:
        ValueError: the fractions are not shares of 1, or there are fewer groups than splits.
    """
    groups = [str(group) for group in groups]
    if min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ValueError(f"Split fractions must not be negative and must add up to 1; got {fractions}.")
    missing_rows = {name: share * len(groups) for name, share in fractions.items() if share > 0}
    sizes = Counter(groups)
    if len(sizes) < len(missing_rows):
        raise ValueError(
            f"{len(missing_rows)} splits need at least as many cores or samples, but there are {len(sizes)}: "
            "ask for fewer splits."
        )
    ordered = sorted(sizes, key=lambda group: (hashlib.sha256(f"{seed}/{group}".encode()).digest(), group))
    empty, split_of = set(missing_rows), {}
    for position, group in enumerate(ordered):
        # With few groups the small splits would stay empty: the last groups are kept for them.
        candidates = empty if len(ordered) - position == len(empty) else missing_rows
        split = max(sorted(candidates), key=missing_rows.get)
        split_of[group] = split
        missing_rows[split] -= sizes[group]
        empty.discard(split)
    return np.array([split_of[group] for group in groups], dtype=object if not groups else None)


def check_groups_separated(groups, split_names) -> None:
    """Raise `ValueError` naming the first group that occurs in more than one split."""
    split_of = {}
    for group, split in zip(groups, split_names, strict=True):
        if split_of.setdefault(group, split) != split:
            raise ValueError(
                f"Group {group} is in the splits {split_of[group]} and {split}: split by core or sample, never by row."
            )
