"""TrivialAugment with its wide space (Müller and Hutter, ICCV 2021) on batches.

Every image draws one of 14 operations, one of 31 levels and a sign. Those that need the same kind
of operation are treated as one batch, whatever their levels: all shears, shifts and rotations are
one gather of pixels. Operations and levels are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from lt_pipeline.learning.transforms.views import (
    BRIGHTNESS,
    CONTRAST,
    SATURATION,
    at_once,
    blend,
)

LEVELS = 31
# the magnitudes of the first and the last level
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
OPERATIONS = (*SPANS,)
SIGNED = OPERATIONS[1:10]
_BLENDS = {"Brightness": BRIGHTNESS, "Color": SATURATION, "Contrast": CONTRAST}


class Draws(NamedTuple):
    """What N images draw: int64 ``[N]`` indexes of operations and levels, bool ``[N]`` signs."""

    operation: Tensor
    level: Tensor
    negative: Tensor

    def magnitudes(self) -> Tensor:
        """Return the signed magnitudes, float32 ``[N]``."""
        # on the CPU: float32 as in torchvision, whose rounding can decide a pixel
        levels = [torch.linspace(*SPANS[name], LEVELS) for name in OPERATIONS]
        table = torch.stack(levels).to(self.level.device)
        signed = torch.tensor([n in SIGNED for n in OPERATIONS], device=table.device)
        size = table[self.operation, self.level]
        return torch.where(self.negative & signed[self.operation], -size, size)


def trivialaugment(images: Tensor, generator: torch.Generator, fill: int = 128) -> Tensor:
    """Return ``images`` uint8 ``[N, 1 or 3, H, W]``, each after an operation of its own draw.

    ``generator`` lives on the device of ``images``; ``fill``, 0..255, is the value of pixels that a
    shear, a shift or a rotation uncovers.
    """
    return apply_draws(images, draw(len(images), generator), fill)


def draw(count: int, generator: torch.Generator) -> Draws:
    """Draw for ``count`` images, on the device of ``generator``."""
    device = generator.device
    operation = torch.randint(len(OPERATIONS), (count,), generator=generator, device=device)
    level = torch.randint(LEVELS, (count,), generator=generator, device=device)
    coins = torch.rand(count, generator=generator, device=device)
    return Draws(operation, level, coins < 0.5)


def apply_draws(images: Tensor, draws: Draws, fill: int) -> Tensor:
    """Return ``images`` uint8 ``[N, C, H, W]`` after what each has drawn; the input stays.

    All group sizes reach the host in one transfer.
    """
    kind = torch.tensor([KIND[name] for name in OPERATIONS], device=images.device)[draws.operation]
    sizes = torch.bincount(kind, minlength=len(TREATMENTS)).tolist()
    groups = kind.argsort(stable=True).split_with_sizes(sizes)
    magnitudes, found = draws.magnitudes(), images.clone()
    for treat, group in zip(TREATMENTS, groups, strict=True):
        for mine in _pieces(group, images):
            found[mine] = treat(images[mine], draws.operation[mine], magnitudes[mine], fill)
    return found


def _pieces(group: Tensor, images: Tensor) -> Iterator[Tensor]:
    if len(group):
        yield from group.split(at_once(images))


def _move(images: Tensor, operation: Tensor, size: Tensor, fill: int) -> Tensor:
    """Return ``images``, each pixel that of the nearest place that it comes from."""
    height, width = images.shape[2:]

    def of(name: str) -> Tensor:
        return torch.where(operation == OPERATIONS.index(name), size, 0.0).view(-1, 1, 1)

    y = torch.arange(height, device=images.device).view(1, -1, 1) - (height - 1) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    angle = of("Rotate").deg2rad()
    shear_x, shear_y = of("ShearX"), of("ShearY")
    # shears keep the upper left corner, rotations the centre
    from_x = angle.cos() * x + (shear_x - angle.sin()) * y + shear_x * height / 2
    from_y = (shear_y + angle.sin()) * x + angle.cos() * y + shear_y * width / 2
    column = (from_x - of("TranslateX").trunc() + (width - 1) / 2).round()
    row = (from_y - of("TranslateY").trunc() + (height - 1) / 2).round()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)  # [n, H, W]
    place = torch.where(inside, row * width + column, 0.0).long().flatten(1)[:, None]
    moved = images.flatten(2).gather(2, place.expand(-1, images.shape[1], -1))
    return moved.view_as(images).where(inside[:, None], fill)


def _blend(images: Tensor, operation: Tensor, size: Tensor, fill: int) -> Tensor:
    kinds = torch.tensor([_BLENDS.get(n, 0) for n in OPERATIONS], device=images.device)
    return blend(images.float(), kinds[operation], 1 + size).round_().to(torch.uint8)


def _sharpen(images: Tensor, operation: Tensor, size: Tensor, fill: int) -> Tensor:
    """Return ``images`` moved from (size < 0: towards) a blurred one; the border stays."""
    if min(images.shape[2:]) <= 2:
        return images
    sharp, channels = images.float(), images.shape[1]
    kernel = sharp.new_ones(channels, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = sharp.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(sharp, kernel / 13, groups=channels)
    found = torch.lerp(smooth, sharp, (1 + size).view(-1, 1, 1, 1))
    return found.clamp_(0, 255).round_().to(torch.uint8)


def _posterize(images: Tensor, operation: Tensor, size: Tensor, fill: int) -> Tensor:
    kept = 256 - 2 ** (8 - size.round()).view(-1, 1, 1, 1)
    return images & kept.to(torch.uint8)


def _solarize(images: Tensor, operation: Tensor, size: Tensor, fill: int) -> Tensor:
    return images.where(images < 255 * size.view(-1, 1, 1, 1), 255 - images)


def _identity(images: Tensor, operation: Tensor, size: Tensor, fill: int) -> Tensor:
    return images


def _autocontrast(images: Tensor, operation: Tensor, size: Tensor, fill: int) -> Tensor:
    stretched: Tensor = tv.autocontrast(images)
    return stretched


def _equalize(images: Tensor, operation: Tensor, size: Tensor, fill: int) -> Tensor:
    equal: Tensor = tv.equalize(images)
    return equal


TREATMENTS: tuple[Callable[[Tensor, Tensor, Tensor, int], Tensor], ...] = (
    *(_identity, _move, _blend, _sharpen, _posterize, _solarize, _autocontrast, _equalize),
)
# the index of each operation's treatment
KIND = {
    "Identity": 0,
    **dict.fromkeys(OPERATIONS[1:6], 1),
    **dict.fromkeys(_BLENDS, 2),
    **{name: 3 + k for k, name in enumerate(OPERATIONS[9:])},
}
