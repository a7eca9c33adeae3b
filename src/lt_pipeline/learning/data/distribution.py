"""Class counts, and all that follows from them: prior, imbalance statistics, shot groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from lt_pipeline.learning.schema import Config, UserError

GROUP_NAMES = ("many", "medium", "few")
# above it a table of all pairs of classes is mostly empty and a bar a class narrower than a pixel:
# tables are of the pairs that occur, pictures of neighbours and groups
MANY_CLASSES = 500
# what stands between several labels of one image, in tables
BETWEEN = ";"


class CountGroups(Config):
    """Groups by training images: many above ``many_above``, few below ``few_below``."""

    rule: Literal["counts"] = "counts"
    many_above: NonNegativeInt = 100
    few_below: NonNegativeInt = 20

    def assign(self, counts: Sequence[int]) -> list[str]:
        """Return the group name of every class."""
        if self.few_below > self.many_above + 1:
            raise UserError(
                f"data.groups.few_below must be <= data.groups.many_above + 1, but got "
                f"{self.few_below} and {self.many_above}"
            )
        return [
            "many" if n > self.many_above else "few" if n < self.few_below else "medium"
            for n in counts
        ]

    def describe(self) -> str:
        """Say the rule in words."""
        return f"many > {self.many_above}, few < {self.few_below} training images"


class SplitGroups(Config):
    """Groups of fixed sizes, cut from the classes ordered from most to fewest images."""

    rule: Literal["split"]
    sizes: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]

    def assign(self, counts: Sequence[int]) -> list[str]:
        """Return the group name of every class."""
        if sum(self.sizes) != len(counts):
            raise UserError(
                f"data.groups.sizes must add up to the {len(counts)} classes, but "
                f"{list(self.sizes)} adds up to {sum(self.sizes)}"
            )
        return _cut(counts, self.sizes)

    def describe(self) -> str:
        """Say the rule in words."""
        return "the {} / {} / {} classes with most / fewer / fewest training images".format(
            *self.sizes
        )


class ThirdsGroups(Config):
    """Groups of a third of the classes each, ordered from most to fewest images."""

    rule: Literal["thirds"]

    def assign(self, counts: Sequence[int]) -> list[str]:
        """Return the group name of every class; what does not divide by three goes to the front."""
        third, rest = divmod(len(counts), 3)
        return _cut(counts, [third + (rest > 0), third + (rest > 1), third])

    def describe(self) -> str:
        """Say the rule in words."""
        return "thirds of the classes, by training images"


Groups = Annotated[CountGroups | SplitGroups | ThirdsGroups, Field(discriminator="rule")]


def _cut(counts: Sequence[int], sizes: Sequence[int]) -> list[str]:
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    by_rank = [name for name, size in zip(GROUP_NAMES, sizes, strict=True) for _ in range(size)]
    names = [""] * len(counts)
    for rank, label in enumerate(order):
        names[label] = by_rank[rank]
    return names


@dataclass(frozen=True)
class LongTail:
    """The class distribution of a training set. It travels with the data to whatever needs it.

    ``class_counts`` and ``class_names`` are in label order; ``class_groups`` names each class's
    group and ``group_rule`` says how it was found. ``images`` is how many training images there
    are where one may have several labels, or none; else it is None, as the counts add up to it.
    """

    class_counts: tuple[int, ...]
    class_names: tuple[str, ...]
    class_groups: tuple[str, ...]
    group_rule: str
    images: int | None = None

    def __post_init__(self) -> None:
        """Refuse a class without an image, and names or groups that do not fit the counts."""
        empty = [c for c, n in enumerate(self.class_counts) if n < 1]
        if empty:
            raise UserError(
                f"every class needs at least one training image, but class {empty[0]} "
                f"({self.class_names[empty[0]]!r}) has none"
            )
        if not len(self.class_counts) == len(self.class_names) == len(self.class_groups) > 0:
            raise ValueError(
                f"class_counts, class_names and class_groups must have one entry a class, but have "
                f"{len(self.class_counts)}, {len(self.class_names)} and {len(self.class_groups)}"
            )

    @classmethod
    def from_counts(
        cls,
        counts: Sequence[int],
        names: Sequence[str] | None = None,
        groups: CountGroups | SplitGroups | ThirdsGroups | None = None,
    ) -> LongTail:
        """Build from ``counts`` ``[C]``; the group rule is many > 100, few < 20 unless told."""
        rule = groups or CountGroups()
        return cls(
            class_counts=tuple(int(n) for n in counts),
            class_names=tuple(names or (str(c) for c in range(len(counts)))),
            class_groups=tuple(rule.assign(counts)),
            group_rule=rule.describe(),
        )

    @property
    def classes(self) -> int:
        """Return the number of classes, C."""
        return len(self.class_counts)

    @property
    def several(self) -> bool:
        """Return whether an image may have several labels: the task follows from the data."""
        return self.images is not None

    @property
    def training_images(self) -> int:
        """Return the number of training images, N."""
        return sum(self.class_counts) if self.images is None else self.images

    @property
    def counts(self) -> Tensor:
        """Return training images by class, float64 ``[C]``."""
        return torch.tensor(self.class_counts, dtype=torch.float64)

    @property
    def prior(self) -> Tensor:
        """Return class frequencies pi_c = n_c / sum n, float64 ``[C]``; they sum to 1."""
        return self.counts / self.counts.sum()

    @property
    def frequency(self) -> Tensor:
        """Return the share of the images that have each label, n_c / N, float64 ``[C]``."""
        return self.counts / self.training_images

    @property
    def log_prior(self) -> Tensor:
        """Return log pi_c, float64 ``[C]``."""
        return self.prior.log()

    @property
    def imbalance_ratio(self) -> float:
        """Return the largest over the smallest class count."""
        return max(self.class_counts) / min(self.class_counts)

    @property
    def groups(self) -> Mapping[str, tuple[int, ...]]:
        """Return the classes of each group that has any, in the order many, medium, few."""
        members = {
            name: tuple(c for c, g in enumerate(self.class_groups) if g == name)
            for name in GROUP_NAMES
        }
        return {name: classes for name, classes in members.items() if classes}

    def group_mean(self, group: str, values: Tensor, among: Tensor) -> float | None:
        """Return the mean of ``values`` ``[C]`` over a group's classes ``among``, bool ``[C]``.

        None is where there is no such class.
        """
        classes = torch.tensor(self.groups.get(group, ()), dtype=torch.int64)
        classes = classes[among[classes]]
        return float(values[classes].mean()) if len(classes) else None

    @property
    def group_places(self) -> Tensor:
        """Return the place of each class's group in ``GROUP_NAMES``, int64 ``[C]``."""
        return torch.tensor([GROUP_NAMES.index(name) for name in self.class_groups])

    def group_members(self, labels: Tensor) -> Mapping[str, Tensor]:
        """Return, by group, which images of ``labels`` ``[N]`` belong to it, bool ``[N]``.

        One of several labels, ``[N, C]``, belongs to the group of each. Groups that none belongs
        to are left out.
        """
        masks = {
            name: labels[:, list(classes)].bool().any(1)
            if labels.ndim == 2
            else torch.isin(labels, labels.new_tensor(classes))
            for name, classes in self.groups.items()
        }
        return {name: mask for name, mask in masks.items() if mask.any()}

    @property
    def empty_groups(self) -> tuple[str, ...]:
        """Return the names of the groups that no class belongs to."""
        return tuple(name for name in GROUP_NAMES if name not in self.class_groups)

    def statistics(self) -> dict[str, float]:
        """Return how imbalanced the set is.

        ``gini`` is the Gini coefficient of the class counts (0 is balanced); ``effective_classes``
        is exp(entropy of the prior), C when balanced; ``effective_samples`` sums Cui et al.'s
        (2019) effective number (1 - beta^n) / (1 - beta) at beta = 0.9999 over the classes.
        """
        counts = self.counts.sort().values
        rank = torch.arange(1, self.classes + 1, dtype=torch.float64)
        gini = (2 * (rank * counts).sum() / counts.sum() - (self.classes + 1)) / self.classes
        beta = 0.9999
        several = {"labels_per_image": float(counts.sum()) / self.training_images}
        return {
            "images": float(self.training_images),
            **(several if self.several else {}),
            "classes": float(self.classes),
            "largest_class": float(counts[-1]),
            "smallest_class": float(counts[0]),
            "imbalance_ratio": self.imbalance_ratio,
            "gini": float(gini),
            "effective_classes": float(torch.exp(-(self.prior * self.log_prior).sum())),
            "effective_samples": float(((1 - beta**counts) / (1 - beta)).sum()),
        }


def class_counts(labels: Tensor, classes: PositiveInt) -> Tensor:
    """Return images by class, int64 ``[classes]``, of ``labels`` ``[N]`` or ``[N, classes]``."""
    return torch.bincount(of_each_label(labels.cpu())[1], minlength=classes)


def of_each_label(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return image and class of every label, int64 ``[L]`` each, in the order of the images.

    ``labels`` are int64 ``[N]``, one an image, or ``[N, C]``, not 0 where an image has the label.
    """
    if labels.ndim == 1:
        return torch.arange(len(labels), device=labels.device), labels
    image, label = labels.nonzero(as_tuple=True)
    return image, label


def label_cells(labels: Tensor, names: Sequence[object]) -> list[str]:
    """Return what a table says of each image's ``labels``, ``[N]`` or ``[N, C]``, by ``names``.

    Of several labels those that the image has, in label order, as in ``cat;dog``.
    """
    if labels.ndim == 1:
        return [str(names[c]) for c in labels.tolist()]
    own = [row.nonzero().flatten().tolist() for row in labels.cpu()]
    return [BETWEEN.join(str(names[c]) for c in classes) for classes in own]
