"""Few-shot balanced subsets: undersampling of every class to the same number of images.

Balanced Training and Merging (Yu, Du and Wu, Reviving undersampling for long-tailed learning),
algorithm 1: N_D subsets, each with N_C images a class. The paper does not say what a class with
fewer gives; the lists released with its code keep what there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lt_pipeline.learning.schema import UserError

# What a class with too few images gives: all it has, or random repeats of them on top.
Short = Literal["keep", "fill"]


def balanced_subset(
    labels: Tensor, per_class: int, generator: torch.Generator, short: Short = "keep"
) -> Tensor:
    """Return positions of ``per_class`` random images of every class that has any, by class.

    Of several labels the rarest class draws first, and each what it still lacks: where labels come
    together, a class may have more than its number.

    Args:
        labels: Class of every image, ``[N]``, N >= 1, or ``[N, C]``, 1 where it has a label.
        per_class: Images a class, N_C >= 1, drawn without replacement.
        generator: Source of the draw, on the CPU.
        short: What a class with fewer images gives: "keep" all it has, or "fill" up to
            ``per_class`` with repeats, as even as they can be: exactly balanced.

    Returns:
        Positions, int64 on the CPU, classes in ascending order: ``[C * per_class]`` for C classes
        with images, less what short classes lack under "keep". Of several labels in that of their
        drawing.

    Raises:
        UserError: ``labels`` is empty, ``per_class`` < 1, or images of several labels should be
            repeated.
    """
    if len(labels) == 0:
        raise UserError("a balanced subset needs at least one label, but labels is empty")
    if per_class < 1:
        raise UserError(f"per_class must be >= 1 image, but got {per_class}")
    labels = labels.cpu()
    if labels.ndim == 2:
        return _subset_of_several(labels, per_class, generator, short)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.unique(return_counts=True)[1].unsqueeze(1)  # [C, 1]
    first = counts.cumsum(0) - counts
    slots = torch.arange(per_class)
    chosen = by_class[first + slots % counts]  # [C, per_class]: a short class goes round again
    return chosen.flatten() if short == "fill" else chosen[slots < counts]


def _subset_of_several(
    labels: Tensor, per_class: int, generator: torch.Generator, short: Short
) -> Tensor:
    if short == "fill":
        raise UserError("images of several labels are not repeated: set short to keep")
    order = torch.randperm(len(labels), generator=generator)
    has = labels[order].bool()
    drawn: list[int] = []
    counts, taken = has.sum(0), torch.zeros(len(labels), dtype=torch.bool)
    for c in counts.argsort(stable=True).tolist():
        lacks = per_class - int(has[taken, c].sum())
        rows = (has[:, c] & ~taken).nonzero()[: max(lacks, 0), 0]
        taken[rows] = True
        drawn += order[rows].tolist()
    return torch.tensor(drawn, dtype=torch.int64)


def balanced_subsets(
    labels: Tensor, sets: int, per_class: int, seed: int, short: Short = "keep"
) -> list[Tensor]:
    """Return the positions of ``sets`` subsets, N_D, drawn independently of each other.

    Subset k depends on ``seed`` and k alone, not on how many there are. A class with no more than
    ``per_class`` images gives the same ones to all of them. See ``balanced_subset`` for the rest.

    Raises:
        UserError: ``sets`` < 1, ``seed`` < 0, or what ``balanced_subset`` refuses.
    """
    if sets < 1:
        raise UserError(f"sets must be >= 1 balanced subset, but got {sets}")
    return [balanced_subset(labels, per_class, _generator(seed, k), short) for k in range(sets)]


@dataclass(frozen=True)
class Subset:
    """The images of the balanced subsets of these ``numbers``, counted from 0, each once.

    A subset by itself keeps its order, and its repeats under "fill".
    """

    numbers: tuple[int, ...]
    per_class: int
    short: Short = "keep"

    def draw(self, labels: Tensor, seed: int) -> Tensor:
        """Return positions, int64 on the CPU; arguments are as in ``balanced_subsets``."""
        drawn = [
            balanced_subset(labels, self.per_class, _generator(seed, k), self.short)
            for k in self.numbers
        ]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn).unique()


def _generator(seed: int, index: int) -> torch.Generator:
    # a spawn key, as entropy [seed, index] may equal another pair's when seeds exceed 32 bits
    state = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
