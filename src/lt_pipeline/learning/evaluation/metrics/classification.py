"""Everything that follows from the confusion matrix: accuracy, recall by class and group, means."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lt_pipeline.learning.data.longtail import LongTail
from lt_pipeline.learning.evaluation.metrics.catalog import METRICS
from lt_pipeline.learning.evaluation.metrics.finite import check_finite_scores
from lt_pipeline.learning.evaluation.metrics.intervals import Outcomes, wilson
from lt_pipeline.learning.evaluation.metrics.recalls import Recalls, class_recall
from lt_pipeline.learning.schema import UserError


def confusion_matrix(scores: Tensor, labels: Tensor) -> Tensor:
    """Return images by true class (row) and class of the highest score (column), int64 ``[C, C]``.

    ``scores`` is ``[N, C]``, ``labels`` ``[N]``.

    Raises:
        UserError: if a score is nan or infinite.
    """
    check_finite_scores(scores)
    # here, because importing it takes a second that the start of a run can spare
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(scores.argmax(1), labels, num_classes=scores.shape[1])


def report(confusion: Tensor, longtail: LongTail, floor: float = 1e-3) -> dict[str, float]:
    """Return the metrics of a test set that follow from recalls, as fractions of 1.

    ``many``, ``medium`` and ``few`` are mean recalls of their classes; a group without a class is
    left out, as is a class without a test image. A recall of zero counts as ``floor`` in the
    harmonic and the geometric mean.

    Raises:
        UserError: if there is no test image at all, or the classes are not those of ``longtail``.
    """
    _check_classes(confusion, longtail)
    found = Recalls(confusion, longtail, floor)
    if not found.tested.any():
        raise UserError("the test set must have images, but has none")
    values = {m.name: m.from_recalls(found) for m in METRICS.values() if m.from_recalls}
    return {**{name: v for name, v in values.items() if v is not None}, "recall_floor": floor}


def score_report(scores: Tensor, labels: Tensor, bins: int = 15) -> dict[str, float]:
    """Return the metrics that follow from scores ``[N, C]`` of images of ``labels`` ``[N]``.

    ``bins`` are those of calibration.
    """
    rows = METRICS.values()
    return {m.name: m.from_scores(scores, labels, bins) for m in rows if m.from_scores}


def interval_report(tested: Outcomes) -> dict[str, float]:
    """Return the mean recall's 95 % interval, unless groups are too few, and how many there are."""
    names, found = ("mean_recall_low", "mean_recall_high"), tested.interval()
    groups = {} if tested.groups is None else {"groups": float(len(set(tested.groups.tolist())))}
    return {**(dict(zip(names, found, strict=True)) if found else {}), **groups}


def class_table(
    confusion: Tensor, longtail: LongTail, tested: Outcomes | None = None
) -> list[dict[str, Any]]:
    """Return a row a class: name, group, training and test images, recall and precision.

    ``recall_low`` and ``recall_high`` are the recall's 95 % interval: Wilson's, or where ``tested``
    has groups the bootstrap's over those, of which ``test_groups`` says how many there are. None is
    where there are fewer than five, or no test image.

    The recall of a class without a test image and the precision of a class that is never predicted
    are 0; ``test_images`` and ``predicted_images`` tell those from real zeros.

    Raises:
        UserError: if the classes are not those of ``longtail``.
    """
    _check_classes(confusion, longtail)
    sure = [_interval(confusion, tested, c) for c in range(longtail.classes)]
    recall = class_recall(confusion).tolist()
    predicted = confusion.sum(0)
    precision = (confusion.diagonal().double() / predicted.clamp(min=1)).tolist()
    return [
        {
            "class": c,
            "name": longtail.class_names[c],
            "group": longtail.class_groups[c],
            "training_images": longtail.class_counts[c],
            "test_images": int(confusion[c].sum()),
            "predicted_images": int(predicted[c]),
            "recall": recall[c],
            "precision": precision[c],
            **sure[c],
        }
        for c in range(longtail.classes)
    ]


def _interval(confusion: Tensor, tested: Outcomes | None, label: int) -> dict[str, Any]:
    right, images = int(confusion[label, label]), int(confusion[label].sum())
    if tested is None or tested.groups is None:
        found, groups = wilson(right, images) if images else None, {}
    else:
        found, groups = tested.class_interval(label), {"test_groups": tested.groups_of(label)}
    low, high = found or (None, None)
    return {"recall_low": low, "recall_high": high, **groups}


def _check_classes(confusion: Tensor, longtail: LongTail) -> None:
    if confusion.shape != (longtail.classes, longtail.classes):
        raise UserError(
            f"the confusion matrix must be {[longtail.classes] * 2}, a row and a column for each "
            f"class of the training set, but is {list(confusion.shape)}; evaluate with the data "
            f"that the method was trained on"
        )
