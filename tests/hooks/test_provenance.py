from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import click
import mlflow
import pytest
from click.testing import CliRunner
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro_datasets.json import JSONDataset

from lt_pipeline.hooks import provenance
from lt_pipeline.hooks.provenance import ProvenanceHooks, command, end_killed_runs
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking import views
from lt_pipeline.tracking.processes import record_of, this_process
from lt_pipeline.tracking.runs import earlier_paces
from lt_pipeline.tuning.runs import Tracked
from lt_pipeline.versioning.git import BLOCK_BYTES, blob_id, hashes
from toys import toy_card


def typed(monkeypatch, *words, name="run"):
    """Return the command tag of a process that was started with ``words``."""
    inputs = []

    @click.command(name=name, context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1)
    def run(rest):
        inputs.append(command({"pipeline_names": ["from_python"]}))

    monkeypatch.setattr(sys, "argv", ["/somewhere/kedro", *words])
    done = CliRunner().invoke(run, [], catch_exceptions=False)
    assert done.exit_code == 0
    return inputs[0]


def test_the_command_is_what_was_typed_quoted_for_a_shell(monkeypatch):
    monkeypatch.delenv("KEDRO_ENV", raising=False)
    words = ["run", "--pipelines=more", "--env=smoke", "--params=a.b=1,c=two words"]
    line = typed(monkeypatch, *words)
    assert shlex.split(line) == ["kedro", *words]


def test_python_m_is_the_same_as_kedro_run(monkeypatch):
    monkeypatch.delenv("KEDRO_ENV", raising=False)
    assert typed(monkeypatch, "--pipelines=ce") == "kedro run --pipelines=ce"


def test_an_environment_of_the_environment_is_in_the_command(monkeypatch):
    monkeypatch.setenv("KEDRO_ENV", "smoke")
    assert typed(monkeypatch, "run", "--pipelines=ce") == "kedro run --pipelines=ce --env smoke"
    for told in (["--env", "x"], ["-e", "x"], ["--env=x"]):
        assert typed(monkeypatch, "run", *told) == shlex.join(["kedro", "run", *told])


def test_a_run_from_python_or_another_command_says_its_parameters(monkeypatch):
    given = {
        "pipeline_names": ["ce"],
        "namespaces": ["ce"],
        "tags": [],
        "node_names": ("a", "b"),
        "env": "smoke",
        "runtime_params": {"training": {"epochs": 3}, "seed": 1},
        "only_missing_outputs": True,
    }
    line = command(given)
    assert line == (
        "kedro run --pipelines=ce --namespaces=ce --nodes=a,b --env=smoke "
        "--params=training.epochs=3,seed=1 --only-missing-outputs"
    )
    assert typed(monkeypatch, "tune", name="tune") == "kedro run --pipelines=from_python"


def test_hashes_are_those_of_hashlib_git_and_dvc(tmp_path):
    content = bytes(range(256)) * (3 * BLOCK_BYTES // 256) + b"end"
    path = tmp_path / "file"
    path.write_bytes(content)
    expected = {n: hashlib.new(n, content).hexdigest() for n in ("sha256", "md5")}
    assert hashes(path) == expected
    git = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)
    assert blob_id(path) == git.stdout.strip()
    assert blob_id(tmp_path / "none") == ""


@pytest.fixture
def tags(monkeypatch):
    kept = {}
    monkeypatch.setattr(tracking, "set_tags", kept.update)
    return kept


