"""Telling images of the training classes from others by a score; higher is more like training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from lt_pipeline.learning.data.longtail import LongTail
from lt_pipeline.learning.evaluation.metrics.finite import check_finite_scores
from lt_pipeline.learning.schema import UserError

KEPT = 0.95


def ood_report(
    inside: Tensor, outside: Tensor, labels: Tensor, longtail: LongTail
) -> dict[str, float]:
    """Return AUROC, FPR95 both ways and average precisions; AUROC and FPR95 by group, too.

    ``fpr95`` is that of OpenOOD and DARL, where images of no class are what is looked for: the
    share of ``inside`` that is turned away when 95 % of ``outside`` is. ``fpr95_in`` is the other
    way round, as in COCL: the share of ``outside`` that passes when 95 % of ``inside`` does.
    ``aupr_in`` and ``aupr_out`` are average precisions (scikit-learn's, as in Hendrycks' code), the
    sums of precision times the step of recall, with that side as the one looked for; OpenOOD's AUPR
    is the trapezoid under the curve.

    ``inside`` ``[N]`` are scores of test images with true classes ``labels`` ``[N]``, ``outside``
    ``[M]`` those of images of no class. A group's are its own images against all of ``outside``;
    groups without images are left out.

    Raises:
        UserError: if either side has no image, or a score is nan or infinite.
    """
    if not len(inside) or not len(outside):
        raise UserError(
            f"an OOD comparison needs images on both sides, but has {len(inside)} inside and "
            f"{len(outside)} outside"
        )
    # here and below, because scikit-learn takes a second to import
    from sklearn.metrics import average_precision_score

    truth, scores = _curve(inside, outside)
    found = {
        "auroc": auroc(inside, outside),
        "fpr95": fpr95(-outside, -inside),
        "fpr95_in": fpr95(inside, outside),
        "aupr_in": float(average_precision_score(truth, scores)),
        "aupr_out": float(average_precision_score(1 - truth, -scores)),
    }
    for name, mask in longtail.group_members(labels).items():
        found[f"auroc_{name}"] = auroc(inside[mask], outside)
        found[f"fpr95_{name}"] = fpr95(-outside, -inside[mask])
    return found


def mean_report(reports: Collection[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every value over ``reports`` of the same images inside, one or more."""
    names = next(iter(reports))
    return {name: sum(report[name] for report in reports) / len(reports) for name in names}


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Return the chance that an image of ``inside`` scores above one of ``outside``, ties half.

    Raises:
        UserError: if a score is nan or infinite.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_curve(inside, outside)))


def fpr95(wanted: Tensor, others: Tensor) -> float:
    """Return the share of ``others`` at or above the highest threshold that keeps 95 %.

    The threshold is the largest score t with at least 95 % of ``wanted`` >= t; ``others`` that
    tie with it are accepted, too.

    Raises:
        UserError: if a score is nan or infinite.
    """
    check_finite_scores(torch.cat([wanted, others]))
    ranked = wanted.double().sort(descending=True).values
    needed = -int(-KEPT * len(ranked) // 1)
    return float((others.double() >= ranked[needed - 1]).double().mean())


def _curve(inside: Tensor, outside: Tensor) -> tuple[Any, Any]:
    truth = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))])
    scores = torch.cat([inside, outside]).double()
    check_finite_scores(scores)
    return truth.numpy(), scores.cpu().numpy()
