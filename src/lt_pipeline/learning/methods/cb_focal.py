"""Class-balanced focal loss.

Cui et al., Class-balanced loss based on effective number of samples, CVPR 2019; theirs is over
sigmoids, this one over the softmax.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import FocalConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class ClassBalancedFocalLossOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: FocalConfig = FocalConfig(beta=0.9999)


class ClassBalancedFocalLoss(Method):
    """Focal loss, each class weighted by the inverse of its effective number of images."""

    Options = ClassBalancedFocalLossOptions
