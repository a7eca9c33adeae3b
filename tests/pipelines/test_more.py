"""`kedro run --pipeline=more`, from a fresh folder to a model that answers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.metadata import version

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from pipeline_projects import experiment_of
from safetensors.torch import load_file

from lt_pipeline.io.datasets import ImageSetDataset
from lt_pipeline.learning.data.distribution import class_counts
from lt_pipeline.learning.models.network import ModelConfig, build_network, parameter_count
from lt_pipeline.tracking import views


def plain_network():
    config = ModelConfig(backbone="resnet8")
    return build_network(config, classes=10, channels=1, mean=[0.5], std=[0.5])


def read(path):
    return json.loads(path.read_text())


def test_it_ends_with_a_table_and_how_to_look_further(finished):
    _, output = finished
    assert "digits, exponential, IR 10: balanced test set, last epoch, %" in output
    assert "accuracy" in output
    assert "make ui" in output
    # the smoke set has at most 60 images a class
    assert "No class in: many; left out." in output
    assert "WARNING" not in output
    assert "Traceback" not in output


def test_the_data_can_be_opened_and_agree_with_each_other(finished):
    project, _ = finished
    folder = project.file("03_primary", "smoke")
    train = ImageSetDataset(str(folder / "train.safetensors")).load()
    table = pd.read_csv(folder / "class_counts.csv")
    counts = [60, 46, 35, 27, 21, 16, 12, 10, 7, 6]
    assert table["training_images"].tolist() == counts
    assert class_counts(train.labels, 10).tolist() == counts
    manifest = pd.read_csv(folder / "manifest.csv")
    assert manifest["label"].tolist() == train.labels.tolist()
    statistics = read(folder / "imbalance_statistics.json")
    assert statistics["imbalance_ratio"] == 10
    assert statistics["seed"] == 0
    assert statistics["empty_groups"] == ["many"]
    assert len(statistics["data_hash"]) == 64
    picture = project.file("08_reporting", "smoke", "class_distribution.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_metrics_are_complete_finite_and_leave_out_what_is_not_there(finished):
    project, _ = finished
    metrics = read(project.file("08_reporting", "smoke", "more", "metrics.json"))
    test = metrics["test"]
    assert "many" not in test
    assert {"accuracy", "medium", "few", "harmonic_mean", "geometric_mean"} <= test.keys()
    assert {"lowest_recall", "expected_calibration_error", "recall_floor"} <= test.keys()
    assert metrics["left_out_groups"] == ["many"]
    strange = read(project.file("08_reporting", "smoke", "more", "ood.json"))
    # gaussian_noise is what smoke's auxiliary set is
    assert strange["averaged_over"] == ["uniform_noise", "permuted_pixels"]
    assert {"auroc", "fpr95", "auroc_few"} <= strange["detectors"]["odin"]["uniform_noise"].keys()
    cost = metrics["cost"]
    assert cost["parameters_deployed"] < cost["parameters_trained"]
    assert cost["training_seconds"] > 0
    text = project.file("08_reporting", "smoke", "more", "metrics.json").read_text()
    assert "NaN" not in text


def test_the_merged_network_is_the_plain_one_and_scores_alike(finished):
    project, _ = finished
    report = read(project.file("08_reporting", "smoke", "more", "finish_report.json"))
    assert report["largest_score_change"] < 1e-4
    assert report["parameters_deployed"] == parameter_count(plain_network())
    model = load_file(project.file("06_models", "smoke", "more", "model.safetensors"))
    assert not [name for name in model if "parametrizations" in name]
    checkpoint = load_file(project.file("06_models", "smoke", "more", "train.safetensors"))
    assert [name for name in checkpoint if "parametrizations" in name]


def test_pictures_are_there(finished):
    project, _ = finished
    folder = project.file("08_reporting", "smoke", "more", "figures")
    names = {"recall_by_class", "recall_by_count", "confusion", "reliability"}
    names |= {"training_curves", "logit_shift"}
    assert {path.stem for path in folder.iterdir()} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())


def test_mlflow_knows_what_made_the_run(finished):
    project, _ = finished
    (run,) = project.runs
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "more · smoke"
    tags = run.data.tags
    assert tags["command"] == (
        "kedro run --pipeline=more --env=smoke --params=tracking.register=true"
    )
    assert tags["seed"] == "0"
    assert json.loads(tags["versions"])["torch"] == version("torch")
    assert tags["env"] == "smoke"
    noise = {"runner", "project_path", "kedro_command", "pipeline_names", "runtime_params"}
    assert not noise & set(tags)
    assert tags["data_hash"] == read(project.file("03_primary/smoke/data_card.json"))["data_hash"]
    assert tags.keys() >= {"mlflow.source.git.commit", "git_dirty", "device", "python", "data"}
    params = run.data.params
    assert params["training.epochs"] == "2"
    assert params["more.options.amplitude"] == "2.0"
    assert params["data.imbalance_ratio"] == "10"
    # a default that conf/ does not spell out
    assert params["more.options.criterion.tau"] == "1.0"


def test_mlflow_has_every_epoch_the_results_and_the_files(finished):
    project, _ = finished
    (run,), client = project.runs, project.client
    history = client.get_metric_history(run.info.run_id, "train/rebalancing")
    saved = read(project.file("08_reporting", "smoke", "more", "train_history.json"))
    curve = saved["train/rebalancing"]
    assert [m.step for m in history] == [p["step"] for p in curve]
    assert [m.value for m in history] == pytest.approx([p["value"] for p in curve], rel=1e-6)
    metrics = read(project.file("08_reporting", "smoke", "more", "metrics.json"))
    assert run.data.metrics["test/accuracy"] == pytest.approx(metrics["test"]["accuracy"])
    assert {"ood/odin/uniform_noise/auroc", "ood/msp/mean/fpr95"} <= run.data.metrics.keys()
    # the charts' sections are sorted, capitals first
    sections = {name.partition("/")[0] for name in run.data.metrics}
    assert min(sections) == views.SUMMARY
    for name, same in {"accuracy": "test/accuracy", "ood_auroc": "ood/odin/mean/auroc"}.items():
        assert run.data.metrics[f"{views.SUMMARY}/{name}"] == run.data.metrics[same]
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "metrics.json", "class_table.csv", "figures", "data"} <= files
    pictures = {item.path for item in client.list_artifacts(run.info.run_id, "figures")}
    assert "figures/recall_by_class.png" in pictures
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == "digits-lt-ir10"


def test_the_registered_model_takes_bytes_and_gives_the_methods_probabilities(finished):
    project, _ = finished
    mlflow.set_tracking_uri(project.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/more-digits-lt-ir10/1")
    test = ImageSetDataset(str(project.file("03_primary/smoke/test.safetensors"))).load()
    weights = load_file(project.file("06_models/smoke/more/model.safetensors"))
    method = experiment_of(project, "more").finished(weights)
    for count in (1, 5):
        images = test.images[:count]
        with torch.no_grad():
            wanted = method.score(images).softmax(1).numpy()
        answer = model.predict(images.numpy())
        assert set(answer) == {"class", "probabilities", "ood_score"}
        assert answer["probabilities"].dtype == np.float32
        np.testing.assert_allclose(answer["probabilities"], wanted, atol=1e-5)
        np.testing.assert_allclose(answer["ood_score"], wanted.max(1), atol=1e-5)
    inputs = model.metadata.signature.inputs.inputs[0]
    assert (inputs.type, inputs.shape) == (np.dtype("uint8"), (-1, 1, 8, 8))
    assert model.input_example is not None


@pytest.mark.slow
def test_mlflow_models_predict_answers(finished, tmp_path):
    project, _ = finished
    test = ImageSetDataset(str(project.file("03_primary/smoke/test.safetensors"))).load()
    (tmp_path / "in.json").write_text(json.dumps({"inputs": test.images[:3].tolist()}))
    code, output = project.run(
        *(sys.executable, "-m", "mlflow", "models", "predict"),
        *("-m", "models:/more-digits-lt-ir10/1"),
        *("-i", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json")),
        *("-t", "json", "--env-manager", "local"),
        MLFLOW_TRACKING_URI=project.tracking_uri,
    )
    assert code == 0, output
    answer = read(tmp_path / "out.json")["predictions"]
    assert len(answer["class"]) == len(answer["ood_score"]) == 3
    probabilities = np.array(answer["probabilities"])
    assert probabilities.shape == (3, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_weights_of_another_architecture_are_refused_by_name(finished):
    project, _ = finished
    weights = load_file(project.file("06_models/smoke/more/model.safetensors"))
    experiment = experiment_of(project, "more")
    model = experiment.config.model.model_copy(update={"backbone": "resnet20"})
    other = replace(experiment, config=experiment.config.model_copy(update={"model": model}))
    with pytest.raises(ValueError, match="do not fit more with backbone resnet20 .*train again"):
        other.finished(weights)


def test_nothing_is_left_to_resume_and_no_file_in_part(finished):
    project, _ = finished
    assert not project.file("06_models", "smoke", "more", "progress").exists()
    assert not list(project.file().rglob("*.tmp"))