def test_a_run_is_tagged_with_its_stage_its_lock_and_its_model(tmp_path, tags, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "ce")
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    (tmp_path / "dvc.lock").write_text("stages: {}\n")
    model = tmp_path / "model.json"
    catalog = DataCatalog(
        {"ce.model": JSONDataset(filepath=str(model)), "data_card": MemoryDataset()}
    )
    hooks = ProvenanceHooks()
    hooks.project = tmp_path
    hooks.before_pipeline_run({"pipeline_names": ["ce"]}, catalog)
    assert json.loads(tags.pop("process"))["pid"] == os.getpid()
    assert tags == {
        "command": "kedro run --pipelines=ce",
        "dvc_stage": "ce",
        "dvc_lock": blob_id(tmp_path / "dvc.lock"),
    }
    catalog.save("ce.model", {"weights": 1})
    hooks.after_dataset_saved("ce.model", None)
    assert tags["model_hash"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert tags["model_md5"] == hashlib.md5(model.read_bytes()).hexdigest()
    hooks.after_dataset_saved("data_card", replace(toy_card(), data_hash="abc"))
    assert (tags["data_hash"], tags["data_made"]) == ("abc", True)


def test_every_file_of_a_run_is_logged_with_its_hashes(tmp_path, monkeypatch):
    logged = {}
    monkeypatch.setattr(provenance.mlflow, "active_run", lambda: True)
    monkeypatch.setattr(provenance.mlflow, "log_dict", lambda d, name: logged.update({name: d}))
    folder = tmp_path / "data" / "figures"
    (folder / "deep").mkdir(parents=True)
    for path in (folder / "a.png", folder / "deep" / "b.png"):
        path.write_text(path.name)
    catalog = DataCatalog(
        {"table": JSONDataset(filepath=str(tmp_path / "data" / "t.json")), "m": MemoryDataset()}
    )
    catalog["figures"] = JSONDataset(filepath=str(folder))
    catalog.save("table", [1])
    hooks = ProvenanceHooks()
    hooks.project = tmp_path
    nodes = [Node(lambda: 1, None, name, name=name) for name in ("table", "m", "figures")]
    hooks.after_pipeline_run(Pipeline(nodes), catalog)
    files = logged["outputs.json"]
    assert list(files) == ["data/figures/a.png", "data/figures/deep/b.png", "data/t.json"]
    assert files["data/t.json"] == hashes(tmp_path / "data" / "t.json")


def test_runs_of_killed_processes_end_and_those_that_may_live_go_on(tmp_path, monkeypatch):
    search = mlflow.MlflowClient.search_runs
    monkeypatch.setattr(
        mlflow.MlflowClient,
        "search_runs",
        lambda self, *words, **options: search(self, *words, **{**options, "max_results": 1}),
    )
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/m.db")
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    gone = record_of(ended.pid)
    ended.communicate()
    processes = {
        "gone": gone,
        "reused": {**this_process(), "created": this_process()["created"] - 100},
        "alive": this_process(),
        "elsewhere": {**gone, "host": "another"},
    }
    try:
        for name, process in processes.items():
            mlflow.start_run(run_name=name, tags={"process": json.dumps(process)}, nested=True)
        mlflow.start_run(run_name="untold", nested=True)
        client = mlflow.MlflowClient()
        end_killed_runs()
        states = {r.info.run_name: r.info.status for r in tracking.find_runs(client, ["0"])}
        while mlflow.active_run():
            mlflow.end_run()
    finally:
        mlflow.set_tracking_uri(before)
    killed = {name for name, state in states.items() if state == "KILLED"}
    assert killed == {"gone", "reused"}
    assert {states[name] for name in ("alive", "elsewhere", "untold")} == {"RUNNING"}


@pytest.mark.parametrize(
    "say",
    [
        end_killed_runs,
        partial(views.keep, "results", views.results()),
        partial(tracking.log_epoch, "train", 1, {"loss": 1.0}),
        partial(tracking.log_metrics, {"a": 1.0}),
        partial(tracking.log_params, {"a": 1}),
        partial(tracking.log_data, "digits", "0" * 64),
        partial(tracking.set_tags, {"a": 1}),
        partial(tracking.drop_tags, {"a"}),
        partial(tracking.end_as_failed, None),
        earlier_paces,
        lambda: Tracked.of(SimpleNamespace()).close_lost(SimpleNamespace(trials=[])),
    ],
)
def test_without_a_run_no_store_is_opened(say, tmp_path):
    # MLflow's own choice is a file where the command runs
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'here.db'}")
    assert mlflow.active_run() is None
    say()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ends", "status"), [("raise KeyboardInterrupt", "KILLED"), ("mlflow.end_run()", "FINISHED")]
)
def test_a_run_that_was_interrupted_is_not_finished(tmp_path, empty_database, ends, status):
    shutil.copy(empty_database, tmp_path / "m.db")
    code = f"""
import mlflow
from kedro.io import DataCatalog
from lt_pipeline.hooks.provenance import ProvenanceHooks
from pathlib import Path

mlflow.set_tracking_uri("sqlite:///{tmp_path}/m.db")
mlflow.start_run()
hooks = ProvenanceHooks()
hooks.project = Path({str(tmp_path)!r})
hooks.before_pipeline_run({{}}, DataCatalog())
{ends}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ("KeyboardInterrupt" in done.stderr) == (status == "KILLED"), done.stderr
    (run,) = mlflow.MlflowClient(f"sqlite:///{tmp_path}/m.db").search_runs(["0"])
    assert run.info.status == status


def test_an_experiment_in_a_temporary_copy_is_logged_where_the_project_is(tmp_path):
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc"
    assert tracking.home(copy) == tmp_path
    assert tracking.home(tmp_path) == tmp_path
    assert tracking.absolute_uri("sqlite:///m.db", copy) == f"sqlite:///{tmp_path}/m.db"


def test_a_lock_file_does_not_make_the_tree_a_changed_one(tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    (tmp_path / "dvc.lock").write_text("1")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "dvc.lock").write_text("1")
    assert tracking.provenance(tmp_path, 0, "cpu")["git_dirty"] == "False"
    (tmp_path / "conf" / "other").write_text("1")
    assert tracking.provenance(tmp_path, 0, "cpu")["git_dirty"] == "True"
