"""Images at another size."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def resized(images: Tensor, size: int) -> Tensor:
    """Return float ``images`` ``[B, C, H, W]`` at ``size`` x ``size``, bilinearly."""
    if images.shape[2:] == (size, size):
        return images
    smaller = size < min(images.shape[2:])
    return F.interpolate(images, (size, size), mode="bilinear", antialias=smaller)
