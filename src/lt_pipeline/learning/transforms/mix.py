"""MixUp and CutMix of paired batches, on the device that holds them.

MixUp: Zhang et al., mixup: Beyond empirical risk minimization (ICLR 2018). CutMix: Yun et al.,
CutMix: Regularization strategy to train strong classifiers with localizable features (ICCV 2019).
DARL (Zhang, Chin et al., ACM MM 2025, section 4.2) takes both, with pairs of a long-tailed and a
balanced draw. torchvision's ``MixUp`` and ``CutMix`` mix a batch with itself, rolled by one, and
return dense label rows ``[M, C]`` without lam: they can neither pair two draws nor give each
label its own loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lt_pipeline.learning.schema import Config, UserError


class MixConfig(Config):
    """How two batches are mixed.

    The weight lam of the first is Beta(``alpha``, ``alpha``). With both kinds on, ``both`` says
    whether a fair coin chooses one for the whole batch (``alternate``), or the first half is MixUp
    and the second CutMix (``halves``).
    """

    mixup: bool = True
    cutmix: bool = True
    alpha: Annotated[float, Field(gt=0)] = 1.0
    both: Literal["alternate", "halves"] = "alternate"


class Mixed(NamedTuple):
    """Mixed images float32 ``[M, C, H, W]`` in 0..255, with two labels each.

    ``first`` and ``second`` are int64 ``[M]``; ``lam`` float32 ``[M]`` in [0, 1] is the weight of
    ``first``, and 1 - lam that of ``second``.
    """

    images: Tensor
    first: Tensor
    second: Tensor
    lam: Tensor


class Box(NamedTuple):
    """Rows ``top`` up to, not including, ``bottom``, and columns ``left`` up to ``right``."""

    top: int
    bottom: int
    left: int
    right: int

    def lam(self, height: int, width: int) -> float:
        """Return the share of an image's pixels that lie outside."""
        pasted = (self.bottom - self.top) * (self.right - self.left)
        return (height * width - pasted) / (height * width)


class Kind(NamedTuple):
    """How so many ``images`` in a row are mixed: CutMix by ``box``, without one MixUp.

    ``lam`` is the weight of the first of two images.
    """

    images: int
    lam: float
    box: Box | None = None


def mix(
    images_a: Tensor,
    labels_a: Tensor,
    images_b: Tensor,
    labels_b: Tensor,
    config: MixConfig,
    generator: torch.Generator,
) -> Mixed:
    """Return image i of the first batch mixed with image i of the second.

    Both are uint8 ``[M, C, H, W]`` with labels int64 ``[M]``, and stay as they are; M may be 0. One
    lam, and one box, is drawn for the batch, or for each half of it, on the CPU: ``generator``
    lives there, and is asked for one number whatever the config.

    Raises:
        UserError: if the batches do not fit each other, or both mixup and cutmix are off.
    """
    shapes = [list(part.shape) for part in (images_a, labels_a, images_b, labels_b)]
    if shapes[:2] != shapes[2:] or shapes[1] != shapes[0][:1]:
        raise UserError(
            f"images [M, C, H, W] and labels [M] are paired one by one, but the first are "
            f"{shapes[0]} and {shapes[1]}, the second {shapes[2]} and {shapes[3]}"
        )
    if not (config.mixup or config.cutmix):
        raise UserError("mixup and cutmix are both false: set one to true, or do not mix")
    kinds = draw_kinds(len(images_a), images_a.shape[2:], config, generator)
    sizes = [kind.images for kind in kinds]
    parts = [
        mixup(a, b, kind.lam) if kind.box is None else cutmix(a, b, kind.box)
        for kind, a, b in zip(kinds, images_a.split(sizes), images_b.split(sizes), strict=True)
    ]
    images, lam = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    return Mixed(images, labels_a, labels_b, lam)


