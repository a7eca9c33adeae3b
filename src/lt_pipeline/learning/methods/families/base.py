"""The one abstraction: a method answers, in the order of a model's life, what is special to it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.engine.protocol import Objective, Progress
from lt_pipeline.learning.losses.criteria import Head, Outputs
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.methods.families.roles import Reported, Staged
from lt_pipeline.learning.models.network import ModelConfig, Network, build_network
from lt_pipeline.learning.schema import UserError


class Part(Objective):
    """An objective that a method has beside its own."""

    def __init__(self, method: Any) -> None:
        self.method = method

    def score(self, images: Tensor) -> Tensor:
        """Return what ranks the classes of every image, ``[B, C]``."""
        scores: Tensor = self.method.score(images)
        return scores


class Method(Staged, Reported, Objective):
    """A way to learn from long-tailed images: a network, its stages, its loss and its scores.

    Everything a subclass does not override is plain training of one network on
    ``options.criterion``. Images come in as uint8 ``[B, channels, H, W]``.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    # why images of several labels are not for it, "" where that is for its criterion to say
    one_label: ClassVar[str] = "what it does rests on the one right class of an image"

    @classmethod
    def why_one_label(cls, options: Any) -> str:
        """Return why images of several labels are not for it, "" where they are.

        ``options`` are of the method's kind.
        """
        criterion = options.criterion
        of_criterion = criterion.kind.one_label and f"{criterion.name} {criterion.kind.one_label}"
        return cls.one_label or of_criterion

    def __init__(self, options: MethodOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        self.compose()
        scale = model.scale if model.head == "cosine" else None
        self.criterion = options.criterion.build(card.longtail, Head(self.net.width, scale))

    def compose(self) -> None:
        """Make the network."""
        self.net = self.build()

    def build(self) -> Network:
        """Return the network to train."""
        return build_network(
            self.model,
            classes=self.card.longtail.classes,
            channels=self.card.channels,
            mean=self.card.mean,
            std=self.card.std,
            names=self.card.longtail.class_names,
        )

    @property
    def views(self) -> int:
        """Return how many contrastive views of every image the criterion asks for."""
        return self.criterion.views

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Change what changes between epochs; ``epoch`` counts from 0 to ``epochs`` - 1."""
        self.criterion.start_epoch(epoch, epochs)

    def outputs(self, batch: Batch) -> Outputs:
        """Return the forward pass as the criterion asked for it.

        Images and views go through the network as one batch, so that BatchNorm normalises them
        alike.

        Raises:
            ValueError: if the batch has fewer views than the criterion needs.
        """
        if not self.criterion.needs_features:
            return Outputs(self.net(batch.images))
        if len(batch.views) < self.views:
            raise ValueError(
                f"the criterion {self.options.criterion.name!r} needs {self.views} views of every "
                f"image, but the batch has {len(batch.views)}"
            )
        images = len(batch.images)
        features = self.net.features(torch.cat([batch.images, *batch.views[: self.views]]))
        by_view = features.view(1 + self.views, images, -1)
        return Outputs(self.net.head(by_view[0]), by_view, self.net.prototypes)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return named terms; their sum is minimised and each is logged.

        ``progress`` is the share of the stage's steps that are done after this one, in (0, 1].
        """
        return self.criterion.terms(self.outputs(batch), batch.labels)

    def end_epoch(self, epochs: int, validation: Images | None, device: torch.device) -> None:
        """Learn from an epoch that is over; ``validation`` is the hold-out, if there is one.

        Raises:
            UserError: if the criterion needs a hold-out and there is none.
        """
        if self.options.criterion.wants_validation:
            self._show_hold_out(validation, device)
        self.criterion.end_epoch()

    def _show_hold_out(self, validation: Images | None, device: torch.device) -> None:
        if validation is None:
            raise UserError(
                f"the criterion {self.options.criterion.name!r} measures difficulty on a hold-out: "
                f"set data.validation > 0, or its difficulty to training"
            )
        scores = predict(self, self.score, validation, device=device)
        self.criterion.observe(scores, validation.labels.cpu())

    def epoch_metrics(self) -> dict[str, float]:
        """Return what else is worth a curve over the epochs, by name."""
        return self.criterion.epoch_metrics()

    def notes(self) -> list[str]:
        """Return what a reader of the results must know of this run, a sentence each."""
        return self.criterion.notes()

    def merge_for_inference(self) -> None:
        """Drop what was for training only, once; ``score`` must not change."""
        super().merge_for_inference()
        del self.criterion
        if not self.inner:
            self.net.fold_adapters()
