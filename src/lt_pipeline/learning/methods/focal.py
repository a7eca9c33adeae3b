"""Focal loss.

Lin et al., Focal loss for dense object detection, ICCV 2017; over the softmax of the classes.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import FocalConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class FocalLossOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: FocalConfig = FocalConfig()


class FocalLoss(Method):
    """Cross-entropy in which images that are already right count less."""

    Options = FocalLossOptions
