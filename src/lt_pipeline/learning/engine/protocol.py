"""What the engine needs of a method, and of what a stage of it minimises. It knows none."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from operator import attrgetter
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.stage import Stage

# a tensor, ``[]``, where a step is compiled or captured: a number would be a constant of it
Progress = float | Tensor


class Objective:
    """What a stage minimises, and what goes with it: by default nothing does."""

    @property
    def views(self) -> int:
        """Return how many contrastive views of every image a batch must bring."""
        return 0

    @property
    def needs_float32(self) -> bool:
        """Return whether the loss drowns in the rounding of bfloat16 and TF32.

        It and its gradient are then computed in float32, whatever ``training.precision`` says.
        """
        return False

    def no_weight_decay(self) -> Collection[nn.Parameter]:
        """Return the parameters that weight decay leaves alone."""
        return ()

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Change what changes between epochs; ``epoch`` counts from 0 to ``epochs`` - 1."""

    def prepare(self, batch: Batch) -> Batch:
        """Return ``batch`` with what is drawn for a step, which a compiled ``loss`` could not."""
        return batch

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return named terms, scalars; their sum is minimised and each is logged.

        ``progress`` is the share of the stage's steps that are done after this one, in (0, 1].
        """
        raise NotImplementedError

    def end_epoch(self, epochs: int, validation: Images | None, device: torch.device) -> None:
        """Learn from one of ``epochs``, which is over; ``validation`` is the hold-out, if any."""

    def epoch_metrics(self) -> dict[str, float]:
        """Return what else is worth a curve over the epochs, by name."""
        return {}

    def score(self, images: Tensor) -> Tensor:
        """Return what ranks the classes of every image, ``[B, C]``."""
        raise NotImplementedError


class Learner(Protocol):
    """A module whose stages are trained.

    All that training changes in it are parameters and buffers, so that ``state_dict`` is the whole
    checkpoint. Images come in as uint8 ``[B, channels, H, W]``.
    """

    @property
    def net(self) -> nn.Module:
        """Return the part that is worth compiling and a memory format of its own.

        Where rates fall by depth, its ``layers`` are lists of parameters, from the input on; what
        weight decay must leave alone in any of its modules is that module's ``undecayed``.
        """

    # and of nn.Module

    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...  # noqa: D102
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...  # noqa: D102
    def get_parameter(self, target: str) -> nn.Parameter: ...  # noqa: D102
    def get_submodule(self, target: str) -> nn.Module: ...  # noqa: D102
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...  # noqa: D102
    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...  # noqa: D102
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...  # noqa: D102
    def eval(self) -> Self: ...  # noqa: D102
    def to(self, device: torch.device) -> Self: ...  # noqa: D102


def objective_of(method: Learner, stage: Stage) -> Objective:
    """Return what ``stage`` minimises in ``method``."""
    objective: Any = attrgetter(stage.objective)(method) if stage.objective else method
    return cast("Objective", objective)
