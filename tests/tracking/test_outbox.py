"""No training waits for a tracking server, and no epoch is lost with one."""

from __future__ import annotations

import json
import time

import mlflow
import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking import outbox
from lt_pipeline.tracking.outbox import Outbox
from lt_pipeline.tracking.unsent import bring_in
from tracking.servers import dead, silent


class Server:
    """What MLflow is sent, as (run, steps); it refuses while it is ``down``."""

    def __init__(self):
        self.sent, self.down = [], False

    def log_batch(self, _, run, metrics):
        if self.down:
            raise MlflowException("server gone\nand more")
        assert len(metrics) <= 1000
        self.sent.append((run, [metric.step for metric in metrics]))

    @property
    def steps(self):
        return [step for _, steps in self.sent for step in steps]


@pytest.fixture
def server(monkeypatch, tmp_path):
    served = Server()
    monkeypatch.setattr(
        mlflow.MlflowClient, "log_batch", lambda _, run, metrics: served.log_batch(_, run, metrics)
    )
    monkeypatch.setenv(outbox.FOLDER, str(tmp_path / "unsent"))
    return served


def values(*steps, name="loss"):
    return [Metric(name, float(step), 1_700_000_000_000 + step, step) for step in steps]


def until(true, seconds=30):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_short_epochs_go_together_and_long_ones_at_once(server, monkeypatch):
    monkeypatch.setattr(outbox, "SECONDS_BETWEEN_CALLS", 1.0)
    box = Outbox()
    box.add("a", values(1))
    until(lambda: server.steps == [1])
    for step in (2, 3, 4):
        box.add("a", values(step))
    until(lambda: len(server.sent) == 2)
    time.sleep(1.1)
    box.add("a", values(5))
    until(lambda: len(server.sent) == 3, seconds=0.9)
    box.add("a", values(6))
    box.training_ends()
    assert server.sent == [("a", [1]), ("a", [2, 3, 4]), ("a", [5]), ("a", [6])]


def test_runs_and_calls_keep_to_themselves_and_in_order(server, monkeypatch):
    # the first call may come before the server is up
    monkeypatch.setattr(outbox, "SECONDS_BETWEEN_TRIES", 0.05)
    server.down = True
    box = Outbox()
    box.add("a", values(*range(2400)))
    box.add("b", values(1))
    box.add("a", values(2400))
    server.down = False
    box.training_ends()
    until(lambda: len(server.steps) == 2402)  # a busy machine may take longer than it waits
    assert [(run, len(steps)) for run, steps in server.sent] == [
        ("a", 1000), ("a", 1000), ("a", 400), ("b", 1), ("a", 1)
    ]  # fmt: skip
    assert server.steps == [*range(2400), 1, 2400]


def test_what_a_server_refused_is_told_once_and_sent_when_it_is_back(server, monkeypatch, caplog):
    monkeypatch.setattr(outbox, "SECONDS_BETWEEN_TRIES", 0.05)
    server.down = True
    box = Outbox()
    box.add("a", values(3))
    until(lambda: box.failed >= 3)
    assert [r.getMessage() for r in caplog.records] == [
        "Epochs 3 to 3 are not in MLflow yet: server gone"
    ]
    server.down = False
    box.add("a", values(4))
    until(lambda: server.steps == [3, 4])
    assert not box.waiting


def test_what_stays_unsent_is_in_a_file_that_a_command_brings_in(
    tmp_path, database, server, caplog
):
    server.down = True
    box = Outbox()
    box.add("a", [*values(1, 2), Metric("loss", float("nan"), 5, 3)])
    box.add("b", values(1))
    box.run_ends()
    assert "Epochs 1 to 3 are not in MLflow but in " in caplog.text
    assert "python -m lt_pipeline.tracking.unsent brings them in" in caplog.text
    kept = tmp_path / "unsent"
    assert sorted(path.name for path in kept.iterdir()) == ["a.jsonl", "b.jsonl"]
    assert not box.waiting
    box.add("a", values(4))
    box.run_ends()
    uri = f"sqlite:///{database}"
    with pytest.raises(UserError, match=r"does not take .*a\.jsonl: server gone"):
        list(bring_in(kept, uri))
    assert len(list(kept.iterdir())) == 2
    server.down = False
    assert list(bring_in(kept, uri)) == [
        "4 values are in MLflow's run a", "1 values are in MLflow's run b"
    ]  # fmt: skip
    assert server.sent == [("a", [1, 2, 3, 4]), ("b", [1])]
    assert not list(kept.iterdir())


def test_an_outbox_holds_no_more_than_it_may(tmp_path, server, monkeypatch):
    monkeypatch.setattr(outbox, "MAX_WAITING", 10)
    server.down = True
    box = Outbox()
    for start in range(0, 40, 4):
        box.add("a", values(*range(start, start + 4)))
        assert len(box.waiting) <= 10
    box.run_ends()
    lines = (tmp_path / "unsent" / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(40)]


@pytest.mark.parametrize("kind", ["dead", "silent"])
def test_a_whole_training_waits_two_seconds_at_most_for_a_server_that_is_gone(
    tmp_path, monkeypatch, kind
):
    assert outbox.TRAINING_SECONDS == 2
    monkeypatch.setattr(outbox, "TRAINING_SECONDS", 0.5)
    monkeypatch.setenv(outbox.FOLDER, str(tmp_path))
    monkeypatch.setattr(outbox, "RUN_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "_OUTBOX", box := Outbox())
    monkeypatch.setattr(mlflow, "active_run", lambda: type("R", (), {"info": Info}))
    with silent() as address:
        monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: {"silent": address}.get(kind, GONE))
        started = time.monotonic()
        for stage in range(5):
            with tracking.epochs():
                for epoch in range(20):
                    tracking.log_epoch(f"stage_{stage}", epoch, {"train/loss": 1.0})
        waited = time.monotonic() - started
        assert waited < outbox.TRAINING_SECONDS + 0.5
        tracking.run_ends()
    assert len((tmp_path / f"{Info.run_id}.jsonl").read_text().splitlines()) == 100
    assert not box.waiting


class Info:
    run_id = "0" * 32


GONE = dead()


def test_values_arrive_in_a_real_store_to_the_digit(tmp_path, database):
    uri = f"sqlite:///{database}"
    client = mlflow.MlflowClient(uri)
    run = client.create_run(client.create_experiment("x")).info.run_id
    sent = [Metric("loss", 0.1234567, 5, 1), Metric("loss", float("nan"), 6, 2)]
    kept = tmp_path / "unsent"
    kept.mkdir()
    lines = [json.dumps(outbox._plain(metric)) for metric in sent]
    (kept / f"{run}.jsonl").write_text("\n".join(lines) + "\n")
    # a call that timed out may have arrived
    client.log_batch(run, metrics=sent[:1])
    list(bring_in(kept, uri))
    history = client.get_metric_history(run, "loss")
    assert [(m.step, m.timestamp, repr(m.value)) for m in history] == [
        (1, 5, "0.1234567"), (2, 6, "nan")
    ]  # fmt: skip
    (kept / f"{'1' * 32}.jsonl").write_text(lines[0] + "\n")
    with pytest.raises(UserError, match="Run with id=1+ not found"):
        list(bring_in(kept, uri))
