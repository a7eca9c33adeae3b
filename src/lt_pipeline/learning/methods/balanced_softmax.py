"""Balanced softmax.

Ren et al., Balanced meta-softmax for long-tailed visual recognition, NeurIPS 2020.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import BalancedSoftmaxConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class BalancedSoftmaxOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: BalancedSoftmaxConfig = BalancedSoftmaxConfig()


class BalancedSoftmax(Method):
    """Softmax in which every class counts as often as it has training images."""

    Options = BalancedSoftmaxOptions
