"""Nodes of a method's pipeline: each wires one step of the library to the catalog."""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lt_pipeline import methods, tracking
from lt_pipeline.config import ExperimentConfig
from lt_pipeline.data.images import ImageSet
from lt_pipeline.data.prepare import DataCard
from lt_pipeline.engine.checkpoint import ResumeFile
from lt_pipeline.engine.device import choose_device, peak_memory_mib
from lt_pipeline.engine.loop import History, fit
from lt_pipeline.engine.predict import accuracies, predict
from lt_pipeline.figures import evaluation as figures
from lt_pipeline.figures.training import training_curves
from lt_pipeline.methods._base import Method
from lt_pipeline.metrics.calibration import expected_calibration_error, reliability
from lt_pipeline.metrics.classification import class_table, confusion_matrix, report
from lt_pipeline.models.network import parameter_count

Values = dict[str, Any]


def configure(method: str) -> Callable[..., Values]:
    """Return the node that checks and completes the configuration of ``method``."""

    def resolve(
        seed: int, device: str, model: Values, training: Values, evaluation: Values, own: Values
    ) -> Values:
        shared = {"seed": seed, "device": device, "model": model, "training": training}
        config = ExperimentConfig.resolve(method, {**shared, "evaluation": evaluation, method: own})
        return config.model_dump(mode="json")

    return resolve


def train_phase(name: str) -> Callable[..., tuple[dict[str, Tensor], History]]:
    """Return the node that trains the phase ``name`` to its checkpoint and history."""

    def train(
        config: Values,
        card: Values,
        train: ImageSet,
        validation: ImageSet,
        test: ImageSet,
        auxiliary: ImageSet,
        progress: Path,
        *checkpoints: dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], History]:
        found, method = _create(config, card)
        phase = {p.name: p for p in method.phases(found.training.epochs)}[name]
        earlier = method.phase_names[: len(checkpoints)]
        if checkpoints:
            method.load_state_dict(checkpoints[earlier.index(phase.start or earlier[-1])])
        found.training.augment.check(train.shape)
        if method.views:
            found.training.contrast.check(train.shape)
        sets = {"validation": validation, **({"test": test} if found.training.monitor_test else {})}
        history = fit(
            method,
            phase,
            train,
            found.training,
            seed=found.seed + len(earlier),
            device=choose_device(found.device),
            monitors={name: data for name, data in sets.items() if len(data)},
            auxiliary=auxiliary,
            resume=ResumeFile(progress / f"{name}.pt", fingerprint(config, card)),
            report=tracking.log_epoch,
        )
        return dict(method.state_dict()), history

    return train


def finish(
    config: Values,
    card: Values,
    train: ImageSet,
    test: ImageSet,
    *checkpoints: dict[str, Tensor],
) -> tuple[dict[str, Tensor], Values]:
    """Do what follows the gradients, merge, and return the deployable weights and what it did."""
    found, method = _create(config, card)
    device = choose_device(found.device)
    method.load_state_dict(checkpoints[-1])
    method.finish(dict(zip(method.phase_names, checkpoints, strict=True)), train)
    trained = parameter_count(method)
    diagnosed, series, notes = method.diagnose(train, test, device), method.series(), method.notes()
    before = predict(method.to(device), method.score, test.images, device=device)
    method.fold()
    after = predict(method, method.score, test.images, device=device)
    return dict(method.state_dict()), {
        "parameters_trained": trained,
        "parameters_deployed": parameter_count(method),
        "largest_score_change": float((after - before).abs().max()),
        "diagnostics": diagnosed,
        "series": series,
        "notes": notes,
    }


def evaluate(
    config: Values,
    card: Values,
    model: dict[str, Tensor],
    validation: ImageSet,
    test: ImageSet,
    finish_report: Values,
    *histories: History,
) -> tuple[Values, pd.DataFrame, pd.DataFrame, Values]:
    """Return metrics, the table of classes, the confusion matrix and the reliability bins.

    The hold-out's, where there is one, are for choosing between methods and parameters; its mean
    recall is over the classes that it has.
    """
    found, method = load_finished(config, card, model)
    longtail, device = method.card.longtail, choose_device(found.device)
    method.to(device)
    started = time.monotonic()
    scores = predict(method, method.score, test.images, device=device)
    seconds = time.monotonic() - started
    matrix = confusion_matrix(scores, test.labels)
    bins, history = found.evaluation.calibration_bins, join_histories(histories)
    metrics = {
        "test": {
            **report(matrix, longtail, floor=found.evaluation.recall_floor),
            "expected_calibration_error": expected_calibration_error(scores, test.labels, bins),
        },
        "cost": _cost(history, finish_report, len(test) / seconds, device),
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
    config: Values,
    card: Values,
    table: pd.DataFrame,
    confusion: pd.DataFrame,
    reliability_bins: Values,
    finish_report: Values,
    *histories: History,
) -> dict[str, Figure]:
    """Return the pictures, by file name."""
    found = DataCard.from_json(card)
    title = figure_title(config, card)
    matrix = torch.from_numpy(confusion.to_numpy())
    drawn = {
        "recall_by_class": figures.recall_by_class(table.to_dict("records"), found.longtail, title),
        "recall_by_count": figures.recall_by_count(table.to_dict("records"), found.longtail, title),
        "confusion": figures.confusion(matrix, found.longtail.class_names, title),
        "reliability": figures.reliability_diagram(reliability_bins, title),
        "training_curves": training_curves(join_histories(histories), title),
    }
    drawn |= methods.get(config["method"]).draw(finish_report, found.longtail, title)
    return {f"{name}.png": figure for name, figure in drawn.items()}


def load_finished(
    config: Values, card: Values, model: dict[str, Tensor]
) -> tuple[ExperimentConfig, Method]:
    """Return the finished, folded method with its weights, on the CPU.

    Raises:
        ValueError: if the weights are of another architecture.
    """
    found, method = _create(config, card)
    method.fold()
    try:
        method.load_state_dict(model)
    except RuntimeError as error:
        raise ValueError(
            f"the weights do not fit {found.method} with backbone {found.model.backbone} "
            f"({str(error).splitlines()[1].strip()}); train again with this configuration"
        ) from error
    return found, method.eval()


def figure_title(config: Values, card: Values) -> str:
    """Return what a picture of this run is of."""
    return f"{config['method']} on {DataCard.from_json(card).config.title}"


def join_histories(histories: tuple[History, ...]) -> History:
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


def _create(config: Values, card: Values) -> tuple[ExperimentConfig, Method]:
    found = ExperimentConfig.model_validate(config)
    torch.manual_seed(found.seed)
    kind = methods.get(found.method)
    return found, kind(found.options, found.model, DataCard.from_json(card))


def fingerprint(config: Values, card: Values) -> str:
    """Return what stands for everything that decides a run's result, apart from the code."""
    decisive = {name: value for name, value in config.items() if name != "device"}
    return sha256(repr((decisive, card["data_hash"])).encode()).hexdigest()


def _cost(
    history: History, finish_report: Values, scored: float, device: torch.device
) -> dict[str, float]:
    speeds = sorted(p["value"] for p in history["train/images_per_second"])
    return {
        "training_seconds": sum(p["value"] for p in history["train/seconds"]),
        "training_images_per_second": speeds[len(speeds) // 2],
        "scoring_images_per_second": scored,
        "peak_memory_mib": peak_memory_mib(device),
        "parameters_trained": finish_report["parameters_trained"],
        "parameters_deployed": finish_report["parameters_deployed"],
    }
