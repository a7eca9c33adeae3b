"""LDAM: a margin that grows as classes get rarer.

Cao et al., Learning imbalanced datasets with label-distribution-aware margin loss, NeurIPS 2019.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import CrossEntropyConfig
from lt_pipeline.learning.losses.margins import LdamConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class LabelDistributionAwareMarginOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: CrossEntropyConfig = CrossEntropyConfig(margin=LdamConfig())


class LabelDistributionAwareMargin(Method):
    """Cross-entropy with the true class's cosine lowered by a margin ~ n^(-1/4)."""

    Options = LabelDistributionAwareMarginOptions
