"""K copies of what a stage changes in a method, trained by one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.optim import trained_parameters
from lt_pipeline.learning.engine.protocol import Learner, Progress
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.steps import Step, Terms
from lt_pipeline.learning.transforms.mix import Mixed


class Vmapped(Step):
    """Steps of all networks at once, by ``torch.vmap``.

    ``stacked`` is what the stage may change in the method, K times, each ``[K, ...]``. The
    parameters that do not learn stay the method's own, in one copy.
    """

    def __init__(
        self,
        method: Learner,
        count: int,
        stage: Stage,
        config: TrainingConfig,
        device: torch.device,
    ) -> None:
        method.to(device)
        self.count = count
        learning = dict(trained_parameters(method, stage))
        self.own: dict[str, Tensor] = {**learning, **dict(method.named_buffers())}
        self.stacked = {name: _copies(tensor, count) for name, tensor in self.own.items()}
        self.learning = {name: self.stacked[name].requires_grad_() for name in learning}
        super().__init__(method, self.stacked, stage, config, device)

    def gradients(self, batches: Sequence[Batch], progress: Progress, share: float) -> Terms:  # noqa: D102
        return self.descend(self._terms, _stacked(batches), progress, share)

    def clip(self, largest: float) -> None:  # noqa: D102
        gradients = [p.grad for p in self.learning.values() if p.grad is not None]
        norms = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]
        whole = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        factor = (largest / (whole + 1e-6)).clamp(max=1)  # as clip_grad_norm_
        for gradient in gradients:
            gradient *= factor.view(-1, *[1] * (gradient.ndim - 1))

    def networks(self) -> Iterator[Learner]:
        """Make the method each network in turn."""
        before = {name: tensor.data for name, tensor in self.own.items()}
        for k in range(self.count):
            try:
                for name, tensor in self.own.items():
                    tensor.data = self.stacked[name].detach()[k]
                yield self.method
            finally:
                for name, tensor in self.own.items():
                    tensor.data = before[name]

    def _terms(self, batch: Mapping[str, Any], progress: Progress) -> Terms:
        """Return the loss terms, each ``[K]``, of ``batch``, whose tensors are ``[K, B, ...]``."""

        def one(changed: Mapping[str, Tensor], part: Mapping[str, Any]) -> Terms:
            named = {f"method.{name}": tensor for name, tensor in changed.items()}
            found: Terms = torch.func.functional_call(self.loss, named, (Batch(**part), progress))
            return found

        return torch.vmap(one, randomness="different")(self.stacked, batch)


def _copies(tensor: Tensor, count: int) -> Tensor:
    copies = tensor.detach().expand(count, *tensor.shape)
    return copies.clone(memory_format=torch.contiguous_format)


def _stacked(batches: Sequence[Batch]) -> dict[str, Any]:
    """Return what batches of one stage bring, each tensor ``[K, B, ...]``."""
    names = ("images", "labels", "positions")
    found: dict[str, Any] = {n: torch.stack([getattr(b, n) for b in batches]) for n in names}
    mixed = [batch.mixed for batch in batches if batch.mixed is not None]
    if mixed:
        found["mixed"] = Mixed(*(torch.stack(parts) for parts in zip(*mixed, strict=True)))
    return found
