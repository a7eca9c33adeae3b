"""Criteria that decide on each class by itself, as images of several labels need.

Where each image has one label, the others are what it has not. Losses are functions of logits and
targets, both ``[B, C]``, targets 1 where the image has the label, else 0; they return ``[B, C]``.
An image's loss is their sum over the classes, for all of them: released codes differ (the ASL's
sums over the batch, too, the distribution-balanced one takes the mean of all), and with it what a
learning rate and MORE's amplitude mean.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses import functional as losses
from lt_pipeline.learning.losses.criteria import Criterion, CriterionBase, Head
from lt_pipeline.learning.schema import UserError


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of every class."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def sigmoid_focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Return (1 - p_t)^gamma times the cross-entropy, p_t the probability of what is true.

    Lin et al., Focal loss for dense object detection (ICCV 2017), equation 4; gamma = 0 is ``bce``.
    """
    loss = bce(logits, targets)
    # 1 - p_t without cancellation; a certain decision would have an infinite slope for gamma < 1
    return _doubt(loss) ** gamma * loss


def asymmetric(
    logits: Tensor, targets: Tensor, positive: float, negative: float, clip: float
) -> Tensor:
    """Return the asymmetric loss of every class.

    Ridnik et al., Asymmetric loss for multi-label classification (ICCV 2021), equations 5 to 7: a
    focal loss whose exponent is ``positive`` where the label is there and ``negative`` where it is
    not, of which probabilities are first lowered by ``clip``: those below cost nothing. Exponents
    of 0 without a clip are ``bce``. As released, the focal factor has no gradient.
    """
    p = logits.sigmoid()
    lowered = (p - clip).clamp(min=0) if clip else p
    # of a label that is there; log(1 - p) from the logit where nothing is lowered
    right = F.logsigmoid(logits)
    wrong = torch.log1p(-lowered) if clip else F.logsigmoid(-logits)
    with torch.no_grad():
        exponent = torch.where(targets > 0, positive, negative)
        focus = torch.where(targets > 0, 1 - p, lowered) ** exponent
    return -focus * torch.where(targets > 0, right, wrong)


def rebalanced_weight(
    targets: Tensor, class_counts: Tensor, alpha: float, beta: float, mu: float
) -> Tensor:
    """Return alpha + sigmoid(beta (r - mu)), r the rebalancing weight, ``[B, C]``.

    Wu et al., Distribution-balanced loss for multi-label classification in long-tailed datasets
    (ECCV 2020), equations 3 to 6: r = (1 / n_c) / sum of 1 / n_i over the image's labels i, how
    often class-level sampling would bring the image for this class, of how often it brings it for
    all. ``class_counts`` is ``[C]``. An image without a label is never brought: its r is as good as
    infinite.
    """
    inverse = class_counts.reciprocal()
    brought = (targets * inverse).sum(1, keepdim=True).clamp(min=torch.finfo(inverse.dtype).tiny)
    return alpha + torch.sigmoid(beta * (inverse / brought - mu))


def negative_tolerant(
    logits: Tensor, targets: Tensor, bias: Tensor, scale: float, weight: Tensor, gamma: float
) -> Tensor:
    """Return the focal loss of shifted logits, those of absent labels times ``scale``, over it.

    Wu et al. (2020), equations 7 to 10: ``bias`` ``[C]`` is added to all logits; ``weight``
    ``[B, C]`` rebalances. The factor 2 of the released code is not here.
    """
    shifted = logits + bias
    scaled = torch.where(targets > 0, shifted, scale * shifted)
    divided = torch.where(targets > 0, weight, weight / scale)
    return divided * sigmoid_focal(scaled, targets, gamma)


def _doubt(loss: Tensor) -> Tensor:
    return -torch.expm1(-loss).clamp(max=-torch.finfo(loss.dtype).eps)


class Binary(Criterion):
    """The base of these criteria."""

    one_label: ClassVar[str] = ""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``, in at least float32.

        ``logits`` are ``[B, C]``, ``labels`` ``[B, C]``, or ``[B]`` where each image has one.

        Raises:
            ValueError: if a label names no class.
        """
        logits = losses.at_least_float32(logits)
        if labels.ndim == 1:
            losses.check_labels(labels, logits.shape[1])
            labels = F.one_hot(labels, logits.shape[1])
        return self.by_class(logits, labels.to(logits.dtype)).sum(1)

    @abstractmethod
    def by_class(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of every image and class, ``[B, C]``."""


class BinaryConfig(CriterionBase):
    """What these criteria can be told; margins are of one label an image."""

    def check_head(self, cosine: bool) -> None:
        """Refuse a margin.

        Raises:
            UserError: saying what to set.
        """
        if self.margin is not None:
            raise UserError(f"the margin {self.margin.name!r} is of a softmax: set margin to null")


