"""What an evaluation puts into effect before anything is opened."""

from __future__ import annotations

import mlflow
import pytest

from before import EXPERIMENT, SEED_0, SEED_1, unpack
from lt_pipeline.hooks.evaluation import EVALUATE, parent_tags, to_evaluate
from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.io.own_folders import differences, folder
from lt_pipeline.learning.experiments.config import data_config
from lt_pipeline.learning.schema import UserError
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from toys import PROJECT


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{unpack(tmp_path_factory.mktemp('before')) / 'mlflow.db'}"


def loader(model, env="smoke", **given):
    given = {EVALUATE: {"model": model}, **given}
    conf = str(PROJECT / "conf")
    return ConfLoader(conf_source=conf, env=env, runtime_params=given, **CONFIG_LOADER_ARGS)


def test_data_and_seed_are_those_of_the_run_and_all_else_is_as_conf_says(uri):
    conf = loader("ce", evaluation={"detectors": ["msp"]})
    before = conf["parameters"]
    run = to_evaluate(conf, uri, EXPERIMENT)
    after = conf["parameters"]
    assert run.id == SEED_1
    assert (after["seed"], after[EVALUATE]) == (1, {"model": f"runs:/{SEED_1}"})
    assert data_config(after) == data_config(before)
    changed = {name for name in before if after[name] != before[name]}
    assert changed <= {"seed", "data", EVALUATE}
    assert after["evaluation"]["detectors"] == ["msp"]
    assert parent_tags(run) == {"mlflow.parentRunId": SEED_1, "evaluated_run": SEED_1}


@pytest.mark.parametrize(("run", "name"), [(SEED_0, "smoke"), (SEED_1, "smoke+seed-1-a4bbadc1")])
def test_it_writes_beside_the_run_that_it_is_of(uri, run, name):
    conf = loader(run)
    to_evaluate(conf, uri, EXPERIMENT)
    assert folder("smoke", differences(conf["parameters"], conf.as_written())) == name


def test_data_are_those_of_the_run_in_any_environment(uri):
    conf = loader(SEED_0, env="base")
    to_evaluate(conf, uri, "whatever")
    assert data_config(conf["parameters"]) == data_config(loader(SEED_0)["parameters"])


def test_what_the_run_did_not_say_is_not_what_conf_says_today(uri):
    client = mlflow.MlflowClient(uri)
    run = client.get_run(SEED_0)
    experiment = client.get_experiment(run.info.experiment_id)
    copied = client.create_run(experiment.experiment_id, tags=run.data.tags)
    for name, value in run.data.params.items():
        if name not in ("data.max_per_class", "data.auxiliary.name", "data.auxiliary.images"):
            client.log_param(copied.info.run_id, name, value)
    for name in ("config.json", "metrics.json"):
        path = client.download_artifacts(SEED_0, name)
        client.log_artifact(copied.info.run_id, path)
    client.log_dict(copied.info.run_id, {}, "model.safetensors")
    conf = loader(copied.info.run_id)
    to_evaluate(conf, uri, EXPERIMENT)
    client.delete_run(copied.info.run_id)
    assert conf["parameters"]["data"]["max_per_class"] is None
    assert conf["parameters"]["data"]["auxiliary"] is None
    assert differences(conf["parameters"], conf.as_written()).keys() == {
        *("data.auxiliary", "data.max_per_class")
    }


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 1},
        {"training": {"epochs": 2.0}},
        {"data": {"imbalance_ratio": 10, "auxiliary": {"images": 200}}},
        {"device": "cpu", "evaluation": {"ood": False}, "tracking": {"register": True}},
    ],
)
def test_what_the_command_line_says_of_the_training_may_be_what_was(uri, given):
    assert to_evaluate(loader(SEED_1, **given), uri, EXPERIMENT).id == SEED_1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 0}, f"seed: is 0, but run {SEED_1} of ce was trained with 1: an evaluation"),
        ({"data": {"validation": 0.2}}, r"data.validation: is 0.2, but .* was trained with 0.0"),
        ({"training": {"epochs": 9}}, r"training.epochs: is 9, but .* was trained with 2"),
        ({"more": {"options": {"rank": 0.2}}}, r"more.options.rank: is 0.2, but .* knows no such"),
    ],
)
def test_what_it_says_otherwise_is_refused(uri, given, message):
    conf = loader(SEED_1, **given)
    with pytest.raises(UserError, match=message):
        to_evaluate(conf, uri, EXPERIMENT)


def test_null_opens_nothing(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    # MLflow's own choice is a file where the command runs
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'here.db'}")
    with pytest.raises(UserError, match=r"evaluate.model is null"):
        to_evaluate(loader(None), uri, EXPERIMENT)
    assert not list(tmp_path.iterdir())
