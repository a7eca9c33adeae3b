"""Images in files, decoded once to one size and mapped into memory from then on.

Training, however long, decodes nothing: a batch is a few pages of one file, which the system
keeps in memory where there is room, so that memory does not grow with the number of images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lt_pipeline.learning.data.decode import Fit, Pixels, UnreadableImageError, read_image

Mapped = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
# images that are decoded before they are asked for
AHEAD = 512


def pack(
    files: Sequence[Path], file: Path, size: int, fit: Fit = "crop", threads: int = 2
) -> dict[int, str]:
    """Write the images ``files`` to ``file`` as uint8 ``[N, 3, size, size]``, in their order.

    Return why an image cannot be read, by its position, where that is so: it is black. The file is
    written beside its place and moved there when it is whole.
    """
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    shape = (len(files), 3, size, size)
    array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
    unreadable: dict[int, str] = {}
    for position, decoded in enumerate(_decoded(files, size, fit, threads)):
        if isinstance(decoded, UnreadableImageError):
            unreadable[position] = str(decoded)
        else:
            array[position] = decoded.transpose(2, 0, 1)
    array.flush()
    del array
    part.replace(file)
    return unreadable


def mapped(file: Path) -> Mapped:
    """Return the images in ``file``, uint8 ``[N, 3, size, size]``, none of them in memory yet."""
    array: Mapped = np.load(file, mmap_mode="r")
    return array


def _decoded(
    files: Sequence[Path], size: int, fit: Fit, threads: int
) -> Iterator[Pixels | UnreadableImageError]:
    """Yield images in order, decoded by threads that run ahead by some and not by all."""

    def read(path: Path) -> Pixels | UnreadableImageError:
        try:
            return read_image(path, size, fit)
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), AHEAD):
            yield from pool.map(read, files[start : start + AHEAD])


@dataclass(frozen=True, eq=False)
class PackedImages:
    """Those images of a mapped ``array`` that lie at ``positions`` ``[N]``, with their labels.

    ``array`` is uint8 ``[M, channels, height, width]``; ``positions`` are int64 ``[N]``;
    ``class_names`` has one entry a class, in label order; ``labels`` and ``groups`` are as in
    ``Images``.
    """

    array: Mapped
    positions: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    groups: Tensor | None = None
    at_once: ClassVar[int] = 512

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.positions)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width)."""
        channels, height, width = self.array.shape[1:]
        return channels, height, width

    def fetch(self, order: Tensor, sizes: int | list[int]) -> Iterator[Tensor]:
        """Yield the images at ``order`` ``[M]``, parted by ``sizes``, on the labels' device.

        The next part is read while this one is used.
        """
        parts = self.positions[order.cpu()].split(sizes)
        with ThreadPoolExecutor(1) as pool:
            yield from _one_ahead(pool, self._read, parts)

    def _read(self, positions: Tensor) -> Tensor:
        """Return the images at ``positions``; ascending reads are sequential where they can be."""
        ascending = positions.sort()
        read = torch.from_numpy(self.array[ascending.values.numpy()])
        return read[ascending.indices.argsort()].to(self.labels.device)

    def __getitem__(self, index: Tensor) -> PackedImages:
        """Return the images at ``index`` (int64 or bool)."""
        at = index.cpu()
        groups = None if self.groups is None else self.groups[at]
        return replace(self, positions=self.positions[at], labels=self.labels[index], groups=groups)

    def to(self, device: torch.device) -> PackedImages:
        """Return the set, whose images come to ``device``."""
        return replace(self, labels=self.labels.to(device))


def _one_ahead(pool: ThreadPoolExecutor, read: Any, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    waiting = None
    for part in parts:
        following = pool.submit(read, part)
        if waiting is not None:
            yield waiting.result()
        waiting = following
    if waiting is not None:
        yield waiting.result()
