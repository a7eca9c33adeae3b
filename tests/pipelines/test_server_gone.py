"""A real tracking server that goes away while a run trains, and a real lock on its database."""

from __future__ import annotations

import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.server import constants
from pipeline_projects import Project, copy_project, own, runs_at

import warm
from addresses import free_port, wait_for

pytestmark = pytest.mark.slow
EPOCHS = 30
RUN = ("kedro", "run", "--pipelines=ce", "--env=smoke")
# a state after the first epoch says that it trains, and makes no folder of its own
LONG = (*RUN, f"--params=training.epochs={EPOCHS},training.checkpoint_every=0")
STATE = ("06_models", own(f"training.epochs={EPOCHS}"), "ce", "progress", "train.pt")
# how long a run is to be held up, and its last call to be tried
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}


class Server:
    """What `mlflow server` starts, on a project's database: one process, no jobs of others."""

    def __init__(self, project: Project) -> None:
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self.project = project
        told = {
            constants.BACKEND_STORE_URI_ENV_VAR: project.tracking_uri,
            constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: str(project.folder / "artifacts"),
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self.process = project.start(
            *(sys.executable, "-m", "uvicorn", "mlflow.server.fastapi_app:app"),
            *("--host", "127.0.0.1", "--port", str(port)),
            **told,
        )
        wait_for(f"{self.uri}/health", self.process)

    def tell(self, what: signal.Signals) -> None:
        self.process.send_signal(what)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    served = Server(copy_project(tmp_path_factory.mktemp("served"), empty_database))
    yield served
    if served.process.poll() is None:
        served.end()


@pytest.fixture(scope="module", autouse=True)
def locked_out(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Any]:
    """A run on a database that another writes to; MLflow waits for 20 s, beside all other tests."""
    project = copy_project(tmp_path_factory.mktemp("locked"), empty_database)
    with closing(sqlite3.connect(project.folder / "mlflow.db", isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield project.start(*RUN)


def begin(server: Server) -> warm.Process:
    """Begin a long run, and wait until it trains."""
    process = server.project.start(*LONG, MLFLOW_TRACKING_URI=server.uri, **QUICK)
    state = server.project.file(*STATE)
    while not state.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    return process


def errors(output: str) -> list[str]:
    assert "Traceback" not in output
    return [line for line in output.splitlines() if line.startswith("Error: ")]


def test_a_run_outlives_a_server_that_hangs_and_loses_no_epoch(server):
    project = server.project
    run = begin(server)
    server.tell(signal.SIGSTOP)
    started = time.monotonic()
    output, _ = run.communicate(timeout=120)
    assert time.monotonic() - started < 60
    assert run.returncode == 1
    (error,) = errors(output)
    assert f"the MLflow store {server.uri} does not answer any more" in error
    assert "brings them in" in " ".join(output.split())
    (kept,) = project.file("09_unsent").iterdir()
    server.tell(signal.SIGCONT)
    command = (sys.executable, "-m", "lt_pipeline.tracking.unsent")
    code, said = project.run(*command, MLFLOW_TRACKING_URI=server.uri)
    assert (code, f"values are in MLflow's run {kept.stem}" in said) == (0, True)
    client = mlflow.MlflowClient(server.uri)
    history = client.get_metric_history(kept.stem, "train/cross_entropy")
    assert [metric.step for metric in history] == [*range(1, EPOCHS + 1)]
    assert not kept.exists()
    # what was trained is on disk: the same command goes on with it, and the server has its model
    given = f"{LONG[-1]},tracking.register=true"
    output = project.kedro(*LONG[2:-1], given, MLFLOW_TRACKING_URI=server.uri)
    assert "resumes after epoch" in output
    assert f"open {server.uri}" in output
    assert "View run" not in output
    assert [run.info.status for run in runs_at(server.uri)] == ["FINISHED", "KILLED"]
    mlflow.set_tracking_uri(server.uri)
    assert mlflow.pyfunc.load_model("models:/ce-digits-lt-ir10/1") is not None


def test_a_run_ends_in_a_line_when_its_server_dies(server):
    """The last that the server is there for."""
    run = begin(server)
    server.end()
    started = time.monotonic()
    output, _ = run.communicate(timeout=120)
    assert time.monotonic() - started < 40
    assert run.returncode == 1
    (error,) = errors(output)
    assert "does not answer any more" in error
    assert "refused" in error
    assert server.project.file(*STATE).exists()


def test_a_run_on_a_database_that_may_only_be_read_ends_in_a_line(locked_out):
    """One that may not be read either: tests/tracking/test_store.py."""
    output, _ = locked_out.communicate(timeout=120)
    assert locked_out.returncode == 1
    (error,) = errors(output)
    assert "database is locked" in error
    assert len(output.splitlines()) < 5, output
