"""Crop, flip, a policy's operations and Cutout of small images as one kernel of Triton's.

A program holds one image, all of its channels, from the first read to the only write, and takes the
branches of its own operations alone. Results are those of ``augment.apply`` to a grey level, but
for places half between two pixels. Triton comes with PyTorch's builds for GPUs, so that this module
is imported on one only; with ``TRITON_INTERPRET=1`` it runs on a CPU, to be tested.
"""

# ruff: noqa: ANN001, ANN202
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lt_pipeline.learning.transforms.augment import AugmentConfig, Drawn
from lt_pipeline.learning.transforms.on_triton import (
    grey_of,
    launch,
    mean_of,
    moved_from,
    rounded,
    store,
)
from lt_pipeline.learning.transforms.operations import OPERATIONS

_SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y, _ROTATE = (
    tl.constexpr(OPERATIONS.index(name))
    for name in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
)
_BRIGHTNESS, _COLOR, _CONTRAST, _SHARPNESS = (
    tl.constexpr(OPERATIONS.index(name))
    for name in ("Brightness", "Color", "Contrast", "Sharpness")
)
_POSTERIZE, _SOLARIZE, _AUTOCONTRAST, _EQUALIZE, _INVERT = (
    tl.constexpr(OPERATIONS.index(name))
    for name in ("Posterize", "Solarize", "AutoContrast", "Equalize", "Invert")
)


