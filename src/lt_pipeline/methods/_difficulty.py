"""How hard every class is while a network trains, and the weights that grow from it (DQRoute)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lt_pipeline.losses import routing


class ClassDifficulty(nn.Module):
    """Entropy and accuracy by class, smoothed over epochs, and w of equation 2.

    Every class starts as one that nothing is known of: entropy log C, accuracy 0 and weight 1 / C.
    """

    def __init__(self, classes: int, *, keep: float, balance: float, smoothing: float) -> None:
        """Start for ``classes`` classes, C; the rest is as in ``DqrouteOptions``."""
        super().__init__()
        self.keep, self.balance, self.smoothing = keep, balance, smoothing
        self.register_buffer("log_weight", torch.full((classes,), -math.log(classes)))
        self.register_buffer("entropy", torch.full((classes,), math.log(classes)))
        self.register_buffer("accuracy", torch.zeros(classes))
        self.register_buffer("known", torch.zeros(classes, dtype=torch.bool))
        # of the epoch that runs: images, their entropies and right answers by class, [3, C]
        self.register_buffer("sums", torch.zeros(3, classes))
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

        A class that was not watched keeps what it had. One that never was, as in a hold-out
        without images of it, is taken for as hard as the others on average.
        """
        images, *totals = self.sums
        self.known |= images > 0
        for smooth, total in zip((self.entropy, self.accuracy), totals, strict=True):
            found = torch.where(images > 0, total / images.clamp(min=1), smooth)
            smooth.lerp_(found, 1 - self.smoothing)
            smooth.copy_(torch.where(self.known, smooth, smooth[self.known].mean()))
        self.sums.zero_()
        if gamma is not None:
            difficulty = routing.class_difficulty(self.entropy, self.accuracy, self.balance)
            self.log_weight.copy_(
                routing.updated_log_weight(self.log_weight, difficulty, gamma, self.keep)
            )
