"""Trainings of one architecture from one start, at once: as one batched computation.

They give what ``fit`` gives one after the other, but for the order of sums in floating point.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import without_tf32
from lt_pipeline.learning.engine.phase import Phase
from lt_pipeline.learning.engine.predict import accuracies
from lt_pipeline.learning.engine.progress import shown
from lt_pipeline.learning.engine.trainer import History, Report, Training, phase_config
from lt_pipeline.learning.engine.vmapped import StackedTraining
from lt_pipeline.learning.schema import UserError

if TYPE_CHECKING:
    from lt_pipeline.learning.methods._base import Method

LOGGER = logging.getLogger(__name__)


def fit_together(
    method: Method,
    phases: Sequence[Phase],
    sets: Sequence[Images],
    config: TrainingConfig,
    *,
    seeds: Sequence[int],
    device: torch.device,
    monitors: Mapping[str, Images] | None = None,
    resume: ResumeFile | None = None,
    report: Report | None = None,
    vmap: bool | Literal["auto"] = "auto",
) -> list[tuple[dict[str, Tensor], History]]:
    """Train K networks at once; return the state and the history of each.

    All start from the state of ``method``, which it has again at the end. Network k becomes what
    ``fit`` makes of a copy of ``method`` with ``phases[k]``, ``sets[k]`` and ``seeds[k]``, batch
    by batch, to float tolerance. Its ``train/seconds`` are its share, 1 / K of the whole; the
    ``train/images_per_second`` are those of all together.

    With ``vmap``, which ``auto`` is on a GPU, all networks are one forward and one backward pass:
    memory is that of a batch K times as large, what training changes must be parameters, or
    buffers written in place, and ``config.compile`` and ``channels_last`` do not apply. On a CPU,
    where grouped convolutions are slower than single ones, as many networks as torch has threads
    are trained side by side, each on one. Dropout draws other masks than in ``fit``.

    ``resume`` keeps the state of all in one file; ``monitors`` and ``report`` are as in ``fit``,
    the latter called for each network by its phase's name.

    Raises:
        UserError: if the arguments are not K each, the phases differ in more than the name or
            ask for pairs, outliers or views, the sets are not of one shape or do not fill one
            batch, or a loss, a weight or a monitored score is no longer finite.
    """
    _check_alike(phases, sets, seeds)
    _check_plain(method, phases[0])
    config = phase_config(config, phases[0])
    wanted = device.type != "cpu" if vmap == "auto" else vmap
    kind = StackedTraining if wanted else SideBySide
    run = _Run(kind(method, phases, sets, config, seeds, device), phases, config)
    run.restore(resume.load() if resume else None)
    if report:
        for epoch in range(1, run.epoch + 1):
            run.report(epoch, report)
    epochs = range(run.epoch, phases[0].epochs)
    title = f"{phases[0].name} to {phases[-1].name}"
    with shown(title, len(epochs), patience=0) as progress:
        for epoch in epochs:
            run.run_epoch(epoch, monitors or {}, device)
            last = run.epoch == phases[0].epochs
            if resume and (run.epoch % config.checkpoint_every == 0 or last):
                resume.save(run.state())
            if report:
                run.report(run.epoch, report)
            progress.advance()
    return run.results()


class SideBySide:
    """K trainings in threads, as many at a time as torch has, each on one."""

    def __init__(
        self,
        method: Method,
        phases: Sequence[Phase],
        sets: Sequence[Images],
        config: TrainingConfig,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        self.trainings = [
            Training(copy.deepcopy(method), phase, data, config, seed, device, None)
            for phase, data, seed in zip(phases, sets, seeds, strict=True)
        ]
        self.images = self.trainings[0].stream.images

    def run_epoch(self, epoch: int) -> list[dict[str, float]]:
        """Train one epoch; return what ``fit`` records of one, for each network."""
        # a switch of the process: not one thread's to turn back while another needs it
        exact = self.trainings[0].method.needs_float32
        with without_tf32(exact), _one_thread_each() as pool:
            return list(pool.map(lambda training: training.run_epoch(epoch), self.trainings))

    @contextmanager
    def shown(self, k: int) -> Iterator[Method]:
        """Give the block network k."""
        yield self.trainings[k].method

    def state(self) -> dict[str, Any]:
        """Return all that resuming needs."""
        return {"trainings": [training.state() for training in self.trainings]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` returned."""
        for training, saved in zip(self.trainings, state["trainings"], strict=True):
            training.restore(saved)


