"""Nodes of a method's pipeline: each wires one step of the library to the catalog."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.engine.device import choose_device, peak_memory_mib
from lt_pipeline.learning.engine.parallel import fit_together
from lt_pipeline.learning.engine.phase import Stage
from lt_pipeline.learning.engine.predict import accuracies, predict
from lt_pipeline.learning.engine.trainer import History, Report, fit
from lt_pipeline.learning.evaluation.metrics.calibration import (
    expected_calibration_error,
    reliability,
)
from lt_pipeline.learning.evaluation.metrics.classification import (
    class_table,
    confusion_matrix,
    report,
)
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.figures import evaluation as figures
from lt_pipeline.learning.figures.training import training_curves
from lt_pipeline.learning.methods._base import Method
from lt_pipeline.learning.models.network import parameter_count
from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking import client as tracking

Values = dict[str, Any]
# what follows the last stage
FINISHED = Stage("finish")


def configure(method: str, built_on: Sequence[str] = ()) -> Callable[..., Values]:
    """Return the node that checks and completes the configuration of ``method``.

    Its last inputs are the blocks of ``method`` and of the methods that it is built on.
    """

    def resolve(
        seed: int, device: str, model: Values, training: Values, evaluation: Values, *own: Values
    ) -> Values:
        shared = {"seed": seed, "device": device, "model": model, "training": training}
        blocks = dict(zip((method, *built_on), own, strict=True))
        found = ExperimentConfig.resolve(method, {**shared, "evaluation": evaluation, **blocks})
        return found.model_dump(mode="json")

    return resolve


def draw_subsets(config: Values, card: Values, train: ImageSet) -> pd.DataFrame:
    """Return which training images each stage with a subset sees: a row an image and subset."""
    found, method = _create(config, card)
    drawn = method.subsets(train.labels, found.seed)
    parts = [
        pd.DataFrame({"subset": name, "position": p.numpy(), "label": train.labels[p].numpy()})
        for name, p in drawn.items()
    ]
    return pd.concat(parts, ignore_index=True)


def train_group(
    stages: Sequence[Stage], report: Report = tracking.log_epoch
) -> Callable[..., list[Any]]:
    """Return the node that trains ``stages``, one or a group, to checkpoints and histories.

    It is given the subsets where a stage has one, and then the checkpoints of what they start from.
    """

    def train(
        config: Values,
        card: Values,
        train: ImageSet,
        validation: ImageSet,
        test: ImageSet,
        auxiliary: ImageSet,
        progress: Path,
        *rest: Any,
    ) -> list[Any]:
        found, method = _create(config, card)
        subsets, checkpoints = _split(stages[0], rest)
        method.start(stages[0], checkpoints)
        phases = {phase.name: phase for phase in method.phases(found.training.epochs)}
        found.training.augment.check(train.shape)
        if method.views:
            found.training.contrast.check(train.shape)
        sets = {"validation": validation, **({"test": test} if found.training.monitor_test else {})}
        name = stages[0].group or stages[0].name
        seen = [_seen(stage, train, subsets) for stage in stages]
        mark = stage_fingerprint(config, card, stages[0], checkpoints, seen)
        common: Values = {
            "device": choose_device(found.device),
            "monitors": {name: data for name, data in sets.items() if len(data)},
            "resume": ResumeFile(progress / f"{name}.pt", mark),
            "report": report,
        }
        seeds = [_stage_seed(found, stage) for stage in stages]
        with tracking.epochs():
            if stages[0].group:
                each = [phases[stage.name] for stage in stages]
                trained = fit_together(method, each, seen, found.training, seeds=seeds, **common)
            else:
                history = fit(
                    method,
                    phases[name],
                    seen[0],
                    found.training,
                    seed=seeds[0],
                    auxiliary=auxiliary,
                    **common,
                )
                trained = [(dict(method.state_dict()), history)]
        return [part for one in trained for part in one]

    return train


def take_step(stage: Stage) -> Callable[..., tuple[dict[str, Tensor], Values]]:
    """Return the node that does ``stage``, which has no gradients."""

    def step(
        config: Values, card: Values, train: ImageSet, *rest: Any
    ) -> tuple[dict[str, Tensor], Values]:
        found, method = _create(config, card)
        subsets, checkpoints = _split(stage, rest)
        device = choose_device(found.device)
        report = method.step(stage, checkpoints, _seen(stage, train, subsets), device)
        return dict(method.state_dict()), report

    return step


def finish(
    config: Values,
    card: Values,
    train: ImageSet,
    validation: ImageSet,
    test: ImageSet,
    checkpoint: dict[str, Tensor],
) -> tuple[dict[str, Tensor], Values]:
    """Do what follows the last stage, merge, and return the deployable weights and what it did."""
    found, method = load_stage(config, card, None, checkpoint)
    device = choose_device(found.device)
    finished = method.finish(train, validation, device)
    trained = parameter_count(method)
    diagnosed, series = method.diagnose(train, test, device), method.series()
    notes = [*method.notes(), *method.remarks(diagnosed)]
    before = predict(method.to(device), method.score, test.images, device=device)
    method.fold()
    after = predict(method, method.score, test.images, device=device)
    return dict(method.state_dict()), {
        "parameters_trained": trained,
        "parameters_deployed": parameter_count(method),
        "largest_score_change": float((after - before).abs().max()),
        "finished": finished,
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
    stages = [stage for stage in method.stages(found.options) if stage.trains]
    method.to(device)
    started = time.monotonic()
    scores = predict(method, method.score, test.images, device=device)
    seconds = time.monotonic() - started
    matrix = confusion_matrix(scores, test.labels)
    bins, history = found.evaluation.calibration_bins, line_of(stages, histories)
    metrics = {
        "test": {
            **report(matrix, longtail, floor=found.evaluation.recall_floor),
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
    trained = [stage for stage in stages_of(config) if stage.trains]
    matrix = torch.from_numpy(confusion.to_numpy())
    drawn = {
        "recall_by_class": figures.recall_by_class(table.to_dict("records"), found.longtail, title),
        "recall_by_count": figures.recall_by_count(table.to_dict("records"), found.longtail, title),
        "confusion": figures.confusion(matrix, found.longtail.class_names, title),
        "reliability": figures.reliability_diagram(reliability_bins, title),
        "training_curves": training_curves(line_of(trained, histories), title),
    }
    drawn |= methods.get(config["method"]).draw(finish_report, found.longtail, title)
    return {f"{name}.png": figure for name, figure in drawn.items()}


def load_finished(
    config: Values, card: Values, model: dict[str, Tensor]
) -> tuple[ExperimentConfig, Method]:
    """Return the finished, folded method with its weights, on the CPU.

    Raises:
        UserError: if the weights are of another architecture.
    """
    found, method = _create(config, card)
    method.start(FINISHED, {})
    method.fold()
    try:
        method.load_state_dict(model)
    except RuntimeError as error:
        raise UserError(
            f"the weights do not fit {found.method} with backbone {found.model.backbone} "
            f"({str(error).splitlines()[1].strip()}); train again with this configuration"
        ) from error
    return found, method.eval()


def stages_of(config: Values) -> tuple[Stage, ...]:
    """Return the stages of the run that ``config`` describes."""
    found = ExperimentConfig.model_validate(config)
    return methods.get(found.method).stages(found.options)


def figure_title(config: Values, card: Values) -> str:
    """Return what a picture of this run is of."""
    return f"{config['method']} on {DataCard.from_json(card).config.title}"


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


def load_stage(
    config: Values, card: Values, name: str | None, checkpoint: dict[str, Tensor]
) -> tuple[ExperimentConfig, Method]:
    """Return the method as it is behind the stage ``name``, the last one unless told."""
    found, method = _create(config, card)
    name = name or method.stages(found.options)[-1].name
    method.start(replace(FINISHED, start=(name,)), {name: checkpoint})
    return found, method


def _create(config: Values, card: Values) -> tuple[ExperimentConfig, Method]:
    found = ExperimentConfig.model_validate(config)
    torch.manual_seed(found.seed)
    kind = methods.get(found.method)
    return found, kind(found.options, found.model, DataCard.from_json(card))


def fingerprint(config: Values, card: Values) -> str:
    """Return what stands for everything that decides a run's result, apart from the code."""
    decisive = {name: value for name, value in config.items() if name != "device"}
    return sha256(repr((decisive, card["data_hash"])).encode()).hexdigest()


