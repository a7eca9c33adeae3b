"""Every method, from its own conf to metrics and geometry, on the embedded digits."""

from __future__ import annotations

import json
import math

import mlflow
import numpy as np
import pandas as pd
import pytest
from pipeline_projects import copy_project, own

from confs import parameters
from lt_pipeline.io.datasets import ImageSetDataset
from lt_pipeline.learning import methods
from lt_pipeline.learning.experiments.config import ExperimentConfig, updated
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.run import run_experiment
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.pipelines.data_prep.nodes import make_sets

pytestmark = pytest.mark.slow

VARIANTS = [
    *({"method": name} for name in methods.available()),
    *({"method": "dbm", "options": {"variant": v}} for v in ("ce", "cb", "drw", "bcl")),
    {"method": "more", "options": {"criterion": {"name": "balanced_contrastive"}}},
    {
        "method": "more",
        "model": {"head": "cosine"},
        "options": {"criterion": {"name": "balanced_softmax", "margin": {"name": "dbm"}}},
    },
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, packed = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("packed")
    *sets, card, _ = make_sets(folder, packed, parameters("smoke")["data"])
    return Sets(*sets), card


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_it_trains_and_is_evaluated_on_real_images(data, tmp_path, variant):
    name = variant["method"]
    block = {key: value for key, value in variant.items() if key != "method"}
    # five epochs: deferred re-weighting has its turn; several sets are below, through Kedro
    short = {"training": {"epochs": 5}, "evaluation": {"ood": ["uniform_noise"]}}
    own = updated(parameters("smoke"), {name: block, **short})
    sets, card = data
    experiment = Experiment(ExperimentConfig.resolve(name, own), card)
    finished = run_experiment(experiment, sets, tmp_path / "raw", Store(tmp_path))
    assert all(math.isfinite(value) for value in finished.values())
    assert finished["test/accuracy"] > 0.2, "twice what guessing gets"
    assert 0 < finished["geometry/angle_mean/all"] < 180
    assert finished["geometry/separability/all"] > 0
    trained, deployed = finished["cost/parameters_trained"], finished["cost/parameters_deployed"]
    contrastive = "bcl" in str(variant) or "contrastive" in str(variant)
    assert (trained > deployed) == (contrastive or name in ("more", "ride"))


@pytest.fixture(scope="module")
def project(tmp_path_factory, empty_database):
    """A project in which each run has its own method or parameters."""
    return copy_project(tmp_path_factory.mktemp("methods"), empty_database)


@pytest.fixture(scope="module")
def dbm(project):
    """It, after a run of dbm as the smoke environment has it, and what that printed."""
    return project, project.kedro("--pipeline=dbm", "--env=smoke")


def terms_of(folder):
    """Return the terms of the loss that a training was followed by."""
    history = pd.read_json(folder / "train_history.json", typ="series")
    return {name for name in history.index if name.startswith("train/")}


def test_dbm_through_kedro(dbm):
    project, output = dbm
    assert "balanced test set, last epoch, %" in output
    assert "WARNING" not in output.replace("KedroDeprecationWarning", "")
    folder = project.file("08_reporting", "smoke", "dbm")
    assert "train/balanced_softmax" in terms_of(folder)
    for name in ("angles", "separability"):
        assert (folder / "geometry" / f"{name}.png").exists()


def test_another_variant_without_images_of_no_class(project):
    params = "dbm.options.variant=bcl"
    output = project.kedro(
        "--pipeline=dbm", "--env=smoke", f"--params={params},evaluation.ood=false"
    )
    assert "balanced test set, last epoch, %" in output
    assert "out of distribution" not in output
    assert "WARNING" not in output.replace("KedroDeprecationWarning", "")
    folder = project.file("08_reporting", own(params), "dbm")
    assert {"train/classification", "train/contrast"} <= terms_of(folder)
    for name in ("angles", "separability"):
        assert (folder / "geometry" / f"{name}.png").exists()
    assert json.loads((folder / "ood.json").read_text())["averaged_over"] == []


def test_mlflow_gets_what_the_method_made_of_the_shared_parameters(project):
    given = "--params=ldam.training.learning_rate=0.05"
    project.kedro("--pipelines=ldam", "--env=smoke", "--to-nodes=ldam.configure", given)
    params = project.runs[0].data.params
    assert params["model.head"] == "cosine"
    assert params["model.scale"] == "30.0"
    assert params["training.learning_rate"] == "0.05"
    assert params["training.epochs"] == "2"


@pytest.fixture
def conf(project):
    """What the environment says of dbm, the test's own."""
    path = project.folder / "conf" / "smoke" / "parameters_dbm.yml"
    yield path
    path.unlink()


def test_a_partial_run_with_other_parameters_is_refused(dbm, conf):
    project, _ = dbm
    partial = ("--pipelines=dbm", "--env=smoke", "--nodes=dbm.geometry")
    assert "dbm · geometry" in project.kedro(*partial)
    # those of the command line have a folder of their own, where nothing is yet
    code, output = project.run("kedro", "run", *partial, "--params=dbm.options.variant=ce")
    assert code == 1
    assert own("dbm.options.variant=ce") in output
    assert "Traceback" not in output
    conf.write_text("dbm: {options: {variant: ce}}\n")
    code, output = project.run("kedro", "run", *partial)
    assert code == 1
    assert "dbm was run with options.criterion.name = 'balanced_softmax'" in output
    assert "this run says 'cross_entropy'" in output
    assert "Traceback" not in output
    conf.write_text("dbm: {training: {epochs: 5}}\n")
    code, output = project.run(
        "kedro", "run", "--pipelines=dbm", "--env=smoke", "--only-missing-outputs"
    )
    assert code == 1
    assert "training.epochs = 2, and this run says 5" in output


def test_dqroute_is_deployed_with_its_routing(project):
    output = project.kedro("--pipelines=dqroute", "--env=smoke")
    assert "experts have 10 / 6 / 3 classes (two thirds and a third by rank" in output
    folder = project.file("08_reporting", "smoke", "dqroute")
    for name in ("class_weights", "size_correlation", "routing", "recall_by_count"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((folder / "metrics.json").read_text())
    weights = {
        name: values["all"] for name, values in metrics["diagnostics"].items() if "all" in values
    }
    gain = weights["accuracy_routed_probabilities"] - max(
        weights[f"accuracy_{name}"] for name in ("E_G", "E_M", "E_T")
    )
    assert any("routing adds" in note for note in metrics["notes"]) == (100 * gain < 0.5)
    deployed = json.loads(
        project.file("06_models", "smoke", "dqroute", "deployed.json").read_text()
    )
    mlflow.set_tracking_uri(project.tracking_uri)
    model = mlflow.pyfunc.load_model(deployed["model_uri"])
    test = ImageSetDataset(str(project.file("03_primary", "smoke", "test.safetensors"))).load()
    answer = model.predict(test.images[:5].numpy())
    assert set(answer) == {"class", "probabilities", "ood_score", "routing"}
    best = answer["probabilities"].argmax(1)
    assert answer["class"].tolist() == [test.class_names[c] for c in best]
    np.testing.assert_allclose(answer["probabilities"].sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(answer["routing"].sum(1), 1, atol=1e-5)
    assert answer["routing"].shape == (5, 3)


def test_a_margin_on_a_linear_head_stops_the_run_at_once(project):
    made = [*project.folder.rglob("data_card.json")]
    code, output = project.run(
        *("kedro", "run", "--pipelines=more", "--env=smoke"),
        "--params=more.options.criterion.margin.name=dbm,data.seed=5",
    )
    assert code == 1
    assert "the margin 'dbm' is of angles and needs model.head = cosine" in output
    assert "Traceback" not in output
    assert [*project.folder.rglob("data_card.json")] == made


def test_darl_through_kedro_is_shown_images_of_no_class(project):
    output = project.kedro("--pipelines=darl", "--env=smoke", "--params=evaluation.ood=true")
    assert "OOD set svhn is left out: " in output
    assert "OOD set digits is left out: is the in-distribution source" in output
    assert "out of distribution, %: odin AUROC " in output
    assert "Mean over 3 sets: uniform_noise, permuted_pixels, blurred; not there: gauss" in output
    assert "the labels of a training step have an imbalance of 3.0, the adjustment is for" in output
    folder = project.file("08_reporting", "smoke", "darl")
    for name in (
        "ood/detection",
        "ood/groups",
        "ood/conflict",
        "ood/conflict_adjusted",
        "figures/calibration_factor",
    ):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((folder / "ood.json").read_text())
    assert list(report["detectors"]) == ["odin", "msp", "energy"]
    assert report["averaged_over"] == list(report["detectors"]["msp"])[:-1]
    run = project.runs[0]
    for key in ("auroc", "fpr95"):
        value = report["detectors"]["odin"]["mean"][key]
        assert run.data.metrics[f"ood/odin/mean/{key}"] == pytest.approx(value)


def test_a_method_that_needs_images_of_no_class_is_refused_without(project):
    code, output = project.run(
        *("kedro", "run", "--pipelines=oe", "--env=smoke"), "--params=data.auxiliary=null"
    )
    assert code == 1
    assert "oe trains on images of no class, but data.auxiliary is null" in output
    assert "Traceback" not in output