def apply(images: Tensor, drawn: Drawn, config: AugmentConfig) -> Tensor:
    """Return ``images`` uint8 ``[N, 1 or 3, H, W]`` after what each has ``drawn``, channels last.

    H x W is at most ``KERNEL_PIXELS``, N at least 1. One launch; nothing waits for the host.
    """
    mirrored = None if drawn.mirrored is None else drawn.mirrored.view(torch.uint8)
    return launch(
        _augment,
        images,
        *(drawn.corner, mirrored, drawn.operation, drawn.size, drawn.centre),
        *(config.crop_padding, config.autoaugment_fill, config.cutout // 2),
        steps=0 if drawn.operation is None else len(drawn.operation),
    )


# or a last, smaller part of an epoch would be compiled for anew
@triton.jit(do_not_specialize=["count", "padding", "fill", "reach"])
def _augment(
    images,
    result,
    count,
    of_image,
    of_channel,
    of_row,
    of_column,
    corner,
    mirrored,
    operations,
    sizes,
    centre,
    padding,
    fill,
    reach,
    steps: tl.constexpr,
    channels: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    pixels: tl.constexpr,
):
    image = tl.program_id(0)
    place = tl.arange(0, pixels)  # what lies behind height * width is no pixel
    row, column, real = place // width, place % width, place < height * width
    from_row, from_column = _window(image, corner, mirrored, count, padding, row, column, width)
    inside = real & (from_row >= 0) & (from_row < height)
    inside &= (from_column >= 0) & (from_column < width)
    start = images + image.to(tl.int64) * of_image + from_row * of_row + from_column * of_column
    red = tl.load(start, inside, other=0).to(tl.int32)
    green, blue = red, red
    if channels == 3:
        green = tl.load(start + of_channel, inside, other=0).to(tl.int32)
        blue = tl.load(start + 2 * of_channel, inside, other=0).to(tl.int32)
    if operations is not None:
        for step in range(steps):
            operation = tl.load(operations + step * count + image).to(tl.int32)
            size = tl.load(sizes + step * count + image)
            red, green, blue = _step(
                *(red, green, blue, operation, size, row, column, real, fill),
                *(channels, height, width, pixels),
            )
    if centre is not None:
        down = row - tl.load(centre + image).to(tl.int32)
        right = column - tl.load(centre + count + image).to(tl.int32)
        cut = (down >= -reach) & (down < reach) & (right >= -reach) & (right < reach)
        red, green, blue = tl.where(cut, 0, red), tl.where(cut, 0, green), tl.where(cut, 0, blue)
    store(result, image, place, real, red, green, blue, height * width, channels)


@triton.jit
def _window(image, corner, mirrored, count, padding, row, column, width: tl.constexpr):
    """Return where the pixels of a crop, then flipped, come from."""
    if mirrored is not None:
        column = tl.where(tl.load(mirrored + image) != 0, width - 1 - column, column)
    if corner is not None:
        row += tl.load(corner + image).to(tl.int32) - padding
        column += tl.load(corner + count + image).to(tl.int32) - padding
    return row, column


@triton.jit
def _step(
    red,
    green,
    blue,
    operation,
    size,
    row,
    column,
    real,
    fill,
    channels: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    pixels: tl.constexpr,
):
    """Return an image's channels after its ``operation``."""
    source, covered = row * width + column, real
    plain = tl.zeros([pixels], tl.float32)
    if (operation >= _SHEAR_X) & (operation <= _ROTATE):
        source, covered = _moved(operation, size, row, column, real, height, width)
    if (operation == _COLOR) | (operation == _CONTRAST):
        plain = grey_of(red, green, blue, channels)
    if operation == _CONTRAST:
        plain = mean_of(plain, real, height * width)
    red = _operate(
        red, operation, size, source, covered, plain, row, column, real, fill, height, width
    )
    if channels == 3:
        green = _operate(
            green, operation, size, source, covered, plain, row, column, real, fill, height, width
        )
        blue = _operate(
            blue, operation, size, source, covered, plain, row, column, real, fill, height, width
        )
    return red, green, blue


@triton.jit
def _moved(operation, size, row, column, real, height: tl.constexpr, width: tl.constexpr):
    """Return where every pixel comes from, and whether that is in the image: ``_move``."""
    y, x = row - (height - 1) / 2, column - (width - 1) / 2
    shear_x = tl.where(operation == _SHEAR_X, size, 0.0)
    shear_y = tl.where(operation == _SHEAR_Y, size, 0.0)
    angle = tl.where(operation == _ROTATE, size, 0.0) * 0.017453292519943295
    cos, sin = tl.cos(angle), tl.sin(angle)
    from_x = cos * x + (shear_x - sin) * y + shear_x * height * 0.5
    from_y = (shear_y + sin) * x + cos * y + shear_y * width * 0.5
    right = tl.where(operation == _TRANSLATE_X, size, 0.0).to(tl.int32).to(tl.float32)
    down = tl.where(operation == _TRANSLATE_Y, size, 0.0).to(tl.int32).to(tl.float32)
    from_column = rounded(from_x - right + (width - 1) / 2)
    from_row = rounded(from_y - down + (height - 1) / 2)
    inside = real & (from_row >= 0) & (from_row < height)
    inside &= (from_column >= 0) & (from_column < width)
    return tl.where(inside, from_row * width + from_column, 0), inside


@triton.jit
def _operate(
    plane,
    operation,
    size,
    source,
    covered,
    plain,
    row,
    column,
    real,
    fill,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """Return a channel, int32 ``[pixels]`` in 0..255, after its image's ``operation``."""
    if (operation >= _SHEAR_X) & (operation <= _ROTATE):
        plane = tl.where(covered, tl.gather(plane, source, 0), fill)
    elif (operation >= _BRIGHTNESS) & (operation <= _CONTRAST):
        plane = _blended(plain, plane, size)
    elif operation == _SHARPNESS:
        plane = _blended(_smooth(plane, row, column, height, width), plane, size)
    elif operation == _POSTERIZE:
        plane &= 256 - (1 << (8 - rounded(size)))
    elif (operation == _SOLARIZE) | (operation == _INVERT):
        plane = tl.where(plane < 255 * size, plane, 255 - plane)
    elif operation == _AUTOCONTRAST:
        plane = _stretched(plane, real)
    elif operation == _EQUALIZE:
        plane = _equalized(plane, real, height * width)
    return plane


@triton.jit
def _blended(plain, plane, size):
    return rounded(moved_from(plain, plane.to(tl.float32), 1 + size))


@triton.jit
def _smooth(plane, row, column, height: tl.constexpr, width: tl.constexpr):
    """Return the mean of 3 x 3 pixels, the middle counted five times; the border stays."""
    if (height <= 2) | (width <= 2):
        return plane.to(tl.float32)
    place, last = row * width + column, height * width - 1
    three = plane + tl.gather(plane, tl.maximum(place - 1, 0), 0)
    three += tl.gather(plane, tl.minimum(place + 1, last), 0)
    nine = three + tl.gather(three, tl.maximum(place - width, 0), 0)
    nine += tl.gather(three, tl.minimum(place + width, last), 0)
    border = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    return tl.where(border, plane.to(tl.float32), (nine + 4 * plane).to(tl.float32) / 13)


@triton.jit
def _stretched(plane, real):
    """Return ``plane`` from 0 to 255, grey levels cut off."""
    low = tl.min(tl.where(real, plane, 255), 0)
    span = tl.max(tl.where(real, plane, 0), 0) - low
    level = tl.maximum(span, 1).to(tl.float32) * 0.00392156862745098
    stretched = tl.div_rn((plane - low).to(tl.float32), tl.zeros_like(plane) + level)
    return tl.where(span > 0, tl.minimum(stretched, 255.0).to(tl.int32), plane)


@triton.jit
def _equalized(plane, real, count: tl.constexpr):
    """Return ``plane`` with every grey level as frequent as can be, as in PIL."""
    tally = tl.histogram(plane, 256, real)
    below = tl.cumsum(tally, 0) - tally
    highest = tl.max(tl.where(real, plane, 0), 0)
    step = (count - tl.sum((real & (plane == highest)).to(tl.int32), 0)) // 255
    table = tl.minimum((below + step // 2) // tl.maximum(step, 1), 255)
    return tl.where(step > 0, tl.gather(table, plane, 0), plane)