def draw_kinds(
    images: int, size: Sequence[int], config: MixConfig, generator: torch.Generator
) -> list[Kind]:
    """Draw how ``mix`` mixes so many ``images`` of the ``size`` (height, width), part by part."""
    # torch's Beta takes no generator; numpy's does, and is exact for small alpha
    random = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    if config.mixup and config.cutmix and config.both == "halves":
        half = images // 2
        first = Kind(half, random.beta(config.alpha, config.alpha))
        return [first, _boxed(images - half, size, config.alpha, random)]
    if config.mixup and not (config.cutmix and random.random() < 0.5):
        return [Kind(images, random.beta(config.alpha, config.alpha))]
    return [_boxed(images, size, config.alpha, random)]


def mixup(images_a: Tensor, images_b: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Return lam * a + (1 - lam) * b, float32 ``[M, C, H, W]``, and lam, ``[M]``."""
    return torch.lerp(images_b.float(), images_a.float(), lam), _per_image(images_a, lam)


def cutmix(images_a: Tensor, images_b: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Return the first images with the ``box`` of the second, float32 ``[M, C, H, W]``.

    And lam, the fraction of pixels of the first, ``[M]``: from the box, not the one that it was
    drawn for, as it may reach past the border and has whole pixels.
    """
    height, width = images_a.shape[2:]
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    images = images_a.to(torch.float32, copy=True)
    images[:, :, rows, columns] = images_b[:, :, rows, columns].float()
    return images, _per_image(images_a, box.lam(height, width))


def draw_box(height: int, width: int, lam: float, random: np.random.Generator) -> Box:
    """Draw a box of about (1 - lam) of an image's pixels, of its shape (CutMix, equation 2).

    Its centre is uniform over the pixels, and what reaches past the border is lost. Its sides are
    the nearest whole numbers; in the authors' code they are even, rounded down.
    """
    side = math.sqrt(1 - lam)
    top, bottom = _interval(height, side, random)
    left, right = _interval(width, side, random)
    return Box(top, bottom, left, right)


def expected_lam(config: MixConfig) -> float:
    """Return the mean weight of the first of two images, in [0, 1].

    It is 1/2 with MixUp. A CutMix box that reaches past the border is clipped: of sides s = sqrt(u)
    of the image's, u ~ Beta(alpha, alpha), s (1 - s / 4) is left on average, so that the second
    image has u - u^1.5 / 2 + u^2 / 16.

    Raises:
        UserError: if both mixup and cutmix are off.
    """
    if not (config.mixup or config.cutmix):
        raise UserError("mixup and cutmix are both false: there is no lam")

    def moment(power: float) -> float:
        a = config.alpha
        logs = math.lgamma(a + power) - math.lgamma(a) + math.lgamma(2 * a)
        return math.exp(logs - math.lgamma(2 * a + power))

    cutmix = 1 - (moment(1) - moment(1.5) / 2 + moment(2) / 16)
    if not config.mixup:
        return cutmix
    return (0.5 + cutmix) / 2 if config.cutmix else 0.5


def two_hot_loss(losses_first: Tensor, losses_second: Tensor, lam: Tensor) -> Tensor:
    """Return lam * first + (1 - lam) * second: DARL, equation 3.

    The losses of the mixed images for either label are ``[M]``, or ``[M, K]`` for K experts, as is
    the result; ``lam`` is ``[M]``.
    """
    lam = lam.view(-1, *[1] * (losses_first.ndim - 1))
    return lam * losses_first + (1 - lam) * losses_second


def _boxed(images: int, size: Sequence[int], alpha: float, random: np.random.Generator) -> Kind:
    height, width = size
    box = draw_box(height, width, random.beta(alpha, alpha), random)
    return Kind(images, box.lam(height, width), box)


def _interval(size: int, fraction: float, random: np.random.Generator) -> tuple[int, int]:
    length = round(fraction * size)
    start = int(random.integers(size)) - length // 2
    return max(start, 0), min(start + length, size)


def _per_image(images: Tensor, lam: float) -> Tensor:
    return torch.full((len(images),), lam, dtype=torch.float32, device=images.device)
