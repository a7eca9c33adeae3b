"""Learning-rate schedules as factors of the base rate."""

from __future__ import annotations

import math

from lt_pipeline.learning.engine.config import TrainingConfig


def rate_factor(config: TrainingConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Return what the learning rate of step ``step`` (0-based, of ``steps``) is multiplied by.

    It rises linearly over the warm-up, reaching 1 with its last step, then follows the schedule.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return 1 - done
    if config.schedule == "step":
        # Of the whole run, warm-up included, as published: 160 of 200.
        run = config.epochs if config.milestones_are_epochs else 1
        return float(config.decay ** sum(step * run >= m * steps for m in config.milestones))
    return 1.0
