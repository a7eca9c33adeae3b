"""What the stages of a method led to, side by side, and what lies between their networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.predict import accuracies, predict
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.evaluation.metrics.catalog import PRECISION, RECALL, placed
from lt_pipeline.learning.evaluation.metrics.classification import (
    confusion_matrix,
    label_report,
    report,
)
from lt_pipeline.learning.evaluation.metrics.recalls import class_recall, true_images
from lt_pipeline.learning.evaluation.metrics.several import HALF, Decided
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.figures.stages import by_stage, interpolation, recall_profiles
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.models import merging
from lt_pipeline.learning.models.merging import StateDict

Values = dict[str, Any]


def evaluate_stages(
    experiment: Experiment, validation: Images, test: Images, checkpoints: Sequence[StateDict]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Figure]]:
    """Return a row a stage, a row a network between two stages, and pictures of both."""
    stages, validation, test = experiment.stages, *map(experiment.seen, (validation, test))
    table, recalls = measure_stages(experiment, validation, test, checkpoints)
    by_name = dict(zip((stage.name for stage in stages), checkpoints, strict=True))
    between = _between(experiment, test, by_name)
    title = experiment.title
    shown = [stage.name for stage in stages if not (stage.trains and stage.subset)][-4:]
    floor, several = experiment.config.evaluation.recall_floor, experiment.card.longtail.several
    rows = [{**row, "aside": row["role"] != "line"} for row in _rows(table)]
    drawn = {
        "stages.png": by_stage(rows, f"Stages: {title}"),
        "recall_profiles.png": recall_profiles(
            {name: recalls[name] for name in shown},
            f"{'Average precisions' if several else 'Recalls'} in order: {title}",
            floor,
            PRECISION if several else RECALL,
        ),
    }
    return table, between, {**drawn, **_draw_between(between, table, title)}


def measure_stages(
    experiment: Experiment, validation: Images, test: Images, checkpoints: Sequence[StateDict]
) -> tuple[pd.DataFrame, dict[str, list[float]]]:
    """Return a row a stage, and each one's recalls by class.

    The hold-out's mean recall stands beside the test set's metrics, where there is one: it is what
    a choice between stages may rest on.
    """
    validation, test = map(experiment.seen, (validation, test))
    evaluated = {
        stage.name: _evaluate(experiment, validation, test, stage, checkpoint)
        for stage, checkpoint in zip(experiment.stages, checkpoints, strict=True)
    }
    table = pd.DataFrame([row for row, _ in evaluated.values()])
    return table, {name: recall for name, (_, recall) in evaluated.items()}


def stage_numbers(table: pd.DataFrame) -> dict[str, float]:
    """Return what is logged of every stage, named as in ``stages/merge/accuracy``."""
    return {
        f"stages/{row['stage']}/{metric.name}": float(row[metric.name])
        for row in _rows(table)
        for metric in placed("stages")
        if metric.name in row
    }


def _evaluate(
    experiment: Experiment,
    validation: Images,
    test: Images,
    stage: Stage,
    checkpoint: StateDict,
) -> tuple[Values, list[float]]:
    method = experiment.behind(checkpoint, stage.name)
    metrics, recall = _measure(experiment, method, test)
    row: Values = {"stage": stage.name, "role": stage.role, **metrics}
    if len(validation):
        held_out = accuracies(method, method.score, validation, device=experiment.device)
        row |= {f"validation_{name}": v for name, v in held_out.items() if name.startswith("mean")}
    return row, recall


def _measure(
    experiment: Experiment, method: Method, test: Images
) -> tuple[dict[str, float], list[float]]:
    """Return the metrics and the recalls by class on ``test``, nan where a class has no image.

    Of images with several labels they are average precisions, labels said where they are likely.
    """
    device, evaluation = experiment.device, experiment.config.evaluation
    scores = predict(method.to(device), method.score, test, device=device)
    if method.card.longtail.several:
        half = torch.full((method.card.longtail.classes,), HALF)
        decided = Decided(scores, test.labels.cpu(), half, method.card.longtail)
        return label_report(decided), decided.average_precision.tolist()
    matrix = confusion_matrix(scores, test.labels)
    metrics = report(matrix, method.card.longtail, floor=evaluation.recall_floor)
    untested = true_images(matrix) == 0
    return metrics, class_recall(matrix).masked_fill(untested, torch.nan).tolist()


def _between(
    experiment: Experiment, test: Images, checkpoints: dict[str, StateDict]
) -> pd.DataFrame:
    """Return a row a network on the way between two stages (BTM, equations 2 and 3)."""
    rows: list[Values] = []
    for start, end, points in experiment.kind.paths(experiment.config.options):
        # loaded, so that both have the form that they have behind the first stage
        method = experiment.behind(checkpoints[start], start)
        ends = [dict(method.state_dict())]
        method = experiment.behind(checkpoints[end], end)
        ends.append({name: value.clone() for name, value in method.state_dict().items()})
        for weight in torch.linspace(0, 1, points).tolist():
            method.load_state_dict(merging.interpolate(ends[0], ends[1], weight))
            metrics, _ = _measure(experiment, method, test)
            rows.append({"start": start, "end": end, "share": weight, **metrics})
    named = ["start", "end", "share", *(metric.name for metric in placed("stages"))]
    return pd.DataFrame(rows, columns=None if rows else named)


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
