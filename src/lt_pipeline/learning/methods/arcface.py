"""ArcFace: the true class's angle plus a constant.

Deng et al., ArcFace: additive angular margin loss for deep face recognition, CVPR 2019.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import CrossEntropyConfig
from lt_pipeline.learning.losses.margins import ArcFaceConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class ArcFaceOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: CrossEntropyConfig = CrossEntropyConfig(margin=ArcFaceConfig())


class ArcFace(Method):
    """Cross-entropy of cos(theta + m), alike for all classes."""

    Options = ArcFaceOptions
