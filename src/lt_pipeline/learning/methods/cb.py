"""Class-balanced loss.

Cui et al., Class-balanced loss based on effective number of samples, CVPR 2019.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import ClassBalancedConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class ClassBalancedOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: ClassBalancedConfig = ClassBalancedConfig()


class ClassBalanced(Method):
    """Cross-entropy, each class weighted by the inverse of its effective number of images."""

    Options = ClassBalancedOptions
