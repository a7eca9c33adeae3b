"""Numbers of images with several labels: how well each class's are ranked, and decided on.

A class without an image that has it cannot be ranked: it is left out of every mean over classes,
and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.metrics.finite import check_finite_scores

# the logit of a probability of a half: from there on a label is said, where nothing was chosen
HALF = 0.0


def average_precisions(scores: Tensor, labels: Tensor) -> Tensor:
    """Return each class's average precision, float64 ``[C]``, nan without an image that has it.

    ``scores`` ``[N, C]`` are logits, ``labels`` ``[N, C]`` 1 where an image has the label. It is
    scikit-learn's: the sum of precisions times the steps of recall, equal scores as one step.

    Raises:
        UserError: if a score is nan or infinite.
    """
    check_finite_scores(scores)
    # here, because scikit-learn takes a second to import
    from sklearn.metrics import average_precision_score

    truth, numbers = labels.cpu().numpy(), scores.double().cpu().numpy()
    values = [
        average_precision_score(truth[:, c], numbers[:, c]) if truth[:, c].any() else np.nan
        for c in range(truth.shape[1])
    ]
    return torch.tensor(values, dtype=torch.float64)


def best_thresholds(scores: Tensor, labels: Tensor) -> Tensor:
    """Return, by class, the score from which on saying the label has the best F1, float64 ``[C]``.

    It lies in the middle between two of the ``scores`` ``[N, C]`` of a hold-out, or is the lowest;
    of equally good ones it is the highest. A class without an image there keeps ``HALF``, as all do
    where there are no images.

    Raises:
        UserError: if a score is nan or infinite.
    """
    check_finite_scores(scores)
    thresholds = torch.full((scores.shape[1],), HALF, dtype=torch.float64)
    for c in range(scores.shape[1]):
        if labels[:, c].any():
            thresholds[c] = _best_threshold(scores[:, c], labels[:, c])
    return thresholds


def _best_threshold(scores: Tensor, labels: Tensor) -> float:
    ranked, order = scores.double().sort(descending=True, stable=True)
    right = labels[order].double().cumsum(0)
    predicted = torch.arange(1, len(ranked) + 1)
    f1 = 2 * right / (predicted + right[-1])
    # equal scores are said together
    last = torch.cat([ranked[1:] < ranked[:-1], torch.ones(1, dtype=torch.bool)])
    best = int(torch.where(last, f1, -1.0).argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best]
    return float((ranked[best] + below) / 2)


@dataclass(frozen=True)
class Decided:
    """Scores of a test set, logits ``[N, C]``, and its ``labels`` ``[N, C]``.

    A label is said from its class's of ``thresholds`` ``[C]`` on. The classes are those of
    ``longtail``.
    """

    scores: Tensor
    labels: Tensor
    thresholds: Tensor
    longtail: LongTail

    @cached_property
    def tested(self) -> Tensor:
        """Return whether classes have a test image, bool ``[C]``."""
        return self.labels.bool().any(0)

    @cached_property
    def average_precision(self) -> Tensor:
        """Return ``average_precisions``, ``[C]``."""
        return average_precisions(self.scores, self.labels)

    @cached_property
    def predicted(self) -> Tensor:
        """Return which labels are predicted, int64 ``[N, C]``."""
        return (self.scores.double() >= self.thresholds).long()

    @cached_property
    def right(self) -> Tensor:
        """Return of how many images a label is said that they have, int64 ``[C]``."""
        return (self.predicted * self.labels).sum(0)

    @cached_property
    def f1(self) -> Tensor:
        """Return each class's F1 = 2 TP / (2 TP + FP + FN), float64 ``[C]``."""
        return 2 * self.right.double() / (self.predicted.sum(0) + self.labels.sum(0)).clamp(min=1)

    def table(self) -> list[dict[str, Any]]:
        """Return a row a class: images, average precision, and what its threshold decides.

        ``average_precision`` is None without a test image; recall and precision are 0 where there
        is nothing that they are shares of.
        """
        has, chosen, right = self.labels.long().sum(0), self.predicted.sum(0), self.right.double()
        known = self.longtail
        columns = {
            "class": range(known.classes),
            "name": known.class_names,
            "group": known.class_groups,
            "training_images": known.class_counts,
            "test_images": has.tolist(),
            "predicted_images": chosen.tolist(),
            "average_precision": [
                float(ap) if tested else None
                for ap, tested in zip(self.average_precision, self.tested, strict=True)
            ],
            "threshold": self.thresholds.sigmoid().tolist(),
            "recall": (right / has.clamp(min=1)).tolist(),
            "precision": (right / chosen.clamp(min=1)).tolist(),
            "f1": self.f1.tolist(),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def label_confusion(self) -> Tensor:
        """Return of how many images with one label (row) which is said (column), int64 ``[C, C]``.

        On the diagonal are those that are right.
        """
        return self.labels.long().T @ self.predicted


def mean_average_precision(decided: Decided) -> float:
    """Return the mean average precision of the classes with a test image."""
    return float(decided.average_precision[decided.tested].mean())


def group_average_precision(decided: Decided, group: str) -> float | None:
    """Return the same of a group's classes with a test image, None if there is none."""
    return decided.longtail.group_mean(group, decided.average_precision, decided.tested)


def macro_f1(decided: Decided) -> float:
    """Return the mean F1 of the classes with a test image."""
    return float(decided.f1[decided.tested].mean())


def micro_f1(decided: Decided) -> float:
    """Return the F1 of all decisions on the classes with a test image, taken together."""
    both = (decided.predicted.sum(0) + decided.labels.sum(0))[decided.tested].sum()
    return float(2 * decided.right[decided.tested].sum().double() / both)


def coverage_error(decided: Decided) -> float:
    """Return how many of the highest scores it takes to cover all labels of an image, on average.

    Scikit-learn's, over the images with a label (Tsoumakas et al. 2010).
    """
    from sklearn.metrics import coverage_error as measure

    return float(measure(*_labelled(decided)))


def ranking_loss(decided: Decided) -> float:
    """Return the share of pairs, a label that an image has and one that it has not, out of order.

    Scikit-learn's, over the images with a label (Tsoumakas et al. 2010).
    """
    from sklearn.metrics import label_ranking_loss

    return float(label_ranking_loss(*_labelled(decided)))


def classes(decided: Decided) -> float:
    """Return how many classes with a test image there are: what means are over."""
    return float(decided.tested.sum())


def _labelled(decided: Decided) -> Sequence[Any]:
    labelled = decided.labels.bool().any(1)
    return decided.labels[labelled].numpy(), decided.scores[labelled].double().numpy()
