"""Criteria: a loss bound to a class distribution and a head, to compose with any method.

A criterion is a loss, a margin in front of it or none, and what it asks of the forward pass; its
parameters stand beside it, in a class that says the criterion it is of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses import functional as losses
from lt_pipeline.learning.losses.margins import MarginConfig
from lt_pipeline.learning.schema import Config, UserError


@dataclass(frozen=True)
class Head:
    """What a criterion must know of the classifier: its inputs, and the cosine head's s or None."""

    features: int
    scale: float | None = None


class Outputs(NamedTuple):
    """What a criterion sees of a forward pass; what it did not ask for is None.

    ``logits`` ``[B, C]`` are of the images; ``features`` ``[1 + V, B, F]`` of the images and of
    the V views that ``Criterion.views`` asks for; ``prototypes`` ``[C, F]`` are the classifier's
    weights.
    """

    logits: Tensor
    features: Tensor | None = None
    prototypes: Tensor | None = None


class Criterion(nn.Module):
    """Plain cross-entropy, and the base of all others.

    What it knows or learns of the classes are buffers, so that a checkpoint is complete.
    ``views`` is how many contrastive views of every image it asks for, ``needs_features`` whether
    it looks at features and class centres. ``per_image`` says whether images have losses of their
    own, which may be weighted; else only the mean over the batch has a meaning. ``one_label`` says
    why it does not take images of several labels, "" where it does.
    """

    views: ClassVar[int] = 0
    needs_features: ClassVar[bool] = False
    per_image: ClassVar[bool] = True
    one_label: ClassVar[str] = "is of a softmax, in which one class is right"

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

    def epoch_metrics(self) -> dict[str, float]:
        """Return what else is worth a curve over the epochs, by name."""
        return {}

    def notes(self) -> list[str]:
        """Return what a reader of the results must know of this run, a sentence each."""
        return []


class CriterionBase(Config):
    """What all criteria can be told: a margin in front of the loss.

    ``kind`` is the class that is bound to a distribution and a head.
    """

    kind: ClassVar[type[Criterion]] = Criterion
    name: str
    margin: MarginConfig | None = None

    @property
    def wants_validation(self) -> bool:
        """Return whether the criterion must be told of a hold-out after every epoch."""
        return False

    def build(self, longtail: LongTail, head: Head) -> Criterion:
        """Return the criterion for the classes of ``longtail`` and a classifier ``head``.

        Raises:
            UserError: if there is a margin and the head is not a cosine head.
        """
        return self.kind(self, longtail, head)

    def build_margin(self, longtail: LongTail, head: Head) -> nn.Module | None:
        """Return the margin, or None.

        Raises:
            UserError: if there is a margin and the head is not a cosine head.
        """
        self.check_head(head.scale is not None)
        if self.margin is None or head.scale is None:
            return None
        return self.margin.build(longtail, head.scale)

    def check_head(self, cosine: bool) -> None:
        """Refuse a margin without a cosine head.

        Raises:
            UserError: saying what to set.
        """
        if self.margin is not None and not cosine:
            raise UserError(
                f"the margin {self.margin.name!r} is of angles and needs model.head = cosine, "
                f"but it is linear"
            )


class CrossEntropyConfig(CriterionBase):
    """Plain cross-entropy."""

    name: Literal["cross_entropy"] = "cross_entropy"


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


class ClassBalancedConfig(CriterionBase):
    """Class-balanced cross-entropy.

    Attributes:
        beta: in [0, 1); 0 is no weighting.
        start: share of the epochs before which there is no weighting: deferred re-weighting.
        weighted_mean: divide a batch's loss by its weights, as the released codes of LDAM and DBM
            do; else by its images, and batches of frequent classes hardly count.
    """

    kind = ClassBalanced
    name: Literal["class_balanced"] = "class_balanced"
    beta: float = Field(default=0.9999, ge=0, lt=1)
    start: float = Field(default=0.0, ge=0, lt=1)
    weighted_mean: bool = True


class LogitAdjusted(Criterion):
    """Cross-entropy of logits shifted by tau * log prior (Menon et al. 2021)."""

    def __init__(self, config: Any, longtail: LongTail, head: Head) -> None:
        super().__init__(config, longtail, head)
        self.register_buffer("log_prior", longtail.log_prior.float())
        self.log_prior: Tensor

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``."""
        return losses.logit_adjusted(logits, labels, self.log_prior, self.config.tau)


class LogitAdjustmentConfig(CriterionBase):
    """Logit adjustment; tau = 0 is plain cross-entropy."""

    kind = LogitAdjusted
    name: Literal["logit_adjustment"] = "logit_adjustment"
    tau: NonNegativeFloat = 1.0


class BalancedSoftmax(LogitAdjusted):
    """Softmax with every class weighted by its share of the images (Ren et al. 2020)."""

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``."""
        return losses.balanced_softmax(logits, labels, self.log_prior)


class BalancedSoftmaxConfig(CriterionBase):
    """Balanced softmax."""

    kind = BalancedSoftmax
    name: Literal["balanced_softmax"] = "balanced_softmax"


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


class FocalConfig(CriterionBase):
    """Focal loss.

    Attributes:
        gamma: 0 is cross-entropy.
        beta: above 0 weights the classes as ``class_balanced`` does, in front of the focal loss.
        weighted_mean: divide a batch's loss by its weights; else by its images, as LDAM's code.
    """

    kind = Focal
    name: Literal["focal"] = "focal"
    gamma: NonNegativeFloat = 2.0
    beta: float = Field(default=0.0, ge=0, lt=1)
    weighted_mean: bool = True


def weighted(loss: Tensor, weight: Tensor, *, mean: bool) -> Tensor:
    """Return ``loss`` times ``weight``, both ``[B]``; with ``mean`` the weights average to 1.

    A batch of classes without weight has no loss.
    """
    if not mean:
        return loss * weight
    return loss * (weight / weight.mean().clamp(min=torch.finfo(weight.dtype).tiny))
