from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

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
    assert 0 <= found["aupr_out"] <= 1
    assert found["aupr_in"] == pytest.approx((1 / 1 + 2 / 2 + 3 / 4) / 3)


def test_a_side_without_images_is_refused():
    with pytest.raises(ValueError, match="has 1 inside and 0 outside"):
        ood_report(torch.ones(1), torch.ones(0), torch.zeros(1).long(), LongTail.from_counts([5]))
