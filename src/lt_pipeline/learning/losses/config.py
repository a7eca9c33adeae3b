"""The criteria there are: the parameters of one, chosen by its name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lt_pipeline.learning.losses.binary import BinaryCriterion
from lt_pipeline.learning.losses.contrastive import BalancedContrastiveConfig
from lt_pipeline.learning.losses.criteria import (
    BalancedSoftmaxConfig,
    ClassBalancedConfig,
    CrossEntropyConfig,
    FocalConfig,
    LogitAdjustmentConfig,
)
from lt_pipeline.learning.losses.decoupled import GeometricMeanConfig, LabelAwareSmoothingConfig
from lt_pipeline.learning.losses.difficulty import DifficultyBalancedConfig

CriterionConfig = Annotated[
    CrossEntropyConfig
    | ClassBalancedConfig
    | LogitAdjustmentConfig
    | BalancedSoftmaxConfig
    | FocalConfig
    | DifficultyBalancedConfig
    | BalancedContrastiveConfig
    | LabelAwareSmoothingConfig
    | GeometricMeanConfig
    | BinaryCriterion,
    Field(discriminator="name"),
]
