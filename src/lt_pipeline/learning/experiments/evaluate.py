"""Judge a finished method on the test set, and draw what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median_high
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail, label_cells, of_each_label
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.device import peak_memory_mib
from lt_pipeline.learning.engine.predict import accuracies_of, predict
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import History
from lt_pipeline.learning.evaluation.metrics.calibration import reliability
from lt_pipeline.learning.evaluation.metrics.catalog import (
    HEADLINES,
    METRICS,
    OBJECTIVES,
    PRECISION,
    RECALL,
    of_task,
    placed,
)
from lt_pipeline.learning.evaluation.metrics.classification import (
    class_table,
    confusion_matrix,
    confusion_of,
    confusion_table,
    interval_report,
    label_report,
    report,
    score_report,
)
from lt_pipeline.learning.evaluation.metrics.intervals import Outcomes
from lt_pipeline.learning.evaluation.metrics.recalls import right_images
from lt_pipeline.learning.evaluation.metrics.several import HALF, Decided, best_thresholds
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.landscape import landscape
from lt_pipeline.learning.figures import evaluation as figures
from lt_pipeline.learning.figures import methods as of_method
from lt_pipeline.learning.figures.landscape import landscape_by_class
from lt_pipeline.learning.figures.training import risk_curves, training_curves
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.models.merging import StateDict

Values = dict[str, Any]


class Evaluated(NamedTuple):
    """What a method makes of the test set, and the seconds that this took.

    ``answers`` has a row an image: ``label``, ``predicted`` and, where there are, ``group``. Where
    images have several labels, those are the numbers of all that there are, as in ``0;3``, and
    ``confusion`` has a row for a label that is there and a column for one that is said.
    ``thresholds`` are then the probabilities from which on labels are said, by class.
    """

    metrics: dict[str, float]
    table: pd.DataFrame
    confusion: pd.DataFrame
    reliability: Values
    seconds: float
    answers: pd.DataFrame
    thresholds: list[float] | None = None

    def thresholds_and_notes(self) -> Values:
        """Return what stands beside the metrics where images have several labels."""
        if self.thresholds is None:
            return {}
        left_out = self.table["name"][self.table["test_images"] == 0].tolist()
        note = [f"no test image has {', '.join(left_out)}: left out of means"] if left_out else []
        return {"thresholds": self.thresholds, "notes": note}


def evaluate(
    experiment: Experiment,
    model: StateDict,
    train: Images,
    validation: Images,
    test: Images,
    finish_report: Values,
    histories: Sequence[History],
) -> tuple[Values, Evaluated]:
    """Return all metrics, and what they rest on.

    The hold-out's, where there is one, are for choosing between methods and parameters; its mean
    recall is over the classes that it has.
    """
    method, device = experiment.finished(model), experiment.device
    stages = [stage for stage in experiment.stages if stage.trains]
    held_out, thresholds = evaluate_hold_out(experiment, method.to(device), validation)
    evaluated = _evaluate_test(experiment, method, test, thresholds)
    shape, evaluated = _with_landscape(experiment, method, train, evaluated)
    beside = evaluated.thresholds_and_notes()
    metrics = {
        **beside,
        "test": evaluated.metrics,
        **shape,
        "cost": _cost(stages, histories, finish_report, len(test) / evaluated.seconds, device),
        "best_epoch": best_epoch(main_history(stages, histories)),
        "diagnostics": finish_report["diagnostics"],
        "notes": [*finish_report["notes"], *beside.get("notes", [])],
        **_groups(method.card.longtail),
        **held_out,
    }
    return metrics, evaluated


def first_of_all(metrics: Values) -> dict[str, float]:
    """Return the few of ``evaluate``'s metrics that runs are told apart by at a glance."""
    test, names = metrics["test"], [metric.name for metric in placed("first")]
    values = {name: test[name] for name in names if name in test}
    if held_out := metrics.get("validation", {}):
        known = [f"validation/{name}" for name in held_out]
        values["hold_out"] = held_out[of_task(OBJECTIVES, known).name]
    return values


