"""Balanced contrastive learning (Zhu et al., CVPR 2022) as a criterion."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses import functional as losses
from lt_pipeline.learning.losses.criteria import CriterionBase, Head, LogitAdjusted, Outputs


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
            ValueError: without features and prototypes.
        """
        if outputs.features is None or outputs.prototypes is None:
            raise ValueError("balanced_contrastive needs the features of two views and the centres")
        views, images, width = outputs.features.shape
        projections = self.project(outputs.features.reshape(views * images, width))
        with torch.autocast(projections.device.type, enabled=False):
            unit = F.normalize(losses.at_least_float32(projections), dim=1)
            contrast = losses.balanced_contrastive(
                unit.view(views, images, -1)[1:],
                labels,
                F.normalize(
                    self.project_centres(losses.at_least_float32(outputs.prototypes)), dim=1
                ),
                self.config.temperature,
            )
        return {
            "classification": self.config.classification * self(outputs.logits, labels).mean(),
            "contrast": self.config.contrast * contrast.mean(),
        }


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


def projection(features: int, hidden: int, width: int) -> nn.Module:
    """Return the two-layer head ``[N, features]`` -> ``[N, width]`` that contrast is made in."""
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, width),
    )
