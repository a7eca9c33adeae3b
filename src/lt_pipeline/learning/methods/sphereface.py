"""SphereFace: the true class's angle multiplied.

Liu et al., SphereFace: deep hypersphere embedding for face recognition, CVPR 2017.
"""

from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.losses.margins import SphereFaceConfig
from lt_pipeline.learning.methods.families.criterion import CriterionMethod


class SphereFace(CriterionMethod, criterion=CrossEntropyConfig(margin=SphereFaceConfig())):
    """Cross-entropy of cos(m theta), alike for all classes."""
