"""mixup (Zhang et al., ICLR 2018): training on mixtures of two images and of their losses.

It is the first stage of MiSLAS (Zhong et al., CVPR 2021), which BTM starts from.
"""

from __future__ import annotations

from typing import Self

from pydantic import model_validator
from torch import Tensor

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.protocol import Progress
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.transforms.mix import MixConfig, two_hot_loss


class MixupOptions(MethodOptions):
    """What mixup can be told.

    Attributes:
        mix: how a batch is mixed with itself; alpha is 1.0 on CIFAR, 0.2 on larger sets.
    """

    mix: MixConfig = MixConfig(cutmix=False)

    @property
    def mixes(self) -> MixConfig | None:
        """Return how training mixes images."""
        return self.mix

    @model_validator(mode="after")
    def _of_single_images(self) -> Self:
        kind = self.criterion.kind
        if kind.views or not kind.per_image:
            raise UserError(
                f"criterion {self.criterion.name!r} is not a loss of single images, which mixtures "
                f"need: choose another"
            )
        if not (self.mix.mixup or self.mix.cutmix):
            raise UserError("mix.mixup and mix.cutmix are both false: run ce for no mixtures")
        return self


class Mixup(Method):
    """A criterion on mixed images, for either label by its lam."""

    Options = MixupOptions
    options: MixupOptions
    one_label = "a mixture is of two images' labels by its lam, one each"

    @classmethod
    def stages(cls, options: MixupOptions) -> tuple[Stage, ...]:
        """Return one stage of mixed batches."""
        return (Stage("train", mix=options.mix),)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the mean over the mixtures of either label's loss by its lam.

        Raises:
            UserError: if the batch brings no mixtures.
        """
        images, first, second, lam = batch.mixtures
        logits = self.net(images)
        loss = two_hot_loss(self.criterion(logits, first), self.criterion(logits, second), lam)
        return {self.options.criterion.name: loss.mean()}
