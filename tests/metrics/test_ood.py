from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from lt_pipeline.data.longtail import LongTail
from lt_pipeline.metrics.ood import auroc, fpr95, ood_report

scores = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=60)


@given(scores, scores)
def test_auroc_counts_pairs_and_ties_half(inside, outside):
    wins = sum((a > b) + 0.5 * (a == b) for a in inside for b in outside)
    found = auroc(torch.tensor(inside), torch.tensor(outside))
    assert found == pytest.approx(wins / (len(inside) * len(outside)))


@given(scores, scores)
def test_fpr95_is_the_first_point_of_the_curve_that_keeps_95_percent(inside, outside):
    truth = [1] * len(inside) + [0] * len(outside)
    fpr, tpr, _ = roc_curve(truth, inside + outside, drop_intermediate=False)
    wanted = min(f for f, t in zip(fpr, tpr, strict=True) if t >= 0.95)
    assert fpr95(torch.tensor(inside), torch.tensor(outside)) == pytest.approx(wanted)


@given(scores, scores)
def test_the_precisions_are_scikit_learns_of_either_side(inside, outside):
    found = ood_report(
        torch.tensor(inside),
        torch.tensor(outside),
        torch.zeros(len(inside)).long(),
        LongTail.from_counts([5]),
    )
    truth = [1] * len(inside) + [0] * len(outside)
    both = inside + outside
    assert found["aupr_in"] == pytest.approx(average_precision_score(truth, both))
    flipped = average_precision_score([1 - t for t in truth], [-s for s in both])
    assert found["aupr_out"] == pytest.approx(flipped)


def report_of(inside, outside):
    labels = torch.zeros(len(inside)).long()
    return ood_report(inside, outside, labels, LongTail.from_counts([200]))


def test_perfect_and_reversed_scores_and_scores_that_are_all_equal():
    keys = ("auroc", "fpr95", "aupr_in", "aupr_out")
    high, low = torch.linspace(2, 3, 30), torch.linspace(0, 1, 10)
    best = report_of(high, low)
    assert [best[k] for k in keys] == pytest.approx([1, 0, 1, 1])
    worst = report_of(low, high)
    assert (worst["auroc"], worst["fpr95"]) == (0, 1)
    same = report_of(torch.ones(30), torch.ones(10))
    assert [same[k] for k in keys] == pytest.approx([0.5, 1, 0.75, 0.25])


def test_of_twenty_images_one_may_fall_below_the_threshold_and_ties_with_it_are_accepted():
    inside = torch.tensor([0.0] + [5.0] + [9.0] * 18)
    outside = torch.tensor([1.0, 4.0, 5.0, 6.0])
    # the threshold is 5: nineteen of twenty are kept, and the tie at 5 counts as accepted
    assert fpr95(inside, outside) == 0.5
    # of nineteen none may fall below, so the threshold is 0
    assert fpr95(inside[:-1], outside) == 1.0


def test_groups_stand_each_against_all_outside_images():
    longtail = LongTail.from_counts([200, 5])
    inside, labels = torch.tensor([0.9, 0.8, 0.3]), torch.tensor([0, 0, 1])
    outside = torch.tensor([0.5, 0.1])
    found = ood_report(inside, outside, labels, longtail)
    assert found["auroc"] == pytest.approx(
        roc_auc_score([1, 1, 1, 0, 0], [0.9, 0.8, 0.3, 0.5, 0.1])
    )
    assert (found["auroc_many"], found["auroc_few"]) == (1.0, 0.5)
    assert (found["fpr95_many"], found["fpr95_few"]) == (0.0, 0.5)
    assert "auroc_medium" not in found
    # ranked from the outside's end: outside, inside, outside, inside, inside
    assert found["aupr_out"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert found["aupr_in"] == pytest.approx((1 / 1 + 2 / 2 + 3 / 4) / 3)


def test_a_side_without_images_is_refused():
    with pytest.raises(ValueError, match="has 1 inside and 0 outside"):
        ood_report(torch.ones(1), torch.ones(0), torch.zeros(1).long(), LongTail.from_counts([5]))


def test_a_score_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        report_of(torch.tensor([1.0, float("nan")]), torch.zeros(2))
