"""Steps of K networks, from their batches to their new weights, and the plain way to take them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
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
Tick = Callable[[int], None]


class Loss(nn.Module):
    """A stage's loss as a module's forward pass: what others wrap, swap or replay."""

    def __init__(self, method: Learner, stage: Stage) -> None:
        super().__init__()
        self.method, self.stage = method, stage

    def forward(self, batch: Batch, progress: Progress) -> Terms:
        """Return the loss terms, scalars."""
        return objective_of(self.method, self.stage).loss(batch, progress)


class Step(ABC):
    """How K networks, ``count``, of one architecture go from batches to new weights.

    A subclass holds the networks and says how their gradients come about. Whatever differs from
    one call to the next is in the batches, in ``progress`` and in the rates, which are set between
    calls: a call can be captured once and replayed, or be spread over processes.
    """

    count = 1

    def __init__(
        self,
        method: Learner,
        held: Mapping[str, Tensor],
        stage: Stage,
        config: TrainingConfig,
        device: torch.device,
    ) -> None:
        """Start the optimizer; ``held`` are the networks' tensors, by name in ``method``."""
        self.method, self.config, self.device = method, config, device
        self.objective, self.loss = objective_of(method, stage), Loss(method, stage)
        self.epochs = stage.passes(config.epochs)
        learning = {name: held[name] for name, _ in trained_parameters(method, stage)}
        self.optimizer = build_optimizer(learning, method, stage, config, device)
        averaged = [*learning.values(), *(held[name] for name in _statistics(method))]
        ema = config.optimizer.ema
        self.average = Average(averaged, ema) if ema else None

    def begin(self, streams: Sequence[Stream]) -> None:
        """Take up the batches of each network, and lay the learning rate's schedule over them."""
        self.streams, steps = streams, streams[0].steps
        begin_momentum(self.optimizer)
        self.steps = self.epochs * steps
        self.rates = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: rate_factor(self.config, step, self.steps, steps)
        )

    def epoch(self, epoch: int, tick: Tick) -> Terms:
        """Take the steps of an epoch, from 0; return each loss term's sum over them, ``[K]``.

        ``tick`` is called with how many networks took a step.
        """
        totals, done = Terms(), epoch / self.epochs
        batches = zip(*(stream.epoch(done) for stream in self.streams), strict=True)
        for step, batch in enumerate(batches, epoch * self.streams[0].steps + 1):
            _add(totals, self(batch, step / self.steps))
            self.rates.step()
            tick(self.count)
        return totals

    def __call__(self, batches: Sequence[Batch], progress: Progress) -> Terms:
        """Take a step, on a batch for each network; return the loss terms, each ``[K]``."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = Terms()
        with without_tf32(self.objective.needs_float32):
            for part, share in parts(batches, self.config.optimizer.accumulate):
                _add(terms, self.gradients(part, progress, share))
        if self.config.gradient_clip:
            self.clip(self.config.gradient_clip)
        self.optimizer.step()
        if self.average:
            self.average.update()
        return terms

    def descend(
        self, loss: Callable[[Any, Progress], Terms], batch: Any, progress: Progress, share: float
    ) -> Terms:
        """Add ``share`` of all terms' gradient to what learns; return that share of the terms."""
        with autocast(self.config, self.device, exact=self.objective.needs_float32):
            terms = loss(batch, progress)
        # no network is in another one's loss, so that the sum's gradient is that of each
        (share * torch.stack(list(terms.values())).sum()).backward()
        return {name: share * value.detach() for name, value in terms.items()}

    @property
    def kind(self) -> str:
        """Return the name of the steps whose state this one can take up."""
        return type(self).__name__

    @abstractmethod
    def gradients(self, batches: Sequence[Batch], progress: Progress, share: float) -> Terms:
        """Add to each network's gradient by ``descend``; return the terms, each ``[K]``."""

    @abstractmethod
    def clip(self, largest: float) -> None:
        """Scale each network's whole gradient down to the norm ``largest``."""

    @abstractmethod
    def networks(self) -> Iterator[Learner]:
        """Yield each network, there until the next one is asked for; what it writes in is kept."""

    def swap(self) -> None:
        """Change places of the weights and their average, if there is one."""
        if self.average:
            self.average.swap()

    @property
    def rate(self) -> float:
        """Return the learning rate of what has no factor."""
        return float(self.rates.get_last_lr()[0])

    def state(self) -> dict[str, Any]:
        """Return what resuming needs beside the networks."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
            "streams": [stream.state() for stream in self.streams],
            "average": self.average and self.average.means,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        begin_momentum(self.optimizer)
        self.rates.load_state_dict(state["rates"])
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.restore(saved)
        if self.average:
            self.average.restore(state["average"])


class Plain(Step):
    """One network."""

    def __init__(
        self, method: Learner, stage: Stage, config: TrainingConfig, device: torch.device
    ) -> None:
        self.format = memory_format(config, device)
        method.to(device)
        method.net.to(memory_format=self.format)
        held = {**dict(method.named_parameters()), **dict(method.named_buffers())}
        super().__init__(method, held, stage, config, device)

    @property
    def kind(self) -> str:
        """Return what all that train one network are: each goes on where another one stopped."""
        return Plain.__name__

    def gradients(self, batches: Sequence[Batch], progress: Progress, share: float) -> Terms:  # noqa: D102
        batch = self.objective.prepare(batches[0]).in_format(self.format)
        terms = self.descend(self.loss, batch, progress, share)
        return {name: value[None] for name, value in terms.items()}

    def clip(self, largest: float) -> None:  # noqa: D102
        learning = [p for p in self.method.parameters() if p.requires_grad]
        nn.utils.clip_grad_norm_(learning, largest)

    def networks(self) -> Iterator[Learner]:  # noqa: D102
        yield self.method


class Compiled(Plain):
    """One network, whose loss is one graph of torch.compile's."""

    def __init__(
        self, method: Learner, stage: Stage, config: TrainingConfig, device: torch.device
    ) -> None:
        super().__init__(method, stage, config, device)
        # a number would be a constant of the graph
        self.progress = torch.zeros((), device=device)
        self.loss.compile()

    def gradients(self, batches: Sequence[Batch], progress: Progress, share: float) -> Terms:  # noqa: D102
        return super().gradients(batches, self.progress.fill_(progress), share)


def parts(batches: Sequence[Batch], count: int) -> Iterator[tuple[Sequence[Batch], float]]:
    """Yield K networks' ``batches`` in ``count`` parts, each with its share of the images.

    A batch of fewer images, or of fewer outliers, has as many parts as it has of those.
    """
    first = batches[0]
    images = len(first.labels)
    count = min(count, images, images if first.outliers is None else len(first.outliers))
    if count == 1:
        yield batches, 1.0
        return
    for part in zip(*(_split(batch, count) for batch in batches), strict=True):
        yield part, len(part[0].labels) / images


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


def _statistics(method: Learner) -> list[str]:
    """Return the names of BatchNorm's running statistics."""
    kept = ("running_mean", "running_var")
    layers = [n for n, module in method.named_modules() if isinstance(module, _BatchNorm)]
    names = {f"{layer}.{kind}" for layer in layers for kind in kept}
    return [name for name, _ in method.named_buffers() if name in names]
