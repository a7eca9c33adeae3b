"""Scores of a whole set of images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lt_pipeline.learning.data.protocol import Images, Pixels, in_order
from lt_pipeline.learning.engine.device import enough_threads
from lt_pipeline.learning.evaluation.metrics.finite import check_finite_scores
from lt_pipeline.learning.evaluation.metrics.several import average_precisions
from lt_pipeline.learning.progress import track

# of what a person sees who waits
NAME = "scoring images"


@torch.no_grad()
def predict(
    module: nn.Module,
    score: Callable[[Tensor], Tensor],
    data: Pixels | Tensor,
    *,
    device: torch.device,
    batch_size: int = 256,
) -> Tensor:
    """Return ``score`` of all images, or rows ``[N, ...]``, of ``data``, float32 on the CPU.

    ``module`` is what ``score`` computes with; it is put into evaluation mode.

    Raises:
        UserError: if a score is nan or infinite.
    """
    module.eval()
    parts = track(in_order(data, batch_size), NAME, max(-(-len(data) // batch_size), 1))
    score_parts = []
    for part in parts:
        with enough_threads(device, part.shape):
            score_parts.append(score(part.to(device)).float().cpu())
    scores = torch.cat(score_parts)
    check_finite_scores(scores)
    return scores


def accuracies(
    module: nn.Module, score: Callable[[Tensor], Tensor], data: Images, *, device: torch.device
) -> dict[str, float]:
    """Return the ``accuracy`` on ``data`` and the ``mean_recall`` of the classes it has.

    On a long-tailed hold-out the first is that of the frequent classes; choose by the second. Of
    images with several labels it is the ``mean_average_precision`` of the classes there are.

    Raises:
        UserError: if a score is nan or infinite.
    """
    return accuracies_of(predict(module, score, data, device=device), data.labels.cpu())


def accuracies_of(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return what ``accuracies`` does, of ``scores`` ``[N, C]`` that are there."""
    if labels.ndim == 2:
        precisions = average_precisions(scores, labels)
        return {"mean_average_precision": float(precisions.nanmean())}
    right = (scores.argmax(1) == labels).double()
    images = torch.bincount(labels)
    recall = torch.bincount(labels, right)[images > 0] / images[images > 0]
    return {"accuracy": float(right.mean()), "mean_recall": float(recall.mean())}
