"""Decoupled training: a representation first, then a classifier on top of it, all else frozen.

Kang et al., Decoupling representation and classifier for long-tailed recognition (ICLR 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.data.samplers import SamplerConfig
from lt_pipeline.learning.engine.phase import Phase, Stage
from lt_pipeline.learning.losses.criteria import Outputs
from lt_pipeline.learning.methods._base import Method, MethodOptions
from lt_pipeline.learning.methods._pretrained import Pretrained, PretrainedOptions
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.learning.models.network import ModelConfig, Network
from lt_pipeline.learning.schema import Config, UserError

BACKBONE, HEAD, SCALE = "source.net.backbone", "source.net.head", "scale"


class ClassifierConfig(Config):
    """How a classifier is trained on a frozen backbone, with a cosine schedule and no warm-up.

    Attributes:
        epochs: passes over the training set; null is 10, or what the method says.
        batch_size: null is training.batch_size.
        learning_rate: the first epoch's.
        weight_decay: null is training.weight_decay.
        sampler: which images an epoch sees.
        restart: forget the classifier that the representation was trained with.
        head_rate: factor of the classifier's learning rate; 0 leaves it as it is.
        scale: learn a factor of each class's logit, 1 at the start.
        shift_batchnorm: let BatchNorm's running statistics follow the batches.
    """

    epochs: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat = 0.1
    weight_decay: NonNegativeFloat | None = None
    sampler: SamplerConfig = SamplerConfig(name="class_balanced")
    restart: bool = False
    head_rate: NonNegativeFloat = 1.0
    scale: bool = False
    shift_batchnorm: bool = False

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if not (self.head_rate or self.scale):
            raise UserError("head_rate is 0 and scale is false: nothing would learn; set one")
        if self.restart and not self.head_rate:
            raise UserError("restart needs head_rate > 0: the new classifier would never learn")
        return self

    def phase(self, name: str, epochs: int = 10) -> Phase:
        """Return the phase ``name`` that trains the classifier, for ``epochs`` unless told."""
        learns = ([HEAD] if self.head_rate else []) + ([SCALE] if self.scale else [])
        given = {"batch_size": self.batch_size, "weight_decay": self.weight_decay}
        return Phase(
            name,
            self.epochs or epochs,
            self.sampler.build(),
            trains=tuple(learns),
            adapts=(BACKBONE,) if self.shift_batchnorm else (),
            rates={HEAD: self.head_rate},
            remainder=True,
            training={
                "learning_rate": self.learning_rate,
                "schedule": "cosine",
                "warmup_epochs": 0,
                **{key: value for key, value in given.items() if value is not None},
            },
        )


class DecoupledOptions(PretrainedOptions):
    """What methods with a classifier stage can be told.

    Attributes:
        criterion: of the classifier stage; the first stage's is ``pretrain_options``'.
        classifier: how that stage trains.
    """

    classifier: ClassifierConfig = ClassifierConfig()


class Decoupled(Pretrained):
    """``options.pretrain``, then its classifier trained anew or further on ``criterion``."""

    Options = DecoupledOptions
    options: DecoupledOptions

    def __init__(self, options: DecoupledOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        learned = nn.Parameter(torch.ones(card.longtail.classes))
        self.register_parameter(SCALE, learned if options.classifier.scale else None)
        self.scale: nn.Parameter | None

    @classmethod
    def stages(cls, options: MethodOptions) -> tuple[Stage, ...]:
        """Return the stages of the representation and, behind them, the classifier's."""
        first = super().stages(options)
        return (*first, Stage("classifier", (first[-1].name,)))

    def phases(self, epochs: int) -> Sequence[Phase]:
        """Return the phases of the representation and the classifier's."""
        return [*super().phases(epochs), self.options.classifier.phase("classifier")]

    def build(self) -> Network:
        """Return a network as the method that is trained first has it."""
        return self.source.build()

    @property
    def classifiers(self) -> dict[str, ClassifierConfig]:
        """Return how the classifier is trained, by stage."""
        return {"classifier": self.options.classifier}

    @property
    def on_criterion(self) -> bool:
        """Return whether the stage at hand trains on this method's own criterion."""
        return self.stage == "classifier"

    def trained_by(self, name: str, state: StateDict) -> dict[str, Tensor]:
        """Return what of ``state`` the stage ``name`` and those before it trained."""
        return dict(state) if name == "classifier" else super().trained_by(name, state)

    def start(self, stage: Stage, checkpoints: Mapping[str, StateDict]) -> None:
        """Take up the weights that ``stage`` starts from; with ``restart``, but the classifier."""
        super().start(stage, checkpoints)
        classifier = self.classifiers.get(stage.name)
        if classifier and classifier.restart:
            self.net.head.load_state_dict(self.source.build().head.state_dict())
            self.forget_factors()

    def start_epoch(self, phase: Phase, epoch: int) -> None:
        """Change what changes between epochs of the stage at hand."""
        super().start_epoch(phase, epoch)
        if self.on_criterion:
            self.criterion.start_epoch(epoch, phase.epochs)

    def end_epoch(self, phase: Phase, validation: Images | None, device: torch.device) -> None:
        """Learn from the epoch what the stage at hand learns."""
        super().end_epoch(phase, validation, device)
        if self.on_criterion:
            Method.end_epoch(self, phase, validation, device)

    def follow(self) -> dict[str, float]:
        """Return what is worth a curve in the stage at hand."""
        return Method.follow(self) if self.on_criterion else super().follow()

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the terms of the stage at hand."""
        if self.pretraining:
            return super().loss(batch, progress)
        logits = self.classify(self.net.features(batch.images))
        return self.criterion.terms(Outputs(logits), batch.labels)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]``, scaled by class where that is learned."""
        logits = super().classify(features)
        return logits if self.scale is None else logits * self.scale
