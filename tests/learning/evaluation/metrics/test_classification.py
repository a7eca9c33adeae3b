from __future__ import annotations

import math
import warnings

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.metrics.classification import (
    class_recall,
    class_table,
    confusion_matrix,
    confusion_of,
    confusion_table,
    report,
)

LONGTAIL = LongTail.from_counts([200, 50, 10, 5])
MATRIX = torch.tensor([[8, 2, 0, 0], [1, 9, 0, 0], [5, 0, 5, 0], [4, 4, 2, 0]])


# the first one imports torchmetrics
@settings(deadline=None)
@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 1000))
def test_the_matrix_and_recalls_are_scikit_learns(classes, images, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(images, classes, generator=generator)
    labels = torch.randint(0, classes, (images,), generator=generator)
    matrix = confusion_matrix(scores, labels)
    predicted = scores.argmax(1).numpy()
    wanted = reference.confusion_matrix(labels.numpy(), predicted, labels=range(classes))
    assert matrix.tolist() == wanted.tolist()
    metrics = report(matrix, LongTail.from_counts([1] * classes))
    assert metrics["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    recall = reference.recall_score(
        labels, predicted, labels=range(classes), average=None, zero_division=0
    )
    assert class_recall(matrix).tolist() == pytest.approx(recall.tolist())
    present = [recall[c] for c in range(classes) if c in labels.tolist()]
    assert metrics["mean_recall"] == pytest.approx(sum(present) / len(present))
    with warnings.catch_warnings():
        # predicted classes without an image are what it warns of, and leaves out
        warnings.simplefilter("ignore", UserWarning)
        balanced = reference.balanced_accuracy_score(labels, predicted)
    assert metrics["mean_recall"] == pytest.approx(balanced)
    floored = [max(r, 1e-3) for r in present]
    assert metrics["harmonic_mean"] == pytest.approx(stats.hmean(floored))
    assert metrics["geometric_mean"] == pytest.approx(stats.gmean(floored))


def test_a_report_by_hand():
    metrics = report(MATRIX, LONGTAIL)
    assert metrics["accuracy"] == metrics["mean_recall"] == 22 / 40
    assert (metrics["many"], metrics["medium"]) == (0.8, 0.9)
    assert metrics["few"] == pytest.approx((0.5 + 0.0) / 2)
    assert (metrics["lowest_recall"], metrics["zero_recall_classes"]) == (0.0, 1.0)
    assert metrics["recall_floor"] == 1e-3


def test_one_class_of_recall_zero_in_a_hundred_caps_the_harmonic_mean():
    matrix = torch.diag(torch.full((100,), 10))
    matrix[7, 7], matrix[7, 8] = 0, 10
    metrics = report(matrix, LongTail.from_counts([5] * 100))
    assert metrics["harmonic_mean"] == pytest.approx(100 / (99 + 1000))
    assert metrics["harmonic_mean"] < 0.1


def test_empty_groups_and_untested_classes_are_left_out_and_nothing_is_nan():
    matrix = MATRIX.clone()
    matrix[0] = 0
    metrics = report(matrix, LONGTAIL)
    assert "many" not in metrics
    assert metrics["mean_recall"] == pytest.approx((0.9 + 0.5 + 0.0) / 3)
    assert not any(math.isnan(value) for value in metrics.values())
    assert "few" not in report(MATRIX, LongTail.from_counts([200, 50, 40, 30]))


def test_a_test_set_without_images_is_refused():
    with pytest.raises(ValueError, match="must have images"):
        report(torch.zeros(4, 4, dtype=torch.int64), LONGTAIL)


@pytest.mark.parametrize("use", [report, class_table])
@pytest.mark.parametrize("counts", [[200, 50, 10], [200, 50, 10, 5, 5]])
def test_a_matrix_of_other_classes_is_refused(use, counts):
    with pytest.raises(ValueError, match=r"must be \[\d, \d\].* but is \[4, 4\]"):
        use(MATRIX, LongTail.from_counts(counts))


def test_the_matrix_of_many_classes_is_sparse_and_says_the_same():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 600, (4000,), generator=generator)
    labels[labels == 5] = 6
    predicted = torch.where(torch.rand(4000, generator=generator) < 0.4, labels, labels // 3)
    sparse = confusion_matrix(torch.eye(600)[predicted], labels)
    dense = torch.from_numpy(reference.confusion_matrix(labels, predicted, labels=range(600)))
    assert sparse.is_sparse
    assert torch.equal(sparse.to_dense(), dense)
    longtail = LongTail.from_counts([300] * 200 + [50] * 200 + [5] * 200)
    assert report(sparse, longtail) == report(dense, longtail)
    assert class_table(sparse, longtail) == class_table(dense, longtail)


def test_the_table_of_a_sparse_matrix_has_the_largest_confusions_first(tmp_path):
    labels = torch.tensor([0] * 5 + [1] * 4 + [2] * 2 + [599])
    predicted = torch.tensor([0, 0, 9, 9, 9, 8, 8, 8, 1, 4, 4, 599])
    matrix = confusion_matrix(torch.eye(600)[predicted], labels)
    names = tuple(f"{c:03}" for c in range(600))
    confusion_table(matrix, names).to_csv(tmp_path / "confusion.csv")
    table = pd.read_csv(tmp_path / "confusion.csv", index_col=0)
    pairs = list(zip(table.index, table["predicted"], table["images"], strict=True))
    wrong, right = [(1, 8, 3), (0, 9, 3), (2, 4, 2)], [(0, 0, 2), (599, 599, 1), (1, 1, 1)]
    assert pairs == wrong + right
    assert table["share"].tolist() == pytest.approx([3 / 4, 3 / 5, 1, 2 / 5, 1, 1 / 4])
    assert torch.equal(confusion_of(table, 600).to_dense(), matrix.to_dense())
    small = confusion_table(MATRIX, tuple("abcd"))
    assert small.to_numpy().tolist() == MATRIX.tolist()
    assert list(small.index) == list(small.columns) == list("abcd")
    assert torch.equal(confusion_of(small, 4), MATRIX)


def test_the_table_has_a_row_a_class():
    rows = class_table(MATRIX, LONGTAIL)
    assert [row["recall"] for row in rows] == [0.8, 0.9, 0.5, 0.0]
    assert [row["precision"] for row in rows] == [8 / 18, 9 / 15, 5 / 7, 0.0]
    assert [row["predicted_images"] for row in rows] == [18, 15, 7, 0]
    assert [row["group"] for row in rows] == ["many", "medium", "few", "few"]
    assert rows[2]["training_images"] == 10
    assert rows[2]["test_images"] == 10
