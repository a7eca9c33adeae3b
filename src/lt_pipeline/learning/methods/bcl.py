"""BCL: balanced contrastive learning.

Zhu et al., Balanced contrastive learning for long-tailed visual recognition, CVPR 2022.
"""

from lt_pipeline.learning.losses.contrastive import BalancedContrastiveConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class BalancedContrastiveLearning(CriterionMethod, criterion=BalancedContrastiveConfig()):
    """Logit adjustment, and a contrast of two views in which every class has the same say."""
