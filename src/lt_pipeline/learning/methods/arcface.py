"""ArcFace: the true class's angle plus a constant.

Deng et al., ArcFace: additive angular margin loss for deep face recognition, CVPR 2019.
"""

from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.losses.margins import ArcFaceConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class ArcFace(CriterionMethod, criterion=CrossEntropyConfig(margin=ArcFaceConfig())):
    """Cross-entropy of cos(theta + m), alike for all classes."""
