"""Criteria: a loss bound to a class distribution, chosen by name and composed with any method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from lt_pipeline.data.longtail import LongTail
from lt_pipeline.losses import functional as losses
from lt_pipeline.schema import Config


class Criterion(nn.Module):
    """Maps logits ``[B, C]`` and labels ``[B]`` to unreduced losses ``[B]``; plain cross-entropy.

    What a subclass knows of the classes are buffers, so that a checkpoint is complete.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``, in float32."""
        return losses.cross_entropy(logits.float(), labels)


class ClassBalanced(Criterion):
    """Cross-entropy weighted by the effective number of samples (Cui et al. 2019)."""

    def __init__(self, longtail: LongTail, beta: float) -> None:
        super().__init__()
        weight = losses.class_balanced_weight(longtail.counts, beta).float()
        self.register_buffer("class_weight", weight)
        self.class_weight: Tensor

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``, in float32."""
        return losses.weighted_cross_entropy(logits.float(), labels, self.class_weight)


class LogitAdjusted(Criterion):
    """Cross-entropy of logits shifted by tau * log prior (Menon et al. 2021)."""

    def __init__(self, longtail: LongTail, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.register_buffer("log_prior", longtail.log_prior.float())
        self.log_prior: Tensor

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``, in float32."""
        return losses.logit_adjusted(logits.float(), labels, self.log_prior, self.tau)


class BalancedSoftmax(Criterion):
    """Softmax with every class weighted by its count (Ren et al. 2020)."""

    def __init__(self, longtail: LongTail) -> None:
        super().__init__()
        self.register_buffer("class_counts", longtail.counts.float())
        self.class_counts: Tensor

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``, in float32."""
        return losses.balanced_softmax(logits.float(), labels, self.class_counts)


class CrossEntropyConfig(Config):
    """Plain cross-entropy."""

    name: Literal["cross_entropy"] = "cross_entropy"

    def build(self, longtail: LongTail) -> Criterion:
        """Return the criterion; it does not look at ``longtail``."""
        return Criterion()


class ClassBalancedConfig(Config):
    """Class-balanced cross-entropy; beta in [0, 1), 0 is no weighting."""

    name: Literal["class_balanced"] = "class_balanced"
    beta: float = Field(default=0.9999, ge=0, lt=1)

    def build(self, longtail: LongTail) -> Criterion:
        """Return the criterion for the class counts of ``longtail``."""
        return ClassBalanced(longtail, self.beta)


class LogitAdjustmentConfig(Config):
    """Logit adjustment; tau = 0 is plain cross-entropy."""

    name: Literal["logit_adjustment"] = "logit_adjustment"
    tau: NonNegativeFloat = 1.0

    def build(self, longtail: LongTail) -> Criterion:
        """Return the criterion for the prior of ``longtail``."""
        return LogitAdjusted(longtail, self.tau)


class BalancedSoftmaxConfig(Config):
    """Balanced softmax."""

    name: Literal["balanced_softmax"] = "balanced_softmax"

    def build(self, longtail: LongTail) -> Criterion:
        """Return the criterion for the class counts of ``longtail``."""
        return BalancedSoftmax(longtail)


CriterionConfig = Annotated[
    CrossEntropyConfig | ClassBalancedConfig | LogitAdjustmentConfig | BalancedSoftmaxConfig,
    Field(discriminator="name"),
]
