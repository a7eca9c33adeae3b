"""LDAM: a margin that grows as classes get rarer.

Cao et al., Learning imbalanced datasets with label-distribution-aware margin loss, NeurIPS 2019.
"""

from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.losses.margins import LdamConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class LabelDistributionAwareMargin(
    CriterionMethod, criterion=CrossEntropyConfig(margin=LdamConfig())
):
    """Cross-entropy with the true class's cosine lowered by a margin ~ n^(-1/4)."""
