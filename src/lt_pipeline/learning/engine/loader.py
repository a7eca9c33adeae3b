"""The batches that a stage sees, epoch after epoch, from generators that can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lt_pipeline.learning.data.batches import Batch, batches, mixed_with_itself, sent
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.transforms.augment import AugmentConfig


def steps_of(stage: Stage, images: int, batch_size: int) -> int:
    """Return the steps of an epoch over so many ``images``.

    Raises:
        UserError: if they do not fill one batch.
    """
    full, left = divmod(images, batch_size)
    steps = full + (left > 0 and stage.remainder)
    if not steps:
        raise UserError(
            f"training.batch_size must be <= the number of training images, "
            f"but is {batch_size} with {images} images"
        )
    return steps


class Stream:
    """Augmented batches of one stage, drawn where the images live.

    Two streams of equal arguments give the same batches.

    Raises:
        UserError: if the set does not fill one batch, or the stage asks for outliers and there
            are none.
    """

    def __init__(
        self,
        stage: Stage,
        train: Images,
        config: TrainingConfig,
        *,
        views: int,
        seed: int,
        device: torch.device,
        auxiliary: Images | None = None,
    ) -> None:
        self.stage, self.config, self.views, self.device = stage, config, views, device
        self.steps = steps_of(stage, len(train), config.batch_size)
        self.images = len(train) if stage.remainder else self.steps * config.batch_size
        self.train, self.labels = train.to(device), train.labels.cpu()
        self.auxiliary = _auxiliary(auxiliary, stage, device)
        self.sampler = stage.sampler or config.sampler.build()
        self.order_generator = torch.Generator().manual_seed(seed)
        self.augment_generator = torch.Generator(device).manual_seed(seed)

    def epoch(self, done: float) -> Iterator[Batch]:
        """Yield an epoch's batches, each with all that the stage asks for.

        ``done`` is the share of the stage's epochs that are over.
        """
        size, labels = self.config.batch_size, self.labels
        order = self.sampler(labels, self.order_generator, done)
        train = self._augmented(self.train, order, size, self.views)
        if self.stage.pair:
            order = self.stage.pair(labels, self.order_generator, done)
            pairs = self._augmented(self.train, order, size)
            train = (b._replace(pair=p) for b, p in zip(train, pairs, strict=True))
        if self.stage.mix:
            mix = self.stage.mix
            train = (mixed_with_itself(batch, mix, self.order_generator) for batch in train)
        if self.auxiliary is not None:
            beside = max(round(size * self.stage.outliers), 1)
            needed = self.steps * beside
            order = torch.randint(len(self.auxiliary), (needed,), generator=self.order_generator)
            plain = self.config.augment.for_noise
            outliers = self._augmented(self.auxiliary, order, beside, augment=plain)
            train = (b._replace(outliers=o.images) for b, o in zip(train, outliers, strict=True))
        return train

    def state(self) -> dict[str, Any]:
        """Return the generators' states."""
        return {
            "order_generator": self.order_generator.get_state(),
            "augment_generator": self.augment_generator.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self.order_generator.set_state(state["order_generator"])
        self.augment_generator.set_state(state["augment_generator"])

    def _augmented(
        self,
        data: Images,
        order: Tensor,
        size: int,
        views: int = 0,
        augment: AugmentConfig | None = None,
    ) -> Iterator[Batch]:
        return batches(
            data,
            sent(order, self.device),
            size,
            augment or self.config.augment,
            self.augment_generator,
            views=views,
            view=self.config.views,
            remainder=self.stage.remainder,
        )


def _auxiliary(auxiliary: Images | None, stage: Stage, device: torch.device) -> Images | None:
    if not stage.outliers:
        return None
    if auxiliary is None or not len(auxiliary):
        raise UserError(
            f"stage {stage.name!r} trains on images of no class, but there are none: set "
            f"data.auxiliary"
        )
    return auxiliary.to(device)
