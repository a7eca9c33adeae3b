"""What goes to MLflow beside the catalog: epochs, metrics, parameters, tags."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param, Run, RunTag

from lt_pipeline.learning.schema import flatten
from lt_pipeline.tracking.outbox import Outbox
from lt_pipeline.versioning.git import git

if TYPE_CHECKING:
    from lt_pipeline.learning.engine.trainer import Report

# MLflow's own lines and progress bars would tear the run's apart.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A server that is gone is found out in 15 seconds, one that is silent in 75; MLflow's own take four
# and twenty minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
logging.getLogger("mlflow").setLevel(logging.WARNING)

# `dvc repro` rewrites its lock files between stages: they do not change what is run
NOT_LOCKS = ("--", ".", ":(exclude,glob)**/dvc.lock")
VERSIONED = ("torch", "torchvision", "kedro", "mlflow", "numpy", "lt_pipeline")
MAX_PARAM_LENGTH = 6000
DIGEST_LENGTH = 12
FIRST_STAGES = ("train", "pretrain")
# ``user:password@``, where both may have an @ and the user may be empty; and ``password=...``.
# A parameter of ``--params`` ends at a comma before the next one's name; a port is no password.
BEFORE_HOST = re.compile(
    r"(://[^:/\s]*:)(?:(?:(?!,[\w.-]+=|://)\S)*@|(?!\d{1,5}(?:[/?,\s]|$))\S*@)"
)
IN_QUERY = re.compile(
    r"((?:password|passwd|pwd)(?:=|%3D))(?:(?!,[\w.-]+=)[^&\s])+", flags=re.IGNORECASE
)
# the tag that says which process a run is of
PROCESS = "process"
# the artifact of a run with the hashes of the files that it made
OUTPUTS = "outputs.json"
# the tag of a sweep and its trials: the name of the Optuna study
STUDY = "study"
# what a run below another one has in common with it
INHERITED = (
    PROCESS, "command", "data", "data_hash", "device", "git_dirty", "mlflow.source.git.commit",
    "python", "versions",
)  # fmt: skip


_OUTBOX = Outbox()
# by run and name of a value
_LAST_EPOCH: dict[tuple[str, str], int] = {}


def log_epoch(
    stage: str, epoch: int, values: Mapping[str, float], run: mlflow.ActiveRun | None = None
) -> None:
    """Log an epoch's values to ``run``, or the active one; without a run, nothing happens.

    The first stage's have plain names, as in ``train/cross_entropy``; those of later stages have
    the stage's name in them, as in ``train/branch_0/cross_entropy``: their epochs begin at 1 again.

    No training waits for a server: short epochs go there together, and what it does not take is
    tried again. Train inside of ``epochs``.
    """
    run, now = run or mlflow.active_run(), int(time.time() * 1000)
    if run:
        named = {_by_stage(stage, name): value for name, value in values.items()}
        _LAST_EPOCH.update({(run.info.run_id, name): epoch for name in named})
        _OUTBOX.add(run.info.run_id, [_metric(k, v, now, epoch) for k, v in named.items()])


def to_this_run() -> Report:
    """Return ``log_epoch`` of the run that is active now, whichever thread calls it."""
    return partial(log_epoch, run=mlflow.active_run())


@contextmanager
def epochs() -> Iterator[Report]:
    """Yield what logs epochs ``to_this_run``.

    When the training inside ends, however it does, the epochs that still wait are sent. Trainings
    of a run wait two seconds in all for that; what is left goes later.
    """
    try:
        yield to_this_run()
    finally:
        _OUTBOX.training_ends()


def run_ends() -> None:
    """Send the epochs that still wait; what cannot be sent is kept in files, and said."""
    _OUTBOX.run_ends()


def _by_stage(stage: str, name: str) -> str:
    if stage in FIRST_STAGES:
        return name
    kind, _, rest = name.partition("/")
    return "/".join(filter(None, (kind, stage, rest)))


def log_metrics(values: Mapping[str, float]) -> None:
    """Log ``values`` to the active run in one call; without a run, nothing happens.

    One that there is for every epoch, too, goes with the last: the run's value is that of the
    highest step, which else were a first stage's and not the finished method's.
    """
    run, now = mlflow.active_run(), int(time.time() * 1000)
    if run:
        steps = {name: _LAST_EPOCH.get((run.info.run_id, name), 0) for name in values}
        _log_batch(metrics=[_metric(name, v, now, steps[name]) for name, v in values.items()])


def _metric(name: str, value: float, now: int, step: int) -> Metric:
    # MLflow's tables show all digits, also those that single precision does not have
    kept = value if float(value).is_integer() else float(f"{value:.7g}")
    return Metric(name, kept, now, step)


def log_params(values: Mapping[str, Any]) -> None:
    """Log parameters to the active run in one call; without a run, nothing happens."""
    _log_batch(params=[Param(k, str(v)[:MAX_PARAM_LENGTH]) for k, v in values.items()])


def log_data(name: str, data_hash: str) -> None:
    """Log the data that the active run is on; without a run, nothing happens.

    The column Dataset of MLflow's table has their name and the beginning of their hash.
    """
    if mlflow.active_run():
        data = MetaDataset(CodeDatasetSource({"data": name}), name, data_hash[:DIGEST_LENGTH])  # type: ignore[abstract]
        mlflow.log_input(data, context="training")


def set_tags(values: Mapping[str, Any]) -> None:
    """Set tags of the active run in one call; without a run, nothing happens."""
    _log_batch(tags=[RunTag(name, str(value)) for name, value in values.items()])


def find_runs(client: mlflow.MlflowClient, experiments: list[str], only: str = "") -> Iterator[Run]:
    """Yield all runs of ``experiments`` that a filter lets through, the newest first."""
    token, order = None, ["attributes.start_time DESC"]
    while True:
        page = client.search_runs(experiments, only, order_by=order, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def drop_tags(names: Iterable[str]) -> None:
    """Delete those of ``names`` that the active run has; without a run, nothing happens."""
    run = mlflow.active_run()
    if run is None:
        return
    client = mlflow.MlflowClient()
    for name in sorted({*names} & {*client.get_run(run.info.run_id).data.tags}):
        client.delete_tag(run.info.run_id, name)


def _log_batch(**what: Any) -> None:
    run = mlflow.active_run()
    if run:
        mlflow.MlflowClient().log_batch(run.info.run_id, **what)


def end_as_failed(run: str | None) -> None:
    """Let a run count as failed, though it went to its end; without one, nothing happens."""
    if run:
        mlflow.MlflowClient().set_terminated(run, "FAILED")


def by_method(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment's ``config`` as parameters by the paths that they have in conf/."""
    kept = {name: value for name, value in config.items() if name != "options"}
    return dict(flatten({**kept, config["method"]: {"options": config["options"]}}, "."))


