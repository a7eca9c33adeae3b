"""Batches of augmented images, made where the images live."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from lt_pipeline.learning.data.protocol import Images, fetch_parts
from lt_pipeline.learning.transforms.augment import AugmentConfig, augment
from lt_pipeline.learning.transforms.mix import MixConfig, Mixed, mix
from lt_pipeline.learning.transforms.views import ViewConfig, random_view

# Augmented together: large enough to make every operation a big batch, small enough for memory
# (8,192 images of 32 x 32 are 25 MB; of larger ones there are fewer). What is drawn depends on it.
CHUNK = 8192
CHUNK_BYTES = CHUNK * 3 * 32 * 32


class Batch(NamedTuple):
    """A training step's images ``uint8 [B, C, H, W]``, labels ``[B]``, and positions ``[B]``.

    Where asked for, ``views`` are more versions of the images, each ``uint8 [B, C, H, W]``,
    ``pair`` is a second batch of training images, drawn by itself, ``outliers``
    ``uint8 [M, C, H, W]`` are images of no class, and ``mixed`` are mixtures of the images with
    one another.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    views: tuple[Tensor, ...] = ()
    pair: Batch | None = None
    outliers: Tensor | None = None
    mixed: Mixed | None = None

    @property
    def mixtures(self) -> Mixed:
        """Return ``mixed``.

        Raises:
            ValueError: if there are none.
        """
        if self.mixed is None:
            raise ValueError("a batch must bring mixtures of its images, but this one has none")
        return self.mixed

    def in_format(self, memory_format: torch.memory_format) -> Batch:
        """Return the batch with all of its images laid out in this format."""
        return self._replace(
            images=self.images.contiguous(memory_format=memory_format),
            views=tuple(view.contiguous(memory_format=memory_format) for view in self.views),
            pair=self.pair and self.pair.in_format(memory_format),
            mixed=self.mixed
            and self.mixed._replace(
                images=self.mixed.images.contiguous(memory_format=memory_format)
            ),
            outliers=None
            if self.outliers is None
            else self.outliers.contiguous(memory_format=memory_format),
        )


def batches(
    data: Images,
    order: Tensor,
    batch_size: int,
    config: AugmentConfig,
    generator: torch.Generator,
    *,
    views: int = 0,
    view: ViewConfig | None = None,
    remainder: bool = False,
) -> Iterator[Batch]:
    """Yield full batches of ``data`` in ``order`` ``[M]``.

    What does not fill one is left out, or with ``remainder`` a last, smaller batch. ``generator``
    draws the augmentations and lives, like ``order``, on the images' device. Each batch brings
    ``views`` more versions of its images, augmented as ``view`` says.
    """
    used = order if remainder else order[: len(order) // batch_size * batch_size]
    together = min(CHUNK, CHUNK_BYTES // prod(data.shape)) // batch_size // (1 + views)
    size = max(together, 1) * batch_size
    parts = fetch_parts(data, used, size)
    for chunk in used.split(size):
        plain = next(parts)
        images = augment(plain, config, generator)
        labels = data.labels[chunk]
        more = [random_view(plain, view or ViewConfig(), generator) for _ in range(views)]
        del plain  # so that its memory is free for what follows
        seen = zip(*(one.split(batch_size) for one in more), strict=True) if more else repeat(())
        yield from map(
            Batch,
            images.split(batch_size),
            labels.split(batch_size),
            chunk.split(batch_size),
            seen,
        )


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return ``values``, which are the CPU's, on ``device``; the CPU does not wait for it."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def mixed_with_itself(batch: Batch, config: MixConfig, generator: torch.Generator) -> Batch:
    """Return ``batch`` with, as ``mixed``, its images mixed with themselves in random order.

    ``generator`` lives on the CPU.
    """
    partners = sent(torch.randperm(len(batch.labels), generator=generator), batch.labels.device)
    images, labels = batch.images, batch.labels
    mixed = mix(images, labels, images[partners], labels[partners], config, generator)
    return batch._replace(mixed=mixed)
