"""What was trained: the runs behind addresses, and what they were trained as, beside and to."""

from __future__ import annotations

from dataclasses import replace

import mlflow
import pytest
import torch
import yaml
from kedro.io import AbstractDataset
from safetensors.torch import load_file, save_file

from before import ARM, EXPERIMENT, RUNNING, SEED_0, SEED_1, unpack
from lt_pipeline.learning import methods
from lt_pipeline.learning.data.prepare import DataConfig
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.schema import UserError
from lt_pipeline.serving.export import export
from lt_pipeline.tracking.models import EvaluateConfig, run_of, trained, weights, weights_inside
from lt_pipeline.tracking.runs import finished_runs
from toys import PROJECT, toy_card, toy_images

NOWHERE = "f" * 31 + "0"
MODEL = "ce-digits-lt-ir10"
DATA = {
    "source": "digits",
    "profile": {"name": "exponential"},
    "imbalance_ratio": 10,
    "max_per_class": 60,
    "order": "label",
    "index": "seeded",
    "validation": 0.0,
    "seed": 0,
    "groups": {"rule": "counts"},
    "auxiliary": {"name": "gaussian_noise", "images": 200},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("before"))


@pytest.fixture
def client(folder):
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    return mlflow.MlflowClient()


@pytest.fixture
def run(client):
    """A run of a test's own on the same images, which no later test finds."""
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    tags = {"data_hash": client.get_run(SEED_0).data.tags["data_hash"], "method": "dbm"}
    with mlflow.start_run(experiment_id=experiment, run_name="own", tags=tags) as active:
        yield active
    client.delete_run(active.info.run_id)


def keep(config, weights, folder):
    """Log what makes the active run one that can be evaluated."""
    mlflow.log_dict(config.model_dump(mode="json"), "config.json")
    save_file(weights, folder / "model.safetensors")
    mlflow.log_artifact(str(folder / "model.safetensors"))


@pytest.mark.parametrize(
    ("address", "run"),
    [
        (SEED_0, SEED_0),
        (f"runs:/{SEED_0}", SEED_0),
        (f"runs:/{SEED_0}/model", SEED_0),
        (f"models:/{MODEL}/1", SEED_0),
        (f"{MODEL}/2", SEED_1),
        (f"models:/{MODEL}@newest", SEED_1),
        ("ce", SEED_1),
    ],
)
def test_every_kind_of_address_leads_to_its_run(client, address, run):
    assert run_of(client, address, EXPERIMENT).info.run_id == run


def test_a_model_that_is_not_registered_is_found_by_its_own_id(client):
    model = client.get_run(SEED_0).outputs.model_outputs[-1].model_id
    assert run_of(client, f"models:/{model}", "").info.run_id == SEED_0


def test_a_copy_in_the_registry_is_of_the_run_that_made_the_model(client):
    client.copy_model_version(f"models:/{MODEL}/1", "digits-lt-ir10")
    client.set_registered_model_alias("digits-lt-ir10", "champion", "1")
    try:
        assert run_of(client, "models:/digits-lt-ir10@champion", "").info.run_id == SEED_0
    finally:
        client.delete_registered_model("digits-lt-ir10")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "evaluate.model is null: it says what is evaluated, as in models:/"),
        ("cee", "evaluate.model: unknown method 'cee': did you mean 'ce'"),
        ("models:/ce", "evaluate.model: unknown method 'models:/ce'"),
        ("more", f"{EXPERIMENT} has no finished run of more: there are runs of ce; train it"),
        (NOWHERE, f"there is no run {NOWHERE} in .*mlflow.db: .* are Default, {EXPERIMENT}"),
        (f"models:/m-{NOWHERE}", f"there is no logged model m-{NOWHERE} in "),
        (f"models:/{MODEL}/9", f"no model models:/{MODEL}/9 in .*: {MODEL} has 1, 2, @newest"),
        (f"models:/{MODEL}@gone", f"no model models:/{MODEL}@gone in .* has 1, 2, @newest"),
        ("models:/more-cifar/3", f"no model models:/more-cifar/3 in .*: registered are {MODEL}"),
        (ARM, rf"run {ARM} \(LA MORE const · seed 0\) has no trained model"),
        (RUNNING, rf"run {RUNNING} \(more · {EXPERIMENT}\) has no trained model"),
    ],
)
def test_what_is_not_there_is_refused_in_a_line_that_says_what_is(client, address, message):
    with pytest.raises(UserError, match=message) as error:
        trained(client, address, EXPERIMENT)
    assert "\n" not in str(error.value)


def test_an_experiment_that_is_not_there_has_no_runs(client):
    with pytest.raises(UserError, match="digits-lt-ir20 has no finished run of ce: .* of none"):
        trained(client, "ce", "digits-lt-ir20")
    assert client.get_experiment_by_name("digits-lt-ir20") is None


@pytest.mark.parametrize("block", [{"modl": "ce"}, {"model": 7}, {"model": ["ce"]}])
def test_another_block_is_refused(block):
    with pytest.raises(UserError, match=r"^evaluate"):
        EvaluateConfig.read(block)


def test_a_deleted_run_is_refused(client, run):
    mlflow.end_run()
    client.delete_run(run.info.run_id)
    with pytest.raises(UserError, match="is deleted: restore it first"):
        trained(client, run.info.run_id)


def test_a_run_is_what_it_logged(client):
    run = trained(client, SEED_1)
    assert (run.id, run.experiment) == (SEED_1, EXPERIMENT)
    assert (run.config.method, run.config.seed) == ("ce", 1)
    assert run.config.training.epochs == 2
    assert run.data == DATA


