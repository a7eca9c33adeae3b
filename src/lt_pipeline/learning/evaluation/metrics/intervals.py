"""How sure recalls are: Wilson's interval where images are independent, else groups drawn again.

Images of one animal, patient or site are right or wrong together: twenty of them say little more
than one. So the groups are drawn again with replacement and not the images (the cluster bootstrap;
Davison and Hinkley 1997, section 3.8), by percentiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from lt_pipeline.learning.data.splits import GROUPS_FOR_INTERVALS
from lt_pipeline.learning.evaluation.metrics.significance import LEVEL

DRAWS = 2_000
ENDS = (1 - LEVEL) / 2, (1 + LEVEL) / 2
# numbers drawn at a time, so that memory does not grow with the images
AT_ONCE = 2**22
Array = np.ndarray[Any, np.dtype[Any]]
Interval = tuple[float, float]


def wilson(right: float, images: float, level: float = LEVEL) -> Interval:
    """Return Wilson's interval of a share of which ``right`` of ``images`` > 0 were found.

    Wilson (1927): the shares whose normal approximation does not refuse what was found.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    fraction, spread = right / images, z * z / images
    middle = (fraction + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(fraction * (1 - fraction) / images + spread / (4 * images))
    # 0 and 1 belong to it where they were found, whatever rounding says
    low = 0.0 if right == 0 else float(middle - half)
    return low, 1.0 if right == images else float(middle + half)


class _Cells(NamedTuple):
    """A row for each class of each group: its ``images``, and what they add up to."""

    group: Array
    label: Array
    images: Array
    right: Array


@dataclass(frozen=True)
class Outcomes:
    """What became of test images: ``labels`` ``[N]``, and how much of each is ``right`` ``[N]``.

    That is 0 or 1, a mean over runs, or the difference of two methods. ``groups`` ``[N]`` number
    what images are of; None is where they are independent.
    """

    labels: Array
    right: Array
    groups: Array | None = None

    @cached_property
    def classes(self) -> Array:
        """Return the classes with a test image, in order."""
        return np.unique(self.labels)

    @property
    def mean_recall(self) -> float:
        """Return the mean over classes of what images of a class are right on average."""
        images, right = np.bincount(self.labels), np.bincount(self.labels, self.right)
        return float((right[self.classes] / images[self.classes]).mean())

    @cached_property
    def cells(self) -> _Cells:
        """Return what each group holds of each class; without groups every image is one."""
        return _cells(self.labels, self.right, self.groups)

    def groups_by_class(self, classes: int) -> list[int]:
        """Return of how many groups each class's images are; without groups, how many images."""
        counts: list[int] = np.bincount(self.cells.label, minlength=classes).tolist()
        return counts

    def class_intervals(
        self, classes: int, draws: int = DRAWS, seed: int = 0
    ) -> list[Interval | None]:
        """Return the 95 % interval of the recall of each class; ``right`` must be 0 or 1.

        None is where it has no image, or fewer than five groups. Where all images are right, or
        none, drawing again says nothing: then it is Wilson's, of as many images as groups.
        """
        images = np.bincount(self.labels, minlength=classes)
        right = np.bincount(self.labels, self.right, classes)
        intervals: list[Interval | None] = [None] * classes
        drawn = dict[int, list[int]]()
        for c, count in enumerate(self.groups_by_class(classes)):
            if self.groups is None and count:
                intervals[c] = wilson(right[c], images[c])
            elif count < GROUPS_FOR_INTERVALS:
                continue
            elif right[c] in (0, images[c]):
                intervals[c] = wilson(right[c] / images[c] * count, count)
            else:
                drawn.setdefault(count, []).append(c)
        for members in drawn.values():
            for start in range(0, len(members), AT_ONCE // draws):
                some = members[start : start + AT_ONCE // draws]
                recalls = self._drawn_of(some, draws, np.random.default_rng(seed))
                ends = np.quantile(recalls, ENDS, axis=0).T.tolist()
                for c, (low, high) in zip(some, ends, strict=True):
                    intervals[c] = low, high
        return intervals

    def interval(self, draws: int = DRAWS, seed: int = 0) -> Interval | None:
        """Return the 95 % interval of ``mean_recall``; None with fewer than five groups.

        Groups are drawn again among those that are mostly of the same class, so that each class
        keeps its number of them; images that are independent, within their class.
        """
        if self.groups is not None and len(np.unique(self.groups)) < GROUPS_FOR_INTERVALS:
            return None
        return percentiles(self.drawn(draws, seed))

    def drawn(self, draws: int = DRAWS, seed: int = 0) -> Array:
        """Return ``mean_recall`` of groups drawn again, ``[draws]``.

        Equal seeds draw equal groups, whatever is right.
        """
        generator, place = np.random.default_rng(seed), self._place
        if self.groups is None and np.isin(self.right, (0, 1)).all():
            # of independent images as many are right as a binomial draw says
            count = np.bincount(place(self.labels))
            recall = np.bincount(place(self.labels), self.right) / count
            by_class = generator.binomial(count, recall, (draws, len(count))) / count
            return np.asarray(by_class.mean(1))
        sums = np.zeros((2, draws, len(self.classes)))
        for own in _alike(self.cells._replace(label=place(self.cells.label))):
            columns, at = np.unique(own.label, return_inverse=True)
            rows = np.unique(own.group, return_inverse=True)[1]
            held = np.zeros((2, rows.max() + 1, len(columns)))
            held[0, rows, at], held[1, rows, at] = own.right, own.images
            for part, times in times_drawn(held.shape[1], draws, generator):
                sums[:, part[:, None], columns] += times @ held
        recalls, images = sums
        # in place, as either is a hundred MB with thousands of classes
        recalls[images == 0] = np.nan
        np.divide(recalls, images, out=recalls, where=images > 0)
        return np.asarray(np.nanmean(recalls, axis=1))

    def _place(self, labels: Array) -> Array:
        return np.asarray(np.searchsorted(self.classes, labels))

    @cached_property
    def _by_class(self) -> Mapping[int, Array]:
        """Return where in ``cells`` each class's are."""
        order = np.argsort(self.cells.label, kind="stable")
        ends = np.flatnonzero(np.diff(self.cells.label[order])) + 1
        return dict(zip(self.classes.tolist(), np.split(order, ends), strict=True))

    def _drawn_of(
        self, classes: Sequence[int], draws: int, generator: np.random.Generator
    ) -> Array:
        """Return the recalls ``[draws, K]`` of K classes that have as many groups each."""
        drawn, held = np.empty((draws, len(classes))), [self._by_class[c] for c in classes]
        for part, times in times_drawn(len(held[0]), draws, generator):
            for place, own in enumerate(held):
                recalls = (times @ self.cells.right[own]) / (times @ self.cells.images[own])
                drawn[part, place] = recalls
        return drawn


def percentiles(drawn: Array) -> Interval:
    """Return the ends between which 95 % of ``drawn`` lie."""
    low, high = np.quantile(drawn, ENDS)
    return float(low), float(high)


def _cells(labels: Array, right: Array, groups: Array | None) -> _Cells:
    """Return what each group holds of each class; without groups every image is one."""
    numbers = np.arange(len(labels)) if groups is None else groups
    both = np.stack([numbers, labels])
    (group, label), at = np.unique(both, axis=1, return_inverse=True)
    at = at.ravel()
    return _Cells(group, label, np.bincount(at).astype(float), np.bincount(at, right))


def _alike(cells: _Cells) -> Iterator[_Cells]:
    """Yield the groups by the class that most of their images are of."""
    order = np.lexsort((cells.label, -cells.images, cells.group))
    groups, first = np.unique(cells.group[order], return_index=True)
    mostly = cells.label[order][first][np.searchsorted(groups, cells.group)]
    by_label = np.argsort(mostly, kind="stable")
    ends = np.flatnonzero(np.diff(mostly[by_label])) + 1
    for own in np.split(by_label, ends):
        yield _Cells(*(column[own] for column in cells))


def times_drawn(
    count: int, draws: int, generator: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Yield how often each of ``count`` things is drawn, ``[D, count]``, and which draws it is."""
    for part in np.array_split(np.arange(draws), -(-draws * count // AT_ONCE)):
        drawn = generator.integers(count, size=(len(part), count))
        drawn += count * np.arange(len(part))[:, None]
        times = np.bincount(drawn.ravel(), minlength=len(part) * count)
        yield part, times.reshape(len(part), count).astype(float)
