"""CosFace: the true class's cosine less a constant.

Wang et al., CosFace: large margin cosine loss for deep face recognition, CVPR 2018.
"""

from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.losses.margins import CosFaceConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class CosFace(CriterionMethod, criterion=CrossEntropyConfig(margin=CosFaceConfig())):
    """Cross-entropy of cos(theta) - m, alike for all classes."""
