"""Out-of-distribution images that are always at hand: noise, and images without their structure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lt_pipeline.schema import unknown


def ood_images(name: str, test_images: Tensor, seed: int = 0) -> Tensor:
    """Return uint8 images ``[N, C, H, W]`` that belong to no class, as many as ``test_images``.

    Raises:
        ValueError: if there is no such set.
    """
    if name not in OOD_SETS:
        raise ValueError(unknown("evaluation.ood", name, OOD_SETS))
    return OOD_SETS[name](test_images, torch.Generator().manual_seed(seed))


def _gaussian_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of mean 0.5 and standard deviation 0.5, the one of Hendrycks and Gimpel (2017)."""
    noise = torch.randn(images.shape, generator=generator)
    return (127.5 + 127.5 * noise).clamp(0, 255).round().to(torch.uint8)


def _uniform_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=generator)


def _permuted_pixels(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images' own pixels, every image in another random order: colours without structure."""
    flat = images.flatten(2)
    order = torch.rand(len(flat), 1, flat.shape[2], generator=generator).argsort(2)
    return flat.gather(2, order.expand_as(flat)).view_as(images)


OOD_SETS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "gaussian_noise": _gaussian_noise,
    "uniform_noise": _uniform_noise,
    "permuted_pixels": _permuted_pixels,
}
