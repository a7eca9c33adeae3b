from __future__ import annotations

import mlflow
import pytest

from lt_pipeline.tracking.runs import earlier_paces


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
