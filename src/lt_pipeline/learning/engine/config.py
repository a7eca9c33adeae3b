"""Parameters of the training loop."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import cache
from typing import ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)
from pydantic_core.core_schema import ValidationInfo

from lt_pipeline.learning.data.samplers import SamplerConfig
from lt_pipeline.learning.schema import Config, UserError
from lt_pipeline.learning.transforms.augment import AugmentConfig
from lt_pipeline.learning.transforms.views import ViewConfig

LOGGER = logging.getLogger(__name__)


class OptimizerConfig(Config):
    """What turns gradients into steps; ``learning_rate`` and ``weight_decay`` are beside it.

    Attributes:
        name: ``sgd`` has ``training.momentum`` and ``nesterov``; ``adamw``'s beta_1 is
            ``training.momentum``, its weight decay is decoupled and leaves biases and norms alone.
        beta2: of the mean squared gradient; adamw's only.
        backbone_rate: factor of the learning rate for the whole backbone, beside the head.
        layer_decay: each layer of the backbone, from its output on, has so much of the learning
            rate of the one behind it; 1 is one rate for all, which the head has in any case.
        ema: decay, by step, of a moving average of weights and BatchNorm statistics, which is then
            what monitors see and what a stage ends with; null is none.
        accumulate: how many parts a batch goes through the network in: their gradients add up to
            one step. BatchNorm, contrasts and class statistics then see a part at a time.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    beta2: float = Field(default=0.999, ge=0, lt=1)
    backbone_rate: float = Field(default=1.0, gt=0, le=1)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    ema: float | None = Field(default=None, gt=0, lt=1)
    accumulate: PositiveInt = 1


