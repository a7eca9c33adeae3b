"""A decision of its own for every class, by a sigmoid: what images of several labels need.

Binary cross-entropy, or a criterion that stands in its place for them: focal, asymmetric,
distribution-balanced, class-balanced, logit-adjusted. Where each image has one label, the highest
logit is the answer as ever.
"""

from __future__ import annotations

from lt_pipeline.learning.losses.binary import BceConfig, BinaryCriterion
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions


class BceOptions(MethodOptions):
    """What it can be told.

    Attributes:
        criterion: one that decides on each class by itself.
    """

    criterion: BinaryCriterion = BceConfig()

    @property
    def handles_imbalance(self) -> bool:
        """Return whether the criterion levels the classes; a focal loss weighs images."""
        return self.criterion.name not in ("bce", "sigmoid_focal", "asl")

    @property
    def variant_name(self) -> tuple[str, ...]:
        """Return the criterion's name where it is another."""
        return () if self.criterion.name == "bce" else (self.criterion.name.replace("_", " "),)


class BinaryCrossEntropy(Method):
    """Every class by itself: an image may have several labels."""

    Options = BceOptions
    options: BceOptions
    one_label = ""
