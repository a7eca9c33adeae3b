from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.metrics import several
from lt_pipeline.learning.evaluation.metrics.calibration import (
    expected_calibration_error,
    reliability,
)
from lt_pipeline.learning.evaluation.metrics.classification import label_report
from lt_pipeline.learning.schema import UserError
from toys import seeded

NAMES = ("a", "b", "c", "d")
LONGTAIL = LongTail((9, 5, 2, 1), NAMES, ("many", "medium", "few", "few"), "by hand", 12)


def drawn(images=40, levels=5, absent=()):
    """Scores of few levels, so that many are equal; the classes ``absent`` have no image."""
    generator = seeded(1)
    scores = torch.randint(levels, (images, 4), generator=generator).float() - levels / 2
    labels = torch.randint(2, (images, 4), generator=generator).to(torch.uint8)
    labels[:, list(absent)] = 0
    return scores, labels


def test_average_precision_is_scikit_learns_with_ties_and_nan_without_an_image():
    scores, labels = drawn(absent=(2,))
    precisions = several.average_precisions(scores, labels)
    for c in (0, 1, 3):
        wanted = average_precision_score(labels[:, c].numpy(), scores[:, c].numpy())
        assert precisions[c] == pytest.approx(wanted, abs=1e-12)
    assert precisions[2].isnan()
    # by hand: all scores equal are one step, whose precision is the share of images that have it
    same = several.average_precisions(torch.zeros(10, 1), torch.tensor([[1]] * 3 + [[0]] * 7))
    assert same.item() == pytest.approx(0.3)


def test_means_are_over_classes_with_an_image():
    scores, labels = drawn(absent=(2,))
    decided = several.Decided(scores, labels, torch.zeros(4), LONGTAIL)
    metrics = label_report(decided)
    ap = several.average_precisions(scores, labels)
    assert metrics["mean_average_precision"] == pytest.approx(float(ap[[0, 1, 3]].mean()))
    assert metrics["mAP_few"] == pytest.approx(float(ap[3]))
    assert metrics["classes"] == 3
    truth, said = labels[:, [0, 1, 3]].numpy(), (scores >= 0)[:, [0, 1, 3]].numpy()
    for average in ("macro", "micro"):
        wanted = f1_score(truth, said, average=average)
        assert metrics[f"{average}_f1"] == pytest.approx(wanted)


def test_a_group_without_a_tested_class_is_left_out():
    scores, labels = drawn(absent=(2, 3))
    assert "mAP_few" not in label_report(several.Decided(scores, labels, torch.zeros(4), LONGTAIL))
    with pytest.raises(UserError, match="must have images with a label"):
        label_report(several.Decided(scores, labels * 0, torch.zeros(4), LONGTAIL))


def test_coverage_and_ranking_by_hand():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 3)
    labels = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.uint8)
    decided = several.Decided(scores, labels, torch.zeros(4), LONGTAIL)
    # one score covers the first image, four the second; the third has no label
    assert several.coverage_error(decided) == pytest.approx(2.5)
    # of the second image's four pairs three are out of order
    assert several.ranking_loss(decided) == pytest.approx((0 + 3 / 4) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_has_a_better_f1_than_the_chosen_one(seed):
    generator = seeded(seed)
    scores = torch.randint(12, (60, 3), generator=generator).float()
    labels = torch.randint(3, (60, 3), generator=generator).eq(0).to(torch.uint8)
    chosen = several.best_thresholds(scores, labels)
    for c in range(3):
        truth = labels[:, c].numpy()
        every = [f1_score(truth, scores[:, c].numpy() >= t - 0.5) for t in range(13)]
        f1 = f1_score(truth, scores[:, c].double().numpy() >= chosen[c].item())
        assert f1 == pytest.approx(max(every))


def test_a_threshold_lies_between_scores_and_is_a_half_where_nothing_is_known():
    scores = torch.tensor([[3.0, 1.0], [2.0, 0.0], [-1.0, 5.0]])
    labels = torch.tensor([[1, 0], [1, 0], [0, 0]], dtype=torch.uint8)
    assert several.best_thresholds(scores, labels).tolist() == [0.5, several.HALF]
    nothing = several.best_thresholds(scores[:0], labels[:0])
    assert nothing.tolist() == [several.HALF] * 2


def test_the_table_says_what_each_class_is_decided_by():
    scores, labels = drawn(absent=(2,))
    decided = several.Decided(scores, labels, torch.zeros(4), LONGTAIL)
    rows = decided.table()
    assert [row["name"] for row in rows] == list(NAMES)
    assert rows[2]["average_precision"] is None
    assert rows[0]["threshold"] == 0.5
    has, said = labels[:, 0].bool(), scores[:, 0] >= 0
    assert rows[0]["recall"] == pytest.approx(float((has & said).sum() / has.sum()))
    assert rows[0]["precision"] == pytest.approx(float((has & said).sum() / said.sum()))
    together = decided.label_confusion()
    assert together[0, 1] == int((has & (scores[:, 1] >= 0)).sum())
    assert np.diagonal(together.numpy()).tolist() == decided.right.tolist()


def test_calibration_looks_at_every_label():
    # 100 labels at a probability of 0.8, of which half are there
    scores = torch.full((50, 2), 4.0).log()
    labels = torch.tensor([[1, 0]] * 50, dtype=torch.uint8)
    assert expected_calibration_error(scores, labels) == pytest.approx(0.3, abs=1e-6)
    assert reliability(scores, labels)["images"] == [100.0]
