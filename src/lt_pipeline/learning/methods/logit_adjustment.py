"""Logit adjustment (Menon et al., Long-tail learning via logit adjustment, ICLR 2021)."""

from __future__ import annotations

from lt_pipeline.learning.losses.config import LogitAdjustmentConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class LogitAdjustmentOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: LogitAdjustmentConfig = LogitAdjustmentConfig()


class LogitAdjustment(Method):
    """Cross-entropy of logits that are shifted by tau times the log prior while training."""

    Options = LogitAdjustmentOptions
