"""The store of runs is opened once at the start; whatever is wrong is one line within seconds."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from contextlib import contextmanager

import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

import warm
from lt_pipeline.learning.schema import UnreachableError, UserError
from lt_pipeline.tracking import store
from lt_pipeline.tracking.client import absolute_uri
from toys import PROJECT
from tracking.servers import answering, dead, silent

FIRST = """
import sys, time
from pathlib import Path
from lt_pipeline.tracking.store import make_experiment, open_store
uri, ready, begin = sys.argv[1:]
Path(ready).touch()
while not Path(begin).exists():
    time.sleep(0.001)
open_store(uri)
make_experiment(uri, "digits")
"""


def refused(uri, kind=UserError):
    """Return the line that refuses ``uri``, and see that it took seconds only."""
    started = time.monotonic()
    with pytest.raises(kind) as error:
        store.open_store(uri)
    assert time.monotonic() - started < 10
    assert "\n" not in str(error.value)
    assert "MLFLOW_TRACKING_URI" in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_three_first_runs_at_once_make_one_database(tmp_path):
    uri = f"sqlite:///{tmp_path}/m.db"
    ready, begin = [tmp_path / f"ready{k}" for k in range(3)], tmp_path / "begin"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    begun = [
        warm.Process(
            [sys.executable, "-c", FIRST, uri, str(path), str(begin)], tmp_path, environment
        )
        for path in ready
    ]
    while not all(path.exists() for path in ready):
        assert [process.poll() for process in begun] == [None] * 3
        time.sleep(0.01)
    begin.touch()
    said = [process.communicate(timeout=100)[0] for process in begun]
    assert [(p.returncode, text) for p, text in zip(begun, said, strict=True)] == [(0, "")] * 3
    client = mlflow.MlflowClient(uri)
    assert sorted(e.name for e in client.search_experiments()) == ["Default", "digits"]


def test_an_experiment_that_another_run_makes_just_now_is_taken(database, monkeypatch):
    uri = f"sqlite:///{database}"
    store.make_experiment(uri, "x")
    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", lambda *_: None)
    store.make_experiment(uri, "x")
    with pytest.raises(MlflowException, match="Invalid experiment name"):
        store.make_experiment(uri, "")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("mlruns", "is a folder, in which MLflow keeps no runs any more"),
        ("file:///tmp/mlruns", "is a folder, in which MLflow keeps no runs any more"),
        ("/tmp/mlruns", "is a folder, in which MLflow keeps no runs any more"),
        ("nosuch://host/x", "is none that keeps runs"),
        ("databricks-uc", "is none that keeps runs"),
        ("uc:x", "is none that keeps runs"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///file:m?mode=memory&uri=true", "names no file"),
        ("sqlite:mlflow.db", "names no file"),
        ("sqlite://mlflow.db", "names no file"),
        ("sqlite:////tmp/a?b/mlflow.db", "write \\? in a path as %3F"),
    ],
)
def test_what_is_no_address_of_a_store_is_refused_with_what_would_be_right(uri, said):
    with pytest.raises(UserError, match=said):
        store.open_store(uri)
    assert not isinstance(refused(uri), UnreachableError)


def test_a_folder_is_opened_by_who_tells_mlflow_to(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store.open_store((tmp_path / "mlruns").as_uri())


def test_a_file_that_is_none_of_sqlite_is_refused(tmp_path):
    (tmp_path / "text.db").write_text("hello, this is a text and no database\n" * 99)
    assert "file is not a database" in refused(f"sqlite:///{tmp_path}/text.db", UnreachableError)
    assert "is a folder, name a file in it" in refused(f"sqlite:///{tmp_path}")


def test_databricks_without_its_credentials_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DATABRICKS_HOST", "DATABRICKS_TOKEN", "DATABRICKS_CONFIG_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    assert "databricks" in refused("databricks", UnreachableError)


def test_a_server_that_accepts_and_never_answers_is_refused(monkeypatch):
    monkeypatch.setattr(store, "TIMEOUT_SECONDS", 1)
    with silent() as address:
        assert "timed out" in refused(address, UnreachableError)
    assert "refused" in refused(dead(), UnreachableError)


@contextmanager
def locked(path, how):
    """Let another connection have ``path`` for itself."""
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute(f"BEGIN {how}")
    try:
        yield
    finally:
        holder.close()


def test_a_database_that_another_process_has_locked_is_refused(database, monkeypatch):
    monkeypatch.setattr(store, "TIMEOUT_SECONDS", 1)
    with locked(database, "EXCLUSIVE"):
        assert "database is locked" in refused(f"sqlite:///{database}", UnreachableError)
    store.open_store(f"sqlite:///{database}")


def test_tables_that_another_process_makes_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "TABLES_SECONDS", 0.2)
    with store.filelock.FileLock(tmp_path / "m.db.lock"):
        said = refused(f"sqlite:///{tmp_path}/m.db", UnreachableError)
    assert "m.db.lock" in said


@pytest.mark.parametrize("name", ["a%20b", "a?b", "a b", "a%3Fb#c"])
def test_a_project_of_any_name_keeps_runs_and_artifacts(tmp_path, empty_database, name):
    project = tmp_path / name
    project.mkdir()
    (project / "m.db").write_bytes(empty_database.read_bytes())
    uri = absolute_uri("sqlite:///m.db", project)
    location = str(project / "mlartifacts")
    experiment = {"name": "x", "create_experiment_kwargs": {"artifact_location": location}}
    conf = {"server": {"mlflow_tracking_uri": uri}, "tracking": {"experiment": experiment}}
    store.prepare(conf, project)
    client = mlflow.MlflowClient(uri)
    run = client.create_run(client.get_experiment_by_name("x").experiment_id).info
    client.log_text(run.run_id, "hello", "a.txt")
    (written,) = project.rglob("a.txt")
    assert written.is_relative_to(project / "mlartifacts")
    assert [artifact.path for artifact in client.list_artifacts(run.run_id)] == ["a.txt"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture
def runs(database):
    """An address with a run of the experiment ``mine``, a deleted one, and one of ``other``."""
    uri = f"sqlite:///{database}"
    client = mlflow.MlflowClient(uri)
    mine, other = client.create_experiment("mine"), client.create_experiment("other")
    made = [client.create_run(experiment).info.run_id for experiment in (mine, mine, other)]
    client.delete_run(made[1])
    return uri, made


@pytest.mark.parametrize("told", ["environment", "conf"])
def test_a_run_to_go_on_with_must_be_there(runs, monkeypatch, tmp_path, told):
    uri, (there, deleted, other) = runs

    def begin(run):
        tracked = {"experiment": {"name": "mine"}, "run": {"id": run if told == "conf" else None}}
        if told == "environment":
            monkeypatch.setenv("MLFLOW_RUN_ID", run)
        store.prepare({"server": {"mlflow_tracking_uri": uri}, "tracking": tracked}, tmp_path)

    begin(there)
    for run, why in (
        ("0" * 32, "there is no run '0+' in sqlite"),
        ("no id", "there is no run 'no id' in sqlite"),
        (deleted, "is deleted"),
        (other, "is of other"),
    ):
        with pytest.raises(UserError, match=f"MLFLOW_RUN_ID: .*{why}.*; unset it, or name a run"):
            begin(run)


def test_only_a_store_that_is_gone_is_taken_for_one():
    gone = MlflowException("API request failed")
    gone.__cause__ = requests.ConnectionError("refused\nand more")
    assert store.unreachable(gone) == "refused"
    locked = MlflowException(OperationalError("INSERT", {}, Exception("database is locked")))
    locked.__cause__ = OperationalError("INSERT", {}, Exception("database is locked"))
    assert "database is locked" in store.unreachable(locked)
    assert store.unreachable(MlflowException("no such run")) is None
    assert store.gone(KeyError("a bug")) is None


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////nowhere/at/all/m.db"])
def test_what_cannot_be_reached_is_refused_with_its_address(uri):
    with pytest.raises(ConnectionError, match="cannot be reached") as error:
        store.open_store(uri)
    assert uri in str(error.value)
    assert "MLFLOW_TRACKING_URI" in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:secret@127.0.0.1:9",
        "http://:secret@127.0.0.1",
        "http://user:a/secret@127.0.0.1:9",
        "http://user:a@secret@127.0.0.1:9",
        "http://127.0.0.1:9/?password=secret",
        "postgresql+psycopg://user:secret@127.0.0.1:1/x",
        "postgresql+psycopg://user:a@b:secret/c@h/x",
        "postgresql+psycopg://127.0.0.1:1/x?user=me&password=secret",
    ],
)
def test_a_password_is_not_printed(uri):
    with pytest.raises(ConnectionError, match="cannot be reached") as error:
        store.open_store(uri)
    assert "secret" not in str(error.value)
    assert "***" in str(error.value)


@pytest.mark.parametrize("user", ["", "me:secret@", "me:a@b@"])
def test_a_server_is_asked_for_its_health(user):
    asked = []
    with answering(200, asked) as host:
        store.open_store(f"http://{user}{host}")
    with answering(500, asked) as host, pytest.raises(UnreachableError, match="500"):
        store.open_store(f"http://{user}{host}/")
    assert asked == ["/health", "/health"]
