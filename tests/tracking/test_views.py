"""What MLflow keeps of the columns that matter, and the address that opens them."""

from __future__ import annotations

import json

import mlflow
import pytest

from lt_pipeline.tracking import views


def test_an_experiment_keeps_its_views_and_the_address_names_one(database):
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        experiment = run.info.experiment_id
        views.keep("results", "an older one")
        views.keep("results", views.results())
        views.keep("s", views.of_sweep("s", ["more.options.rank"]))
        assert views.where("s").endswith(
            f"/#/experiments/{experiment}/runs?viewStateShareKey=s&workflowType=machine_learning"
        )
    tags = client.get_experiment(experiment).tags
    columns = json.loads(tags["mlflow.sharedViewState.results"])["selectedColumns"]
    assert columns[0] == "metrics.`test/accuracy`"
    assert columns[-1] == "metrics.`validation/mean_recall`"
    sweep = json.loads(tags["mlflow.sharedViewState.s"])
    assert sweep["selectedColumns"] == [
        "metrics.`finished/validation/mean_recall`",
        "params.`more.options.rank`",
    ]
    assert sweep["searchFilter"] == "tags.study = 's'"
    assert sweep["orderByKey"] == sweep["selectedColumns"][0]
    several, photos = (
        json.loads(view)["selectedColumns"]
        for view in (views.results(several=True), views.results(balanced=False))
    )
    assert several[0] == "metrics.`test/mean_average_precision`"
    assert several[-1] == "metrics.`validation/mean_average_precision`"
    assert not {*several} & {*columns}
    assert photos == ["metrics.`test/mean_recall`", *columns]
    # every column has a place and a width
    for view in (json.loads(tags["mlflow.sharedViewState.results"]), sweep):
        assert {*view["selectedColumns"]} < {*view["columnOrder"]} == {*view["columnWidths"]}


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sqlite:////p/mlflow.db", "run `make ui` and open http://127.0.0.1:5000"),
        ("http://me:secret@server:5000", "open http://me:***@server:5000"),
        ("databricks", "open databricks"),
    ],
)
def test_no_password_is_said_and_without_a_run_only_the_server(monkeypatch, uri, words):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    assert views.where("results") == words
