"""What methods with several experts share: one network whose outputs have a dimension of experts.

The network maps images to logits ``[B, K, C]`` and features ``[B, K, F]`` of K experts.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.models.experts import build_expert_network
from lt_pipeline.learning.models.network import Network
from lt_pipeline.learning.schema import UserError


class ExpertOptions(MethodOptions):
    """What methods with several experts can be told.

    Attributes:
        criterion: the loss of one expert's logits.
        experts: how many, K.
        shared: what they share: ``stage1`` is the stem and first stage of a CIFAR ResNet (the
            first two stages of a large one), as in RIDE and SADE; ``all`` is the whole backbone.
        reduced: the experts' own stages of a CIFAR ResNet have 24 and 48 channels, in place of 32
            and 64, as in RIDE and SADE.
    """

    criterion: CriterionConfig = CrossEntropyConfig()
    experts: int = Field(default=3, ge=2, le=16)
    shared: Literal["stage1", "all"] = "stage1"
    reduced: bool = True

    @property
    def handles_imbalance(self) -> bool:
        """Return true, whatever the criterion."""
        return True

    @model_validator(mode="after")
    def _logits_of_single_images(self) -> Self:
        if self.criterion.kind.views:
            raise UserError(
                f"criterion {self.criterion.name!r} contrasts the features of one network, and "
                f"experts have features of their own: choose one that reads logits only"
            )
        if not self.criterion.kind.per_image:
            raise UserError(
                f"criterion {self.criterion.name!r} is a loss of a whole batch, and experts weigh "
                f"the losses of single images: choose one that has them"
            )
        return self


class ExpertMethod(Method):
    """A network with K experts, scored by the mean of their logits."""

    Options = ExpertOptions
    options: ExpertOptions
    one_label = "its experts are trained, and told apart, by the one class of an image"

    def build(self) -> Network:
        """Return the network of K experts."""
        return build_expert_network(
            self.model,
            experts=self.options.experts,
            shared=self.options.shared,
            reduced=self.options.reduced,
            classes=self.card.longtail.classes,
            channels=self.card.channels,
            mean=self.card.mean,
            std=self.card.std,
        )

    def classify(self, features: Tensor) -> Tensor:
        """Return the mean of the experts' logits, ``[B, C]``, of features ``[B, K, F]``."""
        logits: Tensor = self.net.head(features)
        return logits.mean(1)

    def features(self, images: Tensor) -> Tensor:
        """Return the experts' features side by side, each of unit length, ``[B, K F]``."""
        return F.normalize(at_least_float32(self.net.features(images)), dim=2).flatten(1)

    def class_prototypes(self) -> Tensor:
        """Return the experts' classifier weights side by side, each of unit length, ``[C, K F]``.

        The cosine to them is the mean of the experts' cosines.
        """
        return F.normalize(at_least_float32(self.net.prototypes), dim=2).transpose(0, 1).flatten(1)
