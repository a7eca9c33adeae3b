"""How sure decisions on several labels an image are: images, or their groups, drawn again.

Decisions of several models are put together by their counts. Scores are not: those of two models
are on scales of their own, and an average precision over both ranks one model's images against the
other's (Forman and Scholz 2010, Apples-to-apples in cross-validation studies).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lt_pipeline.learning.data.splits import GROUPS_FOR_INTERVALS
from lt_pipeline.learning.evaluation.metrics.intervals import (
    DRAWS,
    Array,
    Interval,
    percentiles,
    times_drawn,
)


@dataclass(frozen=True)
class Decisions:
    """What was ``predicted`` of test images ``[R, N, C]``, and the ``labels`` they have ``[N, C]``.

    R are runs, of which all numbers are means. ``groups`` ``[N]`` number what images are of; None
    is where they are independent.
    """

    labels: Array
    predicted: Array
    groups: Array | None = None

    @property
    def classes(self) -> Array:
        """Return the classes with a test image, in order."""
        return np.flatnonzero(self.labels.any(0))

    @cached_property
    def by_run(self) -> Array:
        """Return the macro F1 of each run, ``[R]``."""
        return _macro_f1(*self._whole)

    @property
    def macro_f1(self) -> float:
        """Return the mean F1 of the classes with a test image."""
        return float(self.by_run.mean())

    @property
    def micro_f1(self) -> float:
        """Return the F1 of all decisions on those classes, taken together."""
        right, both = (part.sum(1) for part in self._whole)
        return float((2 * right / both).mean())

    def by_class(self) -> Array:
        """Return the F1 of each class, ``[C]``, nan without a test image."""
        right, both = self._whole
        f1 = np.full(self.labels.shape[1], np.nan)
        f1[self.classes] = (2 * right / both).mean(0)
        return f1

    def interval(self, draws: int = DRAWS, seed: int = 0) -> Interval | None:
        """Return the 95 % interval of ``macro_f1``; None with fewer than five groups."""
        return None if self.few else percentiles(self.drawn(draws, seed))

    @property
    def few(self) -> bool:
        """Return whether there are too few groups to draw from."""
        return self.groups is not None and self._units < GROUPS_FOR_INTERVALS

    def drawn(self, draws: int = DRAWS, seed: int = 0) -> Array:
        """Return ``macro_f1`` of groups drawn again, ``[draws]``.

        Equal seeds draw equal groups, whatever is said of them.
        """
        values, generator = np.empty(draws), np.random.default_rng(seed)
        for part, times in times_drawn(self._units, draws, generator):
            values[part] = _macro_f1(*self._summed(times)).mean(0)
        return values

    @cached_property
    def _units(self) -> int:
        return len(self.labels) if self.groups is None else len(np.unique(self.groups))

    @cached_property
    def _counts(self) -> tuple[Array, Array]:
        """Return what each unit has of right labels, and of said and true ones: ``[R, U, K]``."""
        labels, predicted = (
            part[..., self.classes].astype(float) for part in (self.labels, self.predicted)
        )
        right, both = labels * predicted, labels + predicted
        if self.groups is None:
            return right, both
        unit = np.unique(self.groups, return_inverse=True)[1]
        summed = np.zeros((2, len(predicted), self._units, labels.shape[1]))
        for part, own in zip(summed, (right, both), strict=True):
            for run, values in zip(part, own, strict=True):
                np.add.at(run, unit, values)
        return summed[0], summed[1]

    def _summed(self, times: Array) -> tuple[Array, Array]:
        """Return the counts of units taken ``times`` ``[D, U]``, each ``[R, D, K]``."""
        right, both = self._counts
        return times @ right, times @ both

    @cached_property
    def _whole(self) -> tuple[Array, Array]:
        """Return the counts of all units, each ``[R, K]``."""
        right, both = self._counts
        return right.sum(1), both.sum(1)


def _macro_f1(right: Array, both: Array) -> Array:
    """Return the mean F1 over the last axis; a class that is neither there nor said is left out."""
    f1 = np.divide(2 * right, both, out=np.full_like(right, np.nan), where=both > 0)
    return np.asarray(np.nanmean(f1, axis=-1))
