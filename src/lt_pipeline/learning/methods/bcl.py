"""BCL: balanced contrastive learning.

Zhu et al., Balanced contrastive learning for long-tailed visual recognition, CVPR 2022.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import BalancedContrastiveConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class BalancedContrastiveLearningOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: BalancedContrastiveConfig = BalancedContrastiveConfig()


class BalancedContrastiveLearning(Method):
    """Logit adjustment, and a contrast of two views in which every class has the same say."""

    Options = BalancedContrastiveLearningOptions
