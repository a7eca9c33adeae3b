"""Numbers that follow from how many images of each class were found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail


def right_images(confusion: Tensor) -> Tensor:
    """Return how many images of each class were found, ``[C]``, of a dense or sparse ``[C, C]``."""
    if not confusion.is_sparse:
        return confusion.diagonal()
    cells = confusion.coalesce()
    (true, predicted), images = cells.indices(), cells.values()
    own = true == predicted
    return images.new_zeros(len(confusion)).index_put((true[own],), images[own])


def true_images(confusion: Tensor) -> Tensor:
    """Return how many images each class has, ``[C]``."""
    return confusion.sum(1).to_dense()


def predicted_images(confusion: Tensor) -> Tensor:
    """Return how many images each class was taken for, ``[C]``."""
    return confusion.sum(0).to_dense()


def class_recall(confusion: Tensor) -> Tensor:
    """Return the share of each class's images that was found, float64 ``[C]``; 0 without images."""
    return right_images(confusion).double() / true_images(confusion).clamp(min=1)


@dataclass(frozen=True)
class Recalls:
    """What a test set with images gave: ``confusion`` ``[C, C]`` of the classes of ``longtail``.

    It may be sparse.

    ``floor`` is what a recall of zero counts as in means that it would make zero.
    """

    confusion: Tensor
    longtail: LongTail
    floor: float

    @cached_property
    def tested(self) -> Tensor:
        """Return whether classes have a test image, bool ``[C]``."""
        return true_images(self.confusion) > 0

    @cached_property
    def by_class(self) -> Tensor:
        """Return the recalls ``[C]``; 0 without a test image."""
        return class_recall(self.confusion)

    @cached_property
    def known(self) -> Tensor:
        """Return the recalls of the classes with a test image."""
        return self.by_class[self.tested]

    @cached_property
    def floored(self) -> Tensor:
        """Return the known recalls, ``floor`` in the place of those below."""
        return self.known.clamp(min=self.floor)


def accuracy(recalls: Recalls) -> float:
    """Return the share of all images that was found."""
    return float(right_images(recalls.confusion).sum().double() / recalls.confusion.sum())


def mean_recall(recalls: Recalls) -> float:
    """Return the mean recall of the classes with a test image."""
    return float(recalls.known.mean())


def classes(recalls: Recalls) -> float:
    """Return how many classes with a test image there are: what means are over."""
    return float(recalls.tested.sum())


def group_recall(recalls: Recalls, group: str) -> float | None:
    """Return the mean recall of a group's classes with a test image, None if there is none."""
    return recalls.longtail.group_mean(group, recalls.by_class, recalls.tested)


def harmonic_mean(recalls: Recalls) -> float:
    """Return the harmonic mean of the recalls, one of zero counted as ``floor`` (BTM's rule).

    One such class among a hundred keeps it below 10 %, whatever the others do.
    """
    return float(1 / (1 / recalls.floored).mean())


def geometric_mean(recalls: Recalls) -> float:
    """Return the geometric mean of the recalls, one of zero counted as ``floor`` (BTM's rule)."""
    return float(recalls.floored.log().mean().exp())


def lowest_recall(recalls: Recalls) -> float:
    """Return the recall of the worst class with a test image."""
    return float(recalls.known.min())


def zero_recall_classes(recalls: Recalls) -> float:
    """Return how many classes with test images have none that was found."""
    return float((recalls.known == 0).sum())
