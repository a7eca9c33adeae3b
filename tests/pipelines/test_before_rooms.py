"""What an earlier version wrote is read: runs, kept arms, a killed training, weights, a model.

The archive is of the commit before the science had a folder of its own, runs one key and nodes
typed values: in it ce was run with two seeds, more_schedules to its end, and more was killed.
"""

from __future__ import annotations

import json
import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from pipeline_projects import Project, experiment_of
from safetensors.torch import load_file

import confs
from arms import run_study
from before import unpack
from lt_pipeline.io.datasets import ImageSetDataset
from lt_pipeline.learning.experiments import run as module
from lt_pipeline.learning.experiments.evaluate import evaluate
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.store import Store, stage_resume
from lt_pipeline.learning.studies.comparison import CompareConfig, choose
from lt_pipeline.learning.studies.plan import Plan
from lt_pipeline.tracking.runs import Runs
from toys import toy_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The archive's project, as if it had been here."""
    return Project(unpack(tmp_path_factory.mktemp("before")))


@pytest.fixture
def server(before):
    """The archive's runs are those of the tracking server."""
    mlflow.set_tracking_uri(before.tracking_uri)
    return mlflow.MlflowClient()


def sets(project):
    names = ("train", "validation", "test", "auxiliary")
    folder = project.file("03_primary", "smoke")
    return Sets(*(ImageSetDataset(str(folder / f"{name}.safetensors")).load() for name in names))


def read(project, *parts):
    return json.loads(project.file("08_reporting", "smoke", *parts).read_text())


def test_its_runs_are_compared(before, server):
    experiment = server.get_experiment_by_name("digits-lt-ir10")
    logged = Runs(experiment.experiment_id)
    runs = logged.table()
    recalls = logged.recalls(runs["run_id"])
    assert logged.notes == []
    assert sorted(runs["seed"]) == [0, 1]
    assert set(runs["title"]) == {"ce"}
    (last,) = runs.loc[runs["seed"] == 1].to_dict("records")
    wanted = read(before, "ce", "metrics.json")["test"]
    assert last["test/accuracy"] == pytest.approx(wanted["accuracy"])
    assert len(recalls) == 20
    card = experiment_of(before, "ce").card
    chosen, left_out = choose(runs, CompareConfig(), card.data_hash)
    assert (len(chosen), left_out) == (2, [])


def test_its_study_is_finished(before, tmp_path, monkeypatch):
    parameters, card = confs.parameters("smoke"), experiment_of(before, "ce").card
    plan = Plan.of("more_schedules", parameters)
    store = Store(before.file("06_models", "smoke", "arms"))
    rows = pd.read_csv(before.file("08_reporting", "smoke", "more_schedules", "runs.csv"))
    rows = rows.set_index(["arm", "seed"])
    assert len(plan.runs) == len(rows) == 3
    for run in plan.runs.values():
        kept = store.metrics(Experiment(run.config, card))
        wanted = rows.loc[(run.label, run.config.seed)].dropna().to_dict()
        assert {name: kept[name] for name in wanted} == pytest.approx(wanted)
    monkeypatch.setattr(module, "train_stages", None)
    study = run_study("more_schedules", parameters, card, sets(before), tmp_path, store.folder)
    assert "failed" not in study
    other = Plan.of("more_schedules", {**parameters, "seed": 1})
    assert all(store.metrics(Experiment(run.config, card)) is None for run in other.runs.values())


def test_its_killed_training_begins_anew(before, tmp_path):
    """It is of parameters that had other names and defaults: nothing of it is mixed in."""
    experiment = experiment_of(before, "more")
    (stage,) = experiment.stages
    left = before.file("06_models", "smoke", "more", "progress")
    progress = shutil.copytree(left, tmp_path / "progress")
    assert list(progress.glob("*.pt"))
    assert stage_resume(experiment, stage, {}, toy_images(), progress).load() is None


def test_its_weights_give_its_metrics(before):
    experiment, images = experiment_of(before, "ce"), sets(before)
    assert experiment.config.seed == 1
    weights = load_file(before.file("06_models", "smoke", "ce", "model.safetensors"))
    report, history = (
        read(before, "ce", f"{name}.json") for name in ("finish_report", "train_history")
    )
    own = (images.train, images.validation, images.test)
    metrics, *_ = evaluate(experiment, weights, *own, report, [history])
    wanted = read(before, "ce", "metrics.json")
    # classes and the interval are new
    of_then = {name: metrics["test"][name] for name in wanted["test"]}
    assert of_then == pytest.approx(wanted["test"], rel=1e-5)
    for name in ("best_epoch", "diagnostics", "notes", "left_out_groups", "group_rule"):
        assert json.loads(json.dumps(metrics[name])) == wanted[name]
    assert metrics.keys() == wanted.keys()


def test_its_registered_models_answer(before, server):
    images = sets(before).test
    weights = load_file(before.file("06_models", "smoke", "ce", "model.safetensors"))
    with torch.no_grad():
        wanted = experiment_of(before, "ce").finished(weights).score(images.images).softmax(1)
    for version, same in ((1, False), (2, True)):
        model = mlflow.pyfunc.load_model(f"models:/ce-digits-lt-ir10/{version}")
        answer = model.predict(images.images.numpy())
        assert np.allclose(answer["probabilities"], wanted.numpy(), atol=1e-5) is same
        assert set(answer["class"]) <= set(images.class_names)
