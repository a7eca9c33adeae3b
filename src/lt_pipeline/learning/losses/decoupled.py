"""Losses that decoupled training fits a classifier with, and the criteria that bind them.

Label-aware smoothing: Zhong et al., Improving calibration for long-tailed recognition (MiSLAS, CVPR
2021). Geometric mean loss: Du and Wu, No one left behind: improving the worst categories in
long-tailed learning (GML, CVPR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor
from torch.nn import functional as F

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses import functional as losses
from lt_pipeline.learning.losses.criteria import (
    Criterion,
    CriterionBase,
    Head,
    LogitAdjusted,
    weighted,
)
from lt_pipeline.learning.schema import UserError

Shape = Literal["concave", "linear", "convex", "exponential"]


def class_smoothing(
    class_counts: Tensor, head: float, tail: float, shape: Shape, power: float
) -> Tensor:
    """Return how much each class's label is smoothed, ``[C]``, from ``tail`` to ``head``.

    With r = (n_c - n_min) / (n_max - n_min) it is tail + (head - tail) g(r), where g(r) is
    sin(pi r / 2) for ``concave``, r for ``linear``, 1 + sin(3 pi / 2 + pi r / 2) for ``convex`` and
    r^power for ``exponential``, as in MiSLAS. Where all counts are equal, all classes are the
    largest and get ``head``. ``class_counts`` is float64 ``[C]``.

    Raises:
        UserError: if a class has no image.
    """
    losses.check_counts(class_counts)
    least, most = class_counts.min(), class_counts.max()
    if least == most:
        return torch.full_like(class_counts, head)
    rank = (class_counts - least) / (most - least)
    angle = rank * (math.pi / 2)
    rise = {
        "concave": angle.sin(),
        "linear": rank,
        "convex": 1 - angle.cos(),  # sin(3 pi / 2 + x) is -cos(x)
        "exponential": rank**power,
    }
    return tail + (head - tail) * rise[shape]


def label_aware_smoothing(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """Return -(1 - e_y) log p_y - e_y mean_c log p_c, ``[B]``, for ``smoothing`` e ``[C]``.

    The true class's target is 1 - e_y + e_y / C, as in MiSLAS's code; the paper's equation, by
    which it is 1 - e_y and the others share e_y, is this one for e_y C / (C - 1).

    Raises:
        UserError: if a label names no class.
    """
    right = losses.cross_entropy(logits, labels)
    smoothed = smoothing[labels]
    return (1 - smoothed) * right - smoothed * F.log_softmax(logits, dim=1).mean(1)


def geometric_mean(
    logits: Tensor, labels: Tensor, log_prior: Tensor, tau: float, p: float = 1.0
) -> Tensor:
    """Return ``[B]`` values whose mean is the loss of GML's authors on a batch.

    That is L = ((1 / |K|) sum over the classes c of the batch, K, of (-log r_c)^p)^(1 / p) with r_c
    the mean over the images i of c of their softmax's share of c, the softmax being that of logits
    + tau * log prior (``log_prior`` ``[C]``); ``p`` >= 1. At p = 1 it is -log of the geometric mean
    of the r_c; the larger p, the more the worst class counts. No image has a loss of its own: the
    value of one is -log r_y, that of its class, times (-log r_y / L)^(p - 1), the class's weight in
    the gradient of L, times B / (|K| n_y) for n_y images of it.

    Source: the class ``ReweightedGMLLogAfterMean`` in BTM's repository, for tau = 1; it also lifts
    each image's share to 1e-5, below which the image has no gradient.

    Raises:
        UserError: if a label names no class.
    """
    log_right = -losses.logit_adjusted(logits, labels, log_prior, tau)
    same = labels[:, None] == labels
    members = log_right.expand_as(same).masked_fill(~same, -torch.inf)
    size = same.sum(1).to(log_right.dtype)
    loss, weight = size.log() - members.logsumexp(1), 1 / size
    return weighted(loss * _tilt(loss.detach(), weight, p), weight, mean=True)


def _tilt(loss: Tensor, weight: Tensor, p: float) -> Tensor:
    """Return (loss / L)^(p - 1), ``[B]``, for L the p-mean of ``loss`` weighted by ``share``."""
    tiny = torch.finfo(loss.dtype).tiny
    # over the largest, so that no power overflows; rounding can leave a loss just below 0
    part = (loss / loss.max().clamp(min=tiny)).clamp(min=0)
    mean = weighted(part**p, weight, mean=True).mean() ** (1 / p)
    return (part / mean.clamp(min=tiny)) ** (p - 1)


class LabelAwareSmoothing(Criterion):
    """Cross-entropy with smoothed labels, the more so the more images a class has (MiSLAS)."""

    def __init__(self, config: LabelAwareSmoothingConfig, longtail: LongTail, head: Head) -> None:
        super().__init__(config, longtail, head)
        smoothing = class_smoothing(
            longtail.counts, config.head, config.tail, config.shape, config.power
        )
        self.register_buffer("smoothing", smoothing.float())
        self.smoothing: Tensor

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every image, ``[B]``."""
        return label_aware_smoothing(logits, labels, self.smoothing)


class LabelAwareSmoothingConfig(CriterionBase):
    """Label-aware smoothing; head = tail = 0 is plain cross-entropy.

    Attributes:
        head: smoothing of the class with most images; 0.4 and a tail of 0.1 are MiSLAS's for
            CIFAR-100-LT at an imbalance ratio of 100.
        tail: smoothing of the class with fewest, at most ``head``.
        shape: how it rises between them, over the number of images.
        power: of the exponential shape; 1 is linear.
    """

    symbols: ClassVar[Mapping[str, str]] = {"epsilon_1": "head", "epsilon_K": "tail"}

    kind = LabelAwareSmoothing
    name: Literal["label_aware_smoothing"] = "label_aware_smoothing"
    head: float = Field(default=0.4, ge=0, lt=1)
    tail: float = Field(default=0.1, ge=0, lt=1)
    shape: Shape = "concave"
    power: PositiveFloat = 2.0

    @model_validator(mode="after")
    def _head_most(self) -> Self:
        if self.tail > self.head:
            raise UserError(
                f"head must be >= tail, as frequent classes are smoothed most, but got head "
                f"{self.head} and tail {self.tail}"
            )
        return self


class GeometricMean(LogitAdjusted):
    """Minus the log of the geometric mean of a batch's recall by class, softened, or its p-mean."""

    per_image: ClassVar[bool] = False

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the images' shares of the batch's loss, which is their mean, ``[B]``."""
        return geometric_mean(logits, labels, self.log_prior, self.config.tau, self.config.p)


class GeometricMeanConfig(CriterionBase):
    """Geometric mean loss, of a whole batch; it wants batches with several images of a class.

    Attributes:
        tau: of the log prior in the softmax; 1 is the balanced softmax, 0 the plain one.
        p: exponent of the mean over classes; 1 is the geometric mean of their recalls, as BTM's
            repository has it, and the larger it is, the more the worst class counts.
    """

    kind = GeometricMean
    name: Literal["geometric_mean"] = "geometric_mean"
    tau: NonNegativeFloat = 1.0
    # below 1 the classes that are nearly right would weigh most
    p: float = Field(default=1.0, ge=1)
