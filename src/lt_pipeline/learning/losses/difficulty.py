"""What all weights by class difficulty share, wherever the difficulty is measured."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from lt_pipeline.learning.data.longtail import GROUP_NAMES, LongTail

LOGGER = logging.getLogger(__name__)


def with_group(sums: Tensor, group: Tensor, images: float) -> Tensor:
    """Return ``sums`` ``[R, C]`` with ``images`` more of every class, each its group's mean.

    The first row counts the images of the classes, the others add up figures of them; ``group``
    ``[C]`` is each class's place in ``GROUP_NAMES``. A class's figure, t / n before, is then
    (t + k g) / (n + k): shrunk towards g, the mean over its group's images, the more the fewer
    images n it has against k = ``images``. For shares of right answers that is the posterior mean
    under a Beta prior of mean g that is worth k images. A group without an image adds none.
    """
    pooled = sums.new_zeros(len(sums), len(GROUP_NAMES)).index_add_(1, group, sums)
    mean = pooled / pooled[0].clamp(min=1)
    return sums + images * mean[:, group]


class SizeCorrelation(nn.Module):
    """Spearman's rank correlation of class difficulty and class size, followed over the epochs.

    Below 0 rarer classes are the harder ones. On training images that turns once they are learned
    by heart, and is never so where the loss favours them; weights by difficulty then go the wrong
    way. With ``warns`` a turn is said when it happens, and either in ``notes``. Only a correlation
    beyond 1 / sqrt(C - 1) counts, the standard deviation among unrelated figures; it is 0 where
    all sizes or all difficulties are alike.
    """

    def __init__(self, longtail: LongTail, *, warns: bool) -> None:
        super().__init__()
        self.warns, self.clear = warns, max(longtail.classes - 1, 1) ** -0.5
        self.register_buffer("sizes", longtail.counts.float(), persistent=False)
        for name in ("value", "lowest"):
            self.register_buffer(name, torch.zeros(()))
        for name in ("epochs", "turned"):  # ``turned``: in which epoch, from 1; 0 is in none
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.sizes: Tensor
        self.value: Tensor
        self.lowest: Tensor
        self.epochs: Tensor
        self.turned: Tensor

    @torch.no_grad()
    def update(self, difficulty: Tensor) -> None:
        """Take up the difficulty ``[C]`` of the epoch that is over."""
        from torchmetrics.functional import spearman_corrcoef  # seconds to import

        self.epochs += 1
        self.value.copy_(spearman_corrcoef(difficulty.float(), self.sizes))
        self.lowest.copy_(torch.minimum(self.lowest, self.value))
        if not self.turned and self.lowest < -self.clear and self.value > self.clear:
            self.turned.copy_(self.epochs)
            for note in self.notes():
                LOGGER.warning(note)

    def notes(self) -> list[str]:
        """Say that rarer classes passed for the easier ones, where that has to be warned of."""
        if not self.warns or not (self.turned or self.value > self.clear):
            return []
        value, lowest, turn = float(self.value), float(self.lowest), ""
        if self.turned:
            turn = f" (turned in epoch {int(self.turned)}, {lowest:+.2f} at the lowest)"
        return [
            f"difficulty on the training batches has a rank correlation of {value:+.2f} "
            f"with class size{turn}: rarer classes passed for the easier ones, as they do once "
            f"their images are learned by heart or weigh more; difficulty: validation measures on "
            f"a hold-out"
        ]
