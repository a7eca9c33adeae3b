"""Nodes of a sweep. One that was killed goes on where it was: trials are kept."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.run import run_experiment
from lt_pipeline.learning.experiments.store import KEPT, Store
from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tuning.config import Sweep

if TYPE_CHECKING:
    from lt_pipeline.pipelines.tune.task import Task

LOGGER = logging.getLogger(__name__)
WORKER = "lt_pipeline.pipelines.tune.worker"
WAIT_SECONDS = 5

Values = dict[str, Any]


def search(
    parameters: Values,
    card: DataCard,
    train: Images,
    validation: Images,
    auxiliary: Images,
    folder: Path,
) -> tuple[pd.DataFrame, Values, dict[str, Figure]]:
    """Do the trials that are left; return all of them, the best one, and pictures by file name.

    Raises:
        UserError: if there is no hold-out, or no trial went to its end.
    """
    # Optuna takes a quarter of a second, which only sweeps should
    from lt_pipeline.pipelines.tune.task import Task
    from lt_pipeline.tuning.pictures import study_figures
    from lt_pipeline.tuning.study import (
        best_trial,
        kept_trials,
        objective,
        running,
        to_start,
        trials_table,
    )

    if not len(validation):
        raise UserError("trials are judged by a hold-out, but there is none: data.validation=0.2")
    limit = Sweep(parameters).config.timeout
    task = Task(
        parameters=parameters,
        card=card,
        sets=(train, validation, auxiliary),
        folder=folder,
        deadline=time.time() + limit if limit else None,
        parent=os.getpid(),
    ).tracked_by_the_active_run()
    _do_trials(task)
    study, sweep = task.study, task.sweep
    trial, trials = best_trial(study), trials_table(study, sweep.space)
    best = {
        "study": study.study_name,
        "method": sweep.method,
        "trial": trial.number,
        "metric": objective(study).key,
        "value": trial.value,
        "params": trial.params,
        "validation": sweep.data.validation,
        "trials": trials["state"].value_counts().to_dict(),
        "to_start": to_start(study, sweep.config),
        "running": len(running(study)),
        "storage": task.place,
    }
    title = f"{sweep.method} on {card.config.title}: {len(trials)} trials"
    figures = study_figures(study, sweep.space, title)
    task.tracked.close_lost(study)
    task.tracked.publish(trials, best, figures)
    LOGGER.info("%d trials in %s", len(kept_trials(study)), task.place)
    return trials, best, figures


def _do_trials(task: Task) -> None:
    """Do trials here or in workers, until none is left and none of another machine goes on.

    The latter is of no interest to a machine that only helps, once there is a best trial.
    """
    from lt_pipeline.tuning.search import Follower
    from lt_pipeline.tuning.study import any_ended, release_lost, running, to_start

    mine, config = task.search(), task.sweep.config
    follower = Follower(task.study, task.sweep)
    lost = release_lost(task.study, config)
    if lost:
        LOGGER.warning("Trials %s were lost with their process; tried again", lost)

    def follow(dead: list[str]) -> bool:
        again = release_lost(task.study, config, dead)
        if again:
            LOGGER.warning("Trials %s were lost with their worker; tried again", again)
        follower()
        return mine.more()

    while True:
        if config.workers == 1 and config.engine == "processes":
            task.work(after=follower)
        elif mine.more():
            _let_workers(task, follow)
        others = running(task.study)
        awaited = others and (config.test_best or not any_ended(task.study))
        # what others start after the timeout, this process does not wait for
        if not awaited or (to_start(task.study, config) and not task.in_time):
            return
        LOGGER.info("Waiting for trials %s of other machines", [t.number for t in others])
        time.sleep(WAIT_SECONDS)
        follow([])


def _let_workers(task: Task, follow: Callable[[list[str]], bool]) -> None:
    """Have workers do trials, on this machine or on those of a Ray cluster."""
    config, device = task.sweep.config, task.sweep.base.device
    restarts = config.workers * (config.retries + 1)
    if config.engine == "ray":
        from lt_pipeline.tuning import ray_workers

        ray_workers.run_workers(task, config, device, follow, restarts)
    else:
        from lt_pipeline.tuning.processes import environments, run_workers

        places = environments(config.workers, device)
        run_workers(WORKER, task, places, task.folder, follow, restarts)


def test_best(
    parameters: Values,
    card: DataCard,
    best: Values,
    train: Images,
    validation: Images,
    test: Images,
    auxiliary: Images,
    raw_folder: Path,
    folder: Path,
) -> dict[str, float]:
    """Train the best trial once more and return its metrics, those of the test set among them.

    Nothing is trained or read before the sweep is at its end, or where ``tune.test_best`` is false.
    """
    sweep = Sweep(parameters)
    left = best["to_start"] + best["running"]
    if left or not sweep.config.test_best:
        why = f"{left} trials are left" if left else "tune.test_best is false"
        LOGGER.info("The test set is not read: %s", why)
        return {}
    from lt_pipeline.pipelines.tune.task import TRIALS

    experiment = Experiment(sweep.experiment(best["params"]), card)
    sets, store = Sets(train, validation, test, auxiliary), Store(folder / TRIALS)
    with tracking.epochs() as report:
        metrics = run_experiment(experiment, sets, raw_folder, store, report)
    # what stages of several trials have in common, and what lost trials left that ended elsewhere
    for path in store.folder.iterdir():
        if not (path / KEPT).exists():
            shutil.rmtree(path, ignore_errors=True)
    return metrics
