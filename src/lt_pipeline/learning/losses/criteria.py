"""Criteria: a loss bound to a class distribution and a head, to compose with any method.

A criterion is a loss, a margin in front of it or none, and what it asks of the forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_pipeline.learning.data.longtail import LongTail
from lt_pipeline.learning.losses import functional as losses
from lt_pipeline.learning.losses.difficulty import SizeCorrelation, with_group

if TYPE_CHECKING:
    from lt_pipeline.learning.losses.config import (
        BalancedContrastiveConfig,
        ClassBalancedConfig,
        DifficultyBalancedConfig,
        FocalConfig,
    )


@dataclass(frozen=True)
class Head:
    """What a criterion must know of the classifier: its inputs, and the cosine head's s or None."""

    features: int
    scale: float | None = None


class Outputs(NamedTuple):
    """What a criterion sees of a forward pass; what it did not ask for is None.

    ``logits`` ``[B, C]`` are of the images; ``features`` ``[1 + V, B, F]`` of the images and of
    the V views that ``Criterion.views`` asks for; ``centres`` ``[C, F]`` are the classifier's
    weights.
    """

    logits: Tensor
    features: Tensor | None = None
    centres: Tensor | None = None


class Criterion(nn.Module):
    """Plain cross-entropy, and the base of all others.

    What it knows or learns of the classes are buffers, so that a checkpoint is complete.
    ``views`` is how many contrastive views of every image it asks for, ``needs_features`` whether
    it looks at features and class centres. ``per_image`` says whether images have losses of their
    own, which may be weighted; else only the mean over the batch has a meaning.
    """

    views: ClassVar[int] = 0
    needs_features: ClassVar[bool] = False
    per_image: ClassVar[bool] = True

    def __init__(self, config: Any, longtail: LongTail, head: Head) -> None:
        super().__init__()
        self.config = config
        self.margin = config.build_margin(longtail, head)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``, in at least float32.

        ``logits`` are ``[B, C]``, ``labels`` ``[B]``; the margin, if there is one, is put on.

        Raises:
            ValueError: if a label names no class.
        """
        logits = losses.at_least_float32(logits)
        if self.margin is not None:
            logits = self.margin(logits, labels)
        return self.losses(logits, labels)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``, for the final ``logits`` ``[B, C]``."""
        return losses.cross_entropy(logits, labels)

    def terms(self, outputs: Outputs, labels: Tensor) -> dict[str, Tensor]:
        """Return the named terms whose sum is minimised, scalars."""
        return {self.config.name: self(outputs.logits, labels).mean()}

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Change what changes between epochs; ``epoch`` counts from 0 to ``epochs`` - 1."""

    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Learn from the hold-out's ``logits`` ``[N, C]`` and ``labels`` ``[N]`` after an epoch."""

    def end_epoch(self) -> None:
        """Learn from the epoch that is over."""

    def follow(self) -> dict[str, float]:
        """Return what else is worth a curve over the epochs, by name."""
        return {}

    def notes(self) -> list[str]:
        """Return what a reader of the results must know of this run, a sentence each."""
        return []


class ClassBalanced(Criterion):
    """Cross-entropy weighted by the effective number of samples (Cui et al. 2019)."""

    def __init__(self, config: ClassBalancedConfig, longtail: LongTail, head: Head) -> None:
        super().__init__(config, longtail, head)
        weight = losses.class_balanced_weight(longtail.counts, config.beta).float()
        self.register_buffer("class_weight", weight)
        self.class_weight: Tensor
        self.weighting = config.start == 0

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Weight the classes from ``config.start`` on: deferred re-weighting (Cao et al. 2019).

        The last epoch is always weighted, however few there are.
        """
        self.weighting = epoch / epochs >= self.config.start or epoch == epochs - 1

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``."""
        loss = losses.cross_entropy(logits, labels)
        if not self.weighting:
            return loss
        return weighted(loss, self.class_weight[labels], mean=self.config.weighted_mean)


class LogitAdjusted(Criterion):
    """Cross-entropy of logits shifted by tau * log prior (Menon et al. 2021)."""

    def __init__(self, config: Any, longtail: LongTail, head: Head) -> None:
        super().__init__(config, longtail, head)
        self.register_buffer("log_prior", longtail.log_prior.float())
        self.log_prior: Tensor

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``."""
        return losses.logit_adjusted(logits, labels, self.log_prior, self.config.tau)


class BalancedSoftmax(LogitAdjusted):
    """Softmax with every class weighted by its share of the images (Ren et al. 2020)."""

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``."""
        return losses.balanced_softmax(logits, labels, self.log_prior)


class Focal(Criterion):
    """Focal loss over the softmax (Lin et al. 2017), class-balanced where beta is given."""

    def __init__(self, config: FocalConfig, longtail: LongTail, head: Head) -> None:
        super().__init__(config, longtail, head)
        weight = losses.class_balanced_weight(longtail.counts, config.beta).float()
        self.register_buffer("class_weight", weight)
        self.class_weight: Tensor

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``."""
        loss = losses.focal(logits, labels, self.config.gamma)
        return weighted(loss, self.class_weight[labels], mean=self.config.weighted_mean)


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
        self.class_weight.copy_(
            losses.difficulty_weight(self.accuracy, self.known, self.config.tau)
        )
        self.size_correlation.update(self.class_weight)
        self.correct.zero_()
        self.seen.zero_()

    def follow(self) -> dict[str, float]:
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


class BalancedContrastive(LogitAdjusted):
    """Logit adjustment on the images and a balanced contrast of two views (Zhu et al. 2022).

    The classifier's weights are the class prototypes; features and prototypes go through
    projection heads of their own, which are for training only.
    """

    views: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True

    def __init__(self, config: BalancedContrastiveConfig, longtail: LongTail, head: Head) -> None:
        super().__init__(config, longtail, head)
        self.project = projection(head.features, config.hidden, config.width)
        self.project_centres = projection(head.features, config.hidden, config.width)

    def terms(self, outputs: Outputs, labels: Tensor) -> dict[str, Tensor]:
        """Return the classification and the contrastive term, weighted, scalars.

        The images' own projections are in the projection's batch, as in the released code, but
        not in the contrast.

        Raises:
            ValueError: without features and centres.
        """
        if outputs.features is None or outputs.centres is None:
            raise ValueError("balanced_contrastive needs the features of two views and the centres")
        views, images, width = outputs.features.shape
        projections = self.project(outputs.features.reshape(views * images, width))
        with torch.autocast(projections.device.type, enabled=False):
            unit = F.normalize(losses.at_least_float32(projections), dim=1)
            contrast = losses.balanced_contrastive(
                unit.view(views, images, -1)[1:],
                labels,
                F.normalize(self.project_centres(losses.at_least_float32(outputs.centres)), dim=1),
                self.config.temperature,
            )
        return {
            "classification": self.config.classification * self(outputs.logits, labels).mean(),
            "contrast": self.config.contrast * contrast.mean(),
        }


def projection(features: int, hidden: int, width: int) -> nn.Module:
    """Return the two-layer head ``[N, features]`` -> ``[N, width]`` that contrast is made in."""
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, width),
    )


def weighted(loss: Tensor, weight: Tensor, *, mean: bool) -> Tensor:
    """Return ``loss`` times ``weight``, both ``[B]``; with ``mean`` the weights average to 1.

    A batch of classes without weight has no loss.
    """
    if not mean:
        return loss * weight
    return loss * (weight / weight.mean().clamp(min=torch.finfo(weight.dtype).tiny))
