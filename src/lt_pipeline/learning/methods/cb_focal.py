"""Class-balanced focal loss.

Cui et al., Class-balanced loss based on effective number of samples, CVPR 2019; theirs is over
sigmoids, this one over the softmax.
"""

from lt_pipeline.learning.losses.criteria import FocalConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class ClassBalancedFocalLoss(CriterionMethod, criterion=FocalConfig(beta=0.9999)):
    """Focal loss, each class weighted by the inverse of its effective number of images."""
