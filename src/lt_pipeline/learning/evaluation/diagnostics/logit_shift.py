"""How much a part of the weights moves the logits, by group (MORE, table 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail, of_each_label


def logit_shift(
    full: Tensor, general: Tensor, labels: Tensor, longtail: LongTail
) -> dict[str, float]:
    """Return the mean of |f_y(x; theta) - f_y(x; theta^g)| over the images of each group.

    ``full`` and ``general`` are logits ``[N, C]`` of the same images, ``labels`` ``[N]`` their
    true classes y; of several, ``[N, C]``, each counts. Groups without an image are left out.
    """
    image, label = of_each_label(labels)
    return by_group((full - general)[image, label].abs(), label, longtail)


def discrepancy_by_group(
    full: Tensor, general: Tensor, labels: Tensor, longtail: LongTail
) -> dict[str, float]:
    """Return the mean of ||f(x; theta) - f(x; theta^g)||_2^2 (equation 2) by group."""
    return by_group((full - general).square().sum(1), labels, longtail)


def changed_predictions(
    full: Tensor, general: Tensor, labels: Tensor, longtail: LongTail
) -> dict[str, float]:
    """Return the share of images, by group and of ``all``, that the two networks class otherwise.

    A shift of the logits that changes no decision changes no recall. Where ``labels`` ``[N, C]``
    are several, a decision is of an image and a class: on which side of a half its probability is.
    """
    if labels.ndim == 2:
        changed = ((full > 0) != (general > 0)).double()
        every = torch.arange(longtail.classes).expand_as(changed)
        return by_group_and_all(changed.flatten(), every.flatten(), longtail)
    changed = (full.argmax(1) != general.argmax(1)).double()
    return by_group_and_all(changed, labels, longtail)


def by_group(values: Tensor, labels: Tensor, longtail: LongTail) -> dict[str, float]:
    """Return the mean of ``values`` ``[N]`` by the group of the true class ``labels`` ``[N]``.

    An image of several labels, ``[N, C]``, is in the group of each.
    """
    members = longtail.group_members(labels)
    return {name: float(values[mask].double().mean()) for name, mask in members.items()}


def by_group_and_all(values: Tensor, labels: Tensor, longtail: LongTail) -> dict[str, float]:
    """Return ``by_group`` and, as ``all``, the mean of ``values`` ``[N]``."""
    return {**by_group(values, labels, longtail), "all": float(values.double().mean())}
