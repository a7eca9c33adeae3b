from __future__ import annotations

import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from lt_pipeline import tracking


def test_nested_values_become_grouped_numbers():
    values = {"test": {"accuracy": 0.5, "floor": 1}, "rule": "x", "ok": True, "left": []}
    assert tracking.numbers(values) == {"test/accuracy": 0.5, "test/floor": 1.0}
    assert dict(tracking.flatten({"a": {"b": [1], "c": None}}, ".")) == {"a.b": [1], "a.c": None}


def test_a_relative_database_belongs_to_the_project(tmp_path):
    assert tracking.absolute_uri("sqlite:///m.db", tmp_path) == f"sqlite:///{tmp_path}/m.db"
    for uri in ("sqlite:////tmp/m.db", "http://server:5000", "postgresql://h/db"):
        assert tracking.absolute_uri(uri, tmp_path) == uri


def test_without_a_run_nothing_is_logged_and_nothing_breaks():
    assert mlflow.active_run() is None
    tracking.log_epoch("train", 1, {"loss": 1.0})
    tracking.set_tags({"a": 1})
    assert mlflow.active_run() is None


def test_a_server_that_fails_during_training_warns_and_does_not_end_it(monkeypatch, caplog):
    def fail(*_, **__):
        raise MlflowException("server gone")

    monkeypatch.setattr(tracking, "_log_batch", fail)
    tracking.log_epoch("train", 3, {"loss": 1.0})
    assert "Epoch 3 of train is not in MLflow: server gone" in caplog.text
    with pytest.raises(MlflowException):
        tracking.log_metrics({"test/accuracy": 1.0})


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////nowhere/at/all/m.db"])
def test_what_cannot_be_reached_is_refused_with_its_address(uri):
    with pytest.raises(ConnectionError, match="cannot be reached") as found:
        tracking.check_server(uri)
    assert uri in str(found.value)
    assert "MLFLOW_TRACKING_URI" in str(found.value)


def test_a_password_is_not_printed():
    with pytest.raises(ConnectionError) as found:
        tracking.check_server("http://user:secret@127.0.0.1:9")
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(("status", "reachable"), [(200, True), (500, False)])
def test_a_server_is_asked_for_its_health(status, reachable):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}"
    try:
        if reachable:
            tracking.check_server(uri)
        else:
            with pytest.raises(ConnectionError, match="500"):
                tracking.check_server(uri)
    finally:
        server.shutdown()
    assert asked == ["/health"]


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


def test_epochs_of_later_stages_have_the_stage_in_their_names(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        tracking, "log_metrics", lambda values, step: seen.setdefault(step, []).append(values)
    )
    for stage in ("pretrain", "branch_0"):
        tracking.log_epoch(stage, 1, {"train/loss": 1.0, "validation/accuracy": 0.5})
    assert seen == {
        1: [
            {"train/loss": 1.0, "validation/accuracy": 0.5},
            {"train/branch_0/loss": 1.0, "validation/branch_0/accuracy": 0.5},
        ]
    }
