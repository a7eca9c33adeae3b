"""LDAM-DRW: LDAM with deferred re-weighting.

Cao et al., Learning imbalanced datasets with label-distribution-aware margin loss, NeurIPS 2019.
"""

from lt_pipeline.learning.losses.criteria import ClassBalancedConfig
from lt_pipeline.learning.losses.margins import LdamConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class DeferredLabelDistributionAwareMargin(
    CriterionMethod, criterion=ClassBalancedConfig(start=0.8, margin=LdamConfig())
):
    """LDAM; for the last fifth of the run, classes weigh by their effective number."""
