"""What kernels that hold an image each have in common; Triton comes with PyTorch for GPUs only."""

# ruff: noqa: ANN001, ANN201
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Adding and taking away 1.5 x 2^23 leaves no bits for halves: round() of torch's, half to even.
_HALVES = tl.constexpr(12582912.0)


def launch(kernel: Any, images: Tensor, *given: Any, **constants: int) -> Tensor:
    """Return what ``kernel`` makes of ``images`` uint8 ``[N, C, H, W]``, channels last.

    N is at least 1. One program an image; ``given`` is what it takes behind the image's strides.
    """
    count, channels, height, width = images.shape
    output = torch.empty_like(images, memory_format=torch.channels_last)
    ordered = (part.contiguous() if isinstance(part, Tensor) else part for part in given)
    pixels = max(triton.next_power_of_2(height * width), 256)
    with torch.cuda.device_of(images):
        kernel[(count,)](
            *(images, output, count, *images.stride(), *ordered),
            **constants,
            channels=channels,
            height=height,
            width=width,
            pixels=pixels,
            num_warps=pixels // 256,
            # a product and a sum have one rounding only where they have it in torch, too: in lerp
            enable_fp_fusion=False,
        )
    return output


@triton.jit
def rounded(x):
    """Return the nearest whole number, of two the even one, int32."""
    return ((x + _HALVES) - _HALVES).to(tl.int32)


@triton.jit
def grey_of(red, green, blue, channels: tl.constexpr):
    """Return the grey of ``views.luma``, float32."""
    if channels == 1:
        return red.to(tl.float32)
    return 0.2989 * red.to(tl.float32) + 0.587 * green.to(tl.float32) + 0.114 * blue.to(tl.float32)


@triton.jit
def moved_from(plain, plane, factor):
    """Return ``plane`` moved from ``plain`` (factor < 1: towards it) in 0..255, as torch's lerp."""
    near = tl.abs(factor) < 0.5
    weight, base = tl.where(near, factor, factor - 1), tl.where(near, plain, plane)
    moved = tl.fma(tl.zeros_like(plain) + weight, plane - plain, base)
    return tl.minimum(tl.maximum(moved, 0.0), 255.0)


@triton.jit
def mean_of(plane, real, count: tl.constexpr):
    """Return the mean of an image's pixels at all places."""
    return tl.zeros_like(plane) + tl.sum(tl.where(real, plane, 0.0), 0) / count


@triton.jit
def store(
    result, image, place, real, red, green, blue, count: tl.constexpr, channels: tl.constexpr
):
    """Write the channels of an image of ``count`` pixels, int32 in 0..255, channels last."""
    target = result + image.to(tl.int64) * (count * channels) + place * channels
    tl.store(target, red.to(tl.uint8), real)
    if channels == 3:
        tl.store(target + 1, green.to(tl.uint8), real)
        tl.store(target + 2, blue.to(tl.uint8), real)
