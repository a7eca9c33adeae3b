"""What a frozen network makes of images, computed once and kept by each image's content.

A set of features is a set of images of one pixel and F channels: whatever trains on images trains
on it. Splits, folds, methods and trials that share images share their features.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.protocol import DIGEST, Images, digests, fetch_parts
from lt_pipeline.learning.engine.checkpoint import atomic_path
from lt_pipeline.learning.progress import track

# images that go through the network at a time, and are kept at a time: what a killed run loses
BATCH, KEPT = 64, 4096
PIECES = "*.safetensors"

# sets whose features are at hand: a sweep's trials ask for the same ones, and to name all of their
# images by content takes as long as to train a head; with the sets, so that their ids stay theirs
REMEMBERED = 8
_RECENT: dict[tuple[int, Path, bool], tuple[Images, FeatureSet]] = {}

Extract = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeatureSet(ImageSet):
    """Features float32 ``[N, F, V, 1]`` of V views of each image, with labels int64 ``[N]``.

    The first view is the image as it is, the second, of a training set, its mirror image.
    """

    at_once: ClassVar[int] = sys.maxsize
    dtype: ClassVar[torch.dtype] = torch.float32


@dataclass(frozen=True)
class FeatureCache:
    """A folder of the features, F numbers, that one network has of images at one size.

    Every call writes what it computed into files of its own: two processes never share one.
    """

    folder: Path
    width: int

    def of(self, data: Images, network: Callable[[], Extract], mirrored: bool = False) -> Images:
        """Return the features of ``data``, and of its images ``mirrored``, where asked for.

        ``network`` makes the function from images uint8 ``[B, channels, H, W]`` to features
        ``[B, F]``; it is called where some are missing only.
        """
        key = (id(data), self.folder, mirrored)
        if key not in _RECENT:
            views = [self._view(data, network, flip) for flip in (False, True)[: 1 + mirrored]]
            rows = torch.stack(views, 2)[..., None]
            if len(_RECENT) >= REMEMBERED:
                _RECENT.pop(next(iter(_RECENT)))
            features = FeatureSet(rows, data.labels.cpu(), data.class_names, data.groups)
            _RECENT[key] = data, features
        return _RECENT[key][1]

    def _view(self, data: Images, network: Callable[[], Extract], flip: bool) -> Tensor:
        """Return the features ``[N, F]`` of images as they are, or flipped left to right."""
        names = digests(data, flip)
        known = self._known()
        missing = {name: position for position, name in enumerate(names) if name not in known}
        if missing:
            self._add(data, network(), missing, flip)
            known = self._known()
        rows = torch.empty(len(names), self.width)
        for piece, wanted in _by_piece(names, known):
            with safe_open(piece, "pt") as file:
                rows[list(wanted)] = file.get_tensor("features")[list(wanted.values())]
        return rows

    def _add(self, data: Images, extract: Extract, missing: dict[bytes, int], flip: bool) -> None:
        """Compute the features of the images at the positions of ``missing``, and keep them."""
        names, order = [*missing], torch.tensor([*missing.values()])
        total, features = -(-len(order) // BATCH), list[Tensor]()
        title = f"features of {len(order):,}{' mirrored' * flip} images"
        first = 0
        for batch in track(fetch_parts(data, order, BATCH), title, total):
            features.append(extract(batch.flip(3) if flip else batch).float().cpu())
            last = first + sum(map(len, features))
            if last - first >= KEPT or last == len(names):
                self._write(names[first:last], torch.cat(features))
                first, features = last, []

    def _write(self, names: list[bytes], features: Tensor) -> None:
        joined = b"".join(names)
        target = self.folder / f"{blake2b(joined, digest_size=DIGEST).hexdigest()}.safetensors"
        table = torch.frombuffer(bytearray(joined), dtype=torch.uint8).view(-1, DIGEST)
        with atomic_path(target) as path:
            save_file({"names": table, "features": features}, path)

    def _known(self) -> dict[bytes, tuple[Path, int]]:
        """Return in which file and row each image's features are."""
        return {
            name: (piece, row)
            for piece in sorted(self.folder.glob(PIECES))
            for row, name in enumerate(_names(piece))
        }


@cache
def _names(piece: Path) -> tuple[bytes, ...]:
    """Return the images that a file has features of; files are named by them, and never change."""
    with safe_open(piece, "np") as file:
        joined = np.ascontiguousarray(file.get_tensor("names")).tobytes()
    return tuple(joined[start : start + DIGEST] for start in range(0, len(joined), DIGEST))


def _by_piece(
    names: list[bytes], known: dict[bytes, tuple[Path, int]]
) -> Iterator[tuple[Path, dict[int, int]]]:
    """Yield each file that is needed, with its row for each position."""
    wanted: dict[Path, dict[int, int]] = {}
    for position, name in enumerate(names):
        piece, row = known[name]
        wanted.setdefault(piece, {})[position] = row
    yield from wanted.items()
