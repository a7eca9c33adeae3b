"""AutoAugment's CIFAR-10 policy (Cubuk et al., CVPR 2019, table 7) on batches.

Every image draws its own sub-policy, its own coin for each of the two operations, and its own sign.
Images that then need the same operation, magnitude and sign go through torchvision as one batch.
Its shifts are cut off to whole pixels, where code on PIL images rounds (docs/methods/more.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import atan, degrees
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from lt_pipeline.learning.schema import UserError

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


def _affine(
    images: Tensor,
    fill: int,
    translate: tuple[int, int] = (0, 0),
    shear_y: float = 0.0,
    center: tuple[float, float] | None = None,
) -> Tensor:
    moved: Tensor = F.affine(
        images,
        angle=0.0,
        translate=list(translate),
        scale=1.0,
        shear=[0.0, shear_y],
        fill=fill,
        center=None if center is None else list(center),
    )
    return moved


@dataclass(frozen=True)
class Operation:
    """One kind of change: ``apply(images, magnitude, fill)``, for one magnitude a batch.

    The magnitudes of the levels are ``span(height, width)``: first, last, evenly spaced between;
    or there is no choice of magnitude. A ``signed`` operation goes both ways.
    """

    apply: Callable[[Tensor, float, int], Tensor]
    span: Callable[[int, int], tuple[float, float]] | None = None
    signed: bool = False

    def magnitude(self, level: int | None, height: int, width: int) -> float:
        """Return the unsigned magnitude of ``level`` for images ``[N, C, height, width]``."""
        if self.span is None or level is None:
            return 0.0
        first, last = self.span(height, width)
        # float32 as in torchvision: its rounding can decide a pixel.
        return float(torch.linspace(first, last, LEVELS, dtype=torch.float32, device="cpu")[level])


OPERATIONS: dict[str, Operation] = {
    # The level is the tangent of the shear angle; torchvision wants the angle, from the corner.
    "ShearY": Operation(
        lambda images, size, fill: _affine(
            images, fill, shear_y=degrees(atan(size)), center=(0, 0)
        ),
        lambda height, width: (0.0, 0.3),
        signed=True,
    ),
    "TranslateX": Operation(
        lambda images, size, fill: _affine(images, fill, translate=(int(size), 0)),
        lambda height, width: (0.0, 150.0 / 331.0 * width),
        signed=True,
    ),
    "TranslateY": Operation(
        lambda images, size, fill: _affine(images, fill, translate=(0, int(size))),
        lambda height, width: (0.0, 150.0 / 331.0 * height),
        signed=True,
    ),
    "Rotate": Operation(
        lambda images, size, fill: F.rotate(images, angle=size, fill=fill),
        lambda height, width: (0.0, 30.0),
        signed=True,
    ),
    "Brightness": Operation(
        lambda images, size, fill: F.adjust_brightness(images, 1.0 + size),
        lambda height, width: (0.0, 0.9),
        signed=True,
    ),
    "Color": Operation(
        lambda images, size, fill: F.adjust_saturation(images, 1.0 + size),
        lambda height, width: (0.0, 0.9),
        signed=True,
    ),
    "Contrast": Operation(
        lambda images, size, fill: F.adjust_contrast(images, 1.0 + size),
        lambda height, width: (0.0, 0.9),
        signed=True,
    ),
    "Sharpness": Operation(
        lambda images, size, fill: F.adjust_sharpness(images, 1.0 + size),
        lambda height, width: (0.0, 0.9),
        signed=True,
    ),
    # Bits that stay, from all 8 down to 4.
    "Posterize": Operation(
        lambda images, size, fill: F.posterize(images, bits=round(size)),
        lambda height, width: (8.0, 4.0),
    ),
    "Solarize": Operation(
        lambda images, size, fill: F.solarize(images, threshold=255.0 * size),
        lambda height, width: (1.0, 0.0),
    ),
    "AutoContrast": Operation(lambda images, size, fill: F.autocontrast(images)),
    "Equalize": Operation(lambda images, size, fill: F.equalize(images)),
    "Invert": Operation(lambda images, size, fill: F.invert(images)),
}


class Move(NamedTuple):
    """An operation at one level, in one direction: what one group of images shares."""

    operation: str
    level: int | None
    negative: bool

    def apply(self, images: Tensor, fill: int) -> Tensor:
        """Return ``images`` ``[N, C, H, W]`` moved, of the same shape."""
        operation = OPERATIONS[self.operation]
        size = operation.magnitude(self.level, images.shape[2], images.shape[3])
        return operation.apply(images, -size if self.negative else size, fill)


def _moves(name: str, level: int | None) -> tuple[Move, Move]:
    """Return the moves for a positive and for a negative sign."""
    return Move(name, level, False), Move(name, level, OPERATIONS[name].signed)


MOVES: tuple[Move, ...] = tuple(
    dict.fromkeys(
        move for steps in POLICY for name, _, level in steps for move in _moves(name, level)
    )
)
# [sub-policy][step][sign] -> index into MOVES.
_MOVE_INDEX = [
    [[MOVES.index(move) for move in _moves(name, level)] for name, _, level in steps]
    for steps in POLICY
]
_PROBABILITY = [[probability for _, probability, _ in steps] for steps in POLICY]


class Draws(NamedTuple):
    """What N images draw.

    ``sub_policy`` int64 ``[N]``; ``applied`` and ``negative`` bool ``[2, N]``, for the first and
    the second step.
    """

    sub_policy: Tensor
    applied: Tensor
    negative: Tensor

    def moves(self) -> Tensor:
        """Return indexes into ``MOVES``, int64 ``[2, N]``; ``len(MOVES)`` is no move."""
        table = torch.tensor(_MOVE_INDEX, device=self.sub_policy.device)  # [25, 2, 2]
        step = torch.arange(2, device=self.sub_policy.device)[:, None]
        index = table[self.sub_policy, step, self.negative.long()]  # [2, N]
        return index.masked_fill(~self.applied, len(MOVES))


def draw(count: int, generator: torch.Generator) -> Draws:
    """Draw for ``count`` images, on the device of ``generator``."""
    device = generator.device
    sub_policy = torch.randint(len(POLICY), (count,), generator=generator, device=device)
    coins = torch.rand(2, 2, count, generator=generator, device=device)
    probability = torch.tensor(_PROBABILITY, device=device).T[:, sub_policy]  # [2, N]
    return Draws(sub_policy, coins[0] < probability, coins[1] < 0.5)


def apply_draws(images: Tensor, draws: Draws, fill: int) -> Tensor:
    """Return ``images`` uint8 ``[N, C, H, W]`` after what each has drawn; the input stays.

    Each step sorts the images by their move, so that a group is a slice. All group sizes reach the
    host in one transfer.
    """
    moves, order = draws.moves().sort(dim=1, stable=True)  # [2, N]
    edges = torch.arange(len(MOVES) + 2, device=moves.device).expand(2, -1).contiguous()
    sizes = torch.searchsorted(moves, edges).diff(dim=1).tolist()
    for step in range(2):
        groups = images.index_select(0, order[step]).split_with_sizes(sizes[step])
        moved = [
            move.apply(group, fill)
            for move, group in zip(MOVES, groups[:-1], strict=True)
            if len(group)
        ]
        images = torch.cat([*moved, groups[-1]]).index_select(0, order[step].argsort())
    return images


def check_channels(channels: int) -> None:
    """Raise ValueError unless AutoAugment can treat images with this many channels: 1 or 3."""
    if channels not in (1, 3):
        raise UserError(
            f"AutoAugment needs images with 1 or 3 channels, but these have {channels}: "
            f"set autoaugment to false"
        )


def autoaugment(images: Tensor, generator: torch.Generator, fill: int = 128) -> Tensor:
    """Return ``images`` uint8 ``[N, 1 or 3, H, W]``, each after a sub-policy of its own.

    ``generator`` lives on the device of ``images``; ``fill``, 0..255, is the value of pixels that a
    shear, a shift or a rotation uncovers. Agrees with torchvision's AutoAugment in the table, the
    ten levels and every pixel of an operation. Raises ValueError for other numbers of channels.
    """
    check_channels(images.shape[1])
    return apply_draws(images, draw(len(images), generator), fill)
