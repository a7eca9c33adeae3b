from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from lt_pipeline.learning.data.longtail import LongTail
from lt_pipeline.learning.evaluation.metrics.classification import (
    class_recall,
    class_table,
    confusion_matrix,
    report,
)

LONGTAIL = LongTail.from_counts([200, 50, 10, 5])
MATRIX = torch.tensor([[8, 2, 0, 0], [1, 9, 0, 0], [5, 0, 5, 0], [4, 4, 2, 0]])


@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 1000))
def test_the_matrix_and_recalls_are_scikit_learns(classes, images, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(images, classes, generator=generator)
    labels = torch.randint(0, classes, (images,), generator=generator)
    matrix = confusion_matrix(scores, labels)
    predicted = scores.argmax(1).numpy()
    wanted = reference.confusion_matrix(labels.numpy(), predicted, labels=range(classes))
    assert matrix.tolist() == wanted.tolist()
    found = report(matrix, LongTail.from_counts([1] * classes))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    recall = reference.recall_score(
        labels, predicted, labels=range(classes), average=None, zero_division=0
    )
    assert class_recall(matrix).tolist() == pytest.approx(recall.tolist())
    present = [recall[c] for c in range(classes) if c in labels.tolist()]
    assert found["mean_recall"] == pytest.approx(sum(present) / len(present))
    with warnings.catch_warnings():
        # predicted classes without an image are what it warns of, and leaves out
        warnings.simplefilter("ignore", UserWarning)
        balanced = reference.balanced_accuracy_score(labels, predicted)
    assert found["mean_recall"] == pytest.approx(balanced)
    floored = [max(r, 1e-3) for r in present]
    assert found["harmonic_mean"] == pytest.approx(stats.hmean(floored))
    assert found["geometric_mean"] == pytest.approx(stats.gmean(floored))


def test_a_report_by_hand():
    found = report(MATRIX, LONGTAIL)
    assert found["accuracy"] == found["mean_recall"] == 22 / 40
    assert (found["many"], found["medium"]) == (0.8, 0.9)
    assert found["few"] == pytest.approx((0.5 + 0.0) / 2)
    assert (found["lowest_recall"], found["zero_recall_classes"]) == (0.0, 1.0)
    assert found["recall_floor"] == 1e-3


def test_one_class_of_recall_zero_in_a_hundred_caps_the_harmonic_mean():
    matrix = torch.diag(torch.full((100,), 10))
    matrix[7, 7], matrix[7, 8] = 0, 10
    found = report(matrix, LongTail.from_counts([5] * 100))
    assert found["harmonic_mean"] == pytest.approx(100 / (99 + 1000))
    assert found["harmonic_mean"] < 0.1


def test_empty_groups_and_untested_classes_are_left_out_and_nothing_is_nan():
    matrix = MATRIX.clone()
    matrix[0] = 0
    found = report(matrix, LONGTAIL)
    assert "many" not in found
    assert found["mean_recall"] == pytest.approx((0.9 + 0.5 + 0.0) / 3)
    assert not any(math.isnan(value) for value in found.values())
    assert "few" not in report(MATRIX, LongTail.from_counts([200, 50, 40, 30]))


def test_a_test_set_without_images_is_refused():
    with pytest.raises(ValueError, match="must have images"):
        report(torch.zeros(4, 4, dtype=torch.int64), LONGTAIL)


@pytest.mark.parametrize("use", [report, class_table])
@pytest.mark.parametrize("counts", [[200, 50, 10], [200, 50, 10, 5, 5]])
def test_a_matrix_of_other_classes_is_refused(use, counts):
    with pytest.raises(ValueError, match=r"must be \[\d, \d\].* but is \[4, 4\]"):
        use(MATRIX, LongTail.from_counts(counts))


def test_the_table_has_a_row_a_class():
    rows = class_table(MATRIX, LONGTAIL)
    assert [row["recall"] for row in rows] == [0.8, 0.9, 0.5, 0.0]
    assert [row["precision"] for row in rows] == [8 / 18, 9 / 15, 5 / 7, 0.0]
    assert [row["predicted_images"] for row in rows] == [18, 15, 7, 0]
    assert [row["group"] for row in rows] == ["many", "medium", "few", "few"]
    assert rows[2]["training_images"] == 10
    assert rows[2]["test_images"] == 10
