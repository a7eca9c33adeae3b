"""TrivialAugment with its wide space (Müller and Hutter, ICCV 2021) on batches.

Every image draws one of 14 operations, one of 31 levels and a sign, all torchvision's.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lt_pipeline.learning.transforms.operations import (
    check_channels,
    magnitudes,
    operate,
    with_sign,
)

LEVELS = 31
# the magnitudes of the first and the last level, in the order of OPERATIONS
SPANS: dict[str, tuple[float, float]] = {
    "Identity": (0.0, 0.0),
    "ShearX": (0.0, 0.99),  # the tangent of the angle
    "ShearY": (0.0, 0.99),
    "TranslateX": (0.0, 32.0),  # pixels
    "TranslateY": (0.0, 32.0),
    "Rotate": (0.0, 135.0),  # degrees
    "Brightness": (0.0, 0.99),
    "Color": (0.0, 0.99),
    "Contrast": (0.0, 0.99),
    "Sharpness": (0.0, 0.99),
    "Posterize": (8.0, 2.0),  # bits that stay
    "Solarize": (1.0, 0.0),
    "AutoContrast": (0.0, 0.0),
    "Equalize": (0.0, 0.0),
}


class Draws(NamedTuple):
    """What N images draw: int64 ``[N]`` indexes of operations and levels, bool ``[N]`` signs."""

    operation: Tensor
    level: Tensor
    negative: Tensor

    def magnitudes(self) -> Tensor:
        """Return the signed magnitudes, float32 ``[N]``."""
        size = _table(self.level.device)[self.operation, self.level]
        return with_sign(size, self.operation, self.negative)


@cache
def _table(device: torch.device) -> Tensor:
    return torch.stack([magnitudes(span, LEVELS) for span in SPANS.values()]).to(device)


def trivialaugment(images: Tensor, generator: torch.Generator, fill: int = 128) -> Tensor:
    """Return ``images`` uint8 ``[N, 1 or 3, H, W]``, each after an operation of its own draw.

    ``generator`` lives on the device of ``images``; ``fill``, 0..255, is the value of pixels that a
    shear, a shift or a rotation uncovers.
    """
    check_channels("TrivialAugment", images.shape[1])
    return apply_draws(images, draw(len(images), generator), fill)


def draw(count: int, generator: torch.Generator) -> Draws:
    """Draw for ``count`` images, on the device of ``generator``."""
    device = generator.device
    operation = torch.randint(len(SPANS), (count,), generator=generator, device=device)
    level = torch.randint(LEVELS, (count,), generator=generator, device=device)
    coins = torch.rand(count, generator=generator, device=device)
    return Draws(operation, level, coins < 0.5)


def apply_draws(images: Tensor, draws: Draws, fill: int) -> Tensor:
    """Return ``images`` uint8 ``[N, C, H, W]`` after what each has drawn; the input stays."""
    return operate(images, draws.operation, draws.magnitudes(), fill)
