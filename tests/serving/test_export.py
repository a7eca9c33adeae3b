"""Handing a finished model to MLflow, registered or not."""

from __future__ import annotations

import shutil
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.store import key
from lt_pipeline.serving.export import LATEST, deploy
from toys import FromAfar, toy_card, toy_images, toy_labels

REGISTERED = f"ce-{toy_card().config.slug}"
METRICS = {"test": {"accuracy": 0.5}}


@pytest.fixture
def run(tmp_path, empty_database):
    """An active run of a store of the test's own."""
    database = shutil.copy(empty_database, tmp_path / "m.db")
    mlflow.set_tracking_uri(f"sqlite:///{database}")
    experiment = mlflow.create_experiment("digits", (tmp_path / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment) as active:
        yield active
    mlflow.set_tracking_uri(None)


@pytest.fixture
def finished():
    """An experiment and its weights."""
    one = experiment()
    method = one.build()
    method.merge_for_inference()
    return one, dict(method.state_dict())


def experiment(**parameters):
    given = {"model": {"backbone": "resnet8"}, **parameters}
    return Experiment(ExperimentConfig.resolve("ce", given), toy_card())


def newest():
    try:
        client = mlflow.MlflowClient()
        return int(client.get_model_version_by_alias(REGISTERED, LATEST).version)
    except MlflowException:
        return None


def test_a_model_is_registered_only_where_that_is_asked_for(run, finished):
    images = toy_images()
    kept = deploy(*finished, images, METRICS, {"register": False}, {})
    assert (kept["registered_model"], kept["version"], newest()) == (None, None, None)
    assert not mlflow.MlflowClient().search_registered_models()
    registered = deploy(*finished, images, METRICS, {"register": True}, {})
    assert (registered["registered_model"], registered["version"]) == (REGISTERED, 1)
    assert newest() == 1
    again = deploy(*finished, FromAfar(images, at_once=1), METRICS, {"register": False}, {})
    assert newest() == 1
    for version in (kept, registered, again):
        assert version["run_id"] == run.info.run_id
        answer = mlflow.pyfunc.load_model(version["model_uri"]).predict(images.images[:3].numpy())
        assert answer["probabilities"].shape == (3, 4)


def test_what_is_finished_does_not_depend_on_it():
    told = ({}, {"tracking": {"register": True}}, {"tracking": {"register": False}})
    assert len({key(experiment(**more)) for more in told}) == 1


def test_a_model_of_several_labels_names_those_that_are_probable_enough(run):
    images = toy_labels()
    longtail = replace(LongTail.from_counts([90, 60, 40, 20], images.class_names), images=120)
    given = {"model": {"backbone": "resnet8"}}
    config = ExperimentConfig.resolve("bce", given)
    one = Experiment(config, replace(toy_card(), longtail=longtail))
    method = one.build()
    method.merge_for_inference()
    method.eval()
    probabilities = method.score(images.images[:6]).sigmoid().double()
    thresholds = probabilities.mean(0).tolist()
    metrics = {"test": {"mean_average_precision": 0.5}, "thresholds": thresholds}
    logged = deploy(one, dict(method.state_dict()), images, metrics, {"register": False}, {})
    model = mlflow.pyfunc.load_model(logged["model_uri"])
    answer = model.predict(images.images[:6].numpy())
    assert answer["probabilities"] == pytest.approx(probabilities.detach().numpy(), abs=1e-5)
    above = answer["probabilities"] >= torch.tensor(thresholds).numpy()
    said = [";".join(np.array(images.class_names)[row]) for row in above]
    assert list(answer["class"]) == said
    assert len({*said}) > 1
    assert answer["ood_score"] == pytest.approx(answer["probabilities"].max(1))
    assert model.metadata.metadata == {"mean_average_precision": 0.5}
