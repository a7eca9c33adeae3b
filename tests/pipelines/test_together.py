"""Runs of a study, or of several seeds, at once: as they are one after the other."""

from __future__ import annotations

import re
import shutil
from threading import Thread

import mlflow
import pandas as pd
import pytest
import torch

import confs
from arms import run_study, sets, smoke
from lt_pipeline.learning.experiments import run as module
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.schema import UserError
from lt_pipeline.pipeline_registry import Registry, with_seeds
from lt_pipeline.reports.studies import FAILED
from lt_pipeline.tracking import client as tracking
from toys import toy_card

pytestmark = pytest.mark.usefixtures("two_threads")
ARMS = {
    "CE": {"method": "ce"},
    "wild": {"method": "ce", "training": {"learning_rate": 1e30}},
    "slow": {"method": "ce", "training": {"learning_rate": 0.01, "epochs": 2}},
    "CE again": {"method": "ce"},
    "cRT": {"method": "crt"},
    "LWS": {"method": "lws"},
}


def study(together, arms=None, seeds=1):
    arguments = {**smoke({"seeds": seeds, "arms": arms or ARMS}), "together": together}
    arguments["evaluation"] |= {"ood": False}
    return arguments


def told(table):
    """A table without what is of the clock or the process."""
    kept = sorted(name for name in table if "second" not in name and "memory" not in name)
    return table[kept].sort_values(["seed", "arm"], ignore_index=True)


def test_a_study_at_once_has_the_rows_of_one_after_the_other(tmp_path, monkeypatch):
    trained, begun, once = [], [], module.fit

    def fit(own, stage, *rest, **more):
        trained[-1].append(stage.name)
        return once(own, stage, *rest, **more)

    monkeypatch.setattr(module, "fit", fit)
    for together in (1, 6):
        trained.append([])
        arms = tmp_path / str(together)
        begun.append(told(run_study("s", study(together), toy_card(), sets(), tmp_path, arms)))
    pd.testing.assert_frame_equal(*begun, check_exact=True)
    assert "test/accuracy" in begun[0]
    wrong = begun[1].set_index("arm")[FAILED].dropna()
    assert list(wrong.index) == ["wild"]
    assert wrong["wild"].startswith("the loss term 'cross_entropy' is nan in epoch 1 of stage")
    # what arms have in common is trained once all the same
    wanted = ["classifier", "classifier", "pretrain", "train", "train", "train"]
    assert [sorted(stages) for stages in trained] == [wanted, wanted]


def test_what_begins_anew_is_drawn_by_no_other_threads_seed(monkeypatch):
    config = ExperimentConfig.resolve("crt", {"model": {"backbone": "resnet8"}})
    experiment, waiting = Experiment(config, toy_card()), []
    start = {"pretrain": experiment.build().state_dict()}
    stage = next(stage for stage in experiment.stages if stage.anew)
    expected, restart = experiment.begun(stage, start).state_dict(), experiment.kind._restart

    def beside(self, names):
        other = Thread(target=experiment.build)
        other.start()
        other.join(0.2)
        waiting.append(other.is_alive())
        restart(self, names)

    monkeypatch.setattr(experiment.kind, "_restart", beside)
    actual = experiment.begun(stage, start).state_dict()
    assert waiting == [True]
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_what_was_killed_goes_on(tmp_path, monkeypatch):
    card, arms, once, killed = toy_card(), {"CE": {"method": "ce"}}, module.finish, []
    whole = run_study("s", study(1, arms, 3), card, sets(), tmp_path, tmp_path / "whole")

    def finish(experiment, *rest):
        if experiment.config.seed == 1 and not killed:
            killed.append(True)
            raise KeyboardInterrupt
        return once(experiment, *rest)

    monkeypatch.setattr(module, "finish", finish)
    with pytest.raises(KeyboardInterrupt):
        run_study("s", study(3, arms, 3), card, sets(), tmp_path, tmp_path / "arms")
    assert list((tmp_path / "arms").rglob("train.pt"))
    result = run_study("s", study(3, arms, 3), card, sets(), tmp_path, tmp_path / "arms")
    pd.testing.assert_frame_equal(told(result), told(whole), check_exact=True)
    assert not list((tmp_path / "arms").rglob("*.pt"))


def test_each_has_its_own_run_in_mlflow_with_its_curve(tmp_path, empty_database):
    mlflow.set_tracking_uri(f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}")
    mlflow.set_experiment("here")
    arms = {"CE": {"method": "ce", "training": {"epochs": 3}}, "wild": ARMS["wild"]}
    with mlflow.start_run() as parent:
        table = run_study("s", study(4, arms, 2), toy_card(), sets(), tmp_path, tmp_path)
        tracking.run_ends()
    client = mlflow.MlflowClient()
    runs = client.search_runs([parent.info.experiment_id], "tags.mlflow.parentRunId != ''")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    by_name = {run.info.run_name: run for run in runs}
    assert by_name.keys() == {f"{arm} · seed {seed}" for arm in arms for seed in (0, 1)}
    for seed in (0, 1):
        run = by_name[f"CE · seed {seed}"]
        curve = client.get_metric_history(run.info.run_id, "train/cross_entropy")
        assert [point.step for point in curve] == [1, 2, 3]
        row = table[(table["arm"] == "CE") & (table["seed"] == seed)].iloc[0]
        assert run.data.metrics["test/accuracy"] == pytest.approx(row["test/accuracy"], rel=1e-6)
        assert (run.data.tags["seed"], run.info.status) == (str(seed), "FINISHED")
    assert not client.get_run(parent.info.run_id).data.metrics


def nodes_of(registry, name):
    return [
        node for node in registry[name].nodes if "training" in node.tags and "_run" in str(node)
    ]


def test_together_makes_a_node_of_several_runs():
    given = {**confs.parameters("smoke"), "seeds": [0, 1, 2], "together": 2}
    registry = Registry()
    registry.shape(with_seeds(given, ["ce"]))
    nodes = {node.name: node.outputs for node in nodes_of(registry, "ce")}
    space = "ce_over_seeds."
    assert nodes == {
        f"{space}s0_ce_to_s1_ce": [f"{space}s0_ce_run", f"{space}s1_ce_run"],
        f"{space}s2_ce": [f"{space}s2_ce_run"],
    }
    folded = {**given, "data": {"path": "p", "folds": 3}}
    registry.shape(with_seeds(folded, ["ce"]))
    space = "ce_over_folds."
    assert {node.name for node in nodes_of(registry, "ce")} == {
        name
        for fold in range(3)
        for name in (f"{space}s0_f{fold}_ce_to_s1_f{fold}_ce", f"{space}s2_f{fold}_ce")
    }, "what is done at once is on one fold"


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", [2], None])
def test_a_number_of_runs_that_is_none_is_refused_in_one_line(value):
    registry = Registry()
    registry.shape({**confs.parameters("smoke"), "together": value})
    with pytest.raises(UserError, match="together") as error:
        registry["dbm_K"]
    assert "\n" not in str(error.value)
    assert not re.search("AtOnce", str(error.value))
