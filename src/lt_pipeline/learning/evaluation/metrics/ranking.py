"""How well a score tells images of the training classes from others; theirs is to be higher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_pipeline.learning.evaluation.metrics.finite import check_finite_scores

KEPT = 0.95


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Return the chance that an image of ``inside`` scores above one of ``outside``, ties half.

    Raises:
        UserError: if a score is nan or infinite.
    """
    # here and below, because scikit-learn takes a second to import
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_curve(inside, outside)))


def fpr95(wanted: Tensor, others: Tensor) -> float:
    """Return the share of ``others`` at or above the highest threshold that keeps 95 %.

    The threshold is the largest score t with at least 95 % of ``wanted`` >= t; ``others`` that
    tie with it are accepted, too. With images of the training classes as ``wanted`` it is that of
    COCL: the share of the others that passes.

    Raises:
        UserError: if a score is nan or infinite.
    """
    check_finite_scores(torch.cat([wanted, others]))
    ranked = wanted.double().sort(descending=True).values
    needed = -int(-KEPT * len(ranked) // 1)
    return float((others.double() >= ranked[needed - 1]).double().mean())


def fpr95_of_outside(inside: Tensor, outside: Tensor) -> float:
    """Return the share of ``inside`` that is turned away when 95 % of ``outside`` is.

    That of OpenOOD and DARL, where images of no class are what is looked for.
    """
    return fpr95(-outside, -inside)


def aupr_in(inside: Tensor, outside: Tensor) -> float:
    """Return the average precision with ``inside`` as what is looked for.

    It is scikit-learn's, as in Hendrycks' code, the sum of precisions times the steps of recall;
    OpenOOD's AUPR is the trapezoid under the curve.
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_curve(inside, outside)))


def aupr_out(inside: Tensor, outside: Tensor) -> float:
    """Return the average precision with ``outside`` as what is looked for."""
    return aupr_in(-outside, -inside)


def _curve(inside: Tensor, outside: Tensor) -> tuple[Any, Any]:
    truth = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))])
    scores = torch.cat([inside, outside]).double()
    check_finite_scores(scores)
    return truth.numpy(), scores.cpu().numpy()
