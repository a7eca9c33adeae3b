"""Splits that keep groups whole: images of one fish, patient or site are in one part only.

Groups are units and may hold several classes. From a random assignment by seed, moves and swaps
of groups lower how far the classes' shares lie from those asked for, all classes jointly, until
none helps. Longest groups first, as is usual for bin packing, would send every class's longest
group to training whatever the seed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import chain, combinations

import numpy as np

# of one class's cost: a part without the groups that it must have outweighs any deviation
MISSING = 10.0
# pairs of a class's groups that are tried for a swap, at most
PAIRS = 500
# groups of a class that are tested, below which no interval can be given
GROUPS_FOR_INTERVALS = 5
# what a change must gain: less is rounding
LEAST = 1e-12
# groups and the parts that they go to
Changes = Sequence[tuple[int, int]]


def split_groups(
    labels: Sequence[int], groups: Sequence[Hashable], fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Return the part of every image, ``[N]``, of the names in ``fractions``.

    ``fractions`` sum to 1, the part to learn from first and the one to test on last. A class of as
    many groups as parts has one in each, one of twice as many two; a class of fewer has one in the
    first part, then in the last.

    Raises:
        ValueError: if ``labels`` and ``groups`` differ in length or ``fractions`` do not sum to 1.
    """
    names = list(fractions)
    parts = assign(labels, groups, list(fractions.values()), seed)
    return [names[part] for part in parts]


def fold_groups(
    labels: Sequence[int], groups: Sequence[Hashable], folds: int, seed: int
) -> list[int]:
    """Return the fold of every image, ``[N]``, 0 to ``folds`` - 1, of equal shares.

    Raises:
        ValueError: if ``labels`` and ``groups`` differ in length.
    """
    return assign(labels, groups, [1 / folds] * folds, seed)


def assign(
    labels: Sequence[int], groups: Sequence[Hashable], fractions: Sequence[float], seed: int
) -> list[int]:
    """Return the part of every image, ``[N]``, as an index of ``fractions``.

    Raises:
        ValueError: if ``labels`` and ``groups`` differ in length or ``fractions`` do not sum to 1.
    """
    if len(labels) != len(groups):
        raise ValueError(f"there are {len(labels)} labels, but {len(groups)} groups: one an image")
    if abs(sum(fractions) - 1) > 1e-6 or min(fractions) <= 0:
        raise ValueError(f"fractions must be positive and sum to 1, but are {list(fractions)}")
    held: dict[Hashable, Counter[int]] = {}
    for label, group in zip(labels, groups, strict=True):
        held.setdefault(group, Counter())[label] += 1
    search = _Search(list(held.values()), fractions, seed)
    search.run()
    part_of = dict(zip(held, search.part, strict=True))
    return [part_of[group] for group in groups]


def deviations(
    labels: Sequence[int], parts: Sequence[int], fractions: Sequence[float]
) -> list[float]:
    """Return how far each class's shares lie from ``fractions`` at most, in label order.

    A class without an image has none.
    """
    table = np.zeros((max(labels) + 1, len(fractions)))
    np.add.at(table, (np.asarray(labels), np.asarray(parts)), 1)
    seen = table.sum(1, keepdims=True)
    actual = np.divide(table, seen, out=np.zeros_like(table), where=seen > 0)
    worst = np.abs(actual - np.asarray(fractions)).max(1)
    return [float(d) if n else 0.0 for d, n in zip(worst, seen[:, 0], strict=True)]


def least_groups(groups: int, parts: int) -> list[int]:
    """Return how many of a class's ``groups`` each part must have: two, one, or what there is."""
    if groups >= parts:
        return [2 if groups >= 2 * parts else 1] * parts
    first = [0, parts - 1, *range(1, parts - 1)][:groups]
    return [int(part in first) for part in range(parts)]


