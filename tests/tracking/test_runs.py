from __future__ import annotations

import json

import mlflow
import numpy as np
import pandas as pd
import pytest

from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.schema import flatten
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking import runs as module
from lt_pipeline.tracking.runs import RIGHT, Runs, earlier_paces, keep_recalls

RECALLS = pd.DataFrame(
    {
        "class": range(700),
        "name": [f"class {c}" for c in range(700)],
        "group": "few",
        "training_images": 5,
        "test_images": [0, 3, 7] * 233 + [11],
        "recall": [0, 2 / 3, 3 / 7] * 233 + [1],
    }
)


@pytest.fixture
def experiment(tmp_path, empty_database):
    """An experiment of a tracking database of its own."""
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    experiment_id = mlflow.create_experiment(
        "digits", artifact_location=str(tmp_path / "artifacts")
    )
    mlflow.set_experiment("digits")
    return experiment_id


def log(config, table=RECALLS, groups="counts"):
    """Log what a run leaves in the store's own tables, and its artifacts; return its id."""
    values = config.model_dump(mode="json")
    kept = {name: value for name, value in values.items() if name not in ("method", "options")}
    params = {**kept, config.method: {"options": values["options"]}}
    with mlflow.start_run(run_name=config.method) as run:
        tracking.set_tags({"method": config.method, "data_hash": "d"})
        params = dict(flatten(params, "."))
        tracking.log_params({**params, "data.groups.rule": groups})
        mlflow.log_metric("test/accuracy", 0.5)
        mlflow.log_dict(values, "config.json")
        mlflow.log_text(table.to_csv(index=False), "class_table.csv")
        keep_recalls(table)
    return run.info.run_id


def test_runs_are_read_by_one_query_and_say_what_their_files_say(experiment, monkeypatch):
    configs = [
        ExperimentConfig.resolve(method, {"seed": seed, "training": {"milestones": [0.5, 0.75]}})
        for method in ("ce", "more", "crt", "btm", "ncm")
        for seed in (0, 1)
    ]
    ids = [log(config) for config in configs]
    asked, read = [], module._artifact
    monkeypatch.setattr(module, "_artifact", lambda *of: asked.append(of) or read(*of))
    by_query = Runs(experiment)
    table = by_query.table().set_index("run_id")
    for run_id, config in zip(ids, configs, strict=True):
        assert json.loads(table["config"][run_id]) == config.model_dump(mode="json")
    recalls = by_query.recalls(ids)
    assert [name for _, name in asked] == ["class_table.csv"], "what classes there are"
    for _, own in recalls.groupby("run_id"):
        pd.testing.assert_frame_equal(own[list(RECALLS)].reset_index(drop=True), RECALLS)
    assert by_query.notes == []


def test_classes_in_other_groups_are_not_taken_for_those_of_another_run(experiment):
    config = ExperimentConfig.resolve("ce", {})
    first, other = log(config), log(config, RECALLS.assign(group="many"), groups="thirds")
    recalls = Runs(experiment).recalls([first, other]).groupby("run_id")["group"].unique()
    assert (recalls[first].tolist(), recalls[other].tolist()) == (["few"], ["many"])


def test_recalls_that_are_too_long_for_a_tag_are_read_from_the_table(experiment):
    random = np.random.default_rng(0)
    many = RECALLS.loc[np.zeros(9000, int)].assign(test_images=10_000)
    many["recall"] = random.integers(0, 10_001, 9000) / 10_000
    run_id = log(ExperimentConfig.resolve("ce", {}), many)
    assert RIGHT not in mlflow.get_run(run_id).data.tags
    assert Runs(experiment).recalls([run_id])["recall"].tolist() == many["recall"].tolist()


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


def test_average_precisions_are_read_from_each_runs_own_table(experiment):
    """They follow from no counts that a tag could have."""
    for value in (0.25, 0.75):
        log(ExperimentConfig.resolve("bce", {}), RECALLS.assign(average_precision=value))
    table = Runs(experiment)
    runs = table.table()["run_id"]
    recalls = table.recalls(runs).groupby("run_id")["average_precision"].mean()
    assert sorted(recalls) == [0.25, 0.75]
    assert not any(RIGHT in run.data.tags for run in table._runs.values())
