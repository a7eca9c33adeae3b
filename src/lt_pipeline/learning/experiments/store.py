"""What is finished, by one key: resumed trainings, stages that runs share, metrics of whole runs.

The key stands for all that decides a result apart from the code: the parameters that are not at
their defaults, and the data's hash. Every file says in full what it is of, and is used for nothing
else: not when a default has changed, and not when two keys were alike.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from lt_pipeline.learning.data.prepare import DataConfig
from lt_pipeline.learning.data.protocol import Images, content_hash
from lt_pipeline.learning.engine.checkpoint import ResumeFile, atomic_path
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.learning.schema import UserError, canonical, flatten

KEPT = "metrics.json"
# what a run made of each test image
ANSWERS = "answers.csv"
KEY_DIGITS = 16
# where it is computed changes no result, and how it is judged no training
PLACE, JUDGING = {"device"}, {"device", "evaluation"}
# nor does how often it is kept; earlier versions counted epochs
KEEPING = "checkpoint_every"

Values = dict[str, Any]


def key(experiment: Experiment) -> str:
    """Return what stands for all that decides a run's result, apart from the code."""
    return _digest({**_decisive(experiment.config), "data": experiment.card.data_hash})


def data_key(data: DataConfig) -> str:
    """Return what stands for all that decides prepared data: what their files say they are of."""
    return _digest(canonical(data))[:KEY_DIGITS]


def run_key(config: ExperimentConfig, data: DataConfig) -> str:
    """Return what stands for all that decides what is trained: what a run's files say they are of.

    Known before there are data, and the same however they are judged.
    """
    return _digest({**_decisive(config, JUDGING), "data": canonical(data)})[:KEY_DIGITS]


def _decisive(config: ExperimentConfig, indifferent: Collection[str] = PLACE) -> Values:
    usual = {KEEPING: TrainingConfig.model_fields[KEEPING].default}
    config = config.model_copy(update={"training": config.training.model_copy(update=usual)})
    return {name: value for name, value in canonical(config).items() if name not in indifferent}


def _digest(values: Values) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _before(config: Values, data_hash: str) -> str:
    """Return what versions before this one called a run, of its configuration as JSON has it."""
    decisive = {name: value for name, value in config.items() if name not in PLACE}
    return sha256(repr((decisive, data_hash)).encode()).hexdigest()


class MadeOf:
    """What decides what a stage gives, apart from the code and what it starts from."""

    def __init__(self, experiment: Experiment, stage: Stage) -> None:
        config, recipe = experiment.config, stage.recipe
        self.shared = recipe.shared
        self._own = {"method": recipe.method or config.method, "above": recipe.above}
        self._own["data"] = experiment.card.data_hash
        self._left_out = {*JUDGING, f"training.{KEEPING}"}
        self._left_out |= {f"options.{name}" for name in recipe.left_out}
        options = recipe.options or config.options
        resolved = ExperimentConfig.model_construct(**{**dict(config), "options": options})
        self.fingerprint = _digest(self._decisive(canonical(resolved)))
        self.values = self._decisive(resolved.model_dump(mode="json"))

    def _decisive(self, values: Values) -> Values:
        kept = {
            path: value
            for path, value in flatten(values, ".")
            if not any(f"{path}.".startswith(f"{name}.") for name in self._left_out)
        }
        return {**kept, **self._own}


