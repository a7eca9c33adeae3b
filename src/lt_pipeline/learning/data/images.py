"""Images and labels in memory: the first of what ``protocol.Images`` can be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images ``uint8 [N, channels, height, width]`` with labels as ``protocol.Images`` has them.

    ``class_names`` has one entry a class, in label order; a class need not have an image here.
    ``groups`` int64 ``[N]`` number what images are of, where they are not independent.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    groups: Tensor | None = None
    at_once: ClassVar[int] = sys.maxsize
    dtype: ClassVar[torch.dtype] = torch.uint8

    def __post_init__(self) -> None:
        """Refuse other types, shapes, or labels that name no class."""
        if self.images.dtype != self.dtype or self.images.ndim != 4:
            raise ValueError(
                f"images must be {str(self.dtype)[6:]} [N, channels, height, width], but are "
                f"{self.images.dtype} {list(self.images.shape)}"
            )
        self._check_labels(len(self.images), len(self.class_names))
        if self.groups is not None and self.groups.shape != self.labels.shape[:1]:
            raise ValueError(
                f"groups must be [{len(self.labels)}], one an image, but are "
                f"{list(self.groups.shape)}"
            )

    def _check_labels(self, images: int, classes: int) -> None:
        labels, shape = self.labels, tuple(self.labels.shape)
        several = labels.dtype == torch.uint8 and shape == (images, classes)
        if not several and (labels.dtype != torch.int64 or shape != (images,)):
            raise ValueError(
                f"labels must be int64 [{images}], one an image, or uint8 [{images}, {classes}], "
                f"but are {labels.dtype} {list(shape)}"
            )
        last = 1 if several else classes - 1
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= last:
            raise ValueError(
                f"labels must lie in 0..{last}, but range from {int(labels.min())} to "
                f"{int(labels.max())}"
            )

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __getitem__(self, index: Tensor) -> Self:
        """Return the images at ``index`` (int64 or bool)."""
        groups = None if self.groups is None else self.groups[index.to(self.groups.device)]
        return replace(self, images=self.images[index], labels=self.labels[index], groups=groups)

    def to(self, device: torch.device) -> Self:
        """Return the set on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def fetch(self, order: Tensor, sizes: int | list[int]) -> Iterator[Tensor]:
        """Yield the images at ``order`` int64 ``[M]``, parted by ``sizes``."""
        return (self.images[part] for part in order.to(self.images.device).split(sizes))
