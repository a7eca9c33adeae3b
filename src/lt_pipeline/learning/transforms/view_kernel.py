"""A random view of small images as one kernel of Triton's: all of ``views.apply_view``.

As in ``kernel`` a program holds one image, and takes the branches of what this has drawn alone.
"""

# ruff: noqa: ANN001, ANN202
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lt_pipeline.learning.transforms import views
from lt_pipeline.learning.transforms.on_triton import (
    grey_of,
    launch,
    mean_of,
    moved_from,
    rounded,
    store,
)
from lt_pipeline.learning.transforms.views import View

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = (
    tl.constexpr(kind) for kind in (views.BRIGHTNESS, views.CONTRAST, views.SATURATION, views.HUE)
)


def apply(images: Tensor, drawn: View) -> Tensor:
    """Return ``images`` uint8 ``[N, 1 or 3, H, W]`` after what each has ``drawn``, channels last.

    H x W is at most ``KERNEL_PIXELS``, N at least 1. One launch; nothing waits for the host.
    """
    factors, hue, kinds, applied = drawn.jitter or (None,) * 4
    coins = (None if c is None else c.view(torch.uint8) for c in (drawn.mirrored, drawn.grey))
    return launch(
        _view,
        images,
        *(*coins, drawn.boxes, factors, hue, kinds),
        *(None if applied is None else applied.view(torch.uint8), drawn.sigma),
        reach=min(drawn.reach, min(images.shape[2:]) - 1),
    )


# or a last, smaller part of an epoch would be compiled for anew
@triton.jit(do_not_specialize=["count"])
def _view(
    images,
    result,
    count,
    of_image,
    of_channel,
    of_row,
    of_column,
    mirrored,
    grey,
    boxes,
    factors,
    hue,
    kinds,
    applied,
    sigma,
    reach: tl.constexpr,
    channels: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    pixels: tl.constexpr,
):
    image = tl.program_id(0)
    place = tl.arange(0, pixels)  # what lies behind height * width is no pixel
    row, column, real = place // width, place % width, place < height * width
    y, x, mirror = row.to(tl.float32), column.to(tl.float32), False
    if boxes is not None:
        y = _sample(row, boxes, image, 0, count, height)
        x = _sample(column, boxes, image, 1, count, width)
    if mirrored is not None:
        mirror = tl.load(mirrored + image) != 0
    start = images + image.to(tl.int64) * of_image
    red = _read(start, y, x, mirror, real, of_row, of_column, height, width)
    green, blue = red, red
    if channels == 3:
        green = _read(start + of_channel, y, x, mirror, real, of_row, of_column, height, width)
        blue = _read(start + 2 * of_channel, y, x, mirror, real, of_row, of_column, height, width)
    if kinds is not None:
        red, green, blue = _jittered(
            *(red, green, blue, image, factors, hue, kinds, applied, count, real),
            *(height * width, channels),
        )
    if grey is not None:
        turns, plain = tl.load(grey + image) != 0, grey_of(red, green, blue, channels)
        red, green = tl.where(turns, plain, red), tl.where(turns, plain, green)
        blue = tl.where(turns, plain, blue)
    if sigma is not None:
        red, green, blue = _blurred(
            red, green, blue, tl.load(sigma + image), row, column, reach, channels, height, width
        )
    red, green, blue = rounded(red), rounded(green), rounded(blue)
    store(result, image, place, real, red, green, blue, height * width, channels)


@triton.jit
def _sample(position, boxes, image, axis: tl.constexpr, count, side: tl.constexpr):
    """Return where in the image a place of the enlarged box is read: ``views._samples``."""
    start = tl.load(boxes + axis * count + image).to(tl.float32)
    size = tl.load(boxes + (axis + 2) * count + image).to(tl.float32)
    inside = tl.div_rn(position + 0.5, tl.zeros_like(position) + float(side)) * size
    inside = tl.minimum(tl.maximum(inside, 0.5), size - 0.5)
    unit = (inside + start) * (2 / side) - 1
    return tl.minimum(tl.maximum(((unit + 1) * side - 1) * 0.5, 0.0), side - 1.0)