def stage_fingerprint(
    config: Values,
    card: Values,
    stage: Stage,
    checkpoints: dict[str, dict[str, Tensor]],
    seen: Sequence[ImageSet],
) -> str:
    """Return what stands for all that decides what ``stage`` gives, apart from the code.

    For a first stage it is its part of the configuration, and the data; for a later one what it
    starts from, too, and the images that it sees.
    """
    recipe = methods.get(config["method"]).recipe(stage, config)
    digest = sha256(fingerprint({**recipe}, card).encode())
    for name, state in checkpoints.items():
        digest.update(name.encode())
        for key, value in sorted(state.items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    for data in seen if stage.subset else ():
        digest.update(data.content_hash().encode())
    return digest.hexdigest()


def _split(
    stage: Stage, rest: tuple[Any, ...]
) -> tuple[pd.DataFrame | None, dict[str, dict[str, Tensor]]]:
    """Return the subsets, if the stage sees any, and the checkpoints by stage."""
    subsets, checkpoints = (rest[0], rest[1:]) if stage.subset else (None, rest)
    return subsets, dict(zip(stage.start, checkpoints, strict=True))


def _seen(stage: Stage, train: ImageSet, subsets: pd.DataFrame | None) -> ImageSet:
    """Return the training images that ``stage`` sees."""
    if subsets is None:
        return train
    names = [stage.name] if stage.trains else stage.start
    positions = subsets["position"][subsets["subset"].isin(names)]
    found = torch.from_numpy(positions.to_numpy(copy=True))
    return train[found if stage.trains else found.unique()]


def _stage_seed(found: ExperimentConfig, stage: Stage) -> int:
    """Return a seed that does not depend on which other stages there are."""
    return found.seed + (crc32(stage.name.encode()) if stage.start else 0)


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
