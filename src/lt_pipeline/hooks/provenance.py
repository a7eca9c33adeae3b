"""What leads from an MLflow run to the command, code, data and files behind it, and back."""

from __future__ import annotations

import atexit
import json
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from mlflow.exceptions import MlflowException

from lt_pipeline.reports.command_line import kedro_run
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking.client import OUTPUTS, PROCESS
from lt_pipeline.tracking.processes import is_alive, this_process
from lt_pipeline.versioning.git import blob_id, hashes
from lt_pipeline.versioning.lock import LOCK

# DVC's variables in the environment of a stage's command, and the tags that they become
FROM_DVC = {
    "DVC_STAGE": "dvc_stage",
    "DVC_EXP_NAME": "dvc_experiment",
    "DVC_EXP_BASELINE_REV": "dvc_baseline",
}


class ProvenanceHooks:
    """Tags a run with what made it, and with the hashes of what it made."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Remember where the project is."""
        self.project = Path(context.project_path)

    @hook_impl(trylast=True)
    def before_pipeline_run(self, run_params: dict[str, Any], catalog: DataCatalog) -> None:
        """Say how to repeat the run, and from which state of DVC's lock file it started."""
        self.catalog = catalog
        tags = {tag: os.environ.get(variable) for variable, tag in FROM_DVC.items()}
        tags |= {"command": command(run_params), "dvc_lock": blob_id(self.project / LOCK)}
        tags[PROCESS] = json.dumps(this_process())
        tracking.set_tags({name: value for name, value in tags.items() if value})
        # kedro-mlflow's: an object's address, this machine's path, what the command says in full
        tracking.drop_tags({*run_params, "kedro_command"} - {"env"})
        end_killed_runs()
        active = mlflow.active_run()
        if active:
            atexit.register(end_interrupted, active.info.run_id)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Tag the run with the hashes of the model and the data that it made."""
        if dataset_name.endswith(".model"):
            for path in _files(self.catalog, dataset_name):
                digests = hashes(path)
                tracking.set_tags({"model_hash": digests["sha256"], "model_md5": digests["md5"]})
        if dataset_name == "data_card":
            tracking.set_tags({"data_hash": data.data_hash, "data_made": True})

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Log the hash of every file that the run made, by its path in the project."""
        if mlflow.active_run() is None:
            return
        made = sorted(p for name in pipeline.all_outputs() for p in _files(catalog, name))
        mlflow.log_dict({self._relative(path): hashes(path) for path in made}, OUTPUTS)

    def _relative(self, path: Path) -> str:
        inside = path.is_relative_to(self.project)
        return (path.relative_to(self.project) if inside else path).as_posix()


def end_interrupted(run_id: str) -> None:
    """End a run that its process leaves behind as killed: of Ctrl-C Kedro tells no hook.

    MLflow itself would end it as finished when the process exits.
    """
    with suppress(MlflowException):
        if mlflow.active_run() and mlflow.MlflowClient().get_run(run_id).info.status == "RUNNING":
            while mlflow.active_run():
                mlflow.end_run("KILLED")


def end_killed_runs() -> None:
    """End the runs of this experiment whose process was killed: MLflow calls them running.

    Only a process of this machine can be known to be gone. Without an active run nothing happens.
    """
    active = mlflow.active_run()
    if active is None:
        return
    client, running = mlflow.MlflowClient(), "attributes.status = 'RUNNING'"
    # all pages first: those that end are no longer on them
    for run in list(tracking.find_runs(client, [active.info.experiment_id], running)):
        process = json.loads(run.data.tags.get(PROCESS, "{}"))
        if process.get("host") == socket.gethostname() and not is_alive(process):
            client.set_terminated(run.info.run_id, "KILLED")


def command(run_params: Mapping[str, Any]) -> str:
    """Return the line that repeats a run: as it was typed, or what says the same."""
    context = click.get_current_context(silent=True)
    if context is None or context.command.name != "run":
        return kedro_run(run_params)
    typed = sys.argv[1:] if "run" in sys.argv[1:] else ["run", *sys.argv[1:]]
    # KEDRO_ENV chooses an environment, too
    env = os.environ.get("KEDRO_ENV")
    named = any(word in ("--env", "-e") or word.startswith("--env=") for word in typed)
    typed = [tracking.masked(word) for word in typed]
    return shlex.join(["kedro", *typed, *([] if named or not env else ["--env", env])])


def _files(catalog: DataCatalog, name: str) -> list[Path]:
    """Return the files that a dataset is saved as: none, one, or those of a folder."""
    path = getattr(catalog.get(name), "_filepath", None)
    if path is None:
        return []
    saved = Path(path)
    return [p for p in sorted(saved.rglob("*")) if p.is_file()] if saved.is_dir() else [saved]
