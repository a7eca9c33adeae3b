"""Criteria by name, with their parameters and a margin in front of the loss or none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import nn

from lt_pipeline.learning.data.longtail import LongTail
from lt_pipeline.learning.losses.criteria import (
    BalancedContrastive,
    BalancedSoftmax,
    ClassBalanced,
    Criterion,
    DifficultyBalanced,
    Focal,
    Head,
    LogitAdjusted,
)
from lt_pipeline.learning.losses.decoupled import GeometricMean, LabelAwareSmoothing, Shape
from lt_pipeline.learning.losses.margins import MarginConfig
from lt_pipeline.learning.schema import Config, UserError


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


class LogitAdjustmentConfig(CriterionBase):
    """Logit adjustment; tau = 0 is plain cross-entropy."""

    kind = LogitAdjusted
    name: Literal["logit_adjustment"] = "logit_adjustment"
    tau: NonNegativeFloat = 1.0


class BalancedSoftmaxConfig(CriterionBase):
    """Balanced softmax."""

    kind = BalancedSoftmax
    name: Literal["balanced_softmax"] = "balanced_softmax"


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


class BalancedContrastiveConfig(CriterionBase):
    """Balanced contrastive learning.

    Attributes:
        tau: of the classification term's logit adjustment.
        classification: weight of that term; 2.0 and 0.6 are DBM's released ones, the authors' own
            on ImageNet-LT are 1.0, 0.35 and a temperature of 0.07.
        contrast: weight of the contrastive term.
        temperature: of the contrastive term.
        hidden: hidden width of the projection heads.
        width: their output width.
    """

    kind = BalancedContrastive
    name: Literal["balanced_contrastive"] = "balanced_contrastive"
    tau: NonNegativeFloat = 1.0
    classification: PositiveFloat = 2.0
    contrast: NonNegativeFloat = 0.6
    temperature: PositiveFloat = 0.1
    hidden: int = Field(default=512, ge=1, le=65_536)
    width: int = Field(default=128, ge=1, le=65_536)


class LabelAwareSmoothingConfig(CriterionBase):
    """Label-aware smoothing; head = tail = 0 is plain cross-entropy.

    Attributes:
        head: smoothing of the class with most images; 0.4 and a tail of 0.1 are MiSLAS's for
            CIFAR-100-LT at an imbalance ratio of 100.
        tail: smoothing of the class with fewest, at most ``head``.
        shape: how it rises between them, over the number of images.
        power: of the exponential shape; 1 is linear.
    """

    symbols: ClassVar[Mapping[str, str]] = {"epsilon_1": "head", "epsilon_K": "tail"}

    kind = LabelAwareSmoothing
    name: Literal["label_aware_smoothing"] = "label_aware_smoothing"
    head: float = Field(default=0.4, ge=0, lt=1)
    tail: float = Field(default=0.1, ge=0, lt=1)
    shape: Shape = "concave"
    power: PositiveFloat = 2.0

    @model_validator(mode="after")
    def _head_most(self) -> Self:
        if self.tail > self.head:
            raise UserError(
                f"head must be >= tail, as frequent classes are smoothed most, but got head "
                f"{self.head} and tail {self.tail}"
            )
        return self


class GeometricMeanConfig(CriterionBase):
    """Geometric mean loss, of a whole batch; it wants batches with several images of a class.

    Attributes:
        tau: of the log prior in the softmax; 1 is the balanced softmax, 0 the plain one.
        p: exponent of the mean over classes; 1 is the geometric mean of their recalls, as BTM's
            repository has it, and the larger it is, the more the worst class counts.
    """

    kind = GeometricMean
    name: Literal["geometric_mean"] = "geometric_mean"
    tau: NonNegativeFloat = 1.0
    # below 1 the classes that are nearly right would weigh most
    p: float = Field(default=1.0, ge=1)


CriterionConfig = Annotated[
    CrossEntropyConfig
    | ClassBalancedConfig
    | LogitAdjustmentConfig
    | BalancedSoftmaxConfig
    | FocalConfig
    | DifficultyBalancedConfig
    | BalancedContrastiveConfig
    | LabelAwareSmoothingConfig
    | GeometricMeanConfig,
    Field(discriminator="name"),
]
