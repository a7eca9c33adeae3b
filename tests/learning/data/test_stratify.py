from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lt_pipeline.learning.data.stratify import stratify, thinned
from lt_pipeline.learning.schema import UserError

SHARES = [0.6, 0.2, 0.2]


def drawn(images=600, seed=0):
    """Labels that occur less and less often, come together, and are missing from some images."""
    random = np.random.default_rng(seed)
    has = random.random((images, 6)) < np.array([0.6, 0.4, 0.2, 0.1, 0.05, 0.02])
    has[:, 5] |= has[:, 0] & (random.random(images) < 0.02)
    return [tuple(np.flatnonzero(row).tolist()) for row in has]


def shares_of(labels, parts, label):
    own = Counter(part for of_image, part in zip(labels, parts, strict=True) if label in of_image)
    return [own[part] / sum(own.values()) for part in range(3)], sum(own.values())


@pytest.mark.parametrize("seed", range(3))
def test_every_label_has_its_shares_to_an_image_or_two(seed):
    labels = drawn(seed=seed)
    parts = stratify(labels, range(len(labels)), SHARES, seed)
    for label in range(6):
        fractions, images = shares_of(labels, parts, label)
        assert fractions == pytest.approx(SHARES, abs=2 / images + 0.01)
    # what a draw image by image does not reach
    random = np.random.default_rng(seed).choice(3, len(labels), p=SHARES)
    off = [
        sum(
            abs(a - b)
            for c in range(6)
            for a, b in zip(shares_of(labels, p, c)[0], SHARES, strict=True)
        )
        for p in (parts, random.tolist())
    ]
    assert off[0] < off[1] / 2
    sizes = Counter(parts)
    assert [sizes[part] / 600 for part in range(3)] == pytest.approx(SHARES, abs=0.03)
    unlabelled = Counter(part for own, part in zip(labels, parts, strict=True) if not own)
    assert len(unlabelled) == 3


def test_groups_stay_whole_and_seeds_differ():
    labels = drawn()
    groups = [k // 3 for k in range(600)]
    splits = [stratify(labels, groups, SHARES, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    for parts in splits:
        assert all(len({*parts[k : k + 3]}) == 1 for k in range(0, 600, 3))
        for label in range(4):
            assert shares_of(labels, parts, label)[0] == pytest.approx(SHARES, abs=0.08)


def test_a_label_of_two_images_is_learned_and_not_lost():
    labels = [(0,)] * 20 + [(0, 1)] * 2
    parts = stratify(labels, range(22), SHARES, 0)
    assert 0 in parts[20:]


@pytest.mark.parametrize("ratio", [5, 20])
def test_a_long_tail_is_cut_by_labels(ratio):
    random = np.random.default_rng(0)
    first = random.integers(5, size=2000)
    # a fifth has a second label
    labels = [
        tuple(sorted({int(c), int(random.integers(5))} if k % 5 == 0 else {int(c)}))
        for k, c in enumerate(first)
    ]
    stays = thinned(labels, 5, ratio, 0)
    counts = Counter(c for own, kept in zip(labels, stays, strict=True) if kept for c in own)
    before = Counter(c for own in labels for c in own)
    ranked = [counts[c] for c, _ in before.most_common()]
    assert ranked == sorted(ranked, reverse=True)
    assert ranked[0] / ranked[-1] == pytest.approx(ratio, rel=0.15)
    middle = ranked[0] * ratio**-0.5
    assert ranked[2] == pytest.approx(middle, rel=0.1)
    assert thinned(labels, 5, ratio, 0) == stays != thinned(labels, 5, ratio, 1)


def test_one_label_an_image_is_cut_to_the_profile():
    labels = [(c,) for c in (0, 1, 2) for _ in range(100)] + [()] * 3
    stays = thinned(labels, 3, 4, 0)
    counts = Counter(c for own, kept in zip(labels, stays, strict=True) if kept for c in own)
    assert counts == {0: 100, 1: 50, 2: 25}
    assert all(stays[300:])
    with pytest.raises(UserError, match="leaves the rarest class without"):
        thinned(labels, 3, 1000, 0)
