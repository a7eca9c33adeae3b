"""CDB-CE: class-wise difficulty-balanced cross-entropy.

Sinha et al., Class-wise difficulty-balanced loss for solving class-imbalance, ACCV 2020.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import DifficultyBalancedConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class DifficultyBalancedCrossEntropyOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: DifficultyBalancedConfig = DifficultyBalancedConfig()


class DifficultyBalancedCrossEntropy(Method):
    """Cross-entropy in which the classes that are still wrong most often weigh most."""

    Options = DifficultyBalancedCrossEntropyOptions
