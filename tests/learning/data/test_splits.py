from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_pipeline.learning.data.splits import (
    assign,
    deviations,
    fold_groups,
    least_groups,
    split_groups,
)
from toys import PROJECT

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


@cache
def fish():
    """Return labels and groups of the 7,725 fish (Fish4Knowledge): their trajectories' lengths."""
    sizes = json.loads((PROJECT / "tests/fixtures/fish_groups.json").read_text())
    labels, groups = [], []
    for c, (name, lengths) in enumerate(sorted(sizes.items())):
        for k, length in enumerate(lengths):
            labels += [c] * length
            groups += [f"{name}/{k}"] * length
    return labels, groups


@cache
def split(seed):
    """Return the parts of the fish: a third of a second's work."""
    return split_groups(*fish(), SHARES, seed)


def groups_in_parts(labels, groups, parts):
    """Return, by class, how many groups each part has."""
    counts = defaultdict(Counter)
    for label, _, part in set(zip(labels, groups, parts, strict=True)):
        counts[label][part] += 1
    return counts


def whole(groups, parts):
    return len(set(zip(groups, parts, strict=True))) == len(set(groups))


@pytest.mark.parametrize("seed", range(8))
def test_the_fish_are_split_close_to_the_shares_and_no_trajectory_is(seed):
    labels, groups = fish()
    started = time.process_time()
    parts = split(seed)
    assert time.process_time() - started < 10
    assert whole(groups, parts)
    has = groups_in_parts(labels, groups, parts)
    for counts in has.values():
        assert all(counts[part] >= (2 if counts.total() >= 6 else 1) for part in SHARES)
    far = np.array(deviations(labels, [list(SHARES).index(p) for p in parts], [*SHARES.values()]))
    assert far.max() <= 0.13
    assert far[np.bincount(labels) >= 100].max() <= 0.07


@pytest.mark.parametrize("seed", range(3))
def test_five_folds_of_the_fish_are_as_even_as_their_longest_trajectories_let_them(seed):
    labels, groups = fish()
    folds = fold_groups(labels, groups, 5, seed)
    assert whole(groups, folds)
    sizes = Counter(zip(labels, groups, strict=True))
    longest = [max(n for (c, _), n in sizes.items() if c == k) for k in range(23)]
    unavoidable = np.maximum(np.array(longest) / np.bincount(labels) - 0.2, 0)
    assert (np.array(deviations(labels, folds, [0.2] * 5)) - unavoidable).max() <= 0.05
    assert all(len(has) == 5 for has in groups_in_parts(labels, groups, folds).values())


def test_the_longest_trajectories_are_not_always_trained_on():
    """Else the number would be of the short ones, whatever the seed."""
    _, groups = fish()
    longest = {c: f"fish_{c + 1:02}/0" for c in range(10)}
    where = defaultdict(set)
    for seed in range(8):
        part_of = dict(zip(groups, split(seed), strict=True))
        for c, group in longest.items():
            where[c].add(part_of[group])
    assert sum("test" in parts for parts in where.values()) >= 5


def test_equal_seeds_split_equally_and_others_otherwise():
    assert split_groups(*fish(), SHARES, 0) == split(0) != split(1)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [(1, [1, 0, 0]), (2, [1, 0, 1]), (3, [1, 1, 1]), (5, [1, 1, 1]), (6, [2, 2, 2])],
)
def test_how_many_groups_each_part_must_have(groups, expected):
    assert least_groups(groups, 3) == expected


def test_a_class_of_one_or_two_groups_is_learned_and_then_tested():
    labels = [0] * 30 + [1] * 4 + [2] * 4
    groups = [*range(30), *("a",) * 4, *("b", "b", "c", "c")]
    for seed in range(10):
        has = groups_in_parts(labels, groups, split_groups(labels, groups, SHARES, seed))
        assert has[1] == {"train": 1}
        assert has[2] == {"train": 1, "test": 1}


def test_sites_that_hold_many_classes_are_units():
    """Camera traps: a site has its own mixture of classes, and one class is seen at one only."""
    random = np.random.default_rng(0)
    labels, groups = [], []
    for site in range(60):
        mixture = random.dirichlet([0.5] * 8)
        labels += random.choice(8, size=50, p=mixture).tolist()
        groups += [site] * 50
    labels, groups = [*labels, *[8] * 20], [*groups, *[7] * 20]
    for seed in range(5):
        parts = split_groups(labels, groups, SHARES, seed)
        assert whole(groups, parts)
        indices = [list(SHARES).index(part) for part in parts]
        assert max(deviations(labels, indices, [*SHARES.values()])[:8]) < 0.1
        assert groups_in_parts(labels, groups, parts)[8].keys() == {"train"}


def test_a_group_of_half_of_all_images_is_learned():
    labels = [0] * 50 + [1] * 50 + [k % 2 for k in range(100)]
    groups = ["half"] * 100 + list(range(100))
    for seed in range(5):
        part_of = dict(zip(groups, split_groups(labels, groups, SHARES, seed), strict=True))
        assert part_of["half"] == "train"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=80),
    st.integers(0, 10),
)
def test_no_group_is_split_and_every_class_has_what_its_groups_allow(images, seed):
    """Groups of one class: where they have several, not all wishes need be possible at once."""
    labels = [label for label, _ in images]
    groups = [(label, group) for label, group in images]
    parts = split_groups(labels, groups, SHARES, seed)
    assert whole(groups, parts)
    for has in groups_in_parts(labels, groups, parts).values():
        needed = least_groups(has.total(), 3)
        assert all(has[part] >= n for part, n in zip(SHARES, needed, strict=True))


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="2 labels, but 1 groups"):
        assign([0, 1], ["a"], [0.5, 0.5], 0)
    with pytest.raises(ValueError, match="sum to 1"):
        assign([0], ["a"], [0.5, 0.6], 0)
    with pytest.raises(ValueError, match="positive"):
        assign([0], ["a"], [1.0, 0.0], 0)
