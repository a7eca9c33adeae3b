"""What a process that works on a sweep is given, and how it trains a trial."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from optuna import Study, TrialPruned
from optuna.storages.journal import BaseJournalBackend

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.parallel import as_one
from lt_pipeline.learning.engine.predict import accuracies
from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, OBJECTIVES, Metric
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.run import run_stages
from lt_pipeline.learning.experiments.store import Store, key
from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tuning.config import Sweep
from lt_pipeline.tuning.runs import Tracked
from lt_pipeline.tuning.search import ReportValue, Search
from lt_pipeline.tuning.storage import place_of
from lt_pipeline.tuning.study import open_study

NOWHERE = Tracked()
# the folder, in a sweep's own, of what its trials keep
TRIALS = "trials"


@dataclass(frozen=True)
class Task:
    """A sweep, its data and where it keeps what. ``sets`` are training set, hold-out, auxiliary.

    It can be pickled: workers are given it. ``deadline`` is in seconds since the epoch; ``parent``
    is the process that waits for the workers. Where these may be on other machines, ``owner``
    describes it, and ``journal`` stands for the file that it keeps trials in.
    """

    parameters: dict[str, Any]
    card: DataCard
    sets: tuple[Images, Images, Images]
    folder: Path
    deadline: float | None
    parent: int
    tracked: Tracked = NOWHERE
    owner: Mapping[str, Any] | None = None
    journal: BaseJournalBackend | None = None

    @cached_property
    def sweep(self) -> Sweep:
        """Return what is searched."""
        return Sweep(self.parameters)

    @cached_property
    def study(self) -> Study:
        """Return the study, this process's own connection to it."""
        given = self.sweep, self.card.data_hash, self.folder, self.journal
        return open_study(*given, self.metric.key)

    @property
    def metric(self) -> Metric:
        """Return what trials are judged by."""
        return METRICS[OBJECTIVES[self.card.longtail.several]]

    @property
    def place(self) -> str:
        """Return where the trials are, for people."""
        return place_of(self.sweep.config, self.folder)

    @property
    def in_time(self) -> bool:
        """Return whether the time is not up yet."""
        return self.deadline is None or time.time() < self.deadline

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker is given: connections are its own."""
        return {k: v for k, v in self.__dict__.items() if k not in ("study", "sweep")}

    def tracked_by_the_active_run(self) -> Task:
        """Return the task with its trials logged below the run of its study."""
        return replace(self, tracked=Tracked.of(self.study))

    def search(self) -> Search:
        """Return the part of this process, or of one of its threads."""
        return Search(self.study, self.sweep, self.tracked, self.train, self.deadline, self.owner)

    def work(self, after: Callable[[], None] = lambda: None) -> None:
        """Do trials until there are enough, calling ``after`` behind each.

        ``together`` of them are trained at once, in threads that have of Optuna what a process has:
        a connection, a sampler and a pruner of their own. What ends one ends all, but for what
        counts as a trial that fell behind; those that it interrupts are queued again.
        """
        threads = [self, *(replace(self) for _ in range(self.sweep.together - 1))]
        device = Experiment(self.sweep.base, self.card).device
        as_one([partial(one.search().run, after) for one in threads], device)

    def train(self, config: dict[str, Any], report: ReportValue, number: int) -> float:
        """Train ``config`` and return what the finished method reaches on the hold-out.

        A training that was killed goes on where it was if the same is tried again: ``number`` is
        that of the first attempt.
        """
        # two trials may have equal values, and be trained at the same time
        experiment = Experiment(ExperimentConfig.model_validate(config), self.card)
        store = Store(self.folder / TRIALS)
        folder = store.folder / f"{number}-{key(experiment)[:16]}"
        train, *others = self.sets
        train = experiment.seen(train, training=True)
        validation, auxiliary = map(experiment.seen, others)
        nothing = validation[torch.arange(0, device=validation.labels.device)]
        stages = [stage for stage in experiment.stages if stage.role != "reference"]
        before, metric, log_epoch = _epochs_before(experiment), self.metric, tracking.to_this_run()

        def follow(stage: str, epoch: int, values: Mapping[str, float]) -> None:
            log_epoch(stage, epoch, values)
            if stage in before and metric.key in values:
                report(before[stage] + epoch, values[metric.key])

        sets = Sets(train, validation, nothing, auxiliary)
        try:
            checkpoints, _ = run_stages(experiment, stages, sets, folder, store, follow)
        except (TrialPruned, UserError) as error:
            # another attempt goes on after a full disk
            if not isinstance(error, OSError):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        method, device = experiment.behind(checkpoints[stages[-1].name]), experiment.device
        method.post_process(train, validation, device)
        tested = accuracies(method.to(device), method.score, validation, device=device)
        tracking.log_metrics({f"finished/{metric.key}": tested[metric.name]})
        return tested[metric.name]


def _epochs_before(experiment: Experiment) -> dict[str, int]:
    """Return how many epochs lie before each stage on the way to the model."""
    before, epochs = {}, 0
    for stage in experiment.stages:
        if stage.trains and stage.role == "line":
            before[stage.name] = epochs
            epochs += stage.passes(experiment.config.training.epochs)
    return before
