"""Which run is next, and whether it can still end in time."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.gpu.packs import Job
from benchmarks.gpu.workers import Epoch, Failed, Finished

from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.store import Store

# of a run's estimated time: what two runs of an arm differ by beside others
SPREAD = 1.05


class Queue:
    """The runs that are left, those that go on, and how long each takes.

    How long one takes is known by the seconds an image of its arm takes, the work that goes round
    a training counted in; of an arm that none has told of yet, by the slowest that has.
    """

    def __init__(self, waiting: list[Job], arguments: argparse.Namespace, end: float) -> None:
        self.waiting, self.end, self.store = waiting, end, Store(arguments.work)
        self.plans = {job.key: job.entry.experiment(job.label, job.seed, "cpu") for job in waiting}
        self.running: dict[str, Progress] = {}
        self.paces: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def next(self) -> Job | None:
        """Return a run to begin now, None where none can be."""
        for job in self.waiting:
            if self.fits(job) and not self.doubled(job):
                self.waiting.remove(job)
                self.running[job.key] = Progress(self.plans[job.key])
                return job
        return None

    def fits(self, job: Job) -> bool:
        """Return whether ``job`` ends in time, as far as is known."""
        known = {**self.paces}
        for other in self.running.values():
            if other.pace:
                known.setdefault(_arm(other.job), other.pace)
        pace = known.get(_arm(self.plans[job.key]), max(known.values(), default=0.0))
        return time.time() + SPREAD * pace * work(self.plans[job.key]) <= self.end

    def doubled(self, job: Job) -> bool:
        """Return whether a first stage of ``job`` that others have, too, is trained just now."""
        mine = self.first(job.key)
        return mine is not None and not mine.exists() and mine in map(self.first, self.running)

    def first(self, key: str) -> Path | None:
        """Return where the first stage of a run is kept, None where it is its own."""
        file = self.store.shared(self.plans[key], self.plans[key].stages[0])
        return file and file.path

    def epoch_over(self, job: Job, message: Epoch) -> None:
        """Take up that an epoch is over."""
        self.running[job.key].count_epoch(message)

    def ended(self, job: Job, message: Finished | Failed) -> None:
        """Take up that a run is over."""
        progress = self.running.pop(job.key)
        if isinstance(message, Failed):
            self.failed[job.title] = message.reason
        elif message.facts["fresh"]:
            self.paces[_arm(progress.job)] = message.facts["wall_seconds"] / work(progress.job)
        print(f"{job.title}: {_outcome(message)}", flush=True)

    def left(self) -> list[str]:
        """Return in sentences what was not finished."""
        lines = [f"- {title} failed: {reason}" for title, reason in self.failed.items()]
        if self.running:
            lines.append(f"- stopped, and resumed by the same command: {len(self.running)} runs")
        if self.waiting:
            lines.append(f"- not begun, as the time was up: {len(self.waiting)} runs")
        return lines


class Progress:
    """How far a run is."""

    def __init__(self, job: Experiment) -> None:
        self.job, self.heard = job, 0.0
        self.images = self.seconds = 0.0
        self.stages = {stage.name: stage for stage in job.stages}

    @property
    def pace(self) -> float:
        """Return the seconds an image has taken, 0 where that is not known."""
        return self.seconds / self.images if self.images else 0.0

    def count_epoch(self, message: Epoch) -> None:
        """Count an epoch, but not the first, nor those of before: they are told all at once."""
        now, before = time.time(), self.heard
        self.heard = now
        if before and now - before >= message.values["train/seconds"]:
            self.images += seen(self.job, self.stages[message.stage])
            self.seconds += now - before


def work(experiment: Experiment) -> float:
    """Return how many images a run sees while it trains."""
    epochs = experiment.config.training.epochs
    stages = (stage for stage in experiment.stages if stage.trains)
    return sum(stage.passes(epochs) * seen(experiment, stage) for stage in stages)


def seen(experiment: Experiment, stage: Stage) -> float:
    """Return how many images an epoch of ``stage`` has."""
    longtail, drawn = experiment.card.longtail, stage.subset
    if not drawn:
        return sum(longtail.class_counts)
    return drawn.per_class * len(drawn.numbers) * longtail.classes


def _arm(plan: Experiment) -> str:
    """Return what runs have in common that take equally long."""
    kept = plan.config.model_dump(mode="json", exclude={"seed", "device", "evaluation"})
    return repr(kept)


def _outcome(message: Finished | Failed) -> str:
    if isinstance(message, Failed):
        return f"failed: {message.reason}"
    metrics, seconds = message.metrics, message.facts["wall_seconds"]
    best = metrics.get("best_epoch/test/accuracy")
    also = "" if best is None else f", best epoch {100 * best:.1f}"
    return f"{100 * metrics['test/accuracy']:.1f} %{also}; {seconds:.0f} s"
