from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lt_pipeline.learning.data.subsets import Subset, balanced_subset, balanced_subsets
from lt_pipeline.learning.schema import UserError

CIFAR100_LT = [int(500 * 100 ** (-c / 99)) for c in range(100)]  # imbalance ratio 100

counts_lists = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled(counts: list[int]) -> Tensor:
    """Labels with ``counts`` of each class, shuffled."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=seeded(99))]


def images(subset: Tensor) -> set[int]:
    return set(subset.tolist())


def test_cifar100_lt_gives_949_images_of_which_fifteen_classes_are_short():
    labels = labelled(CIFAR100_LT)
    subset = balanced_subset(labels, 10, seeded())
    by_class = torch.bincount(labels[subset], minlength=100)
    assert len(images(subset)) == len(subset) == 949
    assert sorted(by_class[by_class < 10].tolist()) == sorted(n for n in CIFAR100_LT if n < 10)
    assert (int((by_class < 10).sum()), int(by_class.min()), int(by_class.max())) == (15, 5, 10)


def test_cifar100_lt_filled_is_exactly_balanced():
    labels = labelled(CIFAR100_LT)
    subset = balanced_subset(labels, 10, seeded(), "fill")
    assert torch.bincount(labels[subset]).tolist() == [10] * 100
    assert len(images(subset)) == 949


@given(counts_lists, st.integers(1, 15), st.integers(0, 1000))
def test_keep_draws_without_replacement_what_there_is(counts, per_class, seed):
    labels = labelled(counts)
    subset = balanced_subset(labels, per_class, seeded(seed))
    assert subset.dtype == torch.int64
    assert len(images(subset)) == len(subset)
    expected = [min(n, per_class) for n in counts]
    assert torch.bincount(labels[subset], minlength=len(counts)).tolist() == expected


@given(counts_lists, st.integers(1, 15), st.integers(0, 1000))
def test_fill_is_balanced_takes_every_image_of_short_classes_and_repeats_evenly(
    counts, per_class, seed
):
    labels = labelled(counts)
    subset = balanced_subset(labels, per_class, seeded(seed), "fill")
    drawn = labels[subset]
    assert torch.bincount(drawn, minlength=len(counts)).tolist() == [
        per_class * (n > 0) for n in counts
    ]
    for label, n in enumerate(counts):
        times = Counter(subset[drawn == label].tolist()).values()
        assert len(times) == min(n, per_class)
        assert max(times, default=0) - min(times, default=0) <= 1


@pytest.mark.parametrize("short", ["keep", "fill"])
@given(counts=counts_lists)
def test_the_result_is_ordered_by_class(short, counts):
    labels = labelled(counts)
    drawn = labels[balanced_subset(labels, 5, seeded(), short)].tolist()
    assert drawn == sorted(drawn)


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.sampled_from([torch.int32, torch.uint8]),
)
def test_the_type_of_the_labels_does_not_matter(labels, dtype):
    as_long = balanced_subset(torch.tensor(labels), 3, seeded())
    assert balanced_subset(torch.tensor(labels, dtype=dtype), 3, seeded()).equal(as_long)


def test_every_image_of_a_class_is_equally_likely_to_be_drawn():
    labels = labelled([30, 5])
    draws = 3000
    generator = seeded(3)
    drawn = torch.cat([balanced_subset(labels, 6, generator) for _ in range(draws)])
    share = torch.bincount(drawn, minlength=35)[labels == 0] / draws
    # binomial: p = 6 / 30, standard deviation sqrt(p (1 - p) / 3000) = 0.0073
    assert (share - 0.2).abs().max() < 5 * 0.0073


def test_which_images_of_a_short_class_are_repeated_is_random():
    labels = labelled([30, 4])
    generator = seeded(3)
    times = torch.stack(
        [
            torch.bincount(balanced_subset(labels, 6, generator, "fill"), minlength=34)[labels == 1]
            for _ in range(2000)
        ]
    )
    assert set(times.flatten().tolist()) == {1, 2}
    # two of four come twice: p = 1/2, standard deviation sqrt(1/4 / 2000) = 0.011
    assert ((times == 2).double().mean(0) - 0.5).abs().max() < 5 * 0.011


@pytest.mark.parametrize("short", ["keep", "fill"])
def test_sets_repeat_by_seed_and_do_not_depend_on_how_many_there_are(short):
    labels = labelled(CIFAR100_LT)
    many, few = (balanced_subsets(labels, sets, 10, 7, short) for sets in (10, 4))
    assert (len(many), len(few)) == (10, 4)
    assert all(a.equal(b) for a, b in zip(many, few, strict=False))


def test_sets_differ_from_each_other_and_from_those_of_other_seeds():
    labels = labelled(CIFAR100_LT)
    seeds = [0, 1, 2, 3, 2**32, 2**32 + 3]
    subsets = [s for seed in seeds for s in balanced_subsets(labels, 4, 10, seed)]
    assert len({tuple(s.tolist()) for s in subsets}) == 4 * len(seeds)


def test_sets_are_drawn_independently_so_that_images_of_large_classes_rarely_come_back():
    labels = torch.zeros(500, dtype=torch.int64)
    subsets = [images(s) for s in balanced_subsets(labels, 40, 50, seed=5)]
    shared = [len(a & b) for i, a in enumerate(subsets) for b in subsets[:i]]
    # hypergeometric: 50 of 500 in both, 5 expected, standard deviation 2.0; 780 pairs
    assert sum(shared) / len(shared) == pytest.approx(5, abs=0.4)
    assert max(shared) < 15


def test_a_class_with_no_more_images_than_asked_gives_the_same_ones_to_all_sets():
    labels = labelled([40, 10, 3])
    sets = balanced_subsets(labels, 5, 10, 0)
    for label, distinct in ((0, 5), (1, 1), (2, 1)):
        assert len({frozenset(images(s[labels[s] == label])) for s in sets}) == distinct


def test_how_short_classes_are_treated_reaches_every_set():
    sets = balanced_subsets(labelled([40, 3]), 3, 10, 0, "fill")
    assert [len(s) for s in sets] == [20, 20, 20]


def test_what_gives_no_subset_is_refused():
    labels = labelled([3, 2])
    with pytest.raises(ValueError, match="per_class must be >= 1 image, but got 0"):
        balanced_subset(labels, 0, seeded())
    with pytest.raises(ValueError, match="sets must be >= 1 balanced subset, but got 0"):
        balanced_subsets(labels, 0, 10, 0)
    with pytest.raises(ValueError, match="at least one label, but labels is empty"):
        balanced_subset(labels[:0], 1, seeded())
    with pytest.raises(ValueError, match="non-negative"):
        balanced_subsets(labels, 1, 1, -1)


def test_a_stages_images_are_those_of_its_subsets_each_once():
    labels = torch.arange(60) % 4
    drawn = balanced_subsets(labels, 3, 5, seed=2)
    assert torch.equal(Subset((1,), 5).draw(labels, 2), drawn[1])
    both = Subset((0, 2), 5).draw(labels, 2)
    assert both.tolist() == sorted({*drawn[0].tolist(), *drawn[2].tolist()})
    filled = Subset((0,), 20, "fill").draw(labels, 2)
    assert torch.bincount(labels[filled]).tolist() == [20] * 4


def test_a_subset_of_several_labels_has_enough_of_each_and_no_image_in_vain():
    """A class draws only what those before it did not bring."""
    labels = (
        torch.rand(400, 5, generator=seeded()) < torch.tensor([0.5, 0.3, 0.1, 0.05, 0.01])
    ).to(torch.uint8)
    subset = balanced_subset(labels, 12, seeded(1))
    assert len(subset.unique()) == len(subset)
    counts, there = labels[subset].sum(0), labels.sum(0)
    assert (counts >= there.clamp(max=12)).all()
    rarest = int(there.argmin())
    assert counts[rarest] == there[rarest] < 12
    # an image counts for each of its labels, and the rarest draw first
    assert len(subset) < there.clamp(max=12).sum()
    without = torch.cat([balanced_subset(labels[:, c], 12, seeded()) for c in range(5)])
    assert labels[subset].sum() < labels[without].sum()
    assert not torch.equal(subset, balanced_subset(labels, 12, seeded(2)))
    with pytest.raises(UserError, match="set short to keep"):
        balanced_subset(labels, 12, seeded(), "fill")
