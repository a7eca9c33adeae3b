"""Every image of a set mixed with another one of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.transforms.mix import MixConfig, draw_kinds

# mixed with one lam and one box, half of them each way
ALIKE = 16
HALVES = MixConfig(both="halves")


class Mixtures:
    """Images of ``data`` mixed by MixUp or CutMix, float32 in 0..255 (DARL, section 4.2).

    They are made when they are fetched. Image i is the first of mixture i; ``first``, ``second``
    and ``lam``, each ``[N]``, are as in ``Mixed``. The images are shuffled before they are mixed:
    in the order of the set, one way could be for some classes only.
    """

    def __init__(self, data: Images, seed: int) -> None:
        self.data, self.at_once = data, data.at_once
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(data), generator=generator)
        back = shuffled.argsort()
        self._other = shuffled.roll(1)[back]
        self.first, self.second = data.labels, data.labels[self._other.to(data.labels.device)]
        kinds = [
            kind
            for part in shuffled.split(ALIKE)
            for kind in draw_kinds(len(part), data.shape[1:], HALVES, generator)
        ]
        counts = torch.tensor([kind.images for kind in kinds], dtype=torch.int64)
        each = torch.arange(len(kinds)).repeat_interleave(counts)[back]
        self.lam = torch.tensor([kind.lam for kind in kinds])[each]
        # outside of the box, an image of MixUp has one of no pixel
        self._weight = torch.tensor([1.0 if kind.box else kind.lam for kind in kinds])[each]
        self._box = torch.tensor([kind.box or (0, 0, 0, 0) for kind in kinds])[each]

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.data)

    def fetch(self, order: Tensor, sizes: int | list[int]) -> Iterator[Tensor]:
        """Yield the mixtures at ``order`` int64 ``[M]``, parted by ``sizes``."""
        order = order.cpu()
        ones = self.data.fetch(order, sizes)
        others = self.data.fetch(self._other[order], sizes)
        for part, one, other in zip(order.split(sizes), ones, others, strict=True):
            yield torch.lerp(other.float(), one.float(), self._weights(part).to(one.device))

    def _weights(self, part: Tensor) -> Tensor:
        """Return the weight ``[B, 1, H, W]`` of every pixel of the first image."""
        top, bottom, left, right = self._box[part].view(-1, 4, 1).unbind(1)
        rows, columns = (torch.arange(side) for side in self.data.shape[1:])
        inside = ((top <= rows) & (rows < bottom))[:, None, :, None] & (
            (left <= columns) & (columns < right)
        )[:, None, None, :]
        return torch.where(inside, 0.0, self._weight[part].view(-1, 1, 1, 1))
