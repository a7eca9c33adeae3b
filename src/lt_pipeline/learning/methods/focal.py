"""Focal loss.

Lin et al., Focal loss for dense object detection, ICCV 2017; over the softmax of the classes.
"""

from lt_pipeline.learning.losses.criteria import FocalConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class FocalLoss(CriterionMethod, criterion=FocalConfig()):
    """Cross-entropy in which images that are already right count less."""
