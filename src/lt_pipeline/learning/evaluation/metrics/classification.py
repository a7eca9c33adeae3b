"""Everything that follows from the confusion matrix: accuracy, recall by class and group, means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lt_pipeline.learning.data.distribution import MANY_CLASSES, LongTail
from lt_pipeline.learning.evaluation.metrics.catalog import METRICS
from lt_pipeline.learning.evaluation.metrics.finite import check_finite_scores
from lt_pipeline.learning.evaluation.metrics.intervals import Outcomes, wilson
from lt_pipeline.learning.evaluation.metrics.recalls import (
    Recalls,
    class_recall,
    predicted_images,
    right_images,
    true_images,
)
from lt_pipeline.learning.evaluation.metrics.several import Decided
from lt_pipeline.learning.schema import UserError


def confusion_matrix(scores: Tensor, labels: Tensor) -> Tensor:
    """Return images by true class (row) and class of the highest score (column), int64 ``[C, C]``.

    ``scores`` is ``[N, C]``, ``labels`` ``[N]``. Above ``MANY_CLASSES`` classes it is a sparse
    tensor, as no test set has images for all of its cells.

    Raises:
        UserError: if a score is nan or infinite.
    """
    check_finite_scores(scores)
    predicted, classes = scores.argmax(1), scores.shape[1]
    if classes <= MANY_CLASSES:
        # here, because importing it takes a second that the start of a run can spare
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        return multiclass_confusion_matrix(predicted, labels, num_classes=classes)
    cells = torch.stack([labels.to(predicted.device), predicted])
    images, shape = torch.ones_like(predicted), (classes, classes)
    return torch.sparse_coo_tensor(cells, images, shape, check_invariants=True).coalesce()


def confusion_table(confusion: Tensor, names: tuple[str, ...]) -> pd.DataFrame:
    """Return the matrix ``[C, C]``; of a sparse one a row a cell that has images.

    The largest confusions come first, what is right last. Rows are by the number of the ``true``
    class; ``share`` is that of its images.
    """
    if not confusion.is_sparse:
        return pd.DataFrame(confusion.numpy(), index=list(names), columns=list(names))
    true, predicted = confusion.indices()
    images = confusion.values()
    cells = {"true": true, "predicted": predicted, "images": images}
    table = pd.DataFrame({name: column.numpy() for name, column in cells.items()})
    table["share"] = (images.double() / true_images(confusion)[true]).numpy()
    for column in ("true", "predicted"):
        table[f"{column}_name"] = [names[c] for c in table[column]]
    right = table["true"] == table["predicted"]
    return table.iloc[np.lexsort((-table["share"], -table["images"], right))].set_index("true")


def confusion_of(table: pd.DataFrame, classes: int) -> Tensor:
    """Return the matrix that ``confusion_table`` made ``table`` of."""
    if table.shape == (classes, classes):
        return torch.from_numpy(table.to_numpy(copy=True))
    cells = torch.from_numpy(table.reset_index()[["true", "predicted"]].to_numpy().T.copy())
    images = torch.from_numpy(table["images"].to_numpy(copy=True))
    return torch.sparse_coo_tensor(
        cells, images, (classes, classes), check_invariants=True
    ).coalesce()


def report(confusion: Tensor, longtail: LongTail, floor: float = 1e-3) -> dict[str, float]:
    """Return the metrics of a test set that follow from recalls, as fractions of 1.

    ``many``, ``medium`` and ``few`` are mean recalls of their classes; a group without a class is
    left out, as is a class without a test image. A recall of zero counts as ``floor`` in the
    harmonic and the geometric mean.

    Raises:
        UserError: if there is no test image at all, or the classes are not those of ``longtail``.
    """
    _check_classes(confusion, longtail)
    recalls = Recalls(confusion, longtail, floor)
    if not recalls.tested.any():
        raise UserError("the test set must have images, but has none")
    values = {m.name: m.from_recalls(recalls) for m in METRICS.values() if m.from_recalls}
    return {**{name: v for name, v in values.items() if v is not None}, "recall_floor": floor}


def label_report(decided: Decided) -> dict[str, float]:
    """Return the metrics of a test set whose images have several labels, as fractions of 1.

    A group without a class that has a test image is left out.

    Raises:
        UserError: if no image has a label.
    """
    if not decided.tested.any():
        raise UserError("the test set must have images with a label, but has none")
    values = {m.name: m.from_decided(decided) for m in METRICS.values() if m.from_decided}
    return {name: value for name, value in values.items() if value is not None}


def score_report(scores: Tensor, labels: Tensor, bins: int = 15) -> dict[str, float]:
    """Return the metrics that follow from scores ``[N, C]`` of images of ``labels``.

    ``bins`` are those of calibration.
    """
    rows = METRICS.values()
    return {m.name: m.from_scores(scores, labels, bins) for m in rows if m.from_scores}


def interval_report(tested: Outcomes) -> dict[str, float]:
    """Return the mean recall's 95 % interval, unless groups are too few, and how many there are."""
    names, ends = ("mean_recall_low", "mean_recall_high"), tested.interval()
    groups = {} if tested.groups is None else {"groups": float(len(set(tested.groups.tolist())))}
    return {**(dict(zip(names, ends, strict=True)) if ends else {}), **groups}


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
    sure = _intervals(confusion, tested)
    recall = class_recall(confusion).tolist()
    images, predicted = true_images(confusion).tolist(), predicted_images(confusion).tolist()
    taken = predicted_images(confusion).clamp(min=1)
    precision = (right_images(confusion).double() / taken).tolist()
    return [
        {
            "class": c,
            "name": longtail.class_names[c],
            "group": longtail.class_groups[c],
            "training_images": longtail.class_counts[c],
            "test_images": images[c],
            "predicted_images": predicted[c],
            "recall": recall[c],
            "precision": precision[c],
            **sure[c],
        }
        for c in range(longtail.classes)
    ]


def _intervals(confusion: Tensor, tested: Outcomes | None) -> list[dict[str, Any]]:
    """Return the columns of every class that say how sure its recall is."""
    if tested is None or tested.groups is None:
        both = zip(right_images(confusion).tolist(), true_images(confusion).tolist(), strict=True)
        intervals = [wilson(right, images) if images else None for right, images in both]
        groups: list[dict[str, int]] = [{} for _ in intervals]
    else:
        intervals = tested.class_intervals(len(confusion))
        groups = [{"test_groups": n} for n in tested.groups_by_class(len(confusion))]
    return [
        dict(zip(("recall_low", "recall_high"), ends or (None, None), strict=True)) | of
        for ends, of in zip(intervals, groups, strict=True)
    ]


def _check_classes(confusion: Tensor, longtail: LongTail) -> None:
    if confusion.shape != (longtail.classes, longtail.classes):
        raise UserError(
            f"the confusion matrix must be {[longtail.classes] * 2}, a row and a column for each "
            f"class of the training set, but is {list(confusion.shape)}; evaluate with the data "
            f"that the method was trained on"
        )