class Bce(Binary):
    """Binary cross-entropy."""

    def by_class(self, logits: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return bce(logits, targets)


class BceConfig(BinaryConfig):
    """Binary cross-entropy."""

    kind = Bce
    name: Literal["bce"] = "bce"


class SigmoidFocal(Binary):
    """The focal loss of every class."""

    def by_class(self, logits: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return sigmoid_focal(logits, targets, self.config.gamma)


class SigmoidFocalConfig(BinaryConfig):
    """Focal loss; gamma = 0 is binary cross-entropy."""

    kind = SigmoidFocal
    name: Literal["sigmoid_focal"] = "sigmoid_focal"
    gamma: NonNegativeFloat = 2.0


class Asymmetric(Binary):
    """The asymmetric loss."""

    def by_class(self, logits: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        config = self.config
        return asymmetric(
            logits, targets, config.gamma_positive, config.gamma_negative, config.clip
        )


class AsymmetricConfig(BinaryConfig):
    """Asymmetric loss; the defaults are those of its released code.

    Attributes:
        gamma_positive: exponent of the focus where the label is there.
        gamma_negative: and where it is not.
        clip: what probabilities of absent labels are lowered by.
    """

    kind = Asymmetric
    name: Literal["asl"] = "asl"
    gamma_positive: NonNegativeFloat = 1.0
    gamma_negative: NonNegativeFloat = 4.0
    clip: float = Field(default=0.05, ge=0, lt=1)


class DistributionBalanced(Binary):
    """Rebalanced weights and negative-tolerant regularisation."""

    def __init__(self, config: DistributionBalancedConfig, longtail: LongTail, head: Head) -> None:
        super().__init__(config, longtail, head)
        bias = config.kappa / config.scale * log_odds(longtail)
        self.register_buffer("class_counts", longtail.counts.float())
        self.register_buffer("bias", bias.float())
        self.class_counts: Tensor
        self.bias: Tensor

    def by_class(self, logits: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        config = self.config
        counts = self.class_counts.to(logits.dtype)
        weight = rebalanced_weight(targets, counts, config.alpha, config.beta, config.mu)
        bias = self.bias.to(logits.dtype)
        return negative_tolerant(logits, targets, bias, config.scale, weight, config.gamma)


class DistributionBalancedConfig(BinaryConfig):
    """Distribution-balanced loss; the defaults are those of the released VOC-MLT configuration.

    Attributes:
        alpha: the least weight.
        beta: the slope of the map from rebalancing weights to weights.
        mu: where that has its middle.
        scale: lambda, of the logits of absent labels.
        kappa: of the bias -log(N / n_c - 1), which is over ``scale``.
        gamma: of the focal loss; 0 leaves it out.
    """

    symbols: ClassVar = {"lambda": "scale"}
    kind = DistributionBalanced
    name: Literal["distribution_balanced"] = "distribution_balanced"
    alpha: NonNegativeFloat = 0.1
    beta: NonNegativeFloat = 10.0
    mu: float = 0.3
    scale: PositiveFloat = 5.0
    kappa: NonNegativeFloat = 0.05
    gamma: NonNegativeFloat = 2.0


class ClassBalancedBce(Binary):
    """Binary cross-entropy, classes weighted by the effective number of samples."""

    def __init__(self, config: ClassBalancedBceConfig, longtail: LongTail, head: Head) -> None:
        super().__init__(config, longtail, head)
        weight = losses.class_balanced_weight(longtail.counts, config.beta).float()
        self.register_buffer("class_weight", weight)
        self.class_weight: Tensor

    def by_class(self, logits: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return self.class_weight * bce(logits, targets)


class ClassBalancedBceConfig(BinaryConfig):
    """Class-balanced binary cross-entropy (Cui et al. 2019), whose weights sum to C."""

    kind = ClassBalancedBce
    name: Literal["class_balanced_bce"] = "class_balanced_bce"
    beta: float = Field(default=0.9999, ge=0, lt=1)


class LogitAdjustedBce(Binary):
    """Binary cross-entropy of logits shifted by tau times the label's log odds."""

    def __init__(self, config: LogitAdjustedBceConfig, longtail: LongTail, head: Head) -> None:
        super().__init__(config, longtail, head)
        self.register_buffer("shift", (config.tau * log_odds(longtail)).float())
        self.shift: Tensor

    def by_class(self, logits: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        return bce(logits + self.shift, targets)


class LogitAdjustedBceConfig(BinaryConfig):
    """Logit adjustment of each class's own two, label and no label (Menon et al. 2021)."""

    kind = LogitAdjustedBce
    name: Literal["logit_adjusted_bce"] = "logit_adjusted_bce"
    tau: NonNegativeFloat = 1.0


def log_odds(longtail: LongTail) -> Tensor:
    """Return log(n_c / (N - n_c)), float64 ``[C]``.

    A label that all images have counts as missing in half an image: its odds are finite.
    """
    without = (longtail.training_images - longtail.counts).clamp(min=0.5)
    return (longtail.counts / without).log()


BinaryCriterion = Annotated[
    BceConfig
    | SigmoidFocalConfig
    | AsymmetricConfig
    | DistributionBalancedConfig
    | ClassBalancedBceConfig
    | LogitAdjustedBceConfig,
    Field(discriminator="name"),
]
