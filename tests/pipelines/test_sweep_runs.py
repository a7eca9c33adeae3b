"""What MLflow has of a sweep that several runs work on."""

from __future__ import annotations

import shutil

import mlflow
import pytest
from optuna.trial import TrialState

from lt_pipeline.pipelines.tune.task import Task
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tuning.runs import BELOW, PARENT, Tracked, publish_tested
from lt_pipeline.tuning.study import REASON, RUN
from sweeps import parameters, task

TRAIN = Task.train
LINE = {"training": {"learning_rate": {"low": 0.001, "high": 1.0, "log": True}}}


def nothing(self, config, report, number):
    """A trial that trains nothing."""
    return 0.5


@pytest.fixture
def client(tmp_path, empty_database, monkeypatch):
    """A server of this test's own, and trials that train nothing."""
    monkeypatch.setattr(Task, "train", nothing)
    shutil.copy(empty_database, tmp_path / "m.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/m.db")
    experiment = mlflow.create_experiment("digits", artifact_location=str(tmp_path / "artifacts"))
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", experiment)
    return mlflow.MlflowClient()


def sweep(folder, trials):
    """Do what is left of ``trials`` below the active run."""
    one = task(folder, search=LINE, trials=trials).tracked_by_the_active_run()
    one.search().run()
    return one


def test_trials_of_a_later_run_stand_below_the_first_one(tmp_path, client):
    with mlflow.start_run() as first:
        sweep(tmp_path, 1)
    with mlflow.start_run() as second:
        one = sweep(tmp_path, 3)
        assert mlflow.active_run().info.run_id == second.info.run_id
    runs = [client.get_run(trial.user_attrs[RUN]) for trial in one.study.trials]
    assert len({run.info.run_id for run in runs}) == 3
    for run in [*runs, client.get_run(second.info.run_id)]:
        assert run.data.tags[BELOW] == first.info.run_id
        assert run.info.status == "FINISHED"


@pytest.mark.usefixtures("two_threads")
def test_of_trials_at_once_each_has_its_own_run_with_its_curve(tmp_path, client, monkeypatch):
    monkeypatch.setattr(Task, "train", TRAIN)
    rates = {"training": {"learning_rate": {"choices": [0.02, 0.1, 1e37]}}}
    found = parameters(search=rates, trials=3, epochs=3, pruner="none")
    with mlflow.start_run() as parent:
        one = task(tmp_path, {**found, "together": 2}).tracked_by_the_active_run()
        for rate in (0.02, 1e37, 0.1):
            one.study.enqueue_trial({"training.learning_rate": rate})
        one.work()
        assert mlflow.active_run().info.run_id == parent.info.run_id
        tracking.run_ends()
    assert not client.get_run(parent.info.run_id).data.metrics
    for trial in one.study.trials:
        run = client.get_run(trial.user_attrs[RUN])
        assert run.data.tags[BELOW] == parent.info.run_id
        assert run.data.tags["trial"] == str(trial.number)
        assert run.info.status == "FINISHED"
        rate = trial.params["training.learning_rate"]
        assert float(run.data.params["training.learning_rate"]) == rate
        if rate > 1:
            assert run.data.tags["trial_state"] == "pruned"
            assert "lower training.learning_rate" in run.data.tags[REASON]
            continue
        assert run.data.tags["trial_state"] == "complete"
        curve = client.get_metric_history(run.info.run_id, "validation/mean_recall")
        reported = {point.step: pytest.approx(point.value, rel=1e-6) for point in curve}
        assert trial.intermediate_values == reported
        found = run.data.metrics["finished/validation/mean_recall"]
        assert found == pytest.approx(trial.value, rel=1e-6)


def test_of_two_machines_that_begin_at_one_moment_one_is_the_first(tmp_path, client, monkeypatch):
    one = task(tmp_path, search=LINE)
    (experiment,) = {e.experiment_id for e in client.search_experiments() if e.name == "digits"}
    other = client.create_run(experiment).info.run_id
    alone = one.study.set_user_attr

    def both(name, value):
        alone(name, value)
        alone(name, other)

    monkeypatch.setattr(one.study, "set_user_attr", both)
    with mlflow.start_run() as own:
        assert Tracked.of(one.study).parent == other
    assert client.get_run(own.info.run_id).data.tags[BELOW] == other


def test_a_lost_trial_is_told_as_lost_and_one_of_another_server_does_not_matter(tmp_path, client):
    one = task(tmp_path, search=LINE)
    with mlflow.start_run():
        tracked = Tracked.of(one.study)
        experiment = tracked.experiment
        known = {s: client.create_run(experiment).info.run_id for s in ("RUNNING", "KILLED")}
        client.set_terminated(known["KILLED"], "KILLED")
        for run in ("0" * 32, *known.values()):
            trial = one.study.ask()
            trial.set_user_attr(RUN, run)
            one.study.tell(trial, state=TrialState.FAIL)
        tracked.close_lost(one.study)
    runs = {status: client.get_run(run) for status, run in known.items()}
    assert {s: run.info.status for s, run in runs.items()} == {
        "RUNNING": "FAILED",
        "KILLED": "KILLED",
    }
    assert {run.data.tags["trial_state"] for run in runs.values()} == {"lost"}


def test_the_run_that_began_a_sweep_ends_with_the_judgement_that_another_makes(tmp_path, client):
    one = task(tmp_path, search=LINE, trials=1)
    (experiment,) = {e.experiment_id for e in client.search_experiments() if e.name == "digits"}
    first = client.create_run(experiment, run_name="tune ce").info.run_id
    one.study.set_user_attr(PARENT, first)
    with mlflow.start_run() as second:
        one = sweep(tmp_path, 1)
        best = {"value": 0.5, "metric": "validation/mean_recall", "to_start": 0, "running": 0}
        one.tracked.publish(one.study.trials_dataframe(), best, {})
        assert client.get_run(first).info.status == "RUNNING"
        publish_tested({})
        assert client.get_run(first).info.status == "RUNNING"
        publish_tested({"test/accuracy": 0.25})
        assert mlflow.active_run().info.run_id == second.info.run_id
    run = client.get_run(first)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tune ce")
    assert run.data.metrics == {"best/validation/mean_recall": 0.5, "test/accuracy": 0.25}
    names = {artifact.path for artifact in client.list_artifacts(first)}
    assert names == {"trials.csv", "best.json", "tested.json"}


def test_the_run_that_judges_its_own_sweep_has_it_once(client):
    with mlflow.start_run() as run:
        publish_tested({"test/accuracy": 0.25})
        assert client.get_run(run.info.run_id).info.status == "RUNNING"
    assert client.get_run(run.info.run_id).data.metrics == {}
    publish_tested({"test/accuracy": 0.25})
