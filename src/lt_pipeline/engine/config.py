"""Parameters of the training loop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lt_pipeline.data.augment import AugmentConfig
from lt_pipeline.data.contrast import ContrastConfig
from lt_pipeline.data.samplers import SamplerConfig
from lt_pipeline.schema import Config


class TrainingConfig(Config):
    """SGD with momentum, a learning-rate schedule, augmentation and numeric precision.

    The defaults are the recipe that the MORE paper's CIFAR figures fit (docs/methods/more.md).

    Attributes:
        learning_rate: the rate after warm-up.
        schedule: how the rate falls after warm-up, by step: ``cosine`` and ``linear`` to 0;
            ``step`` multiplies by ``decay`` at each of ``milestones`` (fractions of the run).
        warmup_epochs: epochs in which the rate rises linearly from 0.
        sampler: which images an epoch sees, and from which share of the run on.
        contrast: augmentation of the extra views that contrastive criteria ask for.
        gradient_clip: largest norm of the whole gradient; null is no clipping.
        precision: ``auto`` is bfloat16 autocast on CUDA and float32 elsewhere. A loss that drowns
            in rounding, as MORE's, is computed in float32 in any case.
        compile: torch.compile the network (worth its minutes of start-up on long GPU runs).
        channels_last: memory format of the images; ``auto`` is true on CUDA.
        checkpoint_every: epochs between the states that a killed run resumes from.
        monitor_every: epochs between accuracies on the hold-out, if there is one; 0 is never.
        monitor_test: follow the accuracy on the test set, too. It is for the best-epoch figure
            that papers print; nothing is ever selected by it.
    """

    epochs: PositiveInt = 200
    batch_size: PositiveInt = 256
    learning_rate: PositiveFloat = 0.3
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 2e-4
    schedule: Literal["cosine", "linear", "step", "constant"] = "step"
    milestones: tuple[float, ...] = (0.8, 0.9)
    decay: PositiveFloat = 0.1
    warmup_epochs: NonNegativeInt = 5
    gradient_clip: PositiveFloat | None = None
    sampler: SamplerConfig = SamplerConfig()
    augment: AugmentConfig = AugmentConfig()
    contrast: ContrastConfig = ContrastConfig()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    channels_last: bool | Literal["auto"] = "auto"
    checkpoint_every: PositiveInt = 1
    monitor_every: NonNegativeInt = 1
    monitor_test: bool = False