def provenance(project: Path, seed: int, device: str) -> dict[str, str]:
    """Return the tags that say what made a run: commit, seed, device, versions."""
    commit = git(project, "rev-parse", "HEAD")
    return {
        "mlflow.source.git.commit": commit or "unknown",
        "git_dirty": str(bool(git(project, "status", "--porcelain", *NOT_LOCKS)))
        if commit
        else "unknown",
        "seed": str(seed),
        "device": device,
        "python": platform.python_version(),
        "versions": json.dumps({name: version(name) for name in VERSIONED}),
    }


def absolute_uri(uri: str, project: Path) -> str:
    """Return ``uri`` with a relative SQLite path made one under ``project``'s ``home``.

    SQLite takes a relative path from wherever the command runs; a run would be lost there.
    """
    prefix, (name, mark, query) = "sqlite:///", uri.removeprefix("sqlite:///").partition("?")
    if not uri.startswith(prefix) or name.startswith(("/", ":memory:", "file:")) or not name:
        return uri
    path = (home(project) / unquote(name)).as_posix()
    # with its slashes quoted, too, as MLflow makes the folder that is named, as it is written
    written = quote(path, safe="") if {*"%?"} & {*path} else path
    return f"{prefix}{written}{mark}{query}"


def home(project: Path) -> Path:
    """Return the folder that outlives ``project``, which may be a copy for one experiment.

    ``dvc exp run --temp`` and ``--queue`` work in a folder of ``.dvc/tmp/exps`` and delete it.
    """
    for folder in project.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return project


def reason(error: Exception) -> str:
    """Return in a line, and without a password, why an address cannot be reached."""
    if isinstance(error, HTTPException | ValueError):
        # what Python says of a port that is no number may be a part of the password
        return "this is no address"
    return masked(str(error).partition("\n")[0])


def masked(text: str) -> str:
    """Return ``text``, which may be an address, without the passwords of the addresses in it."""
    return IN_QUERY.sub(r"\1***", BEFORE_HOST.sub(r"\1***@", text))
