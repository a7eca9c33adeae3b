"""tau-normalisation (Kang et al., ICLR 2020): the classifier's weights are made more alike.

w_c is divided by its length to the power tau; the bias is dropped.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import nn

from lt_pipeline.learning.methods.families.chosen import Chosen, ChosenOptions
from lt_pipeline.learning.schema import UserError


class TauNormOptions(ChosenOptions):
    """What tau-normalisation can be told.

    Attributes:
        criterion: fixed; nothing is trained behind the first stage.
        tau: the power, in [0, 1]; null takes the best of ``candidates`` on the hold-out.
        candidates: the powers to choose from.
    """

    tau: float | None = Field(default=1.0, ge=0, le=1)
    candidates: tuple[float, ...] = Field(default=tuple(t / 10 for t in range(11)), min_length=1)

    @model_validator(mode="after")
    def _powers(self) -> Self:
        if not all(0 <= tau <= 1 for tau in self.candidates):
            raise UserError(f"candidates must lie in [0, 1], but are {list(self.candidates)}")
        return self

    def check_head(self, cosine: bool) -> None:
        """Refuse a cosine head: its weights have no length to change.

        Raises:
            UserError: saying what to set.
        """
        super().check_head(cosine)
        if cosine:
            raise UserError("tau: a cosine head's weights have no length: set model.head = linear")


class TauNormalisation(Chosen):
    """Plain training, then w_c / |w_c|^tau in place of the classifier's weights."""

    Options = TauNormOptions
    options: TauNormOptions
    one_label = "it levels logits of which the highest is the answer, and drops their biases"

    def notes(self) -> list[str]:
        """Say which tau was chosen."""
        if self.options.tau is not None:
            return super().notes()
        return [*super().notes(), f"tau = {self.used:g} has the best mean recall on the hold-out"]

    @torch.no_grad()
    def change(self, tau: float) -> None:
        """Divide the weights ``[..., C, F]`` by their lengths to the power ``tau``; drop the bias.

        Factors of logits that were learned before become 1. With tau = 0 only the bias is gone.
        """
        for name in self.options.factors:
            self.get_parameter(name).fill_(1)
        head: nn.Module = self.net.head
        weight = self.net.prototypes
        length = torch.linalg.vector_norm(weight.double(), dim=-1, keepdim=True)
        tiny = torch.finfo(weight.dtype).tiny
        weight.copy_((weight.double() / length.clamp(min=tiny) ** tau).to(weight.dtype))
        bias = getattr(head, "bias", None)
        if bias is not None:
            bias.zero_()
