"""K copies of what a phase changes in a method, trained by one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import autocast, without_tf32
from lt_pipeline.learning.engine.loader import Stream
from lt_pipeline.learning.engine.phase import Phase
from lt_pipeline.learning.engine.schedule import rate_factor
from lt_pipeline.learning.engine.trainer import (
    all_finite,
    check_finite,
    choose_what_learns,
    sgd,
    trained_parameters,
)
from lt_pipeline.learning.transforms.mix import Mixed

if TYPE_CHECKING:
    from lt_pipeline.learning.methods._base import Method


class Stack:
    """What a phase may change in a method, K times: ``stacked``, each ``[K, ...]``.

    The parameters that do not learn stay the method's own, in one copy.
    """

    def __init__(self, method: Method, phase: Phase, count: int) -> None:
        self.method, self.count, self.loss = method, count, _Loss(method)
        learning = dict(trained_parameters(method, phase))
        self.own: dict[str, Tensor] = {**learning, **dict(method.named_buffers())}
        self.stacked = {name: _copies(tensor, count) for name, tensor in self.own.items()}
        self.learning = {name: self.stacked[name].requires_grad_() for name in learning}

    def terms(self, batch: Mapping[str, Any], progress: float) -> dict[str, Tensor]:
        """Return the loss terms, each ``[K]``, of ``batch``, whose tensors are ``[K, B, ...]``."""

        def one(changed: Mapping[str, Tensor], part: Mapping[str, Any]) -> dict[str, Tensor]:
            named = {f"method.{name}": tensor for name, tensor in changed.items()}
            found: dict[str, Tensor] = torch.func.functional_call(
                self.loss, named, (part, progress)
            )
            return found

        return torch.vmap(one, randomness="different")(self.stacked, batch)

    def clip(self, largest: float) -> None:
        """Scale each network's whole gradient down to the norm ``largest``."""
        gradients = [p.grad for p in self.learning.values() if p.grad is not None]
        norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]
        factor = (largest / torch.linalg.vector_norm(torch.stack(norms), dim=0)).clamp(max=1)
        for gradient in gradients:
            gradient *= factor.view(-1, *[1] * (gradient.ndim - 1))

    @contextmanager
    def shown(self, k: int) -> Iterator[Method]:
        """Make the method network k inside the block; what it writes in place is kept."""
        before = {name: tensor.data for name, tensor in self.own.items()}
        try:
            for name, tensor in self.own.items():
                tensor.data = self.stacked[name].detach()[k]
            yield self.method
        finally:
            for name, tensor in self.own.items():
                tensor.data = before[name]

    def state(self) -> dict[str, Any]:
        """Return the start and the copies."""
        stacked = {name: tensor.detach() for name, tensor in self.stacked.items()}
        return {"start": self.method.state_dict(), "stacked": stacked}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self.method.load_state_dict(state["start"])
        with torch.no_grad():
            for name, tensor in self.stacked.items():
                tensor.copy_(state["stacked"][name])


class StackedTraining:
    """The moving parts of K trainings by ``torch.vmap``: stack, optimizer, schedule, streams."""

    def __init__(
        self,
        method: Method,
        phases: Sequence[Phase],
        sets: Sequence[Images],
        config: TrainingConfig,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.method, self.phases, self.config, self.device = method, phases, config, device
        self.streams = [
            Stream(phase, train, config, views=0, seed=seed, device=device)
            for phase, train, seed in zip(phases, sets, seeds, strict=True)
        ]
        torch.manual_seed(seeds[0])
        method.to(device)
        self.stack = Stack(method, phases[0], len(phases))
        self.steps_per_epoch = self.streams[0].steps
        self.steps = self.steps_per_epoch * phases[0].epochs
        self.images = self.streams[0].images
        self.optimizer = sgd(self.stack.learning, method, phases[0], config, device)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: rate_factor(config, step, self.steps, self.steps_per_epoch),
        )

    def run_epoch(self, epoch: int) -> list[dict[str, float]]:
        """Train one epoch; return each network's mean loss terms and the learning rate."""
        self._start_epoch(epoch)
        step, totals = epoch * self.steps_per_epoch, dict[str, Tensor]()
        done = epoch / self.phases[0].epochs
        for batches in zip(*(stream.epoch(done) for stream in self.streams), strict=True):
            step += 1
            for name, value in self._step(_stacked(batches), step / self.steps).items():
                totals[name] = totals.get(name, 0.0) + value
        # the one transfer of an epoch, which also waits for the device
        finite = all_finite(self.stack.stacked.values(), (len(self.phases),))
        sums = torch.stack([*totals.values(), finite], 1).tolist()
        return [
            self._values(epoch, dict(zip(totals, row, strict=True)), bool(whole), phase)
            for (*row, whole), phase in zip(sums, self.phases, strict=True)
        ]

    def shown(self, k: int) -> AbstractContextManager[Method]:
        """Make the method network k inside the block."""
        return self.stack.shown(k)

    def state(self) -> dict[str, Any]:
        """Return all that resuming needs."""
        cuda = self.device.type == "cuda"
        return {
            **self.stack.state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "streams": [stream.state() for stream in self.streams],
            "torch_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` returned."""
        self.stack.restore(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.restore(saved)
        torch.set_rng_state(state["torch_generator"])
        if state["cuda_generator"] is not None:
            torch.cuda.set_rng_state(state["cuda_generator"], self.device)

    def _start_epoch(self, epoch: int) -> None:
        choose_what_learns(self.method, self.phases[0])
        for k, phase in enumerate(self.phases):
            with self.shown(k) as method:
                method.start_epoch(phase, epoch)

    def _step(self, batch: Mapping[str, Any], progress: float) -> dict[str, Tensor]:
        exact = self.method.needs_float32
        with without_tf32(exact):
            with autocast(self.config, self.device, exact=exact):
                terms = self.stack.terms(batch, progress)
            self.optimizer.zero_grad(set_to_none=True)
            # no network is in another one's loss, so that the sum's gradient is that of each
            torch.stack(list(terms.values())).sum().backward()
        if self.config.gradient_clip:
            self.stack.clip(self.config.gradient_clip)
        self.optimizer.step()
        self.schedule.step()
        return {name: value.detach() for name, value in terms.items()}

    def _values(
        self, epoch: int, sums: Mapping[str, float], finite: bool, phase: Phase
    ) -> dict[str, float]:
        means = {name: value / self.steps_per_epoch for name, value in sums.items()}
        check_finite(means, finite, phase, epoch)
        return {
            **{f"train/{name}": value for name, value in means.items()},
            "train/learning_rate": float(self.schedule.get_last_lr()[0]),
        }


class _Loss(nn.Module):
    """A method's loss as the forward pass of a module, which is what functional_call swaps."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Mapping[str, Any], progress: float) -> dict[str, Tensor]:
        return self.method.loss(Batch(**batch), progress)


def _copies(tensor: Tensor, count: int) -> Tensor:
    copies = tensor.detach().expand(count, *tensor.shape)
    return copies.clone(memory_format=torch.contiguous_format)


def _stacked(batches: Sequence[Batch]) -> dict[str, Any]:
    """Return what batches of one phase bring, each tensor ``[K, B, ...]``."""
    names = ("images", "labels", "positions")
    found: dict[str, Any] = {n: torch.stack([getattr(b, n) for b in batches]) for n in names}
    mixed = [batch.mixed for batch in batches if batch.mixed is not None]
    if mixed:
        found["mixed"] = Mixed(*(torch.stack(parts) for parts in zip(*mixed, strict=True)))
    return found
