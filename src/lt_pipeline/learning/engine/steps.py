"""Steps of K networks, from their batches to their new weights, and the plain way to take them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import autocast, memory_format, without_tf32
from lt_pipeline.learning.engine.loader import Stream
from lt_pipeline.learning.engine.optim import sgd, trained_parameters
from lt_pipeline.learning.engine.protocol import Learner, objective_of
from lt_pipeline.learning.engine.schedule import rate_factor
from lt_pipeline.learning.engine.stage import Stage

Terms = dict[str, Tensor]
Tick = Callable[[int], None]


class Loss(nn.Module):
    """A stage's loss as a module's forward pass: what others wrap, swap or replay."""

    def __init__(self, method: Learner, stage: Stage) -> None:
        super().__init__()
        self.method, self.stage = method, stage

    def forward(self, batch: Batch, progress: float) -> Terms:
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
        learning: Iterable[tuple[str, Tensor]],
        stage: Stage,
        config: TrainingConfig,
        device: torch.device,
    ) -> None:
        self.method, self.config, self.device = method, config, device
        self.objective, self.loss = objective_of(method, stage), Loss(method, stage)
        self.epochs = stage.passes(config.epochs)
        self.optimizer = sgd(learning, method, stage, config, device)

    def begin(self, streams: Sequence[Stream]) -> None:
        """Take up the batches of each network, and lay the learning rate's schedule over them."""
        self.streams, steps = streams, streams[0].steps
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
            for name, value in self(batch, step / self.steps).items():
                totals[name] = totals.get(name, 0.0) + value
            self.rates.step()
            tick(self.count)
        return totals

    def __call__(self, batches: Sequence[Batch], progress: float) -> Terms:
        """Take a step, on a batch for each network; return the loss terms, each ``[K]``."""
        self.optimizer.zero_grad(set_to_none=True)
        with without_tf32(self.objective.needs_float32):
            terms = self.gradients(batches, progress)
        if self.config.gradient_clip:
            self.clip(self.config.gradient_clip)
        self.optimizer.step()
        return terms

    def descend(self, loss: Callable[[Any, float], Terms], batch: Any, progress: float) -> Terms:
        """Add the gradient of all terms of ``loss`` to what learns; return the terms."""
        with autocast(self.config, self.device, exact=self.objective.needs_float32):
            terms = loss(batch, progress)
        # no network is in another one's loss, so that the sum's gradient is that of each
        torch.stack(list(terms.values())).sum().backward()
        return {name: value.detach() for name, value in terms.items()}

    @abstractmethod
    def gradients(self, batches: Sequence[Batch], progress: float) -> Terms:
        """Compute each network's gradient by ``descend``; return the terms, each ``[K]``."""

    @abstractmethod
    def clip(self, largest: float) -> None:
        """Scale each network's whole gradient down to the norm ``largest``."""

    @abstractmethod
    def networks(self) -> Iterator[Learner]:
        """Yield each network, there until the next one is asked for; what it writes in is kept."""

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
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.rates.load_state_dict(state["rates"])
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.restore(saved)


class Plain(Step):
    """One network."""

    def __init__(
        self, method: Learner, stage: Stage, config: TrainingConfig, device: torch.device
    ) -> None:
        self.format = memory_format(config, device)
        method.to(device)
        method.net.to(memory_format=self.format)
        if config.compile:
            method.net.compile()
        super().__init__(method, trained_parameters(method, stage), stage, config, device)

    def gradients(self, batches: Sequence[Batch], progress: float) -> Terms:  # noqa: D102
        terms = self.descend(self.loss, batches[0].in_format(self.format), progress)
        return {name: value[None] for name, value in terms.items()}

    def clip(self, largest: float) -> None:  # noqa: D102
        learning = [p for p in self.method.parameters() if p.requires_grad]
        nn.utils.clip_grad_norm_(learning, largest)

    def networks(self) -> Iterator[Learner]:  # noqa: D102
        yield self.method
