"""Steps of a network, from its batches to its new weights: plain, or with a compiled loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import autocast, memory_format, without_tf32
from lt_pipeline.learning.engine.loader import Stream
from lt_pipeline.learning.engine.optim import (
    Average,
    begin_momentum,
    build_optimizer,
    trained_parameters,
)
from lt_pipeline.learning.engine.protocol import Learner, Progress, objective_of
from lt_pipeline.learning.engine.schedule import rate_factor
from lt_pipeline.learning.engine.stage import Stage

Terms = dict[str, Tensor]


class Loss(nn.Module):
    """A stage's loss as a module's forward pass: what others wrap, swap or replay."""

    def __init__(self, method: Learner, stage: Stage) -> None:
        super().__init__()
        self.method, self.stage = method, stage

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        """Return the loss terms, scalars."""
        return objective_of(self.method, self.stage).loss(batch, progress)


class Plain:
    """How a network goes from batches to new weights, one operation after the other.

    Whatever differs from one call to the next is in the batch, in ``progress`` and in the rates,
    which are set between calls: a call can be captured once and replayed.
    """

    def __init__(
        self, method: Learner, stage: Stage, config: TrainingConfig, device: torch.device
    ) -> None:
        """Move the network to where it is computed, and start the optimizer."""
        self.method, self.config, self.device = method, config, device
        self.format = memory_format(config, device)
        method.to(device)
        method.net.to(memory_format=self.format)
        self.objective, self.loss = objective_of(method, stage), Loss(method, stage)
        self.epochs = stage.passes(config.epochs)
        learning = dict(trained_parameters(method, stage))
        self.optimizer = build_optimizer(learning, method, stage, config, device)
        ema = config.optimizer.ema
        self.average = Average([*learning.values(), *_statistics(method)], ema) if ema else None

    def begin(self, stream: Stream) -> None:
        """Take up the network's batches, and lay the learning rate's schedule over them."""
        self.stream, steps = stream, stream.steps
        begin_momentum(self.optimizer)
        self.steps = self.epochs * steps
        self.rates = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: rate_factor(self.config, step, self.steps, steps)
        )

    def epoch(self, epoch: int, tick: Callable[[], None]) -> Terms:
        """Take the steps of an epoch, from 0, each with a ``tick``; return the terms' sums."""
        totals, batches = Terms(), self.stream.epoch(epoch / self.epochs)
        for step, batch in enumerate(batches, epoch * self.stream.steps + 1):
            _add(totals, self(batch, step / self.steps))
            self.rates.step()
            tick()
        return totals

    def __call__(self, batch: Batch, progress: Progress) -> Terms:
        """Take a step; return the loss terms, scalars."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = Terms()
        with without_tf32(self.objective.needs_float32):
            for part, weight in parts(batch, self.config.optimizer.accumulate):
                _add(terms, self.gradients(part, progress, weight))
        if self.config.gradient_clip:
            learning = [p for p in self.method.parameters() if p.requires_grad]
            nn.utils.clip_grad_norm_(learning, self.config.gradient_clip)
        self.optimizer.step()
        if self.average:
            self.average.update()
        return terms

    def gradients(self, batch: Batch, progress: Progress, weight: float) -> Terms:
        """Add ``weight`` times the terms' gradient to what learns; return the terms, so weighed."""
        batch = self.objective.prepare(batch).in_format(self.format)
        with autocast(self.config, self.device, exact=self.objective.needs_float32):
            terms = self.loss(batch, progress)
        (weight * torch.stack(list(terms.values())).sum()).backward()
        return {name: weight * value.detach() for name, value in terms.items()}

    def swap(self) -> None:
        """Change places of the weights and their average, if there is one."""
        if self.average:
            self.average.swap()

    @property
    def rate(self) -> float:
        """Return the learning rate of what has no factor."""
        return float(self.rates.get_last_lr()[0])

    def state(self) -> dict[str, Any]:
        """Return what resuming needs beside the network: each kind goes on where another stopped.

        Lists of one are of when several networks were one step.
        """
        return {
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
            "streams": [self.stream.state()],
            "average": self.average and self.average.means,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        begin_momentum(self.optimizer)
        self.rates.load_state_dict(state["rates"])
        self.stream.restore(*state["streams"])
        if self.average:
            self.average.restore(state["average"])


class Compiled(Plain):
    """One network, whose loss is one graph of torch.compile's."""

    def __init__(
        self, method: Learner, stage: Stage, config: TrainingConfig, device: torch.device
    ) -> None:
        super().__init__(method, stage, config, device)
        # a number would be a constant of the graph
        self.progress = torch.zeros((), device=device)
        self.loss.compile()

    def gradients(self, batch: Batch, progress: Progress, weight: float) -> Terms:  # noqa: D102
        return super().gradients(batch, self.progress.fill_(progress), weight)


def parts(batch: Batch, count: int) -> Iterator[tuple[Batch, float]]:
    """Yield ``batch`` in ``count`` parts, each with its weight, its images over all.

    A batch of fewer images, or of fewer outliers, has as many parts as it has of those.
    """
    images = len(batch.labels)
    count = min(count, images, images if batch.outliers is None else len(batch.outliers))
    if count == 1:
        yield batch, 1.0
        return
    for part in _split(batch, count):
        yield part, len(part.labels) / images


def _split(value: Any, count: int) -> list[Any]:
    """Return ``count`` parts of tensors ``[B, ...]``, in tuples of whatever depth."""
    if value is None:
        return [None] * count
    if isinstance(value, Tensor):
        return list(value.tensor_split(count))
    columns = [_split(item, count) for item in value]
    make = getattr(value, "_make", tuple)
    return [make(column[i] for column in columns) for i in range(count)]


def _add(totals: Terms, terms: Terms) -> None:
    for name, value in terms.items():
        totals[name] = totals.get(name, 0.0) + value


def _statistics(method: Learner) -> list[Tensor]:
    """Return BatchNorm's running statistics."""
    kept = ("running_mean", "running_var")
    layers = [n for n, module in method.named_modules() if isinstance(module, _BatchNorm)]
    names = {f"{layer}.{kind}" for layer in layers for kind in kept}
    return [buffer for name, buffer in method.named_buffers() if name in names]
