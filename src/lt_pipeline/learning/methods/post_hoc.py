"""Post-hoc logit adjustment (Menon et al., Long-tail learning via logit adjustment, ICLR 2021).

Section 4.1, equation 9: a network is trained plainly, and its logits are lowered by tau times the
log prior afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.predict import accuracies
from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.methods._pretrained import Pretrained, PretrainedOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import UserError


class PostHocOptions(PretrainedOptions):
    """What post-hoc logit adjustment can be told.

    Attributes:
        criterion: fixed; nothing is trained behind the first stage.
        tau: how many log priors; null takes the best of ``candidates`` on the hold-out.
        candidates: to choose from.
    """

    criterion: CrossEntropyConfig = CrossEntropyConfig()
    tau: NonNegativeFloat | None = 1.0
    candidates: tuple[NonNegativeFloat, ...] = Field(
        default=tuple(t / 4 for t in range(13)), min_length=1
    )

    @property
    def wants_validation(self) -> bool:
        """Return whether a hold-out is needed: to choose tau."""
        return self.tau is None or super().wants_validation


class PostHocAdjustment(Pretrained):
    """Plain training, then logits minus tau times the log prior."""

    Options = PostHocOptions
    options: PostHocOptions

    def __init__(self, options: PostHocOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        self.register_buffer("shift", torch.zeros(card.longtail.classes))
        self.shift: Tensor

    def finish(self, train: Images, validation: Images, device: torch.device) -> dict[str, Any]:
        """Shift the logits; return tau and, where it was chosen, among what.

        Raises:
            UserError: if tau is to be chosen and there is no hold-out.
        """
        self.to(device)
        if self.options.tau is not None:
            self.adjust(self.options.tau)
            return {"tau": self.options.tau}
        if not len(validation):
            raise UserError("tau is null and chosen on a hold-out: set data.validation > 0")
        recalls = {}
        for tau in self.options.candidates:
            self.adjust(tau)
            found = accuracies(self, self.score, validation, device=device)
            recalls[tau] = found["mean_recall"]
        best = max(recalls, key=lambda tau: recalls[tau])
        self.adjust(best)
        return {"tau": best, "validation_mean_recall": {str(t): r for t, r in recalls.items()}}

    def adjust(self, tau: float) -> None:
        """Lower the logits by ``tau`` times the log prior."""
        self.shift.copy_(tau * self.card.longtail.log_prior)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of what ``net.features`` gives, ``[B, ...]``."""
        return super().classify(features) - self.shift
