"""Class-balanced loss.

Cui et al., Class-balanced loss based on effective number of samples, CVPR 2019.
"""

from lt_pipeline.learning.losses.criteria import ClassBalancedConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class ClassBalanced(CriterionMethod, criterion=ClassBalancedConfig()):
    """Cross-entropy, each class weighted by the inverse of its effective number of images."""
