"""Batches of augmented images, made where the images live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lt_pipeline.data.augment import AugmentConfig, augment
from lt_pipeline.data.images import ImageSet

# Augmented together: large enough to make every operation a big batch, small enough for memory
# (8,192 images of 32 x 32 are 25 MB).
CHUNK = 8192


class Batch(NamedTuple):
    """A training step's images ``uint8 [B, C, H, W]``, labels ``[B]``, and positions ``[B]``."""

    images: Tensor
    labels: Tensor
    positions: Tensor


def batches(
    data: ImageSet,
    order: Tensor,
    batch_size: int,
    config: AugmentConfig,
    generator: torch.Generator,
) -> Iterator[Batch]:
    """Yield full batches of ``data`` in ``order`` ``[M]``; what does not fill one is left out.

    ``generator`` draws the augmentations and lives, like ``order``, on the images' device.
    """
    used = order[: len(order) // batch_size * batch_size]
    for chunk in used.split(max(CHUNK // batch_size, 1) * batch_size):
        images = augment(data.images[chunk], config, generator)
        labels = data.labels[chunk]
        yield from map(
            Batch, images.split(batch_size), labels.split(batch_size), chunk.split(batch_size)
        )
