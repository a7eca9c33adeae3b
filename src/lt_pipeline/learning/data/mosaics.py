"""Mosaics: 2 x 2 real digits in one image, which has the label of each; nothing is downloaded.

How often labels occur falls from class to class as a long-tail profile says; the mosaics of the
test set show every digit of its own as often as any other. A digit is in mosaics of one part only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lt_pipeline.learning.data.distribution import class_counts, label_cells
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.profiles import Cut
from lt_pipeline.learning.data.protocol import Images, take
from lt_pipeline.learning.data.sources import (
    DIGITS_SPLIT_SEED,
    Facts,
    Source,
    digits_source,
)

CELLS, SIDE, CLASSES = 4, 16, 10
# images of the most frequent label, unless told
LARGEST = 500
# halvings of where the rate of the most frequent label lies: all the digits that a float has
HALVINGS = 60


class Drawn(NamedTuple):
    """The classes in the cells of mosaics, int64 ``[N, 4]``, to train on and to choose by."""

    train: Tensor
    validation: Tensor


def rates(profile: Cut, imbalance_ratio: float) -> Tensor:
    """Return how often a cell shows each class, float64 ``[10]``, which sums to 1.

    A label occurs where one of the four cells shows its class, at the rate q = 1 - (1 - p)^4; those
    fall as ``profile`` says, from the first class to the last, which has it ``imbalance_ratio``
    times less often.
    """
    fractions = torch.tensor(
        [profile.fraction(c / (CLASSES - 1), imbalance_ratio) for c in range(CLASSES)],
        dtype=torch.float64,
    )

    def of_cells(largest: float) -> Tensor:
        return 1 - (1 - largest * fractions) ** (1 / CELLS)

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(of_cells(middle).sum()) < 1 else (low, middle)
    rate = of_cells(low)
    return rate / rate.sum()


def draw_classes(
    profile: Cut, imbalance_ratio: float, largest: int | None, validation: float, seed: int
) -> Drawn:
    """Return which classes mosaics show; equal seeds draw equal ones.

    There are as many as give the most frequent label ``largest`` of them on average, of which the
    share ``validation`` is held out.
    """
    chances = rates(profile, imbalance_ratio)
    rate = float(1 - (1 - chances.max()) ** CELLS)
    images = round((largest or LARGEST) / rate)
    generator = torch.Generator().manual_seed(seed)
    cells = torch.multinomial(chances, images * CELLS, replacement=True, generator=generator)
    held = round(validation * images)
    first, second = cells.view(-1, CELLS).split([images - held, held])
    return Drawn(first, second)


def labels_of(cells: Tensor) -> Tensor:
    """Return the labels uint8 ``[N, 10]`` of mosaics of the classes ``cells`` ``[N, 4]``."""
    return torch.zeros(len(cells), CLASSES, dtype=torch.uint8).scatter_(1, cells, 1)


def mosaic_facts(drawn: Drawn) -> Facts:
    """Return what is known of mosaics before there are any."""
    counts = class_counts(labels_of(drawn.train), CLASSES)
    return Facts((1, SIDE, SIDE), tuple(counts.tolist()), len(drawn.train))


def make_mosaics(drawn: Drawn, seed: int) -> Source:
    """Return the mosaics of ``drawn``, of real digits, and those that are tested on."""
    digits, generator = digits_source(), torch.Generator().manual_seed(seed)
    held = len(drawn.validation) / sum(map(len, drawn))
    pools = _parted(digits.train.labels, held, generator)
    parts = [
        _compose(digits.train, _pick(pool, cells, generator))
        for pool, cells in zip(pools, drawn, strict=True)
    ]
    # the same whatever the seed of a run, as with any published test set
    generator.manual_seed(DIGITS_SPLIT_SEED)
    tested = [torch.randperm(len(digits.test), generator=generator) for _ in range(CELLS)]
    test = _compose(digits.test, torch.stack(tested, 1))
    named = zip(("train", "validation", "test"), (*parts, test), strict=True)
    listed = pd.concat([_rows(name, part) for name, part in named], ignore_index=True)
    return Source(parts[0], test, parts[1], listed)


def _parted(
    labels: Tensor, fraction: float, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """Return by class the positions of digits to train on, and of the ``fraction`` held out."""
    kept, held = list[Tensor](), list[Tensor]()
    for label in range(CLASSES):
        own = (labels == label).nonzero().squeeze(1)
        own = own[torch.randperm(len(own), generator=generator)]
        count = math.ceil(fraction * len(own))
        kept.append(own[count:])
        held.append(own[:count])
    return kept, held


def _pick(pool: Sequence[Tensor], cells: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random digit of its class's ``pool`` for each of ``cells``, int64 ``[N, 4]``."""
    digits = torch.empty_like(cells)
    for label in cells.unique().tolist():
        own, wanted = pool[label], cells == label
        digits[wanted] = own[torch.randint(len(own), (int(wanted.sum()),), generator=generator)]
    return digits


def _compose(digits: Images, picked: Tensor) -> ImageSet:
    """Return the mosaics of the digits at ``picked`` ``[N, 4]``, row by row."""
    cells = take(digits, picked.flatten()).view(-1, CELLS, *digits.shape)  # [N, 4, 1, 8, 8]
    rows = [torch.cat([cells[:, k], cells[:, k + 1]], 3) for k in (0, 2)]
    images = torch.cat(rows, 2).contiguous()
    return ImageSet(images, labels_of(digits.labels[picked]), digits.class_names)


def _rows(part: str, images: ImageSet) -> pd.DataFrame:
    return pd.DataFrame({"split": part, "class": label_cells(images.labels, images.class_names)})