def evaluate_again(
    experiment: Experiment, model: StateDict, train: Images, validation: Images, test: Images
) -> tuple[Values, pd.DataFrame, pd.DataFrame, Values]:
    """Return what ``evaluate`` does, without what is known of the training only."""
    method = experiment.finished(model).to(experiment.device)
    held_out, thresholds = evaluate_hold_out(experiment, method, validation)
    evaluated = _evaluate_test(experiment, method, test, thresholds)
    shape, evaluated = _with_landscape(experiment, method, train, evaluated)
    metrics = {
        **evaluated.thresholds_and_notes(),
        "test": evaluated.metrics,
        **shape,
        **_groups(method.card.longtail),
        **held_out,
    }
    return metrics, evaluated.table, evaluated.confusion, evaluated.reliability


def _with_landscape(
    experiment: Experiment, method: Method, train: Images, evaluated: Evaluated
) -> tuple[Values, Evaluated]:
    """Return the landscape's metrics, if any, and ``evaluated`` with its columns in the table."""
    shape, columns = landscape(experiment, method, train)
    metrics = {"landscape": shape} if shape else {}
    return metrics, evaluated._replace(table=evaluated.table.assign(**columns))


def _evaluate_test(
    experiment: Experiment, method: Method, test: Images, thresholds: Tensor | None
) -> Evaluated:
    """Evaluate ``method``, which is where it is computed, on the test set.

    With ``thresholds`` ``[C]`` images have several labels, which are said from these logits on.
    """
    how, longtail = experiment.config.evaluation, method.card.longtail
    test = experiment.seen(test)
    started = time.monotonic()
    scores = predict(method, method.score, test, device=experiment.device)
    seconds = time.monotonic() - started
    if thresholds is not None:
        decided = Decided(scores, test.labels.cpu(), thresholds, longtail)
        return _evaluate_labels(decided, test, how.calibration_bins, seconds)
    matrix = confusion_matrix(scores, test.labels)
    answers = _answers(test, scores.argmax(1))
    tested = outcomes_of(answers)
    return Evaluated(
        {
            **report(matrix, longtail, floor=how.recall_floor),
            **interval_report(tested),
            **score_report(scores, test.labels, how.calibration_bins),
        },
        pd.DataFrame(class_table(matrix, longtail, tested)),
        confusion_table(matrix, longtail.class_names),
        reliability(scores, test.labels, how.calibration_bins),
        seconds,
        answers,
    )


def _evaluate_labels(decided: Decided, test: Images, bins: int, seconds: float) -> Evaluated:
    """Return the same of what is ``decided`` on ``test``, whose images have several labels."""
    scores, labels, names = decided.scores, decided.labels, decided.longtail.class_names
    return Evaluated(
        {**label_report(decided), **score_report(scores, labels, bins)},
        pd.DataFrame(decided.table()),
        pd.DataFrame(decided.label_confusion().numpy(), index=names, columns=names),
        reliability(scores, labels, bins),
        seconds,
        _answers(test, decided.predicted),
        decided.thresholds.sigmoid().tolist(),
    )


def _answers(test: Images, predicted: Tensor) -> pd.DataFrame:
    """Return a row a test image, in its order: what it is, and what it was ``predicted`` to be."""
    columns = {"label": as_column(test.labels), "predicted": as_column(predicted)}
    columns |= {} if test.groups is None else {"group": as_column(test.groups)}
    return pd.DataFrame(columns)


def as_column(labels: Tensor) -> Any:
    """Return ``labels`` as a table's column: classes, or of several labels as in ``0;3``."""
    if labels.ndim == 1:
        return labels.cpu().numpy()
    return label_cells(labels, range(labels.shape[1]))


