"""Plain cross-entropy, the yardstick of every paper."""

from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class CrossEntropy(CriterionMethod, criterion=CrossEntropyConfig()):
    """Empirical risk minimisation on the long-tailed set as it is."""
