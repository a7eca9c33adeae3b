"""What was trained: the run of an address, its parameters, the data beside it and its weights."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lt_pipeline.io.datasets import StateDictDataset
from lt_pipeline.learning import methods
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.learning.schema import Config, UserError, named, shown, unknown
from lt_pipeline.tracking import addresses
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking.addresses import EVALUATED, listed
from lt_pipeline.tracking.runs import block_logged, finished_runs

BLOCK = "evaluate"
# artifacts of a run; runs of earlier versions have the second in the model that they logged
CONFIG, WEIGHTS, NETWORK = "config.json", "model.safetensors", "network.pt2"
CLASSES = "class_table.csv"
# how the exported network calls the method
INSIDE = "method."
RIGHT = (
    "models:/more-digits-lt-ir20/3, models:/digits-lt-ir20@champion, runs:/ID, the id of a run, or "
    "a method: its latest run"
)

Values = dict[str, Any]


class EvaluateConfig(Config):
    """What is judged anew.

    Attributes:
        model: where it is in MLflow: ``models:/name/3``, ``models:/name@alias``, ``runs:/ID``, a
            run's id, or the name of a method, which is its latest finished run on this data set.
    """

    block = BLOCK

    model: str | None = None


@dataclass(frozen=True)
class Trained:
    """A run in which a method was trained.

    Attributes:
        run: that of MLflow, in the ``experiment`` of that name.
        config: what it was.
        data: the block ``data`` that it was trained with, as it was given.
    """

    run: Run
    experiment: str
    config: ExperimentConfig
    data: Values

    @property
    def id(self) -> str:
        """Return the run's id."""
        return str(self.run.info.run_id)

    def check(self, card: DataCard) -> None:
        """Refuse images that are others than those of the run.

        Raises:
            UserError: naming the classes that differ, else both hashes.
        """
        wanted = self.run.data.tags.get("data_hash", "unknown")
        if card.data_hash == wanted:
            return
        config = card.config
        where = "data/01_raw" if config.balanced else config.labels or config.path
        now = set(card.longtail.class_names)
        known = now if config.balanced else self._class_names() or now
        if now != known:
            differ = [f"knows no class {shown(name)}" for name in sorted(now - known)[:1]]
            differ += [f"knows {shown(name)}, which is gone" for name in sorted(known - now)[:1]]
            raise UserError(
                f"run {self.id} was trained on {len(known)} classes, and {where} has {len(now)} "
                f"now: it {' and '.join(differ)}; put the classes of then there, or train anew"
            )
        raise UserError(
            f"run {self.id} was trained beside images of hash {wanted[:12]}, and the same "
            f"parameters give {card.data_hash[:12]} now: put the files of then into "
            f"{where}, or use the version of the code that trained it"
        )

    def _class_names(self) -> set[str]:
        """Return the classes that the run was judged on; none where it has no such table."""
        file = f"{self.run.info.artifact_uri}/{CLASSES}"
        try:
            text = mlflow.artifacts.load_text(file)
        except (MlflowException, OSError):
            return set()
        return {row["name"] for row in csv.DictReader(io.StringIO(text))}


def trained(client: MlflowClient, address: str | None, experiment: str = "") -> Trained:
    """Return what is at ``address``; a method's runs are looked for in ``experiment``.

    Raises:
        UserError: in one line, if nothing is: it names what there is.
    """
    run = run_of(client, address, experiment)
    if not _has_weights(client, run):
        raise UserError(f"run {run.info.run_id} ({run.info.run_name}) {_what_it_lacks(run)}")
    return Trained(
        run,
        client.get_experiment(run.info.experiment_id).name,
        _config(run),
        _data(client, run),
    )


def not_null(address: str | None) -> str:
    """Return ``address``.

    Raises:
        UserError: if it is null.
    """
    if address is None:
        raise UserError(f"evaluate.model is null: it says what is evaluated, as in {RIGHT}")
    return address


def run_of(client: MlflowClient, address: str | None, experiment: str) -> Run:
    """Return the run at ``address``.

    Raises:
        UserError: in one line, if there is none: it names what there is.
    """
    address = not_null(address)
    run = addresses.find(client, address)
    if run:
        return run
    if address not in methods.available():
        what = unknown("method", address, methods.available())
        raise UserError(f"evaluate.model: {what}; or an address, as in {RIGHT}")
    return _latest(client, address, experiment)


def weights(client: MlflowClient, run: Run) -> StateDict:
    """Return the weights of the finished method, by name, on the CPU."""
    with TemporaryDirectory() as folder:
        if WEIGHTS in _artifacts(client, run):
            path = mlflow.artifacts.download_artifacts(
                run_id=run.info.run_id, artifact_path=WEIGHTS, dst_path=folder
            )
            return StateDictDataset(path).load()
        # what a run of earlier versions kept of its weights
        place = client.get_logged_model(_logged(run)[-1]).artifact_location
        path = mlflow.artifacts.download_artifacts(f"{place}/artifacts/{NETWORK}", dst_path=folder)
        return weights_inside(torch.export.load(path))


def weights_inside(network: torch.export.ExportedProgram) -> StateDict:
    """Return the weights of the method that was exported as ``network``."""
    tensors = network.state_dict.items()
    return {name.removeprefix(INSIDE): value.detach() for name, value in tensors}


def _latest(client: MlflowClient, method: str, experiment: str) -> Run:
    """Return the latest finished run of ``method`` that has weights, evaluations left out."""
    place = client.get_experiment_by_name(experiment)
    runs = list(finished_runs(place.experiment_id)) if place else []
    for run in runs:
        if run.data.tags.get("method") == method and _has_weights(client, run):
            return run
    known = listed({r.data.tags["method"] for r in runs if "method" in r.data.tags})
    raise UserError(
        f"the experiment {experiment} has no finished run of {method}: there are runs of {known}; "
        f"train it first, as in kedro run --pipelines={method}, or name another one, as in {RIGHT}"
    )


def _has_weights(client: MlflowClient, run: Run) -> bool:
    files = _artifacts(client, run)
    return CONFIG in files and (WEIGHTS in files or bool(_logged(run)))


def _what_it_lacks(run: Run) -> str:
    """Return in words why nothing can be judged in ``run``, and what can."""
    evaluated = run.data.tags.get(EVALUATED)
    if evaluated:
        return f"is an evaluation of run {evaluated}: name that one"
    return (
        f"has no trained model, which is {CONFIG} and {WEIGHTS} among its artifacts: trials of "
        f"sweeps, arms of studies and runs of some nodes keep none; name a run of a method"
    )


def _artifacts(client: MlflowClient, run: Run) -> set[str]:
    return {artifact.path for artifact in client.list_artifacts(run.info.run_id)}


def _logged(run: Run) -> list[str]:
    """Return the ids of the models that the run logged, in the order of time."""
    return [model.model_id for model in run.outputs.model_outputs] if run.outputs else []


def _config(run: Run) -> ExperimentConfig:
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{CONFIG}")
    with named(f"run {run.info.run_id}: {CONFIG}: "):
        return ExperimentConfig.read(json.loads(text))


def _data(client: MlflowClient, run: Run) -> Values:
    """Return the block ``data`` as the run logged it, or another run on the same images.

    A run that found its data prepared, as those of DVC's stages, may have logged none.
    """
    same = f"tags.data_hash = '{run.data.tags.get('data_hash')}'"
    for known in (run, *tracking.find_runs(client, [run.info.experiment_id], same)):
        block = block_logged(known.data.params, "data")
        if block:
            return block
    raise UserError(f"run {run.info.run_id}: neither it nor another run on its images says data.*")
