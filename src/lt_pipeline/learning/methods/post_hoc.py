"""Post-hoc logit adjustment (Menon et al., Long-tail learning via logit adjustment, ICLR 2021).

Section 4.1, equation 9: a network is trained plainly, and its logits are lowered by tau times the
log prior afterwards.
"""

from __future__ import annotations

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.methods.families.chosen import Chosen, ChosenOptions
from lt_pipeline.learning.models.network import ModelConfig


class PostHocOptions(ChosenOptions):
    """What post-hoc logit adjustment can be told.

    Attributes:
        criterion: fixed; nothing is trained behind the first stage.
        tau: how many log priors; null takes the best of ``candidates`` on the hold-out.
        candidates: to choose from.
    """

    tau: NonNegativeFloat | None = 1.0
    candidates: tuple[NonNegativeFloat, ...] = Field(
        default=tuple(t / 4 for t in range(13)), min_length=1
    )


class PostHocAdjustment(Chosen):
    """Plain training, then logits minus tau times the log prior."""

    Options = PostHocOptions
    options: PostHocOptions
    one_label = "it lowers logits of which the highest is the answer, by a prior that sums to 1"

    def __init__(self, options: PostHocOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        self.register_buffer("shift", torch.zeros(card.longtail.classes))
        self.shift: Tensor

    def change(self, tau: float) -> None:
        """Lower the logits by ``tau`` times the log prior."""
        self.shift.copy_(tau * self.card.longtail.log_prior)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of what ``net.features`` gives, ``[B, ...]``."""
        return super().classify(features) - self.shift