def outcomes_of(answers: pd.DataFrame) -> Outcomes:
    """Return what became of the images of ``answers``, as intervals are computed from."""
    labels = answers["label"].to_numpy()
    groups = answers["group"].to_numpy() if "group" in answers else None
    return Outcomes(labels, (answers["predicted"] == labels).to_numpy(float), groups)


def evaluate_hold_out(
    experiment: Experiment, method: Method, validation: Images
) -> tuple[Values, Tensor | None]:
    """Return the accuracies on the hold-out and, of several labels, the logits to say them from.

    These are float64 ``[C]``, those of the best F1. Without a hold-out there are no accuracies, and
    a label is said where it is more likely than not.
    """
    longtail = method.card.longtail
    if not len(validation):
        half = torch.full((longtail.classes,), HALF, dtype=torch.float64)
        return {}, half if longtail.several else None
    seen = experiment.seen(validation)
    scores = predict(method, method.score, seen, device=experiment.device)
    labels = seen.labels.cpu()
    known = len(of_each_label(labels)[1].unique())
    metrics = {"validation": {**accuracies_of(scores, labels), "classes": known}}
    return metrics, best_thresholds(scores, labels) if longtail.several else None


def _groups(longtail: LongTail) -> Values:
    return {"left_out_groups": longtail.empty_groups, "group_rule": longtail.group_rule}


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
    matrix, line = confusion_of(confusion, longtail.classes), main_history(trained, histories)
    if longtail.several:
        tested = table[PRECISION.key][table["test_images"] > 0]
        curves = training_curves(line, title, float(tested.mean()), METRICS[HEADLINES[1]])
    else:
        reported = float(right_images(matrix).sum() / matrix.sum())
        curves = training_curves(line, title, reported)
    drawn = {
        "training_curves": curves,
        **of_method.draw(experiment.config.method, finish_report, longtail, title),
    }
    if any(name.startswith("risk/") for name in line):
        drawn["risk_curves"] = risk_curves(line, title)
    pictures = draw_evaluated(experiment, table, confusion, reliability_bins)
    return pictures | {f"{name}.png": figure for name, figure in drawn.items()}


def draw_evaluated(
    experiment: Experiment, table: pd.DataFrame, confusion: pd.DataFrame, reliability_bins: Values
) -> dict[str, Figure]:
    """Return the pictures of what the method makes of the test set, by file name."""
    longtail, title = experiment.card.longtail, experiment.title
    rows = table.to_dict("records")
    metric = PRECISION if longtail.several else RECALL
    matrix = confusion_of(confusion, longtail.classes)
    has = torch.tensor(table["test_images"].to_numpy())
    drawn = {
        f"{metric.key}_by_class": figures.recall_by_class(rows, longtail, title, metric),
        f"{metric.key}_by_count": figures.recall_by_count(rows, longtail, title, metric),
        "confusion": figures.confusion(matrix, longtail, title, has),
        "reliability": figures.reliability_diagram(reliability_bins, title, longtail.several),
    }
    if "lambda_max" in table:
        drawn["landscape"] = landscape_by_class(table, longtail, title)
    return {f"{name}.png": figure for name, figure in drawn.items()}


def main_history(stages: Sequence[Stage], histories: Sequence[History]) -> History:
    """Return the histories of the stages that lead to the model, joined; branches are left out."""
    both = zip(stages, histories, strict=True)
    return join_histories([history for stage, history in both if stage.role == "line"])


def join_histories(histories: Sequence[History]) -> History:
    """Return the histories of stages one after the other as one, steps counted through."""
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
    first = [p["value"] for h in histories[:1] for p in h["train/images_per_second"]]
    return {
        "training_seconds": sum(p["value"] for h in needed for p in h["train/seconds"]),
        **({"training_images_per_second": median_high(first)} if first else {}),
        "scoring_images_per_second": scored,
        "peak_memory_mib": peak_memory_mib(device),
        "parameters_trained": finish_report["parameters_trained"],
        "parameters_deployed": finish_report["parameters_deployed"],
    }
