"""MiSLAS (Zhong et al., CVPR 2021): mixup, then label-aware smoothing with learned scaling.

In the second stage the backbone is frozen, but its BatchNorm statistics shift to class-balanced
batches; the classifier learns slowly beside a factor for each class.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.decoupled import LabelAwareSmoothingConfig
from lt_pipeline.learning.methods.families.decoupled import (
    ClassifierConfig,
    Decoupled,
    DecoupledOptions,
)

# CIFAR-100-LT at IR 100; docs/methods/decoupled.md has the other sets'
SECOND_STAGE = ClassifierConfig(scale=True, head_rate=0.2, shift_batchnorm=True)


class MislasOptions(DecoupledOptions):
    """Mixtures first; smoothing that is stronger the more images a class has."""

    pretrain: str = "mixup"
    criterion: CriterionConfig = LabelAwareSmoothingConfig()
    classifier: ClassifierConfig = SECOND_STAGE


class Mislas(Decoupled):
    """Mixup training of all, then a calibrated classifier on class-balanced batches."""

    Options = MislasOptions
