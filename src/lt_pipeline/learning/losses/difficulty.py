"""Weights by class difficulty, wherever it is measured, and the criterion that has them."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from lt_pipeline.learning.data.distribution import GROUP_NAMES, LongTail
from lt_pipeline.learning.losses import functional as losses
from lt_pipeline.learning.losses.criteria import Criterion, CriterionBase, Head, weighted

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


class DifficultyBalanced(Criterion):
    """Cross-entropy weighted by how often each class is still wrong (Sinha et al. 2020)."""

    def __init__(self, config: DifficultyBalancedConfig, longtail: LongTail, head: Head) -> None:
        super().__init__(config, longtail, head)
        for name in ("correct", "seen", "accuracy"):
            self.register_buffer(name, torch.zeros(longtail.classes))
        self.register_buffer("known", torch.zeros(longtail.classes, dtype=torch.bool))
        self.register_buffer("class_weight", torch.ones(longtail.classes))
        self.register_buffer("group", longtail.group_places, persistent=False)
        self.size_correlation = SizeCorrelation(longtail, warns=not config.wants_validation)
        self.correct: Tensor
        self.seen: Tensor
        self.accuracy: Tensor
        self.known: Tensor
        self.class_weight: Tensor
        self.group: Tensor

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``, and count what was right."""
        loss = super().forward(logits, labels)
        if self.training and not self.config.wants_validation:
            self._count(logits, labels)
        return loss

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``."""
        loss = losses.cross_entropy(logits, labels)
        return weighted(loss, self.class_weight[labels], mean=self.config.weighted_mean)

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Count what of the hold-out is right; ``logits`` ``[N, C]``, ``labels`` ``[N]``."""
        self._count(logits.to(self.seen.device), labels.to(self.seen.device))

    def end_epoch(self) -> None:
        """Set the weights of the next epoch; the first has none before and weights all alike.

        On a hold-out, a class's accuracy is shrunk towards its group's. A class of which nothing
        was seen keeps the accuracy it had; one of which nothing was ever known is taken for as
        hard as the others on average.
        """
        if not self.seen.any():
            return
        shrinkage = self.config.shrinkage if self.config.wants_validation else 0.0
        sums = torch.stack([self.seen, self.correct])
        images, right = with_group(sums, self.group, shrinkage)
        seen = images > 0
        self.accuracy.copy_(torch.where(seen, right / images.where(seen, 1.0), self.accuracy))
        self.known |= seen
        self.class_weight.copy_(losses.cdb_weight(self.accuracy, self.known, self.config.tau))
        self.size_correlation.update(self.class_weight)
        self.correct.zero_()
        self.seen.zero_()

    def epoch_metrics(self) -> dict[str, float]:
        """Return the rank correlation of difficulty and class size."""
        return {"difficulty/size_correlation": float(self.size_correlation.value)}

    def notes(self) -> list[str]:
        """Say where that correlation turned its sign."""
        return self.size_correlation.notes()

    @torch.no_grad()
    def _count(self, logits: Tensor, labels: Tensor) -> None:
        right = (logits.argmax(1) == labels).to(self.seen.dtype)
        self.correct.index_add_(0, labels, right)
        self.seen.index_add_(0, labels, torch.ones_like(right))


class DifficultyBalancedConfig(CriterionBase):
    """Class-wise difficulty-balanced cross-entropy.

    Attributes:
        tau: exponent of the difficulty; null is the authors' dynamic one.
        difficulty: where it is measured after every epoch: on the ``training`` batches as they
            went by, or on the ``validation`` hold-out, as the authors do (needs data.validation).
        shrinkage: on the hold-out, how many images of its group's mean a class's accuracy counts
            beside its own; 0 counts none, as the authors do.
        weighted_mean: divide a batch's loss by its weights; else by its images, as the authors'
            code for CIFAR does. Classes that are always right weigh nothing.
    """

    kind = DifficultyBalanced
    name: Literal["difficulty_balanced"] = "difficulty_balanced"
    tau: NonNegativeFloat | None = None
    difficulty: Literal["training", "validation"] = "training"
    shrinkage: NonNegativeFloat = 8.0
    weighted_mean: bool = False

    @property
    def wants_validation(self) -> bool:
        """Return whether difficulty is that of the hold-out."""
        return self.difficulty == "validation"
