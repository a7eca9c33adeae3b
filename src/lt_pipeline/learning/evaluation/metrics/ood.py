"""Telling images of the training classes from others by a score; higher is more like training."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.metrics import catalog
from lt_pipeline.learning.schema import UserError


def ood_report(
    inside: Tensor, outside: Tensor, labels: Tensor, longtail: LongTail
) -> dict[str, float]:
    """Return AUROC, FPR95 both ways and average precisions; AUROC and FPR95 by group, too.

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
    rows = catalog.METRICS.values()
    told = {m.name: (m.from_detection, m.by_group) for m in rows if m.from_detection}
    found = {name: measure(inside, outside) for name, (measure, _) in told.items()}
    for group, mask in longtail.group_members(labels).items():
        for name, (measure, by_group) in told.items():
            if by_group:
                found[f"{name}_{group}"] = measure(inside[mask], outside)
    return found


def mean_report(reports: Collection[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every value over ``reports`` of the same images inside, one or more."""
    names = next(iter(reports))
    return {name: sum(report[name] for report in reports) / len(reports) for name in names}
