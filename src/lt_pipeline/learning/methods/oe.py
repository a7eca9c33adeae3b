"""Outlier exposure (Hendrycks et al., Deep Anomaly Detection with Outlier Exposure, ICLR 2019)."""

from __future__ import annotations

from torch import Tensor

from lt_pipeline.learning.losses.outliers import uniform_loss
from lt_pipeline.learning.methods.families.outliers import OutlierMethod


class OutlierExposure(OutlierMethod):
    """Predictions for images of no class are pushed to the uniform distribution."""

    def exposure(self, id_logits: Tensor, ood_logits: Tensor) -> Tensor:
        """Return the cross-entropy of the uniform distribution, a scalar."""
        return uniform_loss(ood_logits).mean()
