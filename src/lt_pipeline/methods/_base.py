"""The one abstraction: a method answers, in the order of a model's life, what is special to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lt_pipeline.data.batches import Batch
from lt_pipeline.data.images import ImageSet
from lt_pipeline.data.prepare import DataCard
from lt_pipeline.engine.phase import Phase
from lt_pipeline.losses.criteria import CriterionConfig, CrossEntropyConfig
from lt_pipeline.models.network import ModelConfig, Network, build_network
from lt_pipeline.schema import Config

StateDict = Mapping[str, Tensor]


class MethodOptions(Config):
    """What a method can be told; every method trains on some criterion."""

    criterion: CriterionConfig = CrossEntropyConfig()


class Method(nn.Module):
    """A way to learn from long-tailed images: a network, its phases, its loss and its scores.

    Everything a subclass does not override is plain training of one network on
    ``options.criterion``. All that training changes are parameters and buffers, so that
    ``state_dict`` is the whole checkpoint. Images come in as uint8 ``[B, channels, H, W]``.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    phase_names: ClassVar[tuple[str, ...]] = ("train",)

    def __init__(self, options: MethodOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__()
        self.options, self.model, self.card = options, model, card
        self.criterion = options.criterion.build(card.longtail)
        self.net = self.build()

    def build(self) -> Network:
        """Return the network to train."""
        return build_network(
            self.model,
            classes=self.card.longtail.classes,
            channels=self.card.channels,
            mean=self.card.mean,
            std=self.card.std,
        )

    def phases(self, epochs: int) -> Sequence[Phase]:
        """Return the stages of training, named as in ``phase_names``; ``epochs`` is the budget."""
        return [Phase("train", epochs)]

    def no_weight_decay(self) -> Collection[str]:
        """Return the names of the parameters that weight decay leaves alone."""
        return ()

    def start_epoch(self, phase: Phase, epoch: int) -> None:
        """Change what changes between epochs; ``epoch`` counts from 0."""

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return named terms; their sum is minimised and each is logged.

        ``progress`` is the share of the phase's steps that are done after this one, in (0, 1].
        """
        name = self.options.criterion.name
        return {name: self.criterion(self.net(batch.images), batch.labels).mean()}

    def finish(self, checkpoints: Mapping[str, StateDict], train: ImageSet) -> None:
        """Do what follows the gradients, on top of the last phase's weights, which are loaded."""

    def diagnose(
        self, train: ImageSet, test: ImageSet, device: torch.device
    ) -> dict[str, dict[str, float]]:
        """Return what the paper looks at before folding, as {what: {group: value}}."""
        return {}

    def fold(self) -> None:
        """Drop what was for training only; ``score`` must not change."""

    def score(self, images: Tensor) -> Tensor:
        """Return what ranks the classes of every image, ``[B, C]``; softmax makes it probable."""
        logits: Tensor = self.net(images)
        return logits

    def ood_score(self, images: Tensor) -> Tensor:
        """Return how much every image looks like the training classes, ``[B]``; higher is more."""
        return self.score(images).float().softmax(1).amax(1)
