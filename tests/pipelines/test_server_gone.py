"""A real tracking server that goes away while a run trains, and a real lock on its database."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from pipeline_projects import Project, copy_project, own, runs_at

from addresses import free_port, wait_for

pytestmark = pytest.mark.slow
EPOCHS = 40
RUN = ("kedro", "run", "--pipelines=ce", "--env=smoke")
# a state after the first epoch says that it trains, and makes no folder of its own
LONG = (*RUN, f"--params=training.epochs={EPOCHS},training.checkpoint_every=0")
STATE = ("06_models", own(f"training.epochs={EPOCHS}"), "ce", "progress", "train.pt")
# how long a run is to be held up, and its last call to be tried
QUICK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}


class Server:
    """`mlflow server` on a project's database, without the eight processes for jobs of others."""

    def __init__(self, project: Project) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.project = project
        self.begin()

    def begin(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--backend-store-uri", self.project.tracking_uri),
                *("--artifacts-destination", str(self.project.folder / "artifacts")),
                *("--host", "127.0.0.1", "--port", str(self.port)),
            ],
            env=self.project.environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(f"{self.uri}/health", self.process)

    def tell(self, what: signal.Signals) -> None:
        os.killpg(self.process.pid, what)

    def end(self) -> None:
        self.tell(signal.SIGKILL)
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Server]:
    served = Server(copy_project(tmp_path_factory.mktemp("served"), empty_database))
    yield served
    if served.process.poll() is None:
        served.end()


def begin(server: Server) -> subprocess.Popen[str]:
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


def test_a_server_gets_the_run_and_the_model(server):
    words = ("--pipelines=ce", "--env=smoke", "--params=tracking.register=true")
    output = server.project.kedro(*words, MLFLOW_TRACKING_URI=server.uri)
    assert f"open {server.uri}" in output
    assert "View run" not in output
    (run,) = runs_at(server.uri)
    assert run.info.status == "FINISHED"
    mlflow.set_tracking_uri(server.uri)
    assert mlflow.pyfunc.load_model("models:/ce-digits-lt-ir10/1") is not None


def test_a_run_outlives_a_server_that_hangs_and_loses_no_epoch(server):
    project = server.project
    before = {run.info.run_id for run in runs_at(server.uri)}
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
    # what was trained is on disk: the same command goes on with it
    code, output = project.run(*LONG, MLFLOW_TRACKING_URI=server.uri)
    assert code == 0, output
    statuses = [r.info.status for r in runs_at(server.uri) if r.info.run_id not in before]
    assert statuses == ["FINISHED", "KILLED"]


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


def test_a_run_on_a_locked_database_ends_in_a_line(project):
    holder = sqlite3.connect(project.folder / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    code, output = project.run(*RUN)
    assert code == 1
    (error,) = errors(output)
    assert "database is locked" in error
    holder.execute("ROLLBACK")
    # one that may be read, but not written to
    holder.execute("BEGIN IMMEDIATE")
    code, output = project.run(*RUN)
    holder.close()
    assert code == 1
    (error,) = errors(output)
    assert "database is locked" in error
    assert len(output.splitlines()) < 5, output


def test_three_first_runs_at_once_all_end_well(project):
    (project.folder / "mlflow.db").unlink()
    command = ("kedro", "run", "--pipelines=data_prep", "--env=smoke")
    begun = [project.start(*command, f"--params=seed={seed}") for seed in range(3)]
    ended: list[str] = []
    threads = [threading.Thread(target=lambda p=p: ended.append(p.communicate()[0])) for p in begun]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.returncode for process in begun] == [0, 0, 0], ended
