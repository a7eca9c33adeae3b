"""CE-DRW: deferred re-weighting.

Cao et al., Learning imbalanced datasets with label-distribution-aware margin loss, NeurIPS 2019.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import ClassBalancedConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class DeferredReweightingOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: ClassBalancedConfig = ClassBalancedConfig(start=0.8)


class DeferredReweighting(Method):
    """Cross-entropy; for the last fifth of the run, classes weigh by their effective number."""

    Options = DeferredReweightingOptions
