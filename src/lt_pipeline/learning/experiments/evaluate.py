"""Judge a finished method on the test set, and draw what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.engine.device import peak_memory_mib
from lt_pipeline.learning.engine.phase import Stage
from lt_pipeline.learning.engine.predict import accuracies, predict
from lt_pipeline.learning.engine.trainer import History
from lt_pipeline.learning.evaluation.metrics.calibration import (
    expected_calibration_error,
    reliability,
)
from lt_pipeline.learning.evaluation.metrics.classification import (
    class_table,
    confusion_matrix,
    report,
)
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.figures import evaluation as figures
from lt_pipeline.learning.figures.training import training_curves
from lt_pipeline.learning.models.merging import StateDict

Values = dict[str, Any]


def evaluate(
    experiment: Experiment,
    model: StateDict,
    validation: ImageSet,
    test: ImageSet,
    finish_report: Values,
    histories: Sequence[History],
) -> tuple[Values, pd.DataFrame, pd.DataFrame, Values]:
    """Return metrics, the table of classes, the confusion matrix and the reliability bins.

    The hold-out's, where there is one, are for choosing between methods and parameters; its mean
    recall is over the classes that it has.
    """
    judged = experiment.config.evaluation
    method, device = experiment.finished(model), experiment.device
    longtail = method.card.longtail
    stages = [stage for stage in experiment.stages if stage.trains]
    method.to(device)
    started = time.monotonic()
    scores = predict(method, method.score, test.images, device=device)
    seconds = time.monotonic() - started
    matrix = confusion_matrix(scores, test.labels)
    bins, history = judged.calibration_bins, line_of(stages, histories)
    metrics = {
        "test": {
            **report(matrix, longtail, floor=judged.recall_floor),
            "expected_calibration_error": expected_calibration_error(scores, test.labels, bins),
        },
        "cost": _cost(stages, histories, finish_report, len(test) / seconds, device),
        "best_epoch": best_epoch(history),
        "diagnostics": finish_report["diagnostics"],
        "notes": finish_report["notes"],
        "left_out_groups": longtail.empty_groups,
        "group_rule": longtail.group_rule,
    }
    if len(validation):
        metrics["validation"] = accuracies(method, method.score, validation, device=device)
    table = pd.DataFrame(class_table(matrix, longtail))
    names = longtail.class_names
    confusion = pd.DataFrame(matrix.numpy(), index=names, columns=names)
    return metrics, table, confusion, reliability(scores, test.labels, bins)


def draw(
    experiment: Experiment,
    table: pd.DataFrame,
    confusion: pd.DataFrame,
    reliability_bins: Values,
    finish_report: Values,
    histories: Sequence[History],
) -> dict[str, Figure]:
    """Return the pictures, by file name."""
    longtail, title = experiment.card.longtail, experiment.title
    trained = [stage for stage in experiment.stages if stage.trains]
    matrix = torch.from_numpy(confusion.to_numpy())
    reported = float(matrix.trace() / matrix.sum())
    drawn = {
        "recall_by_class": figures.recall_by_class(table.to_dict("records"), longtail, title),
        "recall_by_count": figures.recall_by_count(table.to_dict("records"), longtail, title),
        "confusion": figures.confusion(matrix, longtail, title),
        "reliability": figures.reliability_diagram(reliability_bins, title),
        "training_curves": training_curves(line_of(trained, histories), title, reported),
    }
    drawn |= experiment.kind.draw(finish_report, longtail, title)
    return {f"{name}.png": figure for name, figure in drawn.items()}


def line_of(stages: Sequence[Stage], histories: Sequence[History]) -> History:
    """Return the histories of the stages that lead to the model, joined; branches are left out."""
    both = zip(stages, histories, strict=True)
    return join_histories([history for stage, history in both if stage.role == "line"])


def join_histories(histories: Sequence[History]) -> History:
    """Return the histories of phases one after the other as one, steps counted through."""
    joined: History = {}
    offset = 0.0
    for history in histories:
        for name, points in history.items():
            moved = [{"step": offset + p["step"], "value": p["value"]} for p in points]
            joined.setdefault(name, []).extend(moved)
        offset = max(points[-1]["step"] for points in joined.values())
    return joined


def best_epoch(history: History) -> dict[str, dict[str, float]]:
    """Return the best monitored accuracies and their epochs: a label, never a selection."""
    return {
        name.removesuffix("/accuracy"): {
            "accuracy": max(p["value"] for p in points),
            "epoch": max(points, key=lambda p: p["value"])["step"],
        }
        for name, points in history.items()
        if name.endswith("/accuracy")
    }


def _cost(
    stages: Sequence[Stage],
    histories: Sequence[History],
    finish_report: Values,
    scored: float,
    device: torch.device,
) -> dict[str, float]:
    """Return what the model cost; what is there only to compare with is not its cost."""
    needed = [h for s, h in zip(stages, histories, strict=True) if s.role != "reference"]
    speeds = sorted(p["value"] for p in histories[0]["train/images_per_second"])
    return {
        "training_seconds": sum(p["value"] for h in needed for p in h["train/seconds"]),
        "training_images_per_second": speeds[len(speeds) // 2],
        "scoring_images_per_second": scored,
        "peak_memory_mib": peak_memory_mib(device),
        "parameters_trained": finish_report["parameters_trained"],
        "parameters_deployed": finish_report["parameters_deployed"],
    }
