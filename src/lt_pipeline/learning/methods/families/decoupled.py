"""Decoupled training: a representation first, then a classifier on top of it, all else frozen.

Kang et al., Decoupling representation and classifier for long-tailed recognition (ICLR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.samplers import SamplerConfig
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.losses.criteria import Outputs
from lt_pipeline.learning.methods.families.pretrained import (
    SOURCE,
    Pretrained,
    PretrainedOptions,
    stages_below,
)
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import Config, UserError

BACKBONE, HEAD = f"{SOURCE}.net.backbone", f"{SOURCE}.net.head"


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

    def stage(self, name: str, start: str, anew: Sequence[str], epochs: int = 10) -> Stage:
        """Return the stage ``name`` that trains the classifier, for ``epochs`` unless told.

        ``anew`` is what begins anew beside the classifier where that restarts.
        """
        given = {"batch_size": self.batch_size, "weight_decay": self.weight_decay}
        return Stage(
            name,
            (start,),
            folded=(SOURCE,),
            anew=(HEAD, *anew) if self.restart else (),
            sampler=self.sampler.build(),
            remainder=True,
            trainable=(*[HEAD] * bool(self.head_rate), *["scale"] * self.scale),
            adapts=(BACKBONE,) if self.shift_batchnorm else (),
            rates={HEAD: self.head_rate},
            epochs=self.epochs or epochs,
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

    @property
    def factors(self) -> tuple[str, ...]:
        """Return the parameters that scale logits by class, the method's own among them."""
        return (*["scale"] * self.classifier.scale, *super().factors)


class Decoupled(Pretrained):
    """``options.pretrain``, then its classifier trained anew or further on ``criterion``."""

    Options = DecoupledOptions
    options: DecoupledOptions
    one_label = ""

    def __init__(self, options: DecoupledOptions, model: ModelConfig, card: DataCard) -> None:
        super().__init__(options, model, card)
        learned = nn.Parameter(torch.ones(card.longtail.classes))
        self.register_parameter("scale", learned if options.classifier.scale else None)
        self.scale: nn.Parameter | None

    @classmethod
    def stages(cls, options: Any) -> tuple[Stage, ...]:
        """Return the stages of the representation and, behind them, the classifier's."""
        first = stages_below(options)
        own = options.classifier.stage("classifier", first[-1].name, options.factors)
        return (*first, own)

    def outputs(self, batch: Batch) -> Outputs:
        """Return the logits of a batch's images."""
        return Outputs(self.classify(self.net.features(batch.images)))

    def classify(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]``, scaled by class where that is learned."""
        logits = super().classify(features)
        return logits if self.scale is None else logits * self.scale