class TrainingConfig(Config):
    """An optimizer, a learning-rate schedule, augmentation and numeric precision.

    The defaults are those of conf/base, for the digits; recipes of papers stand in conf/.

    Attributes:
        optimizer: what the gradients go through.
        freeze: what of the network stays as it is, in every stage: how many of the backbone's
            layers, from the images on, or names of submodules, as in ``[backbone]`` and
            ``[backbone.layer1]``. Its parameters do not learn and its BatchNorm does not move.
        freeze_batchnorm: that of the backbone does neither: for small batches.
        learning_rate: the rate after warm-up.
        momentum: of SGD's velocity, or AdamW's mean gradient.
        nesterov: SGD looks ahead along its velocity.
        schedule: how the rate falls after warm-up, by step: ``cosine`` and ``linear`` to 0;
            ``step`` multiplies by ``decay`` at each of ``milestones``.
        milestones: all fractions of the run, in (0, 1), or all epochs, from 1 on; ascending.
        warmup_epochs: epochs in which the rate rises linearly from 0; more than there are become
            half of them, so that the schedule has its say.
        sampler: which images an epoch sees, and from which share of the run on.
        views: augmentation of the extra views that contrastive criteria ask for.
        features: ``cached`` freezes the backbone, which goes over every image once; what is left
            to train on its features is the head. Of ``augment`` only ``flip`` has a say then.
        gradient_clip: largest norm of the whole gradient; null is no clipping.
        precision: ``auto`` is bfloat16 autocast on CUDA and float32 elsewhere. A loss that drowns
            in rounding, as MORE's, is computed in float32 in any case.
        step: how a step is taken: ``plain`` calls one operation after the other; ``compiled`` has
            torch.compile make one graph of the loss, from a batch to its terms (worth its minutes
            of start-up on long runs); ``captured`` replays the whole step as a CUDA graph; ``auto``
            does so on CUDA where it can, and is plain elsewhere.
        channels_last: memory format of images and weights; ``auto`` is true where convolutions
            are faster in it: on CUDA, and on CPUs with oneDNN; not for cached features.
        checkpoint_every: seconds, at least, between the states that a killed run resumes from, of
            which the last epoch always leaves one; 0 is one an epoch.
        monitor_every: epochs between accuracies on the hold-out, if there is one, and the last
            epoch always has one; 0 is never.
        monitor_seconds: at least so many between two of those, however few epochs that are. What
            is seen then depends on the machine: the curve, the best epoch, what a sweep stops.
        monitor_test: follow the accuracy on the test set, too. It is for the best-epoch figure
            that papers print; nothing is ever selected by it.
        monitor_risk: training images a class whose mean loss, by group, is followed, too (MORE,
            figure 4 b); 0 is none.
    """

    symbols: ClassVar[Mapping[str, str]] = {"lr": "learning_rate", "wd": "weight_decay"}

    epochs: PositiveInt = 60
    batch_size: PositiveInt = 64
    optimizer: OptimizerConfig = OptimizerConfig()
    freeze: NonNegativeInt | tuple[str, ...] = 0
    freeze_batchnorm: bool = False
    learning_rate: PositiveFloat = 0.1
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 2e-4
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.8, 0.9)
    decay: float = Field(default=0.1, gt=0, le=1)
    warmup_epochs: NonNegativeInt = 5
    features: Literal["none", "cached"] = "none"
    gradient_clip: PositiveFloat | None = None
    sampler: SamplerConfig = SamplerConfig()
    augment: AugmentConfig = AugmentConfig()
    views: ViewConfig = ViewConfig()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    step: Literal["auto", "plain", "compiled", "captured"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    checkpoint_every: NonNegativeFloat = 30.0
    monitor_every: NonNegativeInt = 1
    monitor_seconds: NonNegativeFloat = 0.0
    monitor_test: bool = False
    monitor_risk: NonNegativeInt = 0

    @property
    def on_features(self) -> bool:
        """Return whether the backbone is frozen, and its features are computed once."""
        return self.features == "cached"

    @property
    def milestones_are_epochs(self) -> bool:
        """Return whether milestones count epochs; fractions of the run lie below 1."""
        return self.milestones[:1] >= (1,)

    @property
    def reading(self) -> str:
        """Return in a sentence how the learning rate's schedule is read."""
        if self.schedule != "step":
            return f"training.schedule is {self.schedule}: training.milestones have no say"
        unit = self.milestones_are_epochs
        epochs = (m if unit else m * self.epochs for m in self.milestones)
        return (
            f"training.milestones are read as {'epochs' if unit else 'fractions of the run'}: the "
            f"rate falls to {self.decay:g} of itself after epoch "
            f"{', '.join(f'{epoch:g}' for epoch in epochs)} of {self.epochs}"
        )

    @field_validator("nesterov")
    @classmethod
    def _has_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and not info.data.get("momentum", True):
            raise UserError("must be false without momentum, but momentum is 0")
        optimizer = info.data.get("optimizer", OptimizerConfig())
        if nesterov and optimizer.name != "sgd":
            raise UserError(f"is sgd's: must be false with optimizer.name {optimizer.name}")
        return nesterov

    @field_validator("optimizer")
    @classmethod
    def _fits(cls, optimizer: OptimizerConfig, info: ValidationInfo) -> OptimizerConfig:
        size: int = info.data.get("batch_size", optimizer.accumulate)
        if optimizer.accumulate > size:
            raise UserError(
                f"accumulate must be <= training.batch_size = {size}, but is {optimizer.accumulate}"
            )
        return optimizer

    @field_validator("milestones")
    @classmethod
    def _of_one_unit(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        fractions = all(0 < m < 1 for m in milestones)
        epochs = all(m >= 1 and m == int(m) for m in milestones)
        if not (fractions or epochs) or list(milestones) != sorted({*milestones}):
            raise UserError(
                f"must be fractions of the run, between 0 and 1, or else whole epochs from 1 on, "
                f"ascending, but are {list(milestones)}"
            )
        return milestones

    @field_validator("milestones")
    @classmethod
    def _reached(cls, milestones: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if info.data.get("schedule") != "step":
            return milestones
        if not milestones:
            raise UserError("must name one at least; schedule: constant is for none")
        if milestones[-1] >= max(info.data.get("epochs", math.inf), 1):
            raise UserError(
                f"must be below training.epochs = {info.data['epochs']}, or the rate never falls, "
                f"but are {list(milestones)}"
            )
        return milestones

    @field_validator("warmup_epochs")
    @classmethod
    def _not_all_there_is(cls, warmup: int, info: ValidationInfo) -> int:
        epochs: int = info.data.get("epochs", warmup)
        if warmup <= epochs:
            return warmup
        _log_once(
            f"training.warmup_epochs is {warmup} of {epochs} epochs: shortened to {epochs // 2}"
        )
        return epochs // 2


@cache
def _log_once(line: str) -> None:
    """Log ``line`` once: a configuration is checked again by whatever takes it."""
    LOGGER.info(line)
