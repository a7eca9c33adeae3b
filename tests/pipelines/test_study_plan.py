from __future__ import annotations

import mlflow
import pytest

from lt_pipeline.learning import methods
from lt_pipeline.pipeline_registry import register_pipelines
from lt_pipeline.pipelines.study import STUDIES, TABLES
from lt_pipeline.pipelines.study.plan import earlier_paces, plan


def run(method, epochs=200, backbone="resnet32", seed=0):
    training, model = {"epochs": epochs}, {"backbone": backbone}
    config = {"method": method, "seed": seed, "training": training, "model": model}
    return method.upper(), config


PACES = {("ce", "resnet32"): 2.0, ("dbm", "resnet32"): 4.0}


def test_it_says_what_is_there_and_what_the_rest_takes():
    runs = [run("ce"), run("dbm"), run("ce", seed=1), run("dbm", seed=1)]
    assert plan("s", runs, [True, False, False, False], PACES) == (
        "s: 4 runs, 1 of them there; 3 to train, 600 epochs, about 33 min at the pace of earlier "
        "runs: DBM (seed 0 1), CE (seed 1)"
    )
    assert plan("s", runs, [True] * 4, {}) == "s: 4 runs, 4 of them there; nothing is trained"


@pytest.mark.parametrize(("epochs", "said"), [(10, "about 20 s"), (9000, "about 5.0 h")])
def test_times_are_in_words(epochs, said):
    assert said in plan("s", [run("ce", epochs)], [False], PACES)


def test_a_pace_that_is_not_known_is_said():
    runs = [run("ce"), run("ce", backbone="resnet8"), run("bcl")]
    said = (
        "about 7 min at the pace of earlier runs and what bcl, ce takes, of which there is none yet"
    )
    assert said in plan("s", runs, [False] * 3, PACES)
    said = "how long is not known, as there is no run yet of bcl, ce"
    assert said in plan("s", runs[1:], [False] * 2, PACES)


@pytest.mark.slow
def test_paces_are_of_finished_runs_of_the_experiment(empty_database, tmp_path):
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    assert earlier_paces() == {}
    mlflow.set_experiment("digits")
    for seconds in (100.0, 300.0, 900.0):
        with mlflow.start_run():
            mlflow.set_tag("method", "ce")
            mlflow.log_params({"training.epochs": 100, "model.backbone": "resnet8"})
            mlflow.log_metric("cost/training_seconds", seconds)
    with mlflow.start_run():
        mlflow.log_metric("cost/training_seconds", 5)  # of no method
        assert earlier_paces() == {("ce", "resnet8"): 3.0}


def test_every_table_is_a_pipeline_of_a_study():
    pipelines = register_pipelines()
    for table, study in TABLES.items():
        assert study in STUDIES
        assert table.split("_")[1] in methods.available()
        assert [n.name for n in pipelines[table].nodes] == [n.name for n in pipelines[study].nodes]