@triton.jit
def _read(start, y, x, mirror, real, of_row, of_column, height: tl.constexpr, width: tl.constexpr):
    """Return a channel between four pixels each, float32."""
    top, left = tl.floor(y), tl.floor(x)
    down, right = y - top, x - left
    top, left = top.to(tl.int32), left.to(tl.int32)
    bottom, end = tl.minimum(top + 1, height - 1), tl.minimum(left + 1, width - 1)
    left, end = tl.where(mirror, width - 1 - left, left), tl.where(mirror, width - 1 - end, end)
    upper, lower = start + top * of_row, start + bottom * of_row
    one = tl.load(upper + left * of_column, real, other=0).to(tl.float32)
    two = tl.load(upper + end * of_column, real, other=0).to(tl.float32)
    three = tl.load(lower + left * of_column, real, other=0).to(tl.float32)
    four = tl.load(lower + end * of_column, real, other=0).to(tl.float32)
    upper_half = one * ((1 - right) * (1 - down)) + two * (right * (1 - down))
    return upper_half + three * ((1 - right) * down) + four * (right * down)


@triton.jit
def _jittered(
    red,
    green,
    blue,
    image,
    factors,
    hue,
    kinds,
    applied,
    count,
    real,
    size: tl.constexpr,
    channels: tl.constexpr,
):
    """Return the channels after the steps that the image has drawn: ``views.apply_jitter``."""
    if tl.load(applied + image) != 0:
        turns = tl.load(hue + image)
        for step in range(4):
            kind = tl.load(kinds + step * count + image)
            if kind == _HUE:
                red, green, blue = _turned(red, green, blue, turns, channels)
            else:
                factor = tl.load(factors + kind * count + image)
                red, green, blue = _blended(red, green, blue, kind, factor, real, size, channels)
    return red, green, blue


@triton.jit
def _blended(red, green, blue, kind, factor, real, count: tl.constexpr, channels: tl.constexpr):
    """Return the channels moved from a plainer image: ``views.blend``."""
    plain = tl.zeros_like(red)
    if kind != _BRIGHTNESS:
        plain = grey_of(red, green, blue, channels)
    if kind == _CONTRAST:
        plain = mean_of(plain, real, count)
    red, green = moved_from(plain, red, factor), moved_from(plain, green, factor)
    return red, green, moved_from(plain, blue, factor)


@triton.jit
def _turned(red, green, blue, turns, channels: tl.constexpr):
    """Return the channels with their hues moved: ``views.turn_hue``."""
    if channels == 3:
        high = tl.maximum(tl.maximum(red, green), blue)
        span = high - tl.minimum(tl.minimum(red, green), blue)
        lead = tl.where(green == high, 2 * span + blue - red, 4 * span + red - green)
        lead = tl.where(red == high, green - blue, lead)
        hue = lead / tl.maximum(span, 1e-30) + 6 * turns
        red = high - span * _away(hue, 0)
        green, blue = high - span * _away(hue, 2), high - span * _away(hue, 4)
    return red, green, blue


@triton.jit
def _away(hue, own: tl.constexpr):
    """Return the share of its span that a channel lacks whose own hue is ``own`` sixths."""
    turned = hue - own + 3
    distance = tl.abs(turned - 6 * tl.floor(turned / 6) - 3)
    return tl.minimum(tl.maximum(distance - 1, 0.0), 1.0)


@triton.jit
def _blurred(
    red,
    green,
    blue,
    sigma,
    row,
    column,
    reach: tl.constexpr,
    channels: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """Return the channels blurred by ``sigma``, where that is not 0: ``views.blur``."""
    if sigma > 0:
        red = _soft(red, sigma, row, column, reach, height, width)
        if channels == 3:
            green = _soft(green, sigma, row, column, reach, height, width)
            blue = _soft(blue, sigma, row, column, reach, height, width)
    return red, green, blue


@triton.jit
def _soft(
    plane, sigma, row, column, reach: tl.constexpr, height: tl.constexpr, width: tl.constexpr
):
    """Return a channel blurred down and then across, its border reflected."""
    row = tl.minimum(row, height - 1)  # what lies behind the image is written nowhere
    total = sigma * 0.0
    for offset in range(-reach, reach + 1):
        total += _tap(offset, sigma)
    down = tl.zeros_like(plane)
    for offset in range(-reach, reach + 1):
        other = tl.gather(plane, _reflected(row + offset, height) * width + column, 0)
        down += _tap(offset, sigma) / total * other
    across = tl.zeros_like(plane)
    for offset in range(-reach, reach + 1):
        other = tl.gather(down, row * width + _reflected(column + offset, width), 0)
        across += _tap(offset, sigma) / total * other
    return across


@triton.jit
def _tap(offset, sigma):
    away = offset / tl.maximum(sigma, 1e-3)
    return tl.exp(-0.5 * away * away)


@triton.jit
def _reflected(position, side: tl.constexpr):
    position = tl.abs(position)
    return tl.where(position < side, position, 2 * (side - 1) - position)
