"""Methods that change a trained classifier by a strength, tau, told or chosen on the hold-out."""

from __future__ import annotations

from typing import Any

import torch

from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.predict import accuracies
from lt_pipeline.learning.losses.criteria import CrossEntropyConfig
from lt_pipeline.learning.methods.families.pretrained import Pretrained, PretrainedOptions
from lt_pipeline.learning.schema import UserError


class ChosenOptions(PretrainedOptions):
    """What they can be told.

    Attributes:
        criterion: fixed; nothing is trained behind the first stage.
        tau: the strength; null takes the best of ``candidates`` on the hold-out.
        candidates: to choose from.
    """

    criterion: CrossEntropyConfig = CrossEntropyConfig()
    tau: float | None = 1.0
    candidates: tuple[float, ...] = ()

    @property
    def wants_validation(self) -> bool:
        """Return whether a hold-out is needed: to choose tau."""
        return self.tau is None or super().wants_validation


class Chosen(Pretrained):
    """Plain training, then ``change`` with tau."""

    Options = ChosenOptions
    options: ChosenOptions
    used: float | None = None  # the tau that was, for a note

    def change(self, tau: float) -> None:
        """Change what was trained by ``tau``, once."""
        raise NotImplementedError

    def post_process(
        self, train: Images, validation: Images, device: torch.device
    ) -> dict[str, Any]:
        """Change what was trained; return tau and, where it was chosen, among what.

        Raises:
            UserError: if tau is to be chosen and there is no hold-out.
        """
        self.used = self.options.tau
        if self.used is not None:
            self.change(self.used)
            return {"tau": self.used}
        if not len(validation):
            raise UserError("tau is null and chosen on a hold-out: set data.validation > 0")
        kept = {name: value.clone() for name, value in self.state_dict().items()}
        recalls = {}
        for tau in self.options.candidates:
            self.change(tau)
            self.to(device)
            metrics = accuracies(self, self.score, validation, device=device)
            recalls[tau] = metrics["mean_recall"]
            self.load_state_dict(kept)
        self.used = max(recalls, key=lambda tau: recalls[tau])
        self.change(self.used)
        return {"tau": self.used, "validation_mean_recall": {str(t): r for t, r in recalls.items()}}
