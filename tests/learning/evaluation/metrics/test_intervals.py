from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.metrics.classification import (
    class_table,
    confusion_matrix,
    interval_report,
)
from lt_pipeline.learning.evaluation.metrics.intervals import Outcomes, wilson


@given(right=st.integers(0, 60), more=st.integers(0, 60))
def test_wilson_is_as_scipy_has_it(right, more):
    images = max(right + more, 1)
    expected = stats.binomtest(right, images).proportion_ci(method="wilson")
    assert wilson(right, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_by_hand():
    """8 of 10 by the closed form in double precision, z = 1.959963985; none: z2 / (10 + z2)."""
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-7)
    squared = 1.959963984540054**2
    assert wilson(0, 10) == pytest.approx((0.0, squared / (10 + squared)))
    assert wilson(10, 10) == pytest.approx((10 / (10 + squared), 1.0))


def alike(groups, size, right):
    """One class: ``groups`` of ``size`` images, the first ``right`` all right, the others wrong."""
    numbers = np.repeat(np.arange(groups), size)
    return Outcomes(np.zeros(groups * size, int), (numbers < right).astype(float), numbers)


@pytest.mark.parametrize(("groups", "right"), [(20, 14), (60, 12), (7, 4)])
def test_groups_that_are_right_or_wrong_as_a_whole_are_a_binomial_draw(groups, right):
    """Then the share of right images is that of right groups, however large they are."""
    drawn = stats.binom(groups, right / groups)
    expected = np.array(drawn.ppf([0.025, 0.975])) / groups
    for size in (1, 9):
        tested = alike(groups, size, right)
        assert tested.class_intervals(4)[0] == pytest.approx(tuple(expected), abs=1.01 / groups)
        assert tested.class_intervals(4)[0] == tested.class_intervals(4)[0]
        means = tested.drawn(20_000)
        assert means.mean() == pytest.approx(right / groups, abs=0.005)
        assert means.std() == pytest.approx(drawn.std() / groups, rel=0.03)


def test_images_of_a_group_say_less_than_images_that_are_independent():
    """By the square root of the design effect, which is the group's size where all are alike."""
    tested = alike(40, 16, 20)
    low, high = tested.class_intervals(4)[0]
    lower, higher = Outcomes(tested.labels, tested.right).class_intervals(4)[0]
    assert (high - low) / (higher - lower) == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("fractions", [True, False])
def test_the_mean_recall_spreads_as_its_classes_do(groups, fractions):
    """Classes are drawn by themselves: variances p (1 - p) / n add up, over the classes squared."""
    labels = np.repeat([0, 1, 2], [100, 40, 10])
    right = np.concatenate([np.arange(n) < k for n, k in ((100, 90), (40, 20), (10, 2))])
    number = np.arange(150) if groups else None
    # a tenth of each image is no share of a draw of images, but has the same spread
    tested = Outcomes(labels, right * (0.5 if fractions else 1.0), number)
    expected = sum(p * (1 - p) / n for p, n in ((0.9, 100), (0.5, 40), (0.2, 10))) / 9
    drawn = tested.drawn(20_000) * (2 if fractions else 1)
    assert drawn.std() == pytest.approx(np.sqrt(expected), rel=0.03)
    assert drawn.mean() == pytest.approx((0.9 + 0.5 + 0.2) / 3, abs=0.003)


def test_a_difference_is_drawn_on_the_same_groups():
    """Two methods that differ in one class by one image of each group differ for certain."""
    labels, groups = np.tile([0, 0, 1], 12), np.repeat(np.arange(12), 3)
    one = np.random.default_rng(0).integers(0, 2, 36).astype(float)
    other = one.copy()
    one[1::3], other[1::3] = 1, 0
    between = Outcomes(labels, one - other, groups)
    assert between.mean_recall == 0.25
    assert between.interval() == pytest.approx((0.25, 0.25))
    apart = Outcomes(labels, one, groups).drawn() - Outcomes(labels, other, groups).drawn()
    np.testing.assert_allclose(apart, between.drawn(), atol=1e-12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.booleans()), min_size=1))
def test_draws_of_groups_with_several_classes_are_recalls(images):
    labels, groups, right = (np.array(column) for column in zip(*images, strict=True))
    tested = Outcomes(labels, right.astype(float), groups)
    drawn = tested.drawn(50)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    interval = tested.interval()
    assert (interval is None) == (len(set(groups)) < 5)
    by_class = [right[labels == c].mean() for c in sorted(set(labels))]
    assert tested.mean_recall == pytest.approx(np.mean(by_class))


def test_a_group_of_several_classes_is_drawn_as_a_whole():
    """Classes that share their groups rise and fall together: the variance is one class's."""
    groups, labels = np.repeat(np.arange(30), 2), np.tile([0, 1], 30)
    tested = Outcomes(labels, (groups < 15).astype(float), groups)
    assert tested.drawn(20_000).std() == pytest.approx(0.5 / np.sqrt(30), rel=0.03)


def test_fewer_than_five_groups_have_no_interval_and_all_right_is_not_certain():
    few = alike(4, 30, 2)
    assert few.class_intervals(4)[0] is None
    assert few.interval() is None
    assert interval_report(few) == {"groups": 4.0}
    assert few.groups_by_class(2) == [4, 0]
    assert alike(8, 30, 8).class_intervals(4)[0] == wilson(8, 8)
    assert alike(8, 30, 0).class_intervals(4)[0] == wilson(0, 8)
    assert few.class_intervals(4)[3] is None


def test_the_table_of_classes_says_how_sure_it_is():
    longtail = LongTail.from_counts([30, 20, 10])
    labels = torch.tensor([0] * 12 + [1] * 4)
    scores = torch.eye(3)[torch.tensor([0] * 9 + [1] * 3 + [1] * 4)]
    matrix = confusion_matrix(scores, labels)
    rows = class_table(matrix, longtail)
    assert (rows[0]["recall_low"], rows[0]["recall_high"]) == wilson(9, 12)
    assert rows[2]["recall_low"] is rows[2]["recall_high"] is None
    assert "test_groups" not in rows[0]
    right = (scores.argmax(1) == labels).numpy().astype(float)
    grouped = Outcomes(labels.numpy(), right, np.arange(16) // 2)
    rows = class_table(matrix, longtail, grouped)
    assert [row["test_groups"] for row in rows] == [6, 2, 0]
    assert (rows[0]["recall_low"], rows[0]["recall_high"]) == grouped.class_intervals(4)[0]
    assert rows[1]["recall_low"] is None


def test_twenty_thousand_images_take_seconds():
    random = np.random.default_rng(0)
    labels, groups = random.integers(0, 100, 20_000), random.integers(0, 5_000, 20_000)
    tested = Outcomes(labels, random.integers(0, 2, 20_000).astype(float), groups)
    started = time.process_time()
    tested.interval()
    tested.class_intervals(100)
    assert time.process_time() - started < 30
