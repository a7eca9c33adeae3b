"""Plain cross-entropy, the yardstick of every paper."""

from __future__ import annotations

from lt_pipeline.learning.losses.config import CrossEntropyConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class CrossEntropyOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: CrossEntropyConfig = CrossEntropyConfig()


class CrossEntropy(Method):
    """Empirical risk minimisation on the long-tailed set as it is."""

    Options = CrossEntropyOptions
