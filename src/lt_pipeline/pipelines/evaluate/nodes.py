"""Nodes of an evaluation: what was trained is taken from MLflow, and judged as a method is."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from matplotlib.figure import Figure

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.experiments import evaluate as evaluating
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.tracking import models

Values = dict[str, Any]


def take(
    evaluate: Values, evaluation: Values, device: str, card: DataCard
) -> tuple[ExperimentConfig, StateDict]:
    """Return what ``evaluate.model`` was trained as, judged as this run says, and its weights.

    Raises:
        UserError: if there is no such model, or it was trained beside other images than these.
    """
    client = mlflow.MlflowClient()
    trained = models.trained(client, models.EvaluateConfig.read(evaluate).model)
    trained.check(card)
    return trained.config.evaluated_as(evaluation, device), models.weights(client, trained.run)


def evaluate(
    config: ExperimentConfig,
    card: DataCard,
    weights: StateDict,
    train: Images,
    validation: Images,
    test: Images,
) -> tuple[Values, pd.DataFrame, pd.DataFrame, Values]:
    """Return metrics, the table of classes, the confusion matrix and the reliability bins."""
    return evaluating.evaluate_again(Experiment(config, card), weights, train, validation, test)


def draw(
    config: ExperimentConfig,
    card: DataCard,
    table: pd.DataFrame,
    confusion: pd.DataFrame,
    reliability: Values,
) -> dict[str, Figure]:
    """Return the pictures of what the method makes of the test set, by file name."""
    return evaluating.draw_evaluated(Experiment(config, card), table, confusion, reliability)
