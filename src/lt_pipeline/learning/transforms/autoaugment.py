"""AutoAugment's CIFAR-10 policy (Cubuk et al., CVPR 2019, table 7) on batches.

Every image draws its own sub-policy, its own coin for each of the two operations, and its own sign.
Shifts are cut off to whole pixels, where code on PIL images rounds (docs/methods/more.md).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lt_pipeline.learning.transforms.operations import OPERATIONS, magnitudes, there, with_sign

LEVELS = 10

# Per sub-policy, two steps: operation, probability, level (index of the magnitude, or none).
POLICY: tuple[tuple[tuple[str, float, int | None], tuple[str, float, int | None]], ...] = (
    (("Invert", 0.1, None), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, None), ("Equalize", 0.9, None)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, None), ("Equalize", 0.5, None)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, None), ("AutoContrast", 0.4, None)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, None)),
    (("Equalize", 0.2, None), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.2, None), ("Equalize", 0.6, None)),
    (("Color", 0.9, 9), ("Equalize", 0.6, None)),
    (("AutoContrast", 0.8, None), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, None)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, None), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, None), ("Invert", 0.1, None)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, None)),
)

_PROBABILITY = torch.tensor([[probability for _, probability, _ in steps] for steps in POLICY]).T


def spans(height: int, width: int) -> dict[str, tuple[float, float]]:
    """Return the magnitudes of the first and the last level, for images of so many pixels."""
    return {
        "ShearY": (0.0, 0.3),
        "TranslateX": (0.0, 150.0 / 331.0 * width),
        "TranslateY": (0.0, 150.0 / 331.0 * height),
        "Rotate": (0.0, 30.0),
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.0, 0.9)),
        "Posterize": (8.0, 4.0),
        "Solarize": (1.0, 0.0),
        **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), (0.0, 0.0)),
    }


class Draws(NamedTuple):
    """What N images draw.

    ``sub_policy`` int64 ``[N]``; ``applied`` and ``negative`` bool ``[2, N]``, for the first and
    the second step.
    """

    sub_policy: Tensor
    applied: Tensor
    negative: Tensor

    def operations(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return indexes into ``OPERATIONS``, int64 ``[2, N]``, and their signed magnitudes."""
        tables = _tables(height, width, self.sub_policy.device)
        operation, size = (table[self.sub_policy].T for table in tables)  # [2, N]
        return operation.where(self.applied, 0), with_sign(size, operation, self.negative)


@cache
def _tables(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the operation of each sub-policy's two steps, and its magnitude, ``[25, 2]``."""
    of = {name: magnitudes(span, LEVELS) for name, span in spans(height, width).items()}
    operation = [[OPERATIONS.index(name) for name, _, _ in steps] for steps in POLICY]
    size = [[float(of[name][level or 0]) for name, _, level in steps] for steps in POLICY]
    return torch.tensor(operation, device=device), torch.tensor(size, device=device)


def draw(count: int, generator: torch.Generator) -> Draws:
    """Draw for ``count`` images, on the device of ``generator``."""
    device = generator.device
    sub_policy = torch.randint(len(POLICY), (count,), generator=generator, device=device)
    coins = torch.rand(2, 2, count, generator=generator, device=device)
    probability = there(_PROBABILITY, device)[:, sub_policy]  # [2, N]
    return Draws(sub_policy, coins[0] < probability, coins[1] < 0.5)
