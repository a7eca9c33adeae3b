"""How tightly images gather around their class's centre (DBM, figure 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail

SUMMARIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "angle_mean": lambda angles: angles.mean(),
    "angle_lower_quartile": lambda angles: angles.quantile(0.25),
    "angle_median": lambda angles: angles.quantile(0.5),
    "angle_upper_quartile": lambda angles: angles.quantile(0.75),
}


def angles_to_prototypes(features: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
    """Return the angle between each image's feature and its own class's centre.

    ``features`` ``[N, F]``, ``prototypes`` ``[C, F]`` (a cosine head's weights) and ``labels``
    ``[N]``; the angles are degrees in [0, 180], float64 ``[N]``. Where feature or centre is zero
    there is no direction, and the angle is 90 degrees: as far from the centre as from its
    opposite.
    The arc cosine loses half the digits near 0 and 180 degrees, so the angle is taken from the
    sides of the rhombus of the two unit vectors (Kahan, How futile are mindless assessments of
    roundoff in floating-point computation?, 2006, section 12).
    """
    own = prototypes.double()[labels]  # [N, F]
    angles = 2 * torch.atan2(
        (_unit(features) - _unit(own)).norm(dim=1), (_unit(features) + _unit(own)).norm(dim=1)
    )
    directed = features.any(1) & own.any(1)
    return torch.where(directed, angles.rad2deg(), 90.0)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.double(), dim=1, eps=torch.finfo(torch.float64).tiny)


def angle_summary(
    angles: Tensor, labels: Tensor, longtail: LongTail
) -> dict[str, dict[str, float]]:
    """Return mean and quartiles of ``angles`` ``[N]``, in degrees, by group and for all images.

    ``labels`` ``[N]`` are the true classes. The result is {statistic: {group: degrees}}; groups
    without an image are left out. Quartiles lie between two images by linear interpolation.
    """
    members = {**longtail.group_members(labels), "all": torch.ones_like(labels, dtype=torch.bool)}
    by_group = {name: angles[mask].double() for name, mask in members.items() if mask.any()}
    return {
        statistic: {name: float(of(values)) for name, values in by_group.items()}
        for statistic, of in SUMMARIES.items()
    }
