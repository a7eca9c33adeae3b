"""What images are to all that trains on them, scores them or shows them, wherever they are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain, islice
from typing import Protocol

import torch
from torch import Tensor

# images that are hashed at a time
HASHED = 256
# bytes that stand for one
DIGEST = 16


class Pixels(Protocol):
    """N images of one shape that are fetched by their positions, 0..N - 1."""

    @property
    def at_once(self) -> int:
        """Return how many images ``fetch`` gives at once, at most."""

    def __len__(self) -> int:
        """Return the number of images, N."""

    def fetch(self, order: Tensor, sizes: int | list[int]) -> Iterator[Tensor]:
        """Yield the images ``[B, channels, height, width]`` at ``order``, parted by ``sizes``.

        ``order`` int64 ``[M]`` lies on any device; ``sizes``, as of ``Tensor.split``, are at most
        ``at_once``. All of the order is known at the start: what comes next may be fetched before
        it is asked for.
        """


class Images(Pixels, Protocol):
    """Images uint8 with labels: what training sets, hold-outs and test sets are.

    ``fetch`` gives them on the device that the set is on.
    """

    @property
    def labels(self) -> Tensor:
        """Return the labels, on the device that the set is on.

        They are int64 ``[N]``, one an image, or uint8 ``[N, C]``, where an image may have several
        or none: 1 for each label that it has.
        """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return a name a class, in label order; a class need not have an image here."""

    @property
    def groups(self) -> Tensor | None:
        """Return numbers int64 ``[N]``, on the CPU, of what images are of, as an animal or a site.

        Images of one are not independent; None is where all are.
        """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width)."""

    def __getitem__(self, index: Tensor) -> Images:
        """Return the images at ``index`` (int64 or bool)."""

    def to(self, device: torch.device) -> Images:
        """Return the set on ``device``."""


def fetch_parts(data: Pixels | Tensor, order: Tensor, sizes: int | list[int]) -> Iterator[Tensor]:
    """Yield the images at ``order`` int64 ``[M]``, parted by ``sizes`` of any number.

    No more are asked for at once than ``data`` gives. A tensor ``[N, ...]`` is a set, too.
    """
    parts = order.split(sizes)
    if isinstance(data, Tensor):
        yield from (data[part.to(data.device)] for part in parts)
        return
    pieces = [piece for part in parts for piece in part.split(data.at_once)]
    fetched = data.fetch(order, [len(piece) for piece in pieces])
    for part in parts:
        count = max(-(-len(part) // data.at_once), 1)
        yield next(fetched) if count == 1 else torch.cat([*islice(fetched, count)])


def in_order(data: Pixels | Tensor, size: int) -> Iterator[Tensor]:
    """Yield all images, or the rows of a tensor, as they lie, ``size`` at a time."""
    if isinstance(data, Tensor):
        return iter(data.split(size))
    return fetch_parts(data, torch.arange(len(data)), size)


def take(data: Pixels | Tensor, order: Tensor) -> Tensor:
    """Return the images at ``order`` int64 ``[M]``, all of them in one tensor."""
    return next(fetch_parts(data, order, max(len(order), 1)))


def digests(data: Pixels, flip: bool = False) -> list[bytes]:
    """Return what stands for each image's pixels, [N], as they are or flipped left to right."""
    hashes = list[bytes]()
    for batch in in_order(data, HASHED):
        pixels = (batch.flip(3) if flip else batch).cpu().contiguous().numpy()
        hashes += [hashlib.blake2b(image.data, digest_size=DIGEST).digest() for image in pixels]
    return hashes


def content_hash(data: Images) -> str:
    """Return the SHA-256 of shapes, images, labels and names: equal data, equal hash."""
    about = ((len(data), *data.shape), data.class_names)
    digest = hashlib.sha256(repr(about).encode())
    for part in chain(in_order(data, HASHED), [data.labels]):
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()
