"""Everything that follows from the confusion matrix: accuracy, recall by class and group, means."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lt_pipeline.learning.data.longtail import LongTail
from lt_pipeline.learning.evaluation.metrics.finite import check_finite_scores
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


def class_recall(confusion: Tensor) -> Tensor:
    """Return the share of each class's images that was found, float64 ``[C]``; 0 without images."""
    return confusion.diagonal().double() / confusion.sum(1).clamp(min=1)


def report(confusion: Tensor, longtail: LongTail, floor: float = 1e-3) -> dict[str, float]:
    """Return the metrics of a test set as fractions of 1.

    ``many``, ``medium`` and ``few`` are mean recalls of their classes; a group without a class is
    left out, as is a class without a test image. ``harmonic_mean`` and ``geometric_mean`` are of
    the recalls, one of zero counted as ``floor`` (BTM's rule). One such class among a hundred
    keeps the harmonic mean below 10 %, whatever the others do.

    Raises:
        UserError: if there is no test image at all, or the classes are not those of ``longtail``.
    """
    _check_classes(confusion, longtail)
    tested = confusion.sum(1) > 0
    if not tested.any():
        raise UserError("the test set must have images, but has none")
    recall = class_recall(confusion)
    known = recall[tested]
    floored = known.clamp(min=floor)
    groups = {
        name: recall[[c for c in classes if tested[c]]] for name, classes in longtail.groups.items()
    }
    return {
        "accuracy": float(confusion.diagonal().sum().double() / confusion.sum()),
        "mean_recall": float(known.mean()),
        **{name: float(values.mean()) for name, values in groups.items() if len(values)},
        "harmonic_mean": float(1 / (1 / floored).mean()),
        "geometric_mean": float(floored.log().mean().exp()),
        "lowest_recall": float(known.min()),
        "zero_recall_classes": float((known == 0).sum()),
        "recall_floor": floor,
    }


def class_table(confusion: Tensor, longtail: LongTail) -> list[dict[str, Any]]:
    """Return a row a class: name, group, training and test images, recall and precision.

    The recall of a class without a test image and the precision of a class that is never predicted
    are 0; ``test_images`` and ``predicted_images`` tell those from real zeros.

    Raises:
        UserError: if the classes are not those of ``longtail``.
    """
    _check_classes(confusion, longtail)
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
        }
        for c in range(longtail.classes)
    ]


def _check_classes(confusion: Tensor, longtail: LongTail) -> None:
    if confusion.shape != (longtail.classes, longtail.classes):
        raise UserError(
            f"the confusion matrix must be {[longtail.classes] * 2}, a row and a column for each "
            f"class of the training set, but is {list(confusion.shape)}; evaluate with the data "
            f"that the method was trained on"
        )
