"""SphereFace: the true class's angle multiplied.

Liu et al., SphereFace: deep hypersphere embedding for face recognition, CVPR 2017.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import CrossEntropyConfig
from lt_pipeline.learning.losses.margins import SphereFaceConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class SphereFaceOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: CrossEntropyConfig = CrossEntropyConfig(margin=SphereFaceConfig())


class SphereFace(Method):
    """Cross-entropy of cos(m theta), alike for all classes."""

    Options = SphereFaceOptions
