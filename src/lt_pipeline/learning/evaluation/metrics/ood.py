"""Telling images of the training classes from others by a score; higher is more like training."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.metrics import catalog
from lt_pipeline.learning.schema import UserError


def ood_report(
    id_scores: Tensor, ood_scores: Tensor, labels: Tensor, longtail: LongTail
) -> dict[str, float]:
    """Return AUROC, FPR95 both ways and average precisions; AUROC and FPR95 by group, too.

    ``id_scores`` ``[N]`` are those of test images with true classes ``labels`` ``[N]``,
    ``ood_scores`` ``[M]`` those of images of no class. A group's are its own images against all of
    ``ood_scores``; groups without images are left out.

    Raises:
        UserError: if either side has no image, or a score is nan or infinite.
    """
    if not len(id_scores) or not len(ood_scores):
        raise UserError(
            f"an OOD comparison needs images on both sides, but has {len(id_scores)} ID and "
            f"{len(ood_scores)} OOD ones"
        )
    rows = catalog.METRICS.values()
    measures = {m.name: (m.from_detection, m.by_group) for m in rows if m.from_detection}
    report = {name: measure(id_scores, ood_scores) for name, (measure, _) in measures.items()}
    for group, mask in longtail.group_members(labels).items():
        for name, (measure, by_group) in measures.items():
            if by_group:
                report[f"{name}_{group}"] = measure(id_scores[mask], ood_scores)
    return report


def mean_report(reports: Collection[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every value over ``reports`` of the same ID images, one or more."""
    names = next(iter(reports))
    return {name: sum(report[name] for report in reports) / len(reports) for name in names}
