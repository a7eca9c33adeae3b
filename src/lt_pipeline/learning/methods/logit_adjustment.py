"""Logit adjustment (Menon et al., Long-tail learning via logit adjustment, ICLR 2021)."""

from lt_pipeline.learning.losses.criteria import LogitAdjustmentConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class LogitAdjustment(CriterionMethod, criterion=LogitAdjustmentConfig()):
    """Cross-entropy of logits that are shifted by tau times the log prior while training."""
