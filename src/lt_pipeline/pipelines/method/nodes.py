"""Nodes of a method's pipeline: each hands the catalog's values to one step of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import History
from lt_pipeline.learning.experiments import evaluate as evaluating
from lt_pipeline.learning.experiments import run, stages
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.serving import export
from lt_pipeline.tracking import client as tracking

Values = dict[str, Any]


def configure(method: str, built_on: Sequence[str] = ()) -> Callable[..., ExperimentConfig]:
    """Return the node that checks and completes the configuration of ``method``.

    Its last inputs are the blocks of ``method`` and of the methods that it is built on.
    """

    def resolve(
        seed: int, device: str, model: Values, training: Values, evaluation: Values, *own: Values
    ) -> ExperimentConfig:
        shared = {"seed": seed, "device": device, "model": model, "training": training}
        blocks = dict(zip((method, *built_on), own, strict=True))
        return ExperimentConfig.resolve(method, {**shared, "evaluation": evaluation, **blocks})

    return resolve


def draw_subsets(config: ExperimentConfig, card: DataCard, train: Images) -> pd.DataFrame:
    """Return which training images each stage with a subset sees: a row an image and subset."""
    return run.draw_subsets(Experiment(config, card), train)


def train_group(members: Sequence[Stage]) -> Callable[..., list[Any]]:
    """Return the node that trains stages, one or a group, to checkpoints and histories.

    It is given the subsets where a stage has one, and then the checkpoints of what they start from.
    """

    def train(
        config: ExperimentConfig,
        card: DataCard,
        train: Images,
        validation: Images,
        test: Images,
        auxiliary: Images,
        progress: Path,
        *rest: Any,
    ) -> list[Any]:
        experiment, sets = Experiment(config, card), Sets(train, validation, test, auxiliary)
        start = _start(members[0], rest)
        with tracking.epochs() as report:
            trained = run.train_stages(experiment, members, sets, start, progress, report)
        return [part for parts in trained for part in parts]

    return train


def take_step(stage: Stage) -> Callable[..., tuple[StateDict, Values]]:
    """Return the node that does ``stage``, which has no gradients."""

    def step(
        config: ExperimentConfig, card: DataCard, train: Images, *rest: Any
    ) -> tuple[StateDict, Values]:
        return run.take_step(Experiment(config, card), stage, train, _start(stage, rest))

    return step


def finish(
    config: ExperimentConfig,
    card: DataCard,
    train: Images,
    validation: Images,
    test: Images,
    checkpoint: StateDict,
) -> tuple[StateDict, Values]:
    """Do what follows the last stage, merge, and return the deployable weights and what it did."""
    return run.finish(Experiment(config, card), train, validation, test, checkpoint)


def evaluate_stages(
    config: ExperimentConfig,
    card: DataCard,
    validation: Images,
    test: Images,
    *checkpoints: StateDict,
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Figure]]:
    """Return a row a stage, a row a network between two stages, and pictures of both."""
    return stages.evaluate_stages(Experiment(config, card), validation, test, checkpoints)


def evaluate(
    config: ExperimentConfig,
    card: DataCard,
    model: StateDict,
    train: Images,
    validation: Images,
    test: Images,
    finish_report: Values,
    *histories: History,
) -> tuple[Values, Values, pd.DataFrame, pd.DataFrame, Values]:
    """Return metrics, the first of them, the table of classes, confusion and reliability bins."""
    experiment = Experiment(config, card)
    metrics, evaluated = evaluating.evaluate(
        experiment, model, train, validation, test, finish_report, histories
    )
    first = evaluating.first_of_all(metrics)
    return metrics, first, evaluated.table, evaluated.confusion, evaluated.reliability


def draw(
    config: ExperimentConfig,
    card: DataCard,
    table: pd.DataFrame,
    confusion: pd.DataFrame,
    reliability: Values,
    finish_report: Values,
    *histories: History,
) -> dict[str, Figure]:
    """Return the pictures, by file name."""
    experiment = Experiment(config, card)
    return evaluating.draw(experiment, table, confusion, reliability, finish_report, histories)


def deploy(
    config: ExperimentConfig,
    card: DataCard,
    model: StateDict,
    test: Images,
    metrics: Values,
    tracked: Values,
    serve: Values,
) -> Values:
    """Log the exported model in the active MLflow run, register it if asked; return where it is.

    ``metrics`` makes it wait for the evaluation: what is registered has been judged.
    """
    return export.deploy(Experiment(config, card), model, test, metrics, tracked, serve)


def _start(stage: Stage, rest: Sequence[Any]) -> run.Start:
    """Return what ``stage`` starts from: the subsets, if it sees any, then the checkpoints."""
    subsets, checkpoints = (rest[0], rest[1:]) if stage.subset else (None, rest)
    return run.Start(dict(zip(stage.start, checkpoints, strict=True)), subsets)