def test_parameters_are_read_as_python_wrote_them(client, run, tmp_path):
    given = {
        "data.max_per_class": None,
        "data.auxiliary": None,
        "data.imbalance_ratio": 1e-05,
        "data.groups.sizes": [35, 35, 30],
        "data.source": "digits",
    }
    mlflow.log_params(given)
    keep(ExperimentConfig(method="ce"), {"x": torch.zeros(1)}, tmp_path)
    assert trained(client, run.info.run_id).data == {
        "max_per_class": None,
        "auxiliary": None,
        "imbalance_ratio": 1e-05,
        "groups": {"sizes": [35, 35, 30]},
        "source": "digits",
    }


def test_a_run_that_found_its_data_prepared_has_the_parameters_of_another_on_them(
    client, run, tmp_path
):
    keep(ExperimentConfig(method="ce"), {"x": torch.zeros(1)}, tmp_path)
    assert trained(client, run.info.run_id).data == DATA
    client.set_tag(run.info.run_id, "data_hash", "another")
    with pytest.raises(UserError, match=r"neither it nor another run on its images says data\.\*"):
        trained(client, run.info.run_id)


def test_a_configuration_of_another_version_is_one_line(client, run):
    mlflow.log_dict({"method": "ce", "training": {"gone": 1}}, "config.json")
    mlflow.log_dict({}, "model.safetensors")
    line = r"run \w+: config.json: training: unknown parameter 'gone'"
    with pytest.raises(UserError, match=line) as error:
        trained(client, run.info.run_id)
    assert "\n" not in str(error.value)


def test_weights_are_those_of_the_run(client, run, tmp_path):
    kept = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    keep(ExperimentConfig(method="ce"), kept, tmp_path)
    state = weights(client, client.get_run(run.info.run_id))
    assert state.keys() == kept.keys()
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_the_dataset_that_logs_weights_keeps_what_they_are_of(client, run, tmp_path):
    kept = {"a": torch.randn(3, 4)}
    file = {
        "type": "lt_pipeline.io.datasets.StateDictDataset",
        "filepath": str(tmp_path / "model.safetensors"),
    }
    logged = {"type": "kedro_mlflow.io.artifacts.MlflowArtifactDataset", "dataset": file}
    dataset = AbstractDataset.from_config("ce.model", logged)
    dataset.key, dataset.node = "of this", "ce.finish"
    dataset.save(kept)
    dataset.check()
    assert torch.equal(dataset.load()["a"], kept["a"])
    assert "model.safetensors" in {f.path for f in client.list_artifacts(run.info.run_id)}
    dataset.key = "of another"
    with pytest.raises(UserError, match=r"model.safetensors is of other .* run ce.finish first"):
        dataset.check()


def test_weights_of_earlier_versions_are_in_the_exported_network_bit_by_bit(client, folder):
    # the files are the last run's
    kept = load_file(folder / "data/06_models/smoke/ce/model.safetensors")
    state = weights(client, client.get_run(SEED_1))
    assert state.keys() == kept.keys()
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    others = weights(client, client.get_run(SEED_0))
    assert any(not torch.equal(others[name], kept[name]) for name in kept)


@pytest.mark.slow
def test_an_exported_network_has_all_weights():
    """Of each network and code that scores: methods that have both alike are exported once."""
    seen = set()
    for method in methods.available():
        own = yaml.safe_load((PROJECT / f"conf/base/parameters_{method}.yml").read_text())
        given = {"model": {"backbone": "resnet8"}, **own}
        experiment = Experiment(ExperimentConfig.resolve(method, given), toy_card())
        finished, kind = experiment.build(), methods.get(method)
        finished.merge_for_inference()
        modules = repr(finished).partition("\n")[2]
        alike = (modules, kind.score, kind.predictions, kind.ood_score)
        if alike in seen:
            continue
        seen.add(alike)
        kept = {name: value.clone() for name, value in finished.state_dict().items()}
        state = weights_inside(export(finished, toy_images().images[:2]))
        assert state.keys() == kept.keys(), method
        assert all(torch.equal(state[name], kept[name]) for name in kept), method
        experiment.finished(state)


def test_other_images_than_those_of_the_run_are_refused(client):
    run = trained(client, SEED_0)
    wanted = run.run.data.tags["data_hash"]
    run.check(replace(toy_card(), data_hash=wanted))
    files = {"source": "folder", "path": "photos", "profile": {"name": "natural"}}
    photos = replace(toy_card(), settings=DataConfig(**files).model_dump(mode="json"))
    line = "trained on 10 classes, and photos has 4 now: it knows no class 'class 0' and knows '0'"
    with pytest.raises(UserError, match=line):
        run.check(photos)
    line = f"trained beside images of hash {wanted[:12]}, and the same parameters give {'0' * 12}"
    with pytest.raises(UserError, match=line):
        run.check(toy_card())


def test_an_evaluation_is_no_run_of_its_method(client, run):
    before = [other.info.run_id for other in finished_runs(run.info.experiment_id)]
    mlflow.log_metric("test/accuracy", 0.9)
    client.set_terminated(run.info.run_id)
    assert run.info.run_id in [other.info.run_id for other in finished_runs(run.info.experiment_id)]
    client.set_tag(run.info.run_id, "mlflow.parentRunId", SEED_0)
    client.set_tag(run.info.run_id, "evaluated_run", SEED_0)
    assert [other.info.run_id for other in finished_runs(run.info.experiment_id)] == before
    with pytest.raises(UserError, match=f"is an evaluation of run {SEED_0}: name that one"):
        trained(client, run.info.run_id)
