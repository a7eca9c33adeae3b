"""TrivialAugment with its wide space (Müller and Hutter, ICCV 2021) on batches.

Every image draws one of 14 operations, one of 31 levels and a sign, all torchvision's.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lt_pipeline.learning.transforms.operations import magnitudes, with_sign

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

    def operations(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the operations, int64 ``[1, N]``, and their signed magnitudes: of every size."""
        size = _table(self.level.device)[self.operation, self.level]
        return self.operation[None], with_sign(size, self.operation, self.negative)[None]


@cache
def _table(device: torch.device) -> Tensor:
    return torch.stack([magnitudes(span, LEVELS) for span in SPANS.values()]).to(device)


def draw(count: int, generator: torch.Generator) -> Draws:
    """Draw for ``count`` images, on the device of ``generator``."""
    device = generator.device
    operation = torch.randint(len(SPANS), (count,), generator=generator, device=device)
    level = torch.randint(LEVELS, (count,), generator=generator, device=device)
    coins = torch.rand(count, generator=generator, device=device)
    return Draws(operation, level, coins < 0.5)
