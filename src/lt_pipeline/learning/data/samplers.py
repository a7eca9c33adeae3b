"""Samplers: which images an epoch sees, in which order.

Kang et al. (ICLR 2020): the next image is of class j with probability p_j ∝ n_j^q, where n_j counts
the images of class j, and is any image of that class. q = 1 is instance-balanced, 1/2 square-root,
0 class-balanced. The reverse sampler of BBN (Zhou et al., CVPR 2020) is q = -1. Released codes, as
Kang et al.'s and MiSLAS's, balance by taking classes and images in turn: ``class_aware``.

Where an image has several labels, ``[N, C]``, it is an image of each of its classes, and one
without a label of none: class-aware sampling as Wu et al. (ECCV 2020) have it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lt_pipeline.learning.data.distribution import of_each_label
from lt_pipeline.learning.schema import Config

# (labels [N] or [N, C], generator on the CPU, share in [0, 1) of the stage's epochs that are over)
# -> positions of one epoch, int64 [N]
Sampler = Callable[[Tensor, torch.Generator, float], Tensor]

IN_A_ROW = 4  # images of a class that class_aware takes at a time, as released


def instance_balanced(labels: Tensor, generator: torch.Generator, done: float = 0.0) -> Tensor:
    """Return every position of ``labels`` ``[N]`` once, in random order."""
    return torch.randperm(len(labels), generator=generator)


def square_root(labels: Tensor, generator: torch.Generator, done: float = 0.0) -> Tensor:
    """Draw N positions of ``labels`` ``[N]``, a class by the square root of its count."""
    return draw(labels, class_probabilities(_counts(labels), 0.5), generator)


def class_balanced(labels: Tensor, generator: torch.Generator, done: float = 0.0) -> Tensor:
    """Draw N positions of ``labels`` ``[N]``, every class that has any equally often."""
    return draw(labels, class_probabilities(_counts(labels), 0.0), generator)


def reverse(labels: Tensor, generator: torch.Generator, done: float = 0.0) -> Tensor:
    """Draw N positions of ``labels`` ``[N]``, a class by the inverse of its count (BBN)."""
    return draw(labels, class_probabilities(_counts(labels), -1.0), generator)


def progressively_balanced(labels: Tensor, generator: torch.Generator, done: float) -> Tensor:
    """Draw N positions of ``labels`` ``[N]``, from instance- to class-balanced as ``done`` grows.

    Kang et al. (2020), equation 2: epoch t of T draws with (1 - t/T) p_IB + t/T p_CB.
    """
    return draw(labels, progressive_probabilities(_counts(labels), done), generator)


def class_aware(labels: Tensor, generator: torch.Generator, done: float = 0.0) -> Tensor:
    """Return N positions of ``labels`` ``[N]``: all classes in turn, four images of each in a row.

    As in the released codes of Kang et al. (2020) and MiSLAS: every round over the classes is in a
    new random order, and so is every round over the images of a class. Epochs are independent here;
    there, rounds go on over their borders.
    """
    of_image, of_class = of_each_label(labels)
    counts = torch.bincount(of_class)
    present = counts.nonzero().squeeze(1)
    turns = _rounds(present, -(-len(labels) // IN_A_ROW), generator)
    classes = turns.repeat_interleave(IN_A_ROW)[: len(labels)]
    images = of_image[of_class.argsort(stable=True)].split(counts.tolist())
    wanted = torch.bincount(classes, minlength=len(counts)).tolist()
    positions = torch.empty_like(classes)
    positions[classes.argsort(stable=True)] = torch.cat(
        [_rounds(images[c], wanted[c], generator) for c in present.tolist()]
    )
    return positions


def _counts(labels: Tensor) -> Tensor:
    """Return images by class, int64, up to the last class that has any."""
    return torch.bincount(of_each_label(labels)[1])


def _rounds(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` of ``values`` ``[V]``: all of them in random order, again and again."""
    rounds = [values[:0]]
    for _ in range(-(-count // len(values))):
        rounds.append(values[torch.randperm(len(values), generator=generator)])
    return torch.cat(rounds)[:count]


def class_probabilities(counts: Tensor, power: float) -> Tensor:
    """Return p_j ∝ n_j^power for the ``counts`` ``[C]``, float64 ``[C]``.

    An absent class has probability 0, whatever the power.
    """
    weight = counts.double().pow(power).where(counts > 0, 0.0)
    return weight / weight.sum()


def progressive_probabilities(counts: Tensor, done: float) -> Tensor:
    """Return, float64 ``[C]``, the mean of p_IB and p_CB for ``counts`` ``[C]``.

    ``done`` in [0, 1] is the weight of p_CB.
    """
    return torch.lerp(class_probabilities(counts, 1.0), class_probabilities(counts, 0.0), done)


def draw(labels: Tensor, probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Return N positions of ``labels`` ``[N]``, N >= 1, drawn with replacement.

    The classes follow ``probabilities`` ``[C]``, 0 for absent ones; the images of a class are
    equally likely. Drawing the class first spares ``multinomial`` a category for each image, of
    which it takes at most 2^24.
    """
    of_image, of_class = of_each_label(labels)
    counts = torch.bincount(of_class, minlength=len(probabilities))
    classes = torch.multinomial(probabilities, len(labels), replacement=True, generator=generator)
    fraction = torch.rand(len(labels), generator=generator, dtype=torch.float64)
    # in float64 the product never rounds up to the count
    within = (fraction * counts[classes]).long()
    first = counts.cumsum(0) - counts
    return of_image[of_class.argsort(stable=True)[first[classes] + within]]


def deferred(
    labels: Tensor, generator: torch.Generator, done: float, *, sampler: Sampler, defer: float
) -> Tensor:
    """Return instance-balanced positions until ``done`` reaches ``defer``, then ``sampler``'s.

    Deferred re-sampling (Cao et al., NeurIPS 2019). ``defer`` lies in [0, 1). ``sampler`` is told
    the share of its own epochs, so that a progressive one begins at its beginning.
    """
    if done < defer:
        return instance_balanced(labels, generator)
    return sampler(labels, generator, (done - defer) / (1 - defer))


SAMPLERS: dict[str, Sampler] = {
    "instance_balanced": instance_balanced,
    "square_root": square_root,
    "class_balanced": class_balanced,
    "progressively_balanced": progressively_balanced,
    "reverse": reverse,
    "class_aware": class_aware,
}


class SamplerConfig(Config):
    """Which images the epochs of a stage see.

    ``defer`` is the share of the stage's epochs, the first ones, that are instance-balanced before
    ``name`` takes over.
    """

    name: Literal[
        "instance_balanced",
        "square_root",
        "class_balanced",
        "progressively_balanced",
        "reverse",
        "class_aware",
    ] = "instance_balanced"
    defer: Annotated[float, Field(ge=0, lt=1)] = 0

    def build(self) -> Sampler:
        """Return the sampler; it can be pickled."""
        return partial(deferred, sampler=SAMPLERS[self.name], defer=self.defer)
