from __future__ import annotations

import re
import subprocess
from types import SimpleNamespace

import mlflow
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy import make_url

from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking.outbox import Outbox
from lt_pipeline.tuning import storage
from lt_pipeline.tuning.config import TuneConfig
from lt_pipeline.tuning.runs import Tracked
from lt_pipeline.tuning.storage import open_storage, place_of


def test_a_relative_database_belongs_to_the_project(tmp_path):
    assert tracking.absolute_uri("sqlite:///m.db", tmp_path) == f"sqlite:///{tmp_path}/m.db"
    for uri in ("sqlite:////tmp/m.db", "http://server:5000", "postgresql://h/db", "sqlite://"):
        assert tracking.absolute_uri(uri, tmp_path) == uri
    for uri in ("sqlite:///:memory:", "sqlite:///file:m?mode=memory&uri=true"):
        assert tracking.absolute_uri(uri, tmp_path) == uri


@pytest.mark.parametrize("name", ["a%20b", "a?b", "a b", "a#b", "a@b", "a%", "a&b=c", "ä"])
def test_a_database_is_found_in_a_project_of_any_name(tmp_path, name):
    project = tmp_path / name
    uri = tracking.absolute_uri("sqlite:///m.db?timeout=3", project)
    assert make_url(uri).database == str(project / "m.db")
    assert make_url(uri).query == {"timeout": "3"}
    assert tracking.absolute_uri(uri, project) == uri


@pytest.fixture
def calls(monkeypatch):
    """What MLflow is sent, as (run, [(name, step, value), ...]); ``run`` is the active one."""
    state = SimpleNamespace(sent=[], run="a")

    def log_batch(_, run, metrics):
        state.sent.append((run, [(m.key, m.step, m.value) for m in metrics]))

    monkeypatch.setattr(tracking, "_OUTBOX", Outbox())
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    active = lambda: SimpleNamespace(info=SimpleNamespace(run_id=state.run))  # noqa: E731
    monkeypatch.setattr(mlflow, "active_run", active)
    return state


def test_what_was_reached_ends_the_curve_of_its_own_run_and_else_has_no_step(calls):
    with tracking.epochs():
        for epoch in (1, 2):
            tracking.log_epoch("train", epoch, {"validation/accuracy": 0.5})
    tracking.log_metrics({"validation/accuracy": 0.7, "test/accuracy": 0.6})
    assert calls.sent[-1] == ("a", [("validation/accuracy", 2, 0.7), ("test/accuracy", 0, 0.6)])
    calls.run = "b"
    tracking.log_metrics({"validation/accuracy": 0.8})
    assert calls.sent[-1] == ("b", [("validation/accuracy", 0, 0.8)])


def test_numbers_have_the_digits_of_single_precision_and_counts_all_of_theirs(calls):
    dusty = {"few": 0.8899999856948853, "parameters": 123456789.0, "rate": 1.5e-9}
    wanted = {"few": 0.89, "parameters": 123456789, "rate": 1.5e-9}
    tracking.log_metrics(dusty)
    assert {name: value for name, _, value in calls.sent[-1][1]} == wanted
    with tracking.epochs():
        tracking.log_epoch("train", 1, dusty)
    assert {name: value for name, _, value in calls.sent[-1][1]} == wanted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host:1/name", "postgresql://me:***@host:1/name"),
        ("postgresql://me@srv:se@cret@host/name", "postgresql://me@srv:***@host/name"),
        ("http://:secret@host", "http://:***@host"),
        ("://:secret@", "://:***@"),
        ("postgresql://u:a,b=c@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:a://b@h/d", "postgresql://u:***@h/d"),
        ("postgresql://h/d?user=u&password=S,1#2&x=y", "postgresql://h/d?user=u&password=***&x=y"),
        (
            "mssql+pyodbc:///?odbc_connect=X%3BPWD%3DS",
            "mssql+pyodbc:///?odbc_connect=X%3BPWD%3D***",
        ),
        (
            "--params=a=http://h:5000/x,tune.storage=postgresql://u:a@b/c,d@h:1/n,seed=1,b=x@y",
            "--params=a=http://h:5000/x,tune.storage=postgresql://u:***@h:1/n,seed=1,b=x@y",
        ),
        (
            "--params=tune.storage=postgresql://h/d?password=S,tune.trials=2",
            "--params=tune.storage=postgresql://h/d?password=***,tune.trials=2",
        ),
    ],
)
def test_passwords_are_hidden_and_nothing_else(text, shown):
    assert tracking.masked(text) == shown
    assert tracking.masked(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/#/experiments",
        "sqlite:////home/me@work/mlflow.db",
        "postgresql://host:5432/name,tune.study=me@home",
        "http://host:5000 is down, write to me@home",
        "data.path=a:b@c",
    ],
)
def test_what_is_no_password_is_shown(text):
    assert tracking.masked(text) == text


PRINTED = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1)


@given(user=PRINTED.filter(lambda t: not {*":/"} & {*t}) | st.just(""), password=PRINTED)
def test_no_password_of_an_address_is_shown(user, password):
    # a comma before a name and a scheme end an address within a longer text
    assume("://" not in password)
    assume(not re.search(r",[\w.-]+=", password))
    address = f"postgresql://{user}:{password}@host:1/name"
    assert tracking.masked(address) == f"postgresql://{user}:***@host:1/name"
    assert tracking.masked(f"x {address}, y") == f"x postgresql://{user}:***@host:1/name, y"


def test_no_address_that_a_sweep_prints_has_the_password(tmp_path, monkeypatch):
    for url in ("postgresql://me:a@secret@h/d", "postgresql://h/d?user=me&password=secret"):
        config = TuneConfig(storage=url)
        assert place_of(config, tmp_path) == tracking.masked(url)
        monkeypatch.setattr(storage, "RDBStorage", raising(ValueError("port 'secret'")))
        with pytest.raises(ConnectionError, match="this is no address") as refused:
            open_storage(config, tmp_path)
        assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match=r"http://me:\*\*\*@localhost:5000") as unreachable:
        Tracked(uri="http://me:secret@localhost:5000", parent="run").check_reach(2)
    assert "secret" not in str(unreachable.value)


def raising(error):
    def call(*_, **__):
        raise error

    return call


def test_parameters_are_logged_by_their_paths_in_conf():
    config = {"method": "ce", "seed": 1, "options": {"a": {"b": 2}}, "training": {"epochs": 3}}
    assert tracking.by_method(config) == {
        "method": "ce",
        "seed": 1,
        "training.epochs": 3,
        "ce.options.a.b": 2,
    }
    assert "options" in config


def test_provenance_tells_a_changed_tree_from_a_committed_one(tmp_path):
    assert tracking.provenance(tmp_path, 0, "cpu")["mlflow.source.git.commit"] == "unknown"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    clean = tracking.provenance(tmp_path, 7, "cuda")
    assert len(clean["mlflow.source.git.commit"]) == 40
    assert (clean["git_dirty"], clean["seed"], clean["device"]) == ("False", "7", "cuda")
    (tmp_path / "file").write_text("2")
    assert tracking.provenance(tmp_path, 7, "cuda")["git_dirty"] == "True"


def test_epochs_of_later_stages_have_the_stage_in_their_names(calls):
    with tracking.epochs():
        for stage in ("pretrain", "branch_0"):
            tracking.log_epoch(stage, 1, {"train/loss": 1.0, "validation/accuracy": 0.5})
    assert [name for _, metrics in calls.sent for name, *_ in metrics] == [
        "train/loss",
        "validation/accuracy",
        "train/branch_0/loss",
        "validation/branch_0/accuracy",
    ]
