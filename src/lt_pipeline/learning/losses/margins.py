"""Margins: what a loss takes from the true class's cosine while training (DBM, table 1).

A margin belongs to a cosine head, whose logits are s * cos(theta_c), and goes in front of any loss
that reads logits. The other classes' logits stay as they are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses.functional import check_counts, check_labels
from lt_pipeline.learning.schema import Config

# sin(theta) has an infinite slope in cos(theta) at theta = 0 and pi: this near to them it is held.
CLOSEST = 1e-6

PastPi = Literal["formula", "monotone"]


def class_margin(class_counts: Tensor, k: float, tau: float) -> Tensor:
    """Return m_C = K (n_c / n_min)^(-tau) in radians, ``[C]``: DBM, equation 6; ``k`` is K.

    n_min is the smallest count, wherever that class stands.

    Raises:
        UserError: if a class has no image.
    """
    check_counts(class_counts)
    return k * (class_counts / class_counts.min()) ** -tau


def ldam_margin(class_counts: Tensor, largest: float) -> Tensor:
    """Return cosine margins proportional to n_c^(-1/4), ``[C]``, the rarest class's ``largest``.

    Cao et al., Learning imbalanced datasets with label-distribution-aware margin loss (NeurIPS
    2019), equation 12.

    Raises:
        UserError: if a class has no image.
    """
    check_counts(class_counts)
    return largest * (class_counts / class_counts.min()) ** -0.25


def add_angle(cosine: Tensor, margin: Tensor, past_pi: PastPi = "formula") -> Tensor:
    """Return cos(theta + m) for ``cosine`` = cos(theta) and ``margin`` m >= 0 of the same shape.

    Beyond theta + m = pi the formula rises again, which would reward the worst images for getting
    worse; ``monotone`` falls on, as -2 - cos(theta + m). It is computed as
    cos(theta) cos(m) - sin(theta) sin(m), so that m = 0 gives ``cosine`` to the bit.
    """
    inside = cosine.clamp(CLOSEST - 1, 1 - CLOSEST)
    sine = (1 - inside.square()).sqrt()
    moved = cosine * margin.cos() - sine * margin.sin()
    if past_pi == "formula":
        return moved
    return torch.where(cosine < -margin.cos(), -2 - moved, moved)


def multiply_angle(cosine: Tensor, factor: float, past_pi: PastPi = "monotone") -> Tensor:
    """Return cos(m theta) for ``cosine`` = cos(theta), any shape, and ``factor`` m >= 1.

    ``monotone`` continues it without a rise, as (-1)^k cos(m theta) - 2 k with k the whole number
    of times that m theta holds pi (Liu et al., SphereFace, CVPR 2017, equation 7).
    """
    angle = factor * cosine.clamp(CLOSEST - 1, 1 - CLOSEST).acos()
    if past_pi == "formula":
        return angle.cos()
    turns = (angle.detach() / math.pi).floor()
    return (1 - 2 * (turns % 2)) * angle.cos() - 2 * turns


def difficulty(cosine: Tensor) -> Tensor:
    """Return d_I = (1 - cos(theta_y)) / 2 in [0, 1], the shape of ``cosine``: DBM, equation 7."""
    return (1 - cosine) / 2


class Margin(nn.Module, ABC):
    """Maps a cosine head's logits ``[B, C]`` and labels ``[B]`` to logits with a margin.

    ``scale`` is the head's s. What a margin knows of the classes are buffers.
    """

    def __init__(self, config: Any, longtail: LongTail, scale: float) -> None:
        super().__init__()
        self.config, self.scale = config, scale

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return ``logits`` ``[B, C]`` with the true class's replaced by s * psi_y.

        Raises:
            UserError: if a label names no class.
        """
        check_labels(labels, logits.shape[1])
        place = labels[:, None]
        cosine = logits.gather(1, place).squeeze(1) / self.scale
        moved = self.scale * self.target(cosine, labels, logits)
        return logits.scatter(1, place, moved[:, None])

    @abstractmethod
    def target(self, cosine: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Return psi_y ``[B]`` for the true classes' ``cosine`` ``[B]``."""


class SphereFace(Margin):
    """cos(m theta)."""

    def target(self, cosine: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Return psi_y ``[B]``."""
        return multiply_angle(cosine, self.config.factor, self.config.past_pi)


class CosFace(Margin):
    """cos(theta) - m."""

    def target(self, cosine: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Return psi_y ``[B]``."""
        lowered: Tensor = cosine - self.config.size
        return lowered


class ArcFace(Margin):
    """cos(theta + m)."""

    def target(self, cosine: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Return psi_y ``[B]``."""
        margin = torch.full_like(cosine, self.config.size)
        return add_angle(cosine, margin, self.config.past_pi)


class Ldam(Margin):
    """cos(theta) - m n_y^(-1/4)."""

    def __init__(self, config: LdamConfig, longtail: LongTail, scale: float) -> None:
        super().__init__(config, longtail, scale)
        self.register_buffer("margin", ldam_margin(longtail.counts, config.largest).float())
        self.margin: Tensor

    def target(self, cosine: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Return psi_y ``[B]``."""
        return cosine - self.margin[labels]


class Dbm(Margin):
    """cos(theta + m_C + m_I): DBM, equations 6 to 9."""

    def __init__(self, config: DbmConfig, longtail: LongTail, scale: float) -> None:
        super().__init__(config, longtail, scale)
        self.register_buffer("margin", class_margin(longtail.counts, config.K, config.tau).float())
        self.margin: Tensor

    def target(self, cosine: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Return psi_y ``[B]``: equation 9.

        An image is a hard positive if another class's cosine is larger than its own: no margin and
        no class prior plays a part in that.
        """
        margin = self.margin[labels]
        if self.config.positives != "none":
            seen = cosine.detach() if self.config.detach_difficulty else cosine
            by_instance = margin * difficulty(seen)
            if self.config.positives == "hard":
                by_instance = by_instance * (logits.argmax(1) != labels)
            margin = margin + by_instance
        return add_angle(cosine, margin, self.config.past_pi)


class MarginBase(Config):
    """What all margins share: ``kind`` is the class that they bind."""

    kind: ClassVar[type[Margin]]

    def build(self, longtail: LongTail, scale: float) -> Margin:
        """Return the margin for the counts of ``longtail`` and a cosine head of ``scale``."""
        return self.kind(self, longtail, scale)


class SphereFaceConfig(MarginBase):
    """Liu et al., CVPR 2017: the angle times ``factor``.

    Theirs is 4 and needs their annealing to train; the default trains without.
    """

    symbols: ClassVar[Mapping[str, str]] = {"m": "factor"}

    kind = SphereFace
    name: Literal["sphereface"] = "sphereface"
    factor: float = Field(default=1.5, ge=1)
    past_pi: PastPi = "monotone"


class CosFaceConfig(MarginBase):
    """Wang et al., CVPR 2018: the cosine less ``size``."""

    symbols: ClassVar[Mapping[str, str]] = {"m": "size"}

    kind = CosFace
    name: Literal["cosface"] = "cosface"
    size: NonNegativeFloat = 0.35


class ArcFaceConfig(MarginBase):
    """Deng et al., CVPR 2019: the angle plus ``size`` radians; their code falls on past pi, too."""

    symbols: ClassVar[Mapping[str, str]] = {"m": "size"}

    kind = ArcFace
    name: Literal["arcface"] = "arcface"
    size: float = Field(default=0.5, ge=0, lt=math.pi)
    past_pi: PastPi = "monotone"


class LdamConfig(MarginBase):
    """Cao et al., NeurIPS 2019: the cosine less a margin; ``largest`` is the rarest class's."""

    symbols: ClassVar[Mapping[str, str]] = {"C": "largest"}

    kind = Ldam
    name: Literal["ldam"] = "ldam"
    largest: NonNegativeFloat = 0.5


class DbmConfig(MarginBase):
    """Son et al., AAAI 2025: a margin by class and, on hard positives, by instance.

    Attributes:
        K: the rarest class's margin in radians (equation 6); the paper uses 0.1 to 0.3.
        tau: how fast margins fall as counts grow; 0 gives every class K.
        positives: who gets m_I (table 5): ``hard`` positives, ``all`` or ``none``.
        detach_difficulty: let d_I be a number without a gradient.
        past_pi: beyond theta + m = pi follow the ``formula``, or fall on: ``monotone``.
    """

    kind = Dbm
    name: Literal["dbm"] = "dbm"
    K: float = Field(default=0.1, ge=0, le=math.pi / 2)
    tau: NonNegativeFloat = 1.0
    positives: Literal["none", "hard", "all"] = "hard"
    detach_difficulty: bool = False
    past_pi: PastPi = "formula"


MarginConfig = Annotated[
    SphereFaceConfig | CosFaceConfig | ArcFaceConfig | LdamConfig | DbmConfig,
    Field(discriminator="name"),
]
