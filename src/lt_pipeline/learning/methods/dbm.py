"""DBM: difficulty-aware balancing margin (Son et al., AAAI 2025), equations 6 to 11.

The margin itself is ``losses.margins.Dbm`` and goes in front of any criterion; this method names
the paper's combinations.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.criteria import BalancedSoftmaxConfig
from lt_pipeline.learning.losses.margins import DbmConfig
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.schema import UserError

# Table 2: what the margin stands in front of. DRW weights the classes from epoch 160 of 200 on.
VARIANTS: dict[str, dict[str, Any]] = {
    "ce": {"name": "cross_entropy"},
    "cb": {"name": "class_balanced"},
    "drw": {"name": "class_balanced", "start": 0.8},
    "bs": {"name": "balanced_softmax"},
    "bcl": {"name": "balanced_contrastive"},
}


class DbmOptions(MethodOptions):
    """What DBM can be told.

    Attributes:
        variant: the loss behind the margin: cross-entropy, class-balanced (equation 10), deferred
            re-weighting, balanced softmax (equation 11) or balanced contrastive learning.
        criterion: that loss and the margin, with their parameters; what is not given is the
            variant's.
    """

    variant: Literal["ce", "cb", "drw", "bs", "bcl"] = "bs"
    criterion: CriterionConfig = BalancedSoftmaxConfig(margin=DbmConfig())

    @property
    def variant_name(self) -> tuple[str, ...]:
        """Return the loss behind the margin."""
        return (self.variant,)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        variant, given = values.get("variant", "bs"), values.get("criterion", {})
        if not isinstance(given, dict):
            return values
        chosen = {**VARIANTS[variant], **given}
        if isinstance(given.get("margin", {}), dict):
            chosen["margin"] = {"name": "dbm", **given.get("margin", {})}
        if chosen["name"] != VARIANTS[variant]["name"]:
            raise UserError(
                f"variant {variant!r} is the criterion {VARIANTS[variant]['name']!r}, but "
                f"criterion.name is {chosen['name']!r}: set only one of them"
            )
        return {**values, "criterion": chosen}

    @model_validator(mode="after")
    def _consistent(self) -> DbmOptions:
        if self.criterion.name != VARIANTS[self.variant]["name"]:
            raise UserError(f"variant {self.variant!r} has another criterion than the one given")
        if self.criterion.margin is None or self.criterion.margin.name != "dbm":
            raise UserError(
                "criterion.margin must be dbm here; for none, run the variant's baseline with "
                "model.head = cosine"
            )
        return self


class DifficultyAwareBalancingMargin(Method):
    """A margin by class, larger for hard images, on the angle to the true class's centre."""

    Options = DbmOptions
    one_label = "its margins are of the angle to the one right class"
