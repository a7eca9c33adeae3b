"""How hard every class is while a network trains, and the weights that grow from it (DQRoute)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses import routing
from lt_pipeline.learning.losses.difficulty import SizeCorrelation, with_group


class ClassDifficulty(nn.Module):
    """Entropy and accuracy by class, smoothed over epochs, and w of equation 2.

    Every class starts as one that nothing is known of: entropy log C, accuracy 0 and weight 1 / C.
    """

    def __init__(
        self,
        longtail: LongTail,
        *,
        keep: float,
        balance: float,
        smoothing: float,
        shrinkage: float,
        warns: bool,
    ) -> None:
        """Start for the C classes of ``longtail``.

        ``shrinkage`` is of ``with_group``, ``warns`` of ``SizeCorrelation``, the rest of
        ``DqrouteOptions``.
        """
        super().__init__()
        self.keep, self.balance, self.smoothing = keep, balance, smoothing
        self.shrinkage, classes = shrinkage, longtail.classes
        self.size_correlation = SizeCorrelation(longtail, warns=warns)
        self.register_buffer("group", longtail.group_places, persistent=False)
        self.register_buffer("log_weight", torch.full((classes,), -math.log(classes)))
        self.register_buffer("entropy", torch.full((classes,), math.log(classes)))
        self.register_buffer("accuracy", torch.zeros(classes))
        self.register_buffer("known", torch.zeros(classes, dtype=torch.bool))
        # of the epoch that runs: images, their entropies and right answers by class, [3, C]
        self.register_buffer("sums", torch.zeros(3, classes))
        self.group: Tensor
        self.log_weight: Tensor
        self.entropy: Tensor
        self.accuracy: Tensor
        self.known: Tensor
        self.sums: Tensor

    @property
    def effective_classes(self) -> float:
        """Return how many classes share the weight w, in [1, C]."""
        return float(routing.effective_classes(self.log_weight))

    @torch.no_grad()
    def watch(self, scores: Tensor, labels: Tensor) -> None:
        """Add images, entropies and right answers by class; ``scores`` ``[B, C]`` are logits."""
        entropy = torch.special.entr(scores.softmax(1)).sum(1)
        right = (scores.argmax(1) == labels).to(entropy.dtype)
        self.sums.index_add_(1, labels, torch.stack([torch.ones_like(entropy), entropy, right]))

    @torch.no_grad()
    def update(self, gamma: float | None) -> None:
        """Learn from what was watched since the last update; without ``gamma`` weights stay.

        A class that was not watched keeps what it had, unless it is shrunk towards its group. One
        of which nothing was ever known is taken for as hard as the others on average.
        """
        images, *totals = with_group(self.sums, self.group, self.shrinkage)
        seen = images > 0
        self.known |= seen
        for smooth, total in zip((self.entropy, self.accuracy), totals, strict=True):
            measured = torch.where(seen, total / images.where(seen, 1.0), smooth)
            smooth.lerp_(measured, 1 - self.smoothing)
            smooth.copy_(torch.where(self.known, smooth, smooth[self.known].mean()))
        self.sums.zero_()
        difficulty = routing.class_difficulty(self.entropy, self.accuracy, self.balance)
        self.size_correlation.update(difficulty)
        if gamma is not None:
            self.log_weight.copy_(
                routing.updated_log_weight(self.log_weight, difficulty, gamma, self.keep)
            )
