"""The node that compares what the stages of a method led to, and looks between their networks."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.engine.device import choose_device
from lt_pipeline.learning.engine.phase import Stage
from lt_pipeline.learning.engine.predict import accuracies, predict
from lt_pipeline.learning.evaluation.metrics.classification import (
    class_recall,
    confusion_matrix,
    report,
)
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.figures.stages import by_stage, interpolation, recall_profiles
from lt_pipeline.learning.methods._base import Method
from lt_pipeline.learning.models import merging as weights
from lt_pipeline.pipelines.method.nodes import figure_title, load_stage, stages_of

Values = dict[str, Any]
# what is logged of every stage
LOGGED = ("accuracy", "harmonic_mean", "geometric_mean", "lowest_recall")


def judge_stages(
    config: Values,
    card: Values,
    validation: ImageSet,
    test: ImageSet,
    *checkpoints: dict[str, Tensor],
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Figure]]:
    """Return a row a stage, a row a network between two stages, and pictures of both."""
    stages = stages_of(config)
    table, recalls = measure_stages(config, card, validation, test, *checkpoints)
    by_name = dict(zip((stage.name for stage in stages), checkpoints, strict=True))
    between = _between(config, card, test, by_name)
    title = figure_title(config, card)
    shown = [stage.name for stage in stages if not (stage.trains and stage.subset)][-4:]
    floor = ExperimentConfig.model_validate(config).evaluation.recall_floor
    rows = [{**row, "aside": row["role"] != "line"} for row in _rows(table)]
    drawn = {
        "stages.png": by_stage(rows, f"Stages: {title}"),
        "recall_profiles.png": recall_profiles(
            {name: recalls[name] for name in shown}, f"Recalls in order: {title}", floor
        ),
    }
    return table, between, {**drawn, **_draw_between(between, table, title)}


def measure_stages(
    config: Values,
    card: Values,
    validation: ImageSet,
    test: ImageSet,
    *checkpoints: dict[str, Tensor],
) -> tuple[pd.DataFrame, dict[str, list[float]]]:
    """Return a row a stage, and each one's recalls by class.

    The hold-out's mean recall stands beside the test set's metrics, where there is one: it is what
    a choice between stages may rest on.
    """
    judged = {
        stage.name: _judge(config, card, validation, test, stage, checkpoint)
        for stage, checkpoint in zip(stages_of(config), checkpoints, strict=True)
    }
    table = pd.DataFrame([row for row, _ in judged.values()])
    return table, {name: recall for name, (_, recall) in judged.items()}


def stage_numbers(table: pd.DataFrame) -> dict[str, float]:
    """Return what is logged of every stage, named as in ``stages/merge/accuracy``."""
    return {
        f"stages/{row['stage']}/{name}": float(row[name]) for row in _rows(table) for name in LOGGED
    }


def _judge(
    config: Values,
    card: Values,
    validation: ImageSet,
    test: ImageSet,
    stage: Stage,
    checkpoint: dict[str, Tensor],
) -> tuple[Values, list[float]]:
    found, method = load_stage(config, card, stage.name, checkpoint)
    metrics, recall = _measure(found, method, test)
    row: Values = {"stage": stage.name, "role": stage.role, **metrics}
    if len(validation):
        held_out = accuracies(method, method.score, validation, device=choose_device(found.device))
        row["validation_mean_recall"] = held_out["mean_recall"]
    return row, recall


def _measure(
    found: ExperimentConfig, method: Method, test: ImageSet
) -> tuple[dict[str, float], list[float]]:
    """Return the metrics and the recalls by class on ``test``, nan where a class has no image."""
    device = choose_device(found.device)
    scores = predict(method.to(device), method.score, test.images, device=device)
    matrix = confusion_matrix(scores, test.labels)
    metrics = report(matrix, method.card.longtail, floor=found.evaluation.recall_floor)
    untested = matrix.sum(1) == 0
    return metrics, class_recall(matrix).masked_fill(untested, torch.nan).tolist()


def _between(
    config: Values, card: Values, test: ImageSet, checkpoints: dict[str, dict[str, Tensor]]
) -> pd.DataFrame:
    """Return a row a network on the way between two stages (BTM, equations 2 and 3)."""
    rows: list[Values] = []
    experiment = ExperimentConfig.model_validate(config)
    for start, end, points in methods.get(experiment.method).paths(experiment.options):
        # loaded, so that both have the form that they have behind the first stage
        found, method = load_stage(config, card, start, checkpoints[start])
        ends = [dict(method.state_dict())]
        method = load_stage(config, card, end, checkpoints[end])[1]
        ends.append({name: value.clone() for name, value in method.state_dict().items()})
        for share in torch.linspace(0, 1, points).tolist():
            method.load_state_dict(weights.interpolate(ends[0], ends[1], share))
            metrics, _ = _measure(found, method, test)
            rows.append({"start": start, "end": end, "share": share, **metrics})
    return pd.DataFrame(rows, columns=None if rows else ["start", "end", "share", *LOGGED])


def _draw_between(between: pd.DataFrame, table: pd.DataFrame, title: str) -> dict[str, Figure]:
    levels = {
        f"fine-tuned on the {row['stage']} of two subsets": row
        for row in _rows(table)
        if row["stage"] == "union"
    }
    drawn = {}
    for (start, end), rows in between.groupby(["start", "end"], sort=False):
        curve = {f"{start} to {end}": _rows(rows)}
        drawn[f"between_{start}_and_{end}.png"] = interpolation(
            curve, levels, f"Interpolation: {title}"
        )
    return drawn


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