class _Search:
    """An assignment of groups to parts, and what moves and swaps would change of its cost."""

    def __init__(self, held: Sequence[Counter[int]], fractions: Sequence[float], seed: int) -> None:
        self.held, self.fractions = [list(classes.items()) for classes in held], list(fractions)
        self.random = random.Random(seed)
        self.members: dict[int, list[int]] = {}
        for group, classes in enumerate(self.held):
            for label, _ in classes:
                self.members.setdefault(label, []).append(group)
        parts = range(len(fractions))
        self.size = {c: sum(held[g][c] for g in groups) for c, groups in self.members.items()}
        self.least = {c: least_groups(len(g), len(fractions)) for c, g in self.members.items()}
        self.images = {c: [0 for _ in parts] for c in self.members}
        self.groups = {c: [0 for _ in parts] for c in self.members}
        self.part = self.random.choices(parts, fractions, k=len(held))
        for group, part in enumerate(self.part):
            self._put(group, part, 1)

    def run(self) -> None:
        """Move and swap groups until nothing lowers the cost."""
        waiting = list(range(len(self.held)))
        while waiting:
            self.random.shuffle(waiting)
            moved = [group for group in waiting if self._move(group)]
            # what shares a class with a moved group may gain by a move now
            touched = {c for group in moved for c, _ in self.held[group]}
            waiting = sorted({g for c in touched for g in self.members[c]})
            if not waiting:
                waiting = self._swap()

    def _put(self, group: int, part: int, sign: int) -> None:
        for label, images in self.held[group]:
            self.images[label][part] += sign * images
            self.groups[label][part] += sign

    def _cost(self, labels: Sequence[int]) -> float:
        """Return the cost of some classes: squared deviations, and groups that are missing."""
        cost = 0.0
        for label in labels:
            size = self.size[label]
            of_part = zip(
                self.images[label],
                self.fractions,
                self.groups[label],
                self.least[label],
                strict=True,
            )
            for images, fraction, groups, least in of_part:
                cost += (images / size - fraction) ** 2 + MISSING * max(least - groups, 0)
        return cost

    def _moved(self, changes: Changes) -> bool:
        """Move each group to a part where that lowers the cost; return whether it did."""
        labels = list({c for group, _ in changes for c, _ in self.held[group]})
        before, old = self._cost(labels), [self.part[group] for group, _ in changes]
        self._apply(changes)
        if self._cost(labels) < before - LEAST:
            return True
        self._apply([(group, part) for (group, _), part in zip(changes, old, strict=True)])
        return False

    def _apply(self, changes: Changes) -> None:
        for group, part in changes:
            self._put(group, self.part[group], -1)
            self._put(group, part, 1)
            self.part[group] = part

    def _move(self, group: int) -> bool:
        parts = list(range(len(self.fractions)))
        self.random.shuffle(parts)
        tried = [self._moved([(group, p)]) for p in parts if p != self.part[group]]
        return any(tried)  # the last that gained is the best

    def _swap(self) -> list[int]:
        """Return the groups of the first exchange that lowers the cost, none if there is none."""
        for changes in chain(self._pairs(), self._around_the_largest()):
            if self._moved(changes):
                return [group for group, _ in changes]
        return []

    def _pairs(self) -> Iterator[Changes]:
        """Yield exchanges of two groups that share a class, the worst classes first."""
        for _, groups in self._worst_first():
            every = len(groups) * (len(groups) - 1) // 2
            pairs = (
                [(a, b) for k, a in enumerate(groups) for b in groups[:k]]
                if every <= PAIRS
                else [self.random.sample(groups, 2) for _ in range(PAIRS)]
            )
            self.random.shuffle(pairs)
            for a, b in pairs:
                if self.part[a] != self.part[b]:
                    yield [(a, self.part[b]), (b, self.part[a])]

    def _around_the_largest(self) -> Iterator[Changes]:
        """Yield exchanges of two parts by all that share a class with a class's largest group.

        A group of half of all images can change its part in no other way.
        """
        for label, groups in self._worst_first():
            largest = max(groups, key=lambda group: dict(self.held[group])[label])
            near = {g for c, _ in self.held[largest] for g in self.members[c]}
            for one, other in combinations(range(len(self.fractions)), 2):
                becomes = {one: other, other: one}
                yield [(g, becomes[self.part[g]]) for g in near if self.part[g] in becomes]

    def _worst_first(self) -> list[tuple[int, list[int]]]:
        return sorted(self.members.items(), key=lambda item: -self._cost([item[0]]))
