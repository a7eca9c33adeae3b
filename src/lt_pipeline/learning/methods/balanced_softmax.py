"""Balanced softmax.

Ren et al., Balanced meta-softmax for long-tailed visual recognition, NeurIPS 2020.
"""

from lt_pipeline.learning.losses.criteria import BalancedSoftmaxConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class BalancedSoftmax(CriterionMethod, criterion=BalancedSoftmaxConfig()):
    """Softmax in which every class counts as often as it has training images."""