class _Run:
    """Trainings at once, with what both ways of doing them have in common."""

    def __init__(
        self,
        training: StackedTraining | SideBySide,
        phases: Sequence[Phase],
        config: TrainingConfig,
    ) -> None:
        self.training, self.phases, self.config = training, phases, config
        self.epoch = 0
        self.histories: list[History] = [{} for _ in phases]

    def run_epoch(self, epoch: int, monitors: Mapping[str, Images], device: torch.device) -> None:
        """Train one epoch and add what there is to say of it to the histories."""
        started = time.monotonic()
        found = self.training.run_epoch(epoch)
        seconds, count = time.monotonic() - started, len(self.phases)
        self.epoch = epoch + 1
        for k, values in enumerate(found):
            values["train/seconds"] = seconds / count
            values["train/images_per_second"] = self.training.images * count / seconds
            values |= self._after_epoch(k, monitors, device)
            for name, value in values.items():
                point = {"step": self.epoch, "value": value}
                self.histories[k].setdefault(name, []).append(point)

    def report(self, epoch: int, report: Report) -> None:
        """Report an epoch, counted from 1, of every network."""
        for phase, history in zip(self.phases, self.histories, strict=True):
            points = [(name, p) for name, series in history.items() for p in series]
            report(phase.name, epoch, {n: p["value"] for n, p in points if p["step"] == epoch})

    def results(self) -> list[tuple[dict[str, Tensor], History]]:
        """Return the state and the history of each network."""
        found = []
        for k, history in enumerate(self.histories):
            with self.training.shown(k) as method:
                state = {name: value.clone() for name, value in method.state_dict().items()}
            found.append((state, history))
        return found

    def state(self) -> dict[str, Any]:
        """Return all that resuming needs."""
        return {
            "epoch": self.epoch,
            "histories": self.histories,
            "kind": type(self.training).__name__,
            "training": self.training.state(),
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take up a state that ``state`` returned, if there is one of the same kind."""
        if state is None or state.get("kind") != type(self.training).__name__:
            return
        self.epoch, self.histories = state["epoch"], state["histories"]
        names = ", ".join(phase.name for phase in self.phases)
        LOGGER.info("Phases %s resume after epoch %d", names, self.epoch)
        self.training.restore(state["training"])

    def _after_epoch(
        self, k: int, monitors: Mapping[str, Images], device: torch.device
    ) -> dict[str, float]:
        every = self.config.monitor_every
        with self.training.shown(k) as method:
            method.end_epoch(self.phases[k], monitors.get("validation"), device)
            values = method.follow()
            if every and self.epoch % every == 0:
                for name, data in monitors.items():
                    found = accuracies(method, method.score, data, device=device)
                    values |= {f"{name}/{key}": value for key, value in found.items()}
        return values


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Give the block a pool of as many threads as torch has, while torch keeps to one in each."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _check_alike(phases: Sequence[Phase], sets: Sequence[Images], seeds: Sequence[int]) -> None:
    if not len(phases) == len(sets) == len(seeds) > 0:
        raise UserError(
            f"each network needs a phase, a set and a seed, but there are {len(phases)}, "
            f"{len(sets)} and {len(seeds)}"
        )
    for phase, data in zip(phases, sets, strict=True):
        _check_same_phase(phase, phases[0])
        first, other = ([len(part), *part.shape] for part in (sets[0], data))
        if other != first:
            raise UserError(
                f"sets trained on together have one shape, but that of {phases[0].name!r} has "
                f"{first} and that of {phase.name!r} {other}: train them one after the other"
            )


def _check_same_phase(phase: Phase, first: Phase) -> None:
    for field in dataclasses.fields(Phase):
        here, there = getattr(phase, field.name), getattr(first, field.name)
        if field.name != "name" and here != there:
            raise UserError(
                f"phases trained together differ in the name only, but {field.name} is {there!r} "
                f"in {first.name!r} and {here!r} in {phase.name!r}: train them one after the other"
            )


def _check_plain(method: Method, phase: Phase) -> None:
    asked = {"pair": phase.pair, "outliers": phase.outliers, "views": method.views}
    for name, value in asked.items():
        if value:
            raise UserError(
                f"networks trained together see images and their mixtures, but phase "
                f"{phase.name!r} asks for {name}: train them one after the other"
            )
