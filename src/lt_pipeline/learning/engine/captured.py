"""Steps that are captured once as a CUDA graph, and replayed without Python between their kernels.

A captured step is a list of kernels with their arguments: memory is read and written where it lay,
and what was a number of Python's stays what it was. Whatever is another in every step is therefore
in tensors that are written in place before it: the batch, the learning rates and the progress. All
else that decides what is called, and where tensors lie, is looked at between epochs: where it has
changed, as at the end of a warm-up, steps are captured anew.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdRef

from lt_pipeline.learning.data.batches import Batch
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.parallel import alone
from lt_pipeline.learning.engine.place import Place
from lt_pipeline.learning.engine.protocol import Learner, Objective, Progress, objective_of
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.steps import Compiled, Plain, Terms
from lt_pipeline.learning.models.batchnorm import batches_counted_at_once
from lt_pipeline.learning.schema import UserError

LOGGER = logging.getLogger(__name__)

# steps on batches of a shape before one is captured: what is made at first use is there then
WARM_UP = 3
# what a module's attributes must be of to decide what a step calls
SWITCHES = (bool, int, float, str, type(None))

Shapes = tuple[torch.Size, ...]


def step_for(method: Learner, stage: Stage, config: TrainingConfig, device: torch.device) -> Plain:
    """Return what takes the steps of one network, as ``config.step`` asks for.

    Raises:
        UserError: if they are to be captured and cannot be.
    """
    if config.step in ("plain", "compiled"):
        kind = Plain if config.step == "plain" else Compiled
        return kind(method, stage, config, device)
    why = why_not(method, stage, config, device)
    if not why:
        return Captured(method, stage, config, device)
    if config.step == "captured":
        raise UserError(refusal(stage.name, why))
    if device.type == "cuda":
        LOGGER.info("Steps of stage %s are not captured: %s", stage.name, why)
    return Plain(method, stage, config, device)


def why_not(method: Learner, stage: Stage, config: TrainingConfig, device: torch.device) -> str:
    """Return why steps cannot be captured, "" where they can."""
    if device.type != "cuda":
        return f"only CUDA captures, and the device is {device.type}"
    draws = type(objective_of(method, stage)).prepare is not Objective.prepare
    if draws and config.optimizer.accumulate > 1:
        return "optimizer.accumulate is above 1, and each part of a batch is drawn for by itself"
    return ""


def refusal(stage: str, why: str) -> str:
    """Return what to say where a captured step was asked for."""
    return f"training.step=captured cannot be had in stage {stage!r}: {why}; set it to auto"


class Taken(NamedTuple):
    """A captured step: the batch that it reads, the terms that it leaves, and what replays it."""

    batch: list[Tensor]
    terms: Terms
    replay: Callable[[], object]


class Captured(Plain):
    """One network, whose steps are CUDA graphs, one for each shape of a batch.

    The first steps on a shape are taken plainly, on the side stream that the capture is on: they
    are the warm-up, and steps of the training like all others. What an objective draws for a batch
    is drawn in front of the graph. All graphs have their memory from one pool. Each is used only
    once it has led from one place to where a plain step does.
    """

    def __init__(
        self, method: Learner, stage: Stage, config: TrainingConfig, device: torch.device
    ) -> None:
        super().__init__(method, stage, config, device)
        self.stage, self.given_up = stage, False
        self.progress = torch.zeros((), device=device)
        self.rate_tensors = [torch.zeros((), device=device) for _ in self.optimizer.param_groups]
        self.forget()

    def forget(self) -> None:
        """Drop what was captured."""
        self.graphs: dict[Shapes, Taken] = {}
        self.warm, self.known = Counter[Shapes](), dict[str, Any]()
        self.pool: Any = None

    def epoch(self, epoch: int, tick: Callable[[], None]) -> Terms:  # noqa: D102
        if self.warm and self.fixed() != self.known:
            self.forget()
        return super().epoch(epoch, tick)

    def __call__(self, batch: Batch, progress: Progress) -> Terms:  # noqa: D102
        batch = self.objective.prepare(batch)
        leaves = _tensors(batch)
        shapes = tuple(tensor.shape for tensor in leaves)
        self.write_progress(progress)
        if shapes not in self.graphs:
            # while one thread captures, no other may wait for the whole device, as it does to begin
            # a capture, or draw on it
            with alone(Captured):
                early = self.given_up or self.warm[shapes] < WARM_UP
                if early or not self.capture(batch, shapes, progress):
                    self.known = self.known or self.fixed()
                    self.warm[shapes] += 1
                    return self.warm_up(batch, progress)
        taken = self.graphs[shapes]
        torch._foreach_copy_(taken.batch, leaves)
        taken.replay()
        return taken.terms

    def gradients(self, batch: Batch, progress: Progress, weight: float) -> Terms:  # noqa: D102
        module: Any = self.method
        with batches_counted_at_once(module):
            return super().gradients(batch, progress, weight)

    def capture(self, batch: Batch, shapes: Shapes, progress: Progress) -> bool:
        """Capture a step on batches like ``batch``; return whether that can be.

        If not, the log says why, and it is not tried again. Nothing has moved behind it.

        Raises:
            UserError: if it cannot be, and nothing else will do.
        """
        mine = tree_map_only(Tensor, torch.clone, batch)
        start = Place.of(self.held(), self.device)
        try:
            changed = _changed(self.known, self.fixed())
            if changed:
                raise RuntimeError(f"a step changes or replaces {changed}")
            with self._as_tensors():
                terms, replay = self.record(mine)
            self.prove(replay, start, batch, progress)
        except RuntimeError as error:
            self._give_up(_first(error))
            return False
        finally:
            start.put_back(self.held())
        self.graphs[shapes] = Taken(_tensors(mine), terms, replay)
        return True

    def prove(
        self, replay: Callable[[], object], start: Place, batch: Batch, progress: Progress
    ) -> None:
        """Take the same step from ``start`` by ``replay`` and plainly, with half of the rates.

        What was captured as a number, and no tensor, is found so.

        Raises:
            RuntimeError: if they do not end in one place.
        """
        start.put_back(self.held())
        with self._slower(progress / 2):
            replay()
            replayed = Place.of(self.held(), self.device)
            start.put_back(self.held())
            self.warm_up(batch, progress / 2)
            plain = Place.of(self.held(), self.device)
        apart = start.way_apart(replayed, plain)
        if apart:
            raise RuntimeError(apart)

    def write_progress(self, progress: Progress) -> None:
        """Write what is another in every step to where graphs read it."""
        self.progress.fill_(progress)
        for rate, group in zip(self.rate_tensors, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    @contextmanager
    def _slower(self, progress: Progress) -> Iterator[None]:
        """Have half of the rates inside, and another ``progress``."""
        groups = self.optimizer.param_groups
        before, now = [group["lr"] for group in groups], self.progress.clone()
        try:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate / 2
            self.write_progress(progress)
            yield
        finally:
            for group, rate in zip(groups, before, strict=True):
                group["lr"] = rate
            self.write_progress(now)

    def held(self) -> dict[str, list[Tensor]]:
        """Return what a step changes, by kind; a frozen weight is among it, and stays."""
        method: Any = self.method
        state = tree_leaves([self.optimizer.state.get(p) for p in method.parameters()])
        averages = self.average.means if self.average else []
        held = {
            "weights": [parameter.detach() for parameter in method.parameters()],
            "buffers": [*method.buffers()],
            "optimizer's states": [leaf for leaf in state if isinstance(leaf, Tensor)],
            "averages": averages,
        }
        return {kind: tensors for kind, tensors in held.items() if tensors}

    def record(self, batch: Batch) -> tuple[Terms, Callable[[], object]]:
        """Return the terms of a step on ``batch``, and what takes it; nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        # other threads, as those that replay or read images, may go on with what they do
        with torch.cuda.graph(graph, self.pool, self.side, capture_error_mode="thread_local"):
            terms = super().__call__(batch, self.progress)
        return terms, graph.replay

    def warm_up(self, batch: Batch, progress: Progress) -> Terms:
        """Take a step as ``Plain`` does, on the stream that captures."""
        here = torch.cuda.current_stream(self.device)
        self.side.wait_stream(here)
        with torch.cuda.stream(self.side):
            terms = super().__call__(batch, progress)
        here.wait_stream(self.side)
        return terms

    @cached_property
    def side(self) -> torch.cuda.Stream:
        """Return the stream of warm-ups and captures."""
        return torch.cuda.Stream(self.device)

    def fixed(self) -> dict[str, Any]:
        """Return what a captured step takes for given: switches, and where each tensor lies."""
        method: Any = self.method
        fixed: dict[str, Any] = {
            f"{name}.{key}".lstrip("."): value
            for name, module in method.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, SWITCHES)
        }
        for name, tensor in chain(method.named_parameters(), method.named_buffers()):
            # another tensor may lie where this one lay
            fixed[name] = (WeakIdRef(tensor), tensor.data_ptr(), tensor.requires_grad)
        return fixed

    @contextmanager
    def _as_tensors(self) -> Iterator[None]:
        """Have the optimizer read its rates from tensors inside the block, as a graph must."""
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        try:
            for group, rate in zip(groups, self.rate_tensors, strict=True):
                # fused, whatever a file said that the training goes on from
                group.update({"lr": rate, "fused": True})
                if "capturable" in group:
                    group["capturable"] = True
            yield
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)

    def _give_up(self, error: BaseException) -> None:
        why = str(error).strip().splitlines()[0]
        if self.config.step == "captured":
            raise UserError(refusal(self.stage.name, why)) from error
        LOGGER.warning("Steps of stage %s are not captured: %s", self.stage.name, why)
        if self.device.type == "cuda":
            # a capture that breaks off leaves the device's generator waiting for a graph
            generator = torch.cuda.default_generators[self.side.device.index]
            generator.graphsafe_set_state(generator.clone_state())
        self.forget()
        self.given_up = True


def _tensors(batch: Batch) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def _first(error: BaseException) -> BaseException:
    """Return what went wrong first: the end of a broken capture has an error of its own."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the first name of what is another now, "" where nothing is."""
    names = (name for name in {**before, **now} if before.get(name) != now.get(name))
    return next(names, "")
