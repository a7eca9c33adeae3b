"""CosFace: the true class's cosine less a constant.

Wang et al., CosFace: large margin cosine loss for deep face recognition, CVPR 2018.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.config import CrossEntropyConfig
from lt_pipeline.learning.losses.margins import CosFaceConfig
from lt_pipeline.learning.methods._base import Method, MethodOptions


class CosFaceOptions(MethodOptions):
    """The criterion is fixed, its parameters are not."""

    criterion: CrossEntropyConfig = CrossEntropyConfig(margin=CosFaceConfig())


class CosFace(Method):
    """Cross-entropy of cos(theta) - m, alike for all classes."""

    Options = CosFaceOptions
