"""Nodes of a study. One that was killed goes on where it was: finished runs are kept."""

from __future__ import annotations

import json
import logging
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
from lt_pipeline.pipelines.method.ood import examine, headline
from lt_pipeline.study import StudyConfig, first_detector, slug

LOGGER = logging.getLogger(__name__)
KEPT = "metrics.json"
# what an arm's run has in common with the study's
INHERITED = (
    "command", "data", "data_hash", "device", "git_dirty", "mlflow.source.git.commit", "python",
    "versions",
)  # fmt: skip

Values = dict[str, Any]
# (training set, hold-out, test set, auxiliary set)
Sets = tuple[ImageSet, ImageSet, ImageSet, ImageSet]


def train_arms(study: str) -> Callable[..., pd.DataFrame]:
    """Return the node that trains every arm of ``study`` with every seed: a row a run."""

    def train(
        parameters: Values,
        card: Values,
        train: ImageSet,
        validation: ImageSet,
        test: ImageSet,
        auxiliary: ImageSet,
        raw_folder: Path,
        progress: Path,
    ) -> pd.DataFrame:
        found = StudyConfig.read(study, parameters["studies"][study])
        experiments = found.experiments(parameters)
        first: int = parameters["seed"]
        sets = (train, validation, test, auxiliary)
        rows: list[Values] = []
        for seed in range(first, first + found.seeds):
            for label, experiment in experiments.items():
                config = experiment.model_copy(update={"seed": seed}).model_dump(mode="json")
                folder, name = progress / f"{slug(label)}-{seed}", f"{label} · seed {seed}"
                done, total = len(rows) + 1, found.seeds * len(experiments)
                kept = kept_metrics(config, card, folder) is not None
                LOGGER.info("%d/%d  %s%s", done, total, name, ", kept from before" * kept)
                with _nested_run(name, config, kept):
                    row = run_once(config, card, sets, raw_folder, folder)
                    tracking.log_metrics(row)
                rows.append({"arm": label, "seed": seed, **row})
        return pd.DataFrame(rows)

    return train


def run_once(
    config: Values, card: Values, sets: Sets, raw_folder: Path, folder: Path
) -> dict[str, float]:
    """Train, finish and evaluate ``config``; return its metrics, named as in ``test/accuracy``.

    ``raw_folder`` is where OOD sets with files are. The metrics are kept in ``folder`` and not
    computed a second time; a training that was killed resumes from there.
    """
    kept = kept_metrics(config, card, folder)
    if kept is not None:
        return kept
    train, validation, test, _ = sets
    checkpoints: list[dict[str, Tensor]] = []
    histories: list[History] = []
    for name in methods.get(config["method"]).phase_names:
        trained = train_phase(name)(config, card, *sets, folder, *checkpoints)
        checkpoints.append(trained[0])
        histories.append(trained[1])
    model, finished = finish(config, card, train, test, *checkpoints)
    metrics, *_ = evaluate(config, card, model, validation, test, finished, *histories)
    shape, _ = geometry(config, card, model, test)
    strange = examine(config, card, model, train, test, raw_folder)
    result = tracking.numbers({**metrics, "geometry": shape, "ood": headline(strange)})
    with atomic_path(folder / KEPT) as path:
        path.write_text(json.dumps({"fingerprint": fingerprint(config, card), "metrics": result}))
    for state in folder.glob("*.pt"):
        state.unlink()
    return result


def kept_metrics(config: Values, card: Values, folder: Path) -> dict[str, float] | None:
    """Return what ``run_once`` kept in ``folder`` of this run, or None."""
    if not (folder / KEPT).exists():
        return None
    saved = json.loads((folder / KEPT).read_text())
    return saved["metrics"] if saved["fingerprint"] == fingerprint(config, card) else None


def summarise(runs: pd.DataFrame) -> tuple[pd.DataFrame, Values]:
    """Return mean and standard deviation over seeds: a table, and by arm for MLflow."""
    grouped = runs.drop(columns="seed").groupby("arm", sort=False)
    mean, spread = grouped.mean(), grouped.std()
    table = mean.join(spread.add_suffix(" sd"))
    table.insert(0, "runs", grouped.size())
    drawn = [column for columns, *_ in _shown(table).values() for column in columns.values()]
    arms: Values = {}
    for label, row in table.iterrows():
        arm = arms.setdefault(slug(str(label)), {})
        for name in ("validation/mean_recall", *drawn):
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
        for name, (columns, label, factor) in _shown(summary).items():
            if not any(column in summary for column in columns.values()):
                continue
            if found.sweep:
                values = dict(zip(found.sweep.labels(), found.sweep.values, strict=True))
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
        {"all": "test/accuracy", **{g: f"test/{g}" for g in _GROUPS}},
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


def _shown(summary: pd.DataFrame) -> dict[str, tuple[dict[str, str], str, float]]:
    """Return what there are pictures of: also the first detector's AUROC, if there is one."""
    detector = first_detector(summary)
    if not detector:
        return _SHOWN
    mean = f"ood/{detector}/mean/auroc"
    columns = {"all": mean, **{group: f"{mean}_{group}" for group in _GROUPS}}
    return {**_SHOWN, "auroc": (columns, f"AUROC of {detector}, mean over the OOD sets, %", 100)}


@contextmanager
def _nested_run(name: str, config: Values, kept: bool) -> Iterator[None]:
    """Log what happens inside to a run of its own below the active one; without one, nowhere.

    It has the names of a method's own run, and its tags: they can be compared.
    """
    parent = mlflow.active_run()
    if parent is None:
        yield
        return
    tags = mlflow.MlflowClient().get_run(parent.info.run_id).data.tags
    method = config["method"]
    shown = {**config, method: {"options": config["options"]}}
    del shown["options"]
    with mlflow.start_run(run_name=name, nested=True):
        tracking.set_tags({key: tags[key] for key in INHERITED if key in tags})
        tracking.set_tags({"seed": config["seed"], "kept_from_before": kept})
        tracking.log_params(dict(tracking.flatten(shown, ".")))
        yield
