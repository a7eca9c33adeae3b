"""What methods of outlier exposure share: every batch brings images of no class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.protocol import Progress
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.losses.criteria import Outputs
from lt_pipeline.learning.losses.functional import at_least_float32
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.schema import UserError


class OutlierOptions(MethodOptions):
    """What they can be told.

    Attributes:
        outliers: images of no class for each training image of a batch.
        start: share of the epochs that pass before outliers count.
        weight: of their term.
    """

    symbols: ClassVar[Mapping[str, str]] = {"lambda": "weight"}

    outliers: PositiveFloat = 1.0
    start: float = Field(default=0.0, ge=0, lt=1)
    weight: PositiveFloat = 0.5

    @property
    def wants_auxiliary(self) -> bool:
        """Return True: training needs data.auxiliary."""
        return True

    @model_validator(mode="after")
    def _one_view(self) -> Self:
        if self.criterion.kind.views:
            raise UserError(
                f"criterion {self.criterion.name!r} needs views of every image, which outliers "
                f"have not: choose another criterion"
            )
        return self


class OutlierMethod(Method):
    """Training on a criterion with images of no class in every batch."""

    Options = OutlierOptions
    options: OutlierOptions
    one_label = "it pushes images of no class to a softmax in which no class is right"
    exposed = True  # whether outliers count in the epoch that runs

    @classmethod
    def stages(cls, options: OutlierOptions) -> tuple[Stage, ...]:
        """Return one stage with outliers."""
        return (Stage("train", outliers=options.outliers),)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Begin with the outliers where they begin; the last epoch always has them."""
        super().start_epoch(epoch, epochs)
        self.exposed = epoch / epochs >= self.options.start or epoch == epochs - 1

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, C]`` of the images and ``[M, C]`` of the outliers, in float32.

        They go through the network as one batch: BatchNorm could tell two apart by themselves.

        Raises:
            ValueError: if the batch brings no outliers.
        """
        if batch.outliers is None:
            raise ValueError("a batch must bring outliers, but this one has none")
        both = at_least_float32(self.net(torch.cat([batch.images, batch.outliers])))
        return both[: len(batch.images)], both[len(batch.images) :]

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the criterion's terms and, from ``start`` on, that of the outliers."""
        if not self.exposed:
            return super().loss(batch, progress)
        id_logits, ood_logits = self.logits(batch)
        terms = self.criterion.terms(Outputs(id_logits), batch.labels)
        return {**terms, "outliers": self.options.weight * self.exposure(id_logits, ood_logits)}

    def exposure(self, id_logits: Tensor, ood_logits: Tensor) -> Tensor:
        """Return the unweighted term, a scalar, of logits ``[B, C]`` and ``[M, C]``."""
        raise NotImplementedError
