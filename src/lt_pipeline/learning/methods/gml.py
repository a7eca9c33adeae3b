"""GML (Du and Wu, No One Left Behind, CVPR 2023): the classifier learns the geometric mean."""

from __future__ import annotations

from lt_pipeline.learning.data.samplers import SamplerConfig
from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.decoupled import GeometricMeanConfig
from lt_pipeline.learning.methods.families.decoupled import (
    ClassifierConfig,
    Decoupled,
    DecoupledOptions,
)


class GmlOptions(DecoupledOptions):
    """Mixtures first, as the results it is compared with; long-tailed batches in both stages."""

    pretrain: str = "mixup"
    criterion: CriterionConfig = GeometricMeanConfig()
    classifier: ClassifierConfig = ClassifierConfig(sampler=SamplerConfig(name="instance_balanced"))


class GeometricMeanLearning(Decoupled):
    """Training of all, then a classifier for the geometric mean of the recalls."""

    Options = GmlOptions
