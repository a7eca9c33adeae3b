"""Local and global logit adjustments: what K experts add to their logits, and how images weigh.

Tao et al., Local and global logit adjustments for long-tailed learning (LGLA, ICCV 2023), and the
authors' code (Tao0-0/LGLA). K - 1 local experts each rank the classes of one group against each
other, the last, global one ranks all. An expert's loss is the cross-entropy of its logits plus its
shift (``experts.by_expert``) times the angular weight; at test the logits stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lt_pipeline.learning.schema import UserError


def half_groups(class_counts: Tensor, groups: int) -> Tensor:
    """Return the classes of every group, bool ``[G, C]``: about N / G training images in each.

    ``class_counts`` ``[C]`` sum to N. The classes stand from fewest to most images (of equals, the
    one with the higher label first), and are cut behind the one with which the running sum first
    exceeds g N / G: it stays in the lower group. The first group has the most frequent classes,
    the last the rarest; every class is in one group.

    The authors' code differs in what its data sets do not have: it starts its sum anew after each
    cut, keeps classes of equal counts together, and can leave groups empty. Here every group has
    at least one class.

    Raises:
        UserError: unless 1 <= groups <= C.
    """
    classes = len(class_counts)
    if not 1 <= groups <= classes:
        raise UserError(
            f"there must be 1 to {classes} groups, as there are {classes} classes, but got {groups}"
        )
    order = class_counts.argsort(descending=True, stable=True).flip(0)  # fewest first
    running = class_counts[order].cumsum(0)
    cuts = torch.arange(1, groups, device=running.device)
    # groups * sum against cuts * N: integer counts are compared without rounding
    exceeds = groups * running > cuts[:, None] * running[-1]  # [G - 1, C]
    last = exceeds.int().argmax(1)  # the class that crosses, by rank; running[-1] always does
    # as many classes above a cut as there are groups. No class but these last ones can cross two
    # cuts: it would have over N / G images, and so would each of those behind it
    last = last.minimum(classes - 1 - groups + cuts)
    rank = order.argsort()
    group = groups - 1 - (rank > last[:, None]).sum(0)  # [C]
    return group == torch.arange(groups, device=group.device)[:, None]


def local_shift(prior: Tensor, class_mask: Tensor) -> Tensor:
    """Return a local expert's shift for every group, ``[..., G, C]``.

    It is log ``prior`` ``[..., C]`` for the classes of the group, ``class_mask`` bool ``[G, C]``,
    and log max(prior) for all others: only the former get margins relative to each other.
    """
    most = prior.amax(-1, keepdim=True)
    return torch.where(class_mask, prior[..., None, :], most[..., None, :]).log()


def global_shift(prior: Tensor, tau_g: float) -> Tensor:
    """Return the global expert's shift tau_g log ``prior``, ``[..., C]`` as the prior.

    Above 1, as the authors' 2.5 (CIFAR-100) and 3 (CIFAR-10), it favours rare classes.
    """
    return tau_g * prior.log()


def expert_shifts(prior: Tensor, class_mask: Tensor, tau_g: float) -> Tensor:
    """Return what each of K = G + 1 experts adds to its logits, ``[..., K, C]``, the global last.

    ``prior`` is ``[..., C]``, ``class_mask`` bool ``[G, C]`` the classes of the local experts. For
    a level prior all classes get the same, which adds nothing.
    """
    local, last = local_shift(prior, class_mask), global_shift(prior, tau_g)
    return torch.cat([local, last[..., None, :]], -2)


def prior_left(seen: Tensor, shift: Tensor) -> Tensor:
    """Return what the experts' mean logits hold for a class whatever the image, ``[..., C]``.

    Where a loss sees labels distributed as p = ``seen`` ``[..., C]`` and adds a = ``shift``
    ``[..., K, C]`` to the logits, it is least with the logits log p(x | y) + log p - a, and the
    scores at test keep the mean over the experts of log p - a. It is 0 with balanced softmax, whose
    a is log p; above 0 a class is favoured.
    """
    return (seen.log()[..., None, :] - shift).mean(-2)


def angular_weight(
    logits: Tensor,
    labels: Tensor,
    scale: float,
    class_mask: Tensor,
    reference: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return 1 + max(0, theta - its group's mean theta), ``[B, K]``: the adaptive angular weight.

    theta = acos(z_y / scale), in radians, is the angle between an image and its class, for the
    ``logits`` z = scale * cos ``[B, K, C]`` of cosine heads, before any shift, and ``labels``
    ``[B]``. The mean is over the images of ``reference``, logits ``[R, K, C]`` and labels ``[R]``
    (by default the same images), whose classes are in the same group of ``class_mask``, bool
    ``[G, C]``, by each expert's own angles. As in the authors' code the groups are the same for all
    experts: the global one, too, compares an image with those of its local group, and a local
    expert also weighs the images of the other groups. It has no gradient, and is in at least
    float32. Every class is in one group; a single one gives the mean of all; in a group without a
    reference image all weigh 1.
    """
    angle = _angle(logits, labels, scale)
    others, names = (
        (angle, labels) if reference is None else (_angle(*reference, scale), reference[1])
    )
    present = class_mask[:, names, None].to(angle.dtype)  # [G, R, 1]
    images = present.sum(1)  # [G, 1]
    mean = (present * others).sum(1) / images.clamp(min=1)  # [G, K]
    mean = mean.masked_fill(images == 0, torch.inf)
    group = class_mask.int().argmax(0)[labels]
    return 1 + (angle - mean[group]).relu()


def _angle(logits: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return the angles to the images' classes, ``[B, K]``."""
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    at = labels[:, None, None].expand(-1, logits.shape[1], 1)
    return (wide.gather(2, at)[..., 0] / scale).clamp(-1, 1).acos()
