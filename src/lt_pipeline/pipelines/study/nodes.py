"""The runs of a study. One that was killed goes on where it was: finished ones are kept.

They are kept by what was run and not by study: studies that share an arm train it once. On folds
every run makes its own fold's data, from the images that are decoded once. ``together`` says how
many are trained at once; each has its own states to resume from, and its own run in MLflow.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import mlflow

from lt_pipeline.learning.data.prepare import DataCard, DataConfig, PreparedData, make
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.parallel import results, side_by_side
from lt_pipeline.learning.engine.trainer import Report
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.run import run_experiment, shared_progress
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.studies.plan import Plan, Run
from lt_pipeline.reports.studies import FAILED, KEPT_IN
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking.runs import earlier_paces

LOGGER = logging.getLogger(__name__)

Values = dict[str, Any]


def plan_runs(study: str) -> Callable[..., Plan]:
    """Return the node that resolves the arms of ``study``, and says what is about to be trained.

    On folds it is told where images are, raw and packed, too.
    """

    def plan(parameters: Values, card: DataCard, finished_arms: Path, *folders: Path) -> Plan:
        plan, store = Plan.of(study, parameters), Store(finished_arms)
        cards = {fold: _card_of(card, fold, *folders) for fold in plan.folds}
        kept = [
            name
            for name, run in plan.runs.items()
            if _kept(store, run, card if run.fold is None else cards[run.fold])
        ]
        LOGGER.info(plan.in_words(kept, earlier_paces()))
        if kept:
            LOGGER.info(
                "What is there is not trained again: delete %s if it should be", finished_arms
            )
        return plan

    return plan


def train_runs(names: Sequence[str]) -> Callable[..., list[Values]]:
    """Return the node that does the runs ``names`` at once: the arm, seed and metrics of each.

    One that fails says why under ``failed``, and the others go on.
    """

    def train(
        plan: Plan,
        card: DataCard,
        train: Images,
        validation: Images,
        test: Images,
        auxiliary: Images,
        raw_folder: Path,
        finished_arms: Path,
    ) -> list[Values]:
        sets = Sets(train, validation, test, auxiliary)
        return _train_all(plan, names, card, sets, raw_folder, Store(finished_arms))

    return train


def train_on_fold(names: Sequence[str]) -> Callable[..., list[Values]]:
    """Return the node that does runs on one fold, as ``train_runs`` does."""

    def train(
        plan: Plan, card: DataCard, finished_arms: Path, raw_folder: Path, packed_folder: Path
    ) -> list[Values]:
        fold = plan.runs[names[0]].fold
        made = _prepared(_settings(card, fold), raw_folder, packed_folder)
        sets = Sets(made.train, made.validation, made.test, made.auxiliary)
        rows = _train_all(plan, names, made.card, sets, raw_folder, Store(finished_arms))
        return [{**row, "fold": fold} for row in rows]

    return train


def _train_all(
    plan: Plan, names: Sequence[str], card: DataCard, sets: Sets, raw_folder: Path, store: Store
) -> list[Values]:
    """Do the runs ``names`` side by side."""
    parent, device = mlflow.active_run(), Experiment(plan.runs[names[0]].config, card).device
    if len(names) == 1:
        return [_train(plan, names[0], card, sets, raw_folder, store, parent)]
    epochs = sum(_epochs(Experiment(plan.runs[name].config, card)) for name in names)
    with shared_progress(f"{len(names)} runs at once", epochs) as report_epoch:
        tasks = [
            partial(_train, plan, name, card, sets, raw_folder, store, parent, report_epoch)
            for name in names
        ]
        return results(side_by_side(tasks, device))


def _epochs(experiment: Experiment) -> int:
    budget = experiment.config.training.epochs
    return sum(stage.passes(budget) for stage in experiment.stages if stage.trains)


def _train(
    plan: Plan,
    name: str,
    card: DataCard,
    sets: Sets,
    raw_folder: Path,
    store: Store,
    parent: mlflow.ActiveRun | None,
    report_epoch: Report | None = None,
) -> Values:
    """Do the run ``name``, unless it is kept, and return what is known of it.

    ``parent`` is the study's run in MLflow; ``report_epoch`` is called after every epoch, too.
    """
    run = plan.runs[name]
    experiment, kept = Experiment(run.config, card), _kept(store, run, card)
    done = f"{sorted(plan.runs).index(name) + 1}/{len(plan.runs)}"
    LOGGER.info("%s  %s%s", done, run.title, ", kept from before" * kept)
    row: Values = {"arm": run.label, "seed": run.config.seed}
    try:
        with _nested_run(run, kept, card, parent), tracking.epochs() as log_epoch:

            def report(stage: str, epoch: int, values: Mapping[str, float]) -> None:
                log_epoch(stage, epoch, values)
                if report_epoch:
                    report_epoch(stage, epoch, values)

            metrics = run_experiment(experiment, sets, raw_folder, store, report)
            tracking.log_metrics(metrics)
    except Exception as error:
        # a bug of ours, too, must not take the other arms with it
        LOGGER.error("%s failed: %s", run.title, error, exc_info=not isinstance(error, UserError))
        return {**row, FAILED: str(error).partition("\n")[0] or type(error).__name__}
    where = {} if run.fold is None else {KEPT_IN: store.folder_of(experiment).name}
    return {**row, **where, **metrics}


def _kept(store: Store, run: Run, card: DataCard) -> bool:
    return store.metrics(Experiment(run.config, card)) is not None


def _settings(card: DataCard, fold: int | None) -> str:
    return json.dumps({**card.settings, "fold": fold})


@lru_cache(maxsize=1)
def _prepared(settings: str, raw_folder: Path, packed_folder: Path) -> PreparedData:
    """Return the data of a fold; all its runs come one after the other."""
    return make(DataConfig.model_validate_json(settings), raw_folder, packed_folder)


def _card_of(card: DataCard, fold: int, raw_folder: Path, packed_folder: Path) -> DataCard:
    return _prepared(_settings(card, fold), raw_folder, packed_folder).card


@contextmanager
def _nested_run(
    run: Run, kept: bool, card: DataCard, parent: mlflow.ActiveRun | None
) -> Iterator[None]:
    """Log what happens inside to a run of its own below ``parent``; without one, nowhere.

    The active run is a thread's own: another thread has none.

    It has the names of a method's own run, and its tags: they can be compared.
    """
    if parent is None:
        yield
        return
    config, above = run.config, parent.info.run_id
    tags = mlflow.MlflowClient().get_run(above).data.tags
    on = {} if run.fold is None else {"fold": run.fold, "data_hash": card.data_hash}
    where = {"experiment_id": parent.info.experiment_id, "parent_run_id": above}
    with mlflow.start_run(run_name=run.title, nested=True, **where):
        tracking.set_tags({key: tags[key] for key in tracking.INHERITED if key in tags})
        tracking.set_tags({"seed": config.seed, "method": config.method, "kept_from_before": kept})
        tracking.set_tags(on)
        tracking.log_params(tracking.by_method(config.model_dump(mode="json")))
        yield
