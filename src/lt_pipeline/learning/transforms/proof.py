"""Whether kernels give on a device what PyTorch does: looked at once, before the first is used.

Triton also needs what a machine may lack, as a compiler of C for its launchers.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_pipeline.learning.transforms.augment import AugmentConfig, apply, draw

LOGGER = logging.getLogger(__name__)
IMAGES, SIDE = 64, 32
# of pixels, that may be more than a grey level off: a half's rounding, spread by a second operation
OFF = 0.01
ALL = AugmentConfig(crop_padding=4, flip=0.5, autoaugment=True, cutout=8)


def kernels_agree(device: torch.device, images: int = IMAGES, side: int = SIDE) -> bool:
    """Return whether both kernels do on ``device`` to made up images what PyTorch does.

    If not, the log says by how much, or what went wrong.
    """
    from lt_pipeline.learning.transforms import views  # which is made of ``augment``

    generator = torch.Generator(device).manual_seed(0)
    coarse = torch.rand(images, 3, 6, 6, generator=generator, device=device)
    smooth = F.interpolate(coarse, size=(side, side), mode="bilinear")
    pixels = (255 * smooth).to(torch.uint8)
    view = views.ViewConfig(crop_scale=(0.2, 1.0), flip=0.5, grayscale=0.2)
    try:
        from lt_pipeline.learning.transforms import kernel, view_kernel

        drawn = draw(pixels.shape, ALL, generator)
        seen = views.draw_view(pixels, view, generator)
        off = max(
            _off(kernel.apply(pixels, drawn, ALL), apply(pixels, drawn, ALL)),
            _off(view_kernel.apply(pixels, seen), views.apply_view(pixels, seen)),
        )
    except Exception as error:  # whatever Triton, a compiler or a driver raises
        why = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    else:
        if off <= OFF:
            return True
        why = f"{off:.1%} of made up pixels come out as others"
    LOGGER.warning("Images are augmented by PyTorch's operations and not by a kernel: %s", why)
    return False


def _off(actual: Tensor, expected: Tensor) -> float:
    """Return the share of values that are more than a grey level away."""
    return float(((actual.int() - expected.int()).abs() > 1).float().mean())
