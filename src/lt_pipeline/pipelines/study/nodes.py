"""Nodes of a study. One that was killed goes on where it was: finished runs are kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from lt_pipeline import methods, tracking
from lt_pipeline.data.images import ImageSet
from lt_pipeline.data.prepare import DataCard
from lt_pipeline.engine.checkpoint import atomic_path
from lt_pipeline.engine.loop import History
from lt_pipeline.figures.study import by_arm, over_values
from lt_pipeline.pipelines.method.geometry import geometry
from lt_pipeline.pipelines.method.nodes import evaluate, fingerprint, finish, train_phase
from lt_pipeline.study import StudyConfig

Values = dict[str, Any]
# (training set, hold-out, test set)
Sets = tuple[ImageSet, ImageSet, ImageSet]


def train_arms(study: str) -> Callable[..., pd.DataFrame]:
    """Return the node that trains every arm of ``study`` with every seed: a row a run."""

    def train(
        parameters: Values,
        card: Values,
        train: ImageSet,
        validation: ImageSet,
        test: ImageSet,
        progress: Path,
    ) -> pd.DataFrame:
        found = StudyConfig.read(study, parameters["studies"][study])
        experiments = found.experiments(parameters)
        rows = []
        for seed in range(found.seeds):
            for label, experiment in experiments.items():
                config = experiment.model_copy(update={"seed": seed}).model_dump(mode="json")
                folder = progress / f"{_slug(label)}-{seed}"
                with _nested_run(f"{label} · seed {seed}", config):
                    row = run_once(config, card, (train, validation, test), folder)
                    tracking.log_metrics(row)
                rows.append({"arm": label, "seed": seed, **row})
        return pd.DataFrame(rows)

    return train


def run_once(config: Values, card: Values, sets: Sets, folder: Path) -> dict[str, float]:
    """Train, finish and evaluate ``config``; return its metrics, flat.

    They are kept in ``folder`` and not computed a second time; a training that was killed
    resumes from there.
    """
    kept, mark = folder / "metrics.json", fingerprint(config, card)
    if kept.exists():
        saved = json.loads(kept.read_text())
        if saved["fingerprint"] == mark:
            return dict(saved["metrics"])
    train, validation, test = sets
    checkpoints: list[dict[str, Tensor]] = []
    histories: list[History] = []
    for name in methods.get(config["method"]).phase_names:
        trained = train_phase(name)(config, card, train, validation, test, folder, *checkpoints)
        checkpoints.append(trained[0])
        histories.append(trained[1])
    model, finished = finish(config, card, train, test, *checkpoints)
    metrics, *_ = evaluate(config, card, model, test, finished, *histories)
    shape, _ = geometry(config, card, model, test)
    result = tracking.numbers({**metrics.pop("test"), **metrics, "geometry": shape})
    if "validation/mean_recall" in histories[-1]:
        result["validation_mean_recall"] = histories[-1]["validation/mean_recall"][-1]["value"]
    with atomic_path(kept) as path:
        path.write_text(json.dumps({"fingerprint": mark, "metrics": result}))
    for state in folder.glob("*.pt"):
        state.unlink()
    return result


def summarise(runs: pd.DataFrame) -> tuple[pd.DataFrame, Values]:
    """Return mean and standard deviation over seeds: a table, and by arm for MLflow."""
    grouped = runs.drop(columns="seed").groupby("arm", sort=False)
    mean, spread = grouped.mean(), grouped.std()
    table = mean.join(spread.add_suffix(" sd"))
    table.insert(0, "runs", grouped.size())
    drawn = [column for columns, *_ in _SHOWN.values() for column in columns.values()]
    arms: Values = {}
    for label, row in table.iterrows():
        arm = arms.setdefault(_slug(str(label)), {})
        for name in ("validation_mean_recall", *drawn):
            if name in row:
                arm[name] = {"mean": float(row[name])}
            if name in row and row["runs"] > 1:
                arm[name]["sd"] = float(row[f"{name} sd"])
    return table.reset_index(), arms


def draw(study: str) -> Callable[..., dict[str, Figure]]:
    """Return the node that draws the summary of ``study``."""

    def pictures(parameters: Values, card: Values, summary: pd.DataFrame) -> dict[str, Figure]:
        found = StudyConfig.read(study, parameters["studies"][study])
        title = f"{found.title}: {DataCard.from_json(card).config.title}"
        rows = summary.to_dict("records")
        drawn = {}
        for name, (columns, label, factor) in _SHOWN.items():
            if not any(column in summary for column in columns.values()):
                continue
            if found.sweep:
                values = dict(zip(found.sweep.arms(), found.sweep.values, strict=True))
                axis = found.sweep.path.split(".")[-1]
                drawn[name] = over_values(rows, values, columns, axis, label, title, factor)
            else:
                drawn[name] = by_arm(rows, columns, label, title, factor)
        return {f"{name}.png": figure for name, figure in drawn.items()}

    return pictures


_GROUPS = ("many", "medium", "few")
# file: (columns by what they show, label of the axis, factor)
_SHOWN: dict[str, tuple[dict[str, str], str, float]] = {
    "accuracy": (
        {"all": "accuracy", **{g: g for g in _GROUPS}},
        "accuracy on the balanced test set, %",
        100,
    ),
    "angle": (
        {g: f"geometry/angle_mean/{g}" for g in ("all", *_GROUPS)},
        "mean angle to the class centre, degrees",
        1,
    ),
    "separability": (
        {g: f"geometry/separability/{g}" for g in ("all", *_GROUPS)},
        "separability S (equation 13)",
        1,
    ),
}


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")


@contextmanager
def _nested_run(name: str, config: Values) -> Iterator[None]:
    """Log what happens inside to a run of its own below the active one; without one, nowhere."""
    if mlflow.active_run() is None:
        yield
        return
    with mlflow.start_run(run_name=name, nested=True):
        tracking.log_params(dict(tracking.flatten(config, ".")))
        yield
