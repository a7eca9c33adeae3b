"""Splits and long tails of images with several labels, which share labels with one another."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from lt_pipeline.learning.data.profiles import Exponential, largest_that_fits, profile_counts

Labels = Sequence[Sequence[int]]


def stratify(
    labels: Labels, groups: Sequence[Hashable], fractions: Sequence[float], seed: int
) -> list[int]:
    """Return the part of every image, ``[N]``, as an index of ``fractions``, which sum to 1.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, On the stratification of
    multi-label data, 2011) of whole groups: the label with the fewest images left is taken first,
    and each of its groups, the largest first, goes to the part that lacks most of its images; of
    equal ones to the part that lacks most images of any label, and then by seed. Groups without a
    label come last.
    """
    held, size = dict[Hashable, Counter[int]](), Counter(groups)
    for own, group in zip(labels, groups, strict=True):
        held.setdefault(group, Counter()).update(own)
    order = list(held)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -size[group])
    left = Counter(label for own in labels for label in own)
    lacks = {label: [fraction * count for fraction in fractions] for label, count in left.items()}
    room = [fraction * len(groups) for fraction in fractions]
    part: dict[Hashable, int] = {}

    def put(group: Hashable, label: int | None) -> None:
        of_label = room if label is None else lacks[label]
        part[group] = max(range(len(fractions)), key=lambda p: (of_label[p], room[p]))
        room[part[group]] -= size[group]
        for other, images in held[group].items():
            lacks[other][part[group]] -= images
            left[other] -= images

    while left := +left:
        rarest = min(left, key=lambda label: (left[label], label))
        for group in [g for g in order if rarest in held[g] and g not in part]:
            put(group, rarest)
    for group in order:
        if group not in part:
            put(group, None)
    return [part[group] for group in groups]


def thinned(labels: Labels, classes: int, imbalance_ratio: float, seed: int) -> list[bool]:
    """Return which images stay, ``[N]``, so that the classes' counts fall exponentially.

    From the class with most images to that with fewest, which keeps ``imbalance_ratio`` times
    fewer; the first keeps the most with which no class is asked for more than it has. In an order
    by ``seed`` images go whose labels are all too many, and then those whose labels that are
    weigh more than those that are not, each by one over how many its class shall keep. Where labels
    come together, counts can only be near.

    Raises:
        UserError: if a class would keep no image.
    """
    counts = np.bincount([label for own in labels for label in own], minlength=classes).tolist()
    ranked = sorted(range(classes), key=lambda c: -counts[c])
    fits = largest_that_fits(Exponential(), [counts[c] for c in ranked], imbalance_ratio)
    kept = profile_counts(
        Exponential(), classes=classes, max_per_class=fits, imbalance_ratio=imbalance_ratio
    )
    wanted, stays = dict(zip(ranked, kept, strict=True)), [True] * len(labels)
    order = [k for k, own in enumerate(labels) if own]
    random.Random(seed).shuffle(order)
    for alone in (True, False):
        for k in order:
            gains = [(1 if counts[c] > wanted[c] else -1) / wanted[c] for c in labels[k]]
            if stays[k] and (min(gains) > 0 if alone else sum(gains) > 0):
                stays[k] = False
                for c in labels[k]:
                    counts[c] -= 1
    return stays
