"""Long-tail profiles: how many training images each class keeps, the first class the most.

``exponential`` and ``step`` are those of Cao et al. (Learning imbalanced datasets with
label-distribution-aware margin loss, NeurIPS 2019); ``pareto`` is the power law behind ImageNet-LT
and Places-LT (Liu et al., Large-scale long-tailed recognition in an open world, CVPR 2019).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from lt_pipeline.learning.schema import Config, UserError


class Exponential(Config):
    """n_c = n_max * IR^(-c / (C - 1))."""

    name: Literal["exponential"] = "exponential"

    def fraction(self, position: float, imbalance_ratio: float) -> float:
        """Return n_c / n_max for ``position`` = c / (C - 1)."""
        return float(imbalance_ratio**-position)


class Step(Config):
    """The first classes keep n_max images, a ``minority`` share of the classes n_max / IR."""

    name: Literal["step"] = "step"
    minority: float = Field(default=0.5, gt=0, lt=1)

    def fraction(self, position: float, imbalance_ratio: float) -> float:
        """Return n_c / n_max for ``position`` = c / (C - 1)."""
        return 1.0 if position < 1 - self.minority else 1 / imbalance_ratio


class Pareto(Config):
    """n_c = n_max * (1 + (IR^(1 / alpha) - 1) * c / (C - 1))^(-alpha), a power law of ``alpha``.

    The literature gives alpha = 6 and the two ends, not the curve between them; this one has a
    Pareto density's shape and meets both ends.
    """

    name: Literal["pareto"] = "pareto"
    alpha: PositiveFloat = 6.0

    def fraction(self, position: float, imbalance_ratio: float) -> float:
        """Return n_c / n_max for ``position`` = c / (C - 1)."""
        slope = imbalance_ratio ** (1 / self.alpha) - 1
        return float((1 + slope * position) ** -self.alpha)


class Natural(Config):
    """Every image counts and nothing is cut: data that have a tail of their own."""

    name: Literal["natural"] = "natural"


Cut = Exponential | Step | Pareto
Profile = Annotated[Cut | Natural, Field(discriminator="name")]


def profile_counts(
    profile: Cut,
    *,
    classes: PositiveInt,
    max_per_class: PositiveInt,
    imbalance_ratio: float,
) -> list[int]:
    """Return the training images each class keeps, class 0 the most, as ``classes`` integers.

    Counts are rounded down, as in the published CIFAR-LT sets.

    Raises:
        UserError: if a class would keep no image.
    """
    counts = _counts(profile, classes, max_per_class, imbalance_ratio)
    if min(counts) < 1:
        raise UserError(
            f"data.imbalance_ratio {imbalance_ratio:g} leaves the rarest class without a "
            f"training image, because the largest class has {max_per_class}: "
            f"it must be <= {max_per_class}"
        )
    return counts


def largest_that_fits(profile: Cut, available: Sequence[int], imbalance_ratio: float) -> int:
    """Return the most images of the first class with which no class keeps more than it has.

    ``available`` are the images there are of each class, in the order of the profile.
    """

    def too_many(largest: int) -> bool:
        counts = _counts(profile, len(available), largest, imbalance_ratio)
        return any(n > has for n, has in zip(counts, available, strict=True))

    return bisect_left(range(1, available[0] + 1), True, key=too_many)


def _counts(profile: Cut, classes: int, max_per_class: int, imbalance_ratio: float) -> list[int]:
    last = max(classes - 1, 1)
    # the small offset keeps 5000 * 0.02 = 100 from becoming 99 by the last bit
    return [
        math.floor(max_per_class * profile.fraction(c / last, imbalance_ratio) + 1e-9)
        for c in range(classes)
    ]
