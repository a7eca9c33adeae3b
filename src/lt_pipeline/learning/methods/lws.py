"""LWS (Kang et al., ICLR 2020): a learned length for every class's weights, all else frozen.

The classifier's bias is scaled with the weights.
"""

from __future__ import annotations

from lt_pipeline.learning.methods.families.decoupled import (
    ClassifierConfig,
    Decoupled,
    DecoupledOptions,
)


class LwsOptions(DecoupledOptions):
    """Only the factors of the classes' logits learn."""

    classifier: ClassifierConfig = ClassifierConfig(scale=True, head_rate=0.0)


class LearnableWeightScaling(Decoupled):
    """Instance-balanced training of all, then class-balanced training of a factor a class."""

    Options = LwsOptions
