"""The operations of AutoAugment and TrivialAugment on batches, each image with its own strength.

All shears, shifts and rotations are one gather of pixels, all blends one formula. Magnitudes mean
what torchvision's do; results are its own to a grey level, but for places half between two pixels.
"""

from __future__ import annotations

from functools import cache, partial

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
    each,
)

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"),
)
SIGNED = OPERATIONS[1:10]  # go both ways
_BLENDS = {"Brightness": BRIGHTNESS, "Color": SATURATION, "Contrast": CONTRAST}
# by operation; the index of its treatment: Invert is a Solarize of size 0
_IS_SIGNED = torch.tensor([name in SIGNED for name in OPERATIONS])
_BLEND = torch.tensor([_BLENDS.get(name, 0) for name in OPERATIONS])
_KIND = torch.tensor([0, *[1] * 5, *[2] * 3, 3, 4, 5, 6, 7, 5])


def operate(images: Tensor, operation: Tensor, size: Tensor, fill: int) -> Tensor:
    """Return ``images`` uint8 ``[N, 1 or 3, H, W]``, each after its own operation.

    ``operation``, int64 ``[N]``, are indexes of ``OPERATIONS``, and ``size``, float32 ``[N]``,
    their signed magnitudes: the tangent of a shear's angle, pixels of a shift, degrees of a
    rotation, a blend's factor less 1, bits that stay, the share of 255 from which on Solarize
    inverts, 0 of all others. ``fill``, 0..255, is the value of pixels that are uncovered.
    """
    treatments = (
        *(_identity, partial(_move, fill=fill), _blend, _sharpen, _posterize, _solarize),
        *(_autocontrast, _equalize),
    )
    kind = there(_KIND, images.device)[operation]
    pieces = (part.split(at_once(images)) for part in (images, kind, operation, size))
    return torch.cat([
        each(mine, kinds, treatments, *draws) for mine, kinds, *draws in zip(*pieces, strict=True)
    ])  # fmt: skip


def magnitudes(span: tuple[float, float], levels: int) -> Tensor:
    """Return those of all ``levels``, from the first of ``span`` to the last, float32.

    On the CPU and in float32 as in torchvision, whose rounding can decide a pixel.
    """
    return torch.linspace(*span, levels, dtype=torch.float32, device="cpu")


def with_sign(size: Tensor, operation: Tensor, negative: Tensor) -> Tensor:
    """Return ``size`` ``[..., N]``, negative where that was drawn and ``operation`` has a sign."""
    return torch.where(negative & there(_IS_SIGNED, size.device)[operation], -size, size)


@cache
def there(table: Tensor, device: torch.device) -> Tensor:
    """Return the ``table`` of a module on ``device``, copied once: a copy waits for the host."""
    return table.to(device)


def _move(images: Tensor, operation: Tensor, size: Tensor, *, fill: int) -> Tensor:
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


def _blend(images: Tensor, operation: Tensor, size: Tensor) -> Tensor:
    kind = there(_BLEND, images.device)[operation]
    return blend(images.float(), kind, 1 + size).round_().to(torch.uint8)


def _sharpen(images: Tensor, operation: Tensor, size: Tensor) -> Tensor:
    """Return ``images`` moved from (size < 0: towards) a blurred one; the border stays."""
    if min(images.shape[2:]) <= 2:
        return images
    sharp, channels = images.float(), images.shape[1]
    kernel = sharp.new_ones(channels, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = sharp.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(sharp, kernel / 13, groups=channels)
    sharpened = torch.lerp(smooth, sharp, (1 + size).view(-1, 1, 1, 1))
    return sharpened.clamp_(0, 255).round_().to(torch.uint8)


def _posterize(images: Tensor, operation: Tensor, size: Tensor) -> Tensor:
    kept = 256 - 2 ** (8 - size.round()).view(-1, 1, 1, 1)
    return images & kept.to(torch.uint8)


def _solarize(images: Tensor, operation: Tensor, size: Tensor) -> Tensor:
    """Return ``images`` with what is not below ``255 size`` inverted: all of it where that is 0."""
    return images.where(images < 255 * size.view(-1, 1, 1, 1), 255 - images)


def _identity(images: Tensor, operation: Tensor, size: Tensor) -> Tensor:
    return images


def _autocontrast(images: Tensor, operation: Tensor, size: Tensor) -> Tensor:
    stretched: Tensor = tv.autocontrast(images)
    return stretched


def _equalize(images: Tensor, operation: Tensor, size: Tensor) -> Tensor:
    equal: Tensor = tv.equalize(images)
    return equal
