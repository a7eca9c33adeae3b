"""CDB-CE: class-wise difficulty-balanced cross-entropy.

Sinha et al., Class-wise difficulty-balanced loss for solving class-imbalance, ACCV 2020.
"""

from lt_pipeline.learning.losses.difficulty import DifficultyBalancedConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class DifficultyBalancedCrossEntropy(CriterionMethod, criterion=DifficultyBalancedConfig()):
    """Cross-entropy in which the classes that are still wrong most often weigh most."""
