from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.learning.data.distribution import (
    GROUP_NAMES,
    CountGroups,
    LongTail,
    SplitGroups,
    ThirdsGroups,
    class_counts,
    label_cells,
)

counts_lists = st.lists(st.integers(1, 500), min_size=1, max_size=40)


def test_groups_follow_the_published_thresholds_at_their_edges():
    longtail = LongTail.from_counts([101, 100, 20, 19])
    assert longtail.class_groups == ("many", "medium", "medium", "few")


def test_an_empty_group_is_left_out_and_named():
    longtail = LongTail.from_counts([500, 50])
    assert list(longtail.groups) == ["many", "medium"]
    assert longtail.empty_groups == ("few",)


def test_split_cuts_by_rank_and_not_by_index():
    longtail = LongTail.from_counts([1, 9, 5], groups=SplitGroups(rule="split", sizes=(1, 1, 1)))
    assert longtail.class_groups == ("few", "many", "medium")


def test_split_refuses_sizes_that_do_not_add_up():
    with pytest.raises(ValueError, match=r"add up to the 3 classes, but \[1, 1, 2\] adds up to 4"):
        SplitGroups(rule="split", sizes=(1, 1, 2)).assign([3, 2, 1])


def test_thirds_of_ten_classes_are_four_three_three():
    groups = ThirdsGroups(rule="thirds").assign(range(10, 0, -1))
    assert [groups.count(name) for name in ("many", "medium", "few")] == [4, 3, 3]


def test_thresholds_that_overlap_are_refused():
    with pytest.raises(ValueError, match="few_below must be <= data.groups.many_above"):
        CountGroups(many_above=10, few_below=20).assign([5])


def test_a_class_without_an_image_is_refused_by_name():
    with pytest.raises(ValueError, match=r"class 1 \('cat'\) has none"):
        LongTail.from_counts([3, 0], ["dog", "cat"])


@given(counts_lists)
def test_the_prior_is_a_distribution_and_its_log_agrees(counts):
    longtail = LongTail.from_counts(counts)
    assert longtail.prior.sum().item() == pytest.approx(1)
    torch.testing.assert_close(longtail.log_prior.exp(), longtail.prior)
    assert longtail.imbalance_ratio == max(counts) / min(counts)


@given(counts_lists)
def test_gini_equals_the_mean_absolute_difference(counts):
    gini = LongTail.from_counts(counts).statistics()["gini"]
    pairs = sum(abs(a - b) for a in counts for b in counts)
    assert gini == pytest.approx(pairs / (2 * len(counts) * sum(counts)), abs=1e-12)


def test_statistics_of_balanced_classes():
    statistics = LongTail.from_counts([7] * 5).statistics()
    assert statistics["gini"] == pytest.approx(0, abs=1e-12)
    assert statistics["effective_classes"] == pytest.approx(5)
    # (1 - beta^n) / (1 - beta) is the geometric sum 1 + beta + ... + beta^(n - 1)
    assert statistics["effective_samples"] == pytest.approx(
        5 * math.fsum(0.9999**k for k in range(7))
    )


def test_members_of_groups_are_by_true_class_and_absent_groups_are_left_out():
    longtail = LongTail.from_counts([5, 200, 50, 8])
    grouped = longtail.group_members(torch.tensor([3, 1, 0, 1]))
    assert {name: mask.tolist() for name, mask in grouped.items()} == {
        "many": [False, True, False, True],
        "few": [True, False, True, False],
    }


def test_places_of_groups_name_each_class_s_group():
    places = LongTail.from_counts([5, 200, 50, 8]).group_places
    assert [GROUP_NAMES[place] for place in places] == ["few", "many", "medium", "few"]


def test_class_counts_include_classes_without_an_image():
    assert class_counts(torch.tensor([0, 2, 2]), 4).tolist() == [1, 0, 2, 0]


def test_a_cell_says_the_labels_of_an_image_in_label_order():
    assert label_cells(torch.tensor([1, 0]), ("cat", "dog")) == ["dog", "cat"]
    several = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=torch.uint8)
    assert label_cells(several, ("cat", "dog", "eel")) == ["cat;eel", "", "dog"]
    assert label_cells(several.bool(), range(3)) == ["0;2", "", "1"]
