"""How well a score tells images of the training classes from others; theirs is to be higher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_pipeline.learning.evaluation.metrics.finite import check_finite_scores

KEPT = 0.95


def auroc(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Return the chance that one of ``id_scores`` is above one of ``ood_scores``, ties half.

    Raises:
        UserError: if a score is nan or infinite.
    """
    # here and below, because scikit-learn takes a second to import
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(*_curve(id_scores, ood_scores)))


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


def fpr95_of_ood(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Return the share of ``id_scores`` that is turned away when 95 % of ``ood_scores`` is.

    That of OpenOOD and DARL, where images of no class are what is looked for.
    """
    return fpr95(-ood_scores, -id_scores)


def aupr_in(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Return the average precision with ``id_scores`` as what is looked for.

    It is scikit-learn's, as in Hendrycks' code, the sum of precisions times the steps of recall;
    OpenOOD's AUPR is the trapezoid under the curve.
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_curve(id_scores, ood_scores)))


def aupr_out(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Return the average precision with ``ood_scores`` as what is looked for."""
    return aupr_in(-ood_scores, -id_scores)


def _curve(id_scores: Tensor, ood_scores: Tensor) -> tuple[Any, Any]:
    truth = torch.cat([torch.ones(len(id_scores)), torch.zeros(len(ood_scores))])
    scores = torch.cat([id_scores, ood_scores]).double()
    check_finite_scores(scores)
    return truth.numpy(), scores.cpu().numpy()
