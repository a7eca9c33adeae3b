"""The trainings of a study. One that was killed goes on where it was: finished runs are kept.

They are kept by what was run and not by study: studies that share an arm train it once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
from torch import Tensor

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.engine.checkpoint import ResumeFile, atomic_path
from lt_pipeline.learning.engine.phase import Stage
from lt_pipeline.learning.engine.trainer import History, Report
from lt_pipeline.learning.studies.config import StudyConfig
from lt_pipeline.pipelines.method.geometry import geometry
from lt_pipeline.pipelines.method.nodes import (
    draw_subsets,
    evaluate,
    fingerprint,
    finish,
    stages_of,
    take_step,
    train_group,
)
from lt_pipeline.pipelines.method.ood import examine, headline
from lt_pipeline.pipelines.method.stages import measure_stages, stage_numbers
from lt_pipeline.pipelines.study.plan import earlier_paces, plan
from lt_pipeline.tracking import client as tracking

LOGGER = logging.getLogger(__name__)
KEPT = "metrics.json"

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
        finished_arms: Path,
    ) -> pd.DataFrame:
        found = StudyConfig.read(study, parameters["studies"][study])
        experiments = found.experiments(parameters)
        first: int = parameters["seed"]
        sets = (train, validation, test, auxiliary)
        rows: list[Values] = []
        planned = [
            (label, experiment.model_copy(update={"seed": seed}).model_dump(mode="json"))
            for seed in range(first, first + found.seeds)
            for label, experiment in experiments.items()
        ]
        folders = [run_folder(finished_arms, config, card) for _, config in planned]
        there = [
            kept_metrics(config, card, folder) is not None
            for (_, config), folder in zip(planned, folders, strict=True)
        ]
        LOGGER.info(plan(study, planned, there, earlier_paces()))
        if any(there):
            LOGGER.info(
                "What is there is not trained again: delete %s if it should be", finished_arms
            )
        for (label, config), folder, kept in zip(planned, folders, there, strict=True):
            name = f"{label} · seed {config['seed']}"
            done = f"{len(rows) + 1}/{len(planned)}"
            LOGGER.info("%s  %s%s", done, name, ", kept from before" * kept)
            with _nested_run(name, config, kept):
                row = run_once(config, card, sets, raw_folder, folder)
                tracking.log_metrics(row)
            rows.append({"arm": label, "seed": config["seed"], **row})
        return pd.DataFrame(rows)

    return train


def run_folder(finished_arms: Path, config: Values, card: Values) -> Path:
    """Return where a run of ``config`` is kept, whichever studies it is an arm of."""
    name = f"{config['method']}-{config['seed']}-{fingerprint(config, card)[:12]}"
    return finished_arms / name


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
    stages = stages_of(config)
    checkpoints, histories = run_stages(config, card, sets, folder, stages)
    last = checkpoints[stages[-1].name]
    model, finished = finish(config, card, train, validation, test, last)
    metrics, *_ = evaluate(config, card, model, validation, test, finished, *histories)
    shape, _ = geometry(config, card, model, test)
    strange = examine(config, card, model, train, test, raw_folder)
    result = tracking.numbers({**metrics, "geometry": shape, "ood": headline(strange)})
    if len(stages) > 1:
        every = [checkpoints[stage.name] for stage in stages]
        result |= stage_numbers(measure_stages(config, card, validation, test, *every)[0])
    with atomic_path(folder / KEPT) as path:
        kept_as = {"fingerprint": fingerprint(config, card), "config": config, "metrics": result}
        path.write_text(json.dumps(kept_as))
    for state in folder.glob("*.pt"):
        state.unlink()
    return result


def run_stages(
    config: Values,
    card: Values,
    sets: Sets,
    folder: Path,
    stages: Sequence[Stage],
    report: Report = tracking.log_epoch,
) -> tuple[dict[str, dict[str, Tensor]], list[History]]:
    """Return the checkpoint of each of ``stages`` by name, and the histories of those that train.

    ``report`` is called after the epochs that are trained now.
    What several runs have in common is kept beside ``folder``: arms that differ in later stages
    only train the first ones once.
    """
    subsets: list[Any] = []
    checkpoints: dict[str, dict[str, Tensor]] = {}
    histories: list[History] = []
    if any(stage.subset for stage in stages):
        subsets = [draw_subsets(config, card, sets[0])]
    for _, group in groupby(stages, lambda stage: stage.group or stage.name):
        members = list(group)
        first = members[0]
        given = [*(subsets if first.subset else []), *(checkpoints[s] for s in first.start)]
        if not first.trains:
            checkpoints[first.name] = take_step(first)(config, card, sets[0], *given)[0]
            continue
        kept = SharedStage.of(config, card, first, folder.parent)
        trained = kept.load() if kept else None
        if trained is None:
            trained = train_group(members, report)(config, card, *sets, folder, *given)
            if kept:
                kept.save(trained)
        checkpoints |= dict(zip((s.name for s in members), trained[::2], strict=True))
        histories += trained[1::2]
    return checkpoints, histories


def _depth(config: Values, method: str) -> int:
    """Return how many methods stand on ``method``, that of a stage of ``config``."""
    depth, own = 0, config
    while own["method"] != method:
        options = own["options"]
        depth, own = (
            depth + 1,
            {"method": options["pretrain"], "options": options["pretrain_options"]},
        )
    return depth


class SharedStage(NamedTuple):
    """A first stage that other arms may have, too, kept as a file."""

    path: Path
    fingerprint: str

    @classmethod
    def of(cls, config: Values, card: Values, stage: Stage, folder: Path) -> SharedStage | None:
        """Return where ``stage`` is kept; None if no other configuration has the same."""
        recipe = dict(methods.get(config["method"]).recipe(stage, config))
        if recipe == config:
            return None
        # the same network has other names two methods further down
        above = _depth(config, recipe["method"])
        found = fingerprint({**recipe, "evaluation": None, "above": above}, card)
        return cls(folder / "shared" / f"{found[:16]}-{stage.name}.pt", found)

    def load(self) -> list[Any] | None:
        """Return checkpoint and history, or None."""
        found = ResumeFile(self.path, self.fingerprint).load()
        return None if found is None else list(found["trained"])

    def save(self, trained: list[Any]) -> None:
        """Keep checkpoint and history."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ResumeFile(self.path, self.fingerprint).save({"trained": trained})


def kept_metrics(config: Values, card: Values, folder: Path) -> dict[str, float] | None:
    """Return what ``run_once`` kept in ``folder`` of this run, or None."""
    if not (folder / KEPT).exists():
        return None
    saved = json.loads((folder / KEPT).read_text())
    return saved["metrics"] if saved["fingerprint"] == fingerprint(config, card) else None


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
    with mlflow.start_run(run_name=name, nested=True):
        tracking.set_tags({key: tags[key] for key in tracking.INHERITED if key in tags})
        tracking.set_tags(
            {"seed": config["seed"], "method": config["method"], "kept_from_before": kept}
        )
        tracking.log_params(tracking.by_method(config))
        yield