def stage_resume(
    experiment: Experiment,
    stage: Stage,
    checkpoints: Mapping[str, StateDict],
    seen: Images,
    folder: Path,
) -> ResumeFile:
    """Return where in ``folder`` the training of ``stage`` goes on after it was killed.

    Its key is of what the stage is made of; for a later stage also of what it starts from, and of
    the images that it sees.
    """
    made_of = MadeOf(experiment, stage)
    # a group's stages are one node of the DAG, by whose name its states are found
    path = folder / f"{f'{stage.group}.' * bool(stage.group)}{stage.name}.pt"
    digest = sha256(made_of.fingerprint.encode())
    for name, state in checkpoints.items():
        digest.update(name.encode())
        for part, value in sorted(state.items()):
            digest.update(part.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    if stage.subset:
        digest.update(content_hash(seen).encode())
    return ResumeFile(path, digest.hexdigest(), made_of.values)


class Kept(BaseModel):
    """What is kept of a finished run; earlier versions had a fingerprint in the hash's place."""

    config: Values
    metrics: dict[str, float]
    data_hash: str | None = None
    fingerprint: str | None = None

    @classmethod
    def read(cls, path: Path) -> Kept:
        """Return what the file says.

        Raises:
            UserError: if it is something else.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            raise UserError(
                f"{path} is not what a finished run keeps: delete it, and that run is trained again"
            ) from error

    def is_of(self, experiment: Experiment) -> bool:
        """Return whether it is of ``experiment``; what is no longer a configuration is not."""
        try:
            config = ExperimentConfig.model_validate(self.config)
        except ValidationError:
            return False
        if _decisive(config) != _decisive(experiment.config):
            return False
        data_hash = experiment.card.data_hash
        return self.data_hash == data_hash or self.fingerprint == _before(self.config, data_hash)


@dataclass(frozen=True)
class Store:
    """A folder of what is finished, whichever studies or sweeps asked for it."""

    folder: Path

    def folder_of(self, experiment: Experiment) -> Path:
        """Return where a run is kept, whichever studies it is an arm of."""
        config = experiment.config
        kept = self._found(experiment)
        if kept:
            return kept[0]
        return self.folder / f"{config.method}-{config.seed}-{key(experiment)[:12]}"

    def metrics(self, experiment: Experiment) -> dict[str, float] | None:
        """Return the metrics of a run that is finished, else None."""
        kept = self._found(experiment)
        return kept[1].metrics if kept else None

    def answers(self, name: str) -> pd.DataFrame:
        """Return what the finished run in the folder ``name`` made of each test image.

        Raises:
            UserError: if it was kept by an earlier version, which kept the metrics only.
        """
        path = self.folder / name / ANSWERS
        if not path.is_file():
            raise UserError(f"there is no {path}: delete {path.parent}, and the run is done again")
        return pd.read_csv(path)

    def keep(
        self,
        experiment: Experiment,
        metrics: Mapping[str, float],
        answers: pd.DataFrame | None = None,
    ) -> None:
        """Keep the metrics of a run and its answers, and drop what it would have resumed from."""
        folder = self.folder_of(experiment)
        if answers is not None:
            with atomic_path(folder / ANSWERS) as path:
                answers.to_csv(path, index=False)
        with atomic_path(folder / KEPT) as path:
            path.write_text(
                json.dumps(
                    {
                        "data_hash": experiment.card.data_hash,
                        "config": experiment.config.model_dump(mode="json"),
                        "metrics": metrics,
                    }
                )
            )
        for state in folder.glob("*.pt"):
            state.unlink(missing_ok=True)  # another study may have the same arm

    def shared(self, experiment: Experiment, stage: Stage) -> ResumeFile | None:
        """Return where a first stage is kept that others may have, too; None where none can."""
        made_of = MadeOf(experiment, stage)
        if not made_of.shared:
            return None
        name = f"{made_of.fingerprint[:16]}-{stage.name}.pt"
        return ResumeFile(self.folder / "shared" / name, made_of.fingerprint, made_of.values)

    def _found(self, experiment: Experiment) -> tuple[Path, Kept] | None:
        """Return folder and file of a finished run of the same configuration on the same data."""
        config = experiment.config
        for path in sorted(self.folder.glob(f"{config.method}-{config.seed}-*/{KEPT}")):
            kept = Kept.read(path)
            if kept.is_of(experiment):
                return path.parent, kept
        return None
