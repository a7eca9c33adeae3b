"""Folds, end to end: from a folder of photos to one table that every image is in once."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pipeline_projects import copy_project

from arms import smoke
from lt_pipeline.learning.data.prepare import make
from lt_pipeline.learning.experiments import run as module
from lt_pipeline.learning.experiments.config import data_config
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.schema import UserError
from lt_pipeline.pipelines.study.folds import pool
from lt_pipeline.pipelines.study.nodes import KEPT_IN, plan_runs, train_on_fold
from lt_pipeline.reports.studies import failed_runs, summarise

COUNTS = {"blue": 20, "red": 14, "rare": 8}
GIVEN = (
    "data.folds=3,training.epochs=1,training.batch_size=8,training.features=none,"
    "model.backbone=resnet8,model.weights=none,evaluation.ood=false"
)


def write_photos(folder):
    """Colours by class, two images a group."""
    random = np.random.default_rng(0)
    for c, (name, count) in enumerate(COUNTS.items()):
        for k in range(count):
            pixels = random.integers(0, 60, (20, 24, 3), np.uint8)
            pixels[..., c] += 150
            path = folder / name / f"t{k // 2}_{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, empty_database):
    """Audited, so that there is an environment; each test has its own parameters or study."""
    project = copy_project(tmp_path_factory.mktemp("folds"), empty_database)
    write_photos(project.folder / "photos")
    project.kedro(
        "--pipelines=audit",
        r"--params=data.path=photos,data.group='(\w+/t\d+)_',data.size=16",
    )
    return project


def results(project, name, study):
    (file,) = (project.folder / "data/08_reporting").glob(f"*/{study}/{name}.csv")
    return pd.read_csv(file)


@pytest.mark.slow
def test_folds_of_an_audited_folder_are_one_table_and_go_on_where_they_were(photos):
    said = photos.kedro("--pipelines=ce", "--env=photos", f"--params={GIVEN}")
    assert "ce_over_folds on photos: 3 folds, last epoch, %" in said
    assert "pooled: every image is tested once" in said
    assert said.count("data.folds=3 parts groups anew: the split that is there is left aside") == 1
    assert "In brackets: 95 % intervals by drawing groups again" in said
    assert "pooled mean recall is over 3 classes, 42 images in 21 groups" in said
    pooled = results(photos, "pooled", "ce_over_folds").iloc[0]
    assert (pooled["images"], pooled["groups"], pooled["classes"]) == (42, 21, 3)
    assert pooled["pooled/mean_recall low"] <= pooled["pooled/mean_recall"]
    classes = results(photos, "pooled_classes", "ce_over_folds")
    assert dict(zip(classes["name"], classes["images"], strict=True)) == COUNTS
    assert classes["groups"].tolist() == [10, 4, 7]
    assert classes["recall_low"].isna().tolist() == [False, True, False]
    assert classes["recall"].mean() == pytest.approx(pooled["pooled/mean_recall"])
    weighted = (classes["recall"] * classes["images"]).sum() / 42
    assert weighted == pytest.approx(pooled["pooled/accuracy"])
    runs = photos.runs
    (parent,) = (run for run in runs if run.data.tags.get("mlflow.runName", "").startswith("ce_"))
    below = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.data.tags["fold"] for run in below) == ["0", "1", "2"]
    assert len({run.data.tags["data_hash"] for run in below}) == 3
    told = parent.data.metrics["pooled/mean_recall"]
    assert told == pytest.approx(pooled["pooled/mean_recall"], abs=1e-6)
    assert len(list((photos.folder / "data/02_intermediate").glob("*.npy"))) == 1

    again = photos.kedro("--pipelines=ce", "--env=photos", f"--params={GIVEN}")
    assert "3 of them there; nothing is trained" in again


@pytest.mark.slow
def test_one_fold_by_itself_is_a_plain_run(photos):
    said = photos.kedro("--pipelines=ce", "--env=photos", f"--params={GIVEN},data.fold=2")
    assert "photos: test set of fold 2 (0 to 2), last epoch, %" in said
    (table,) = (photos.folder / "data/08_reporting").glob("*/ce/class_table.csv")
    assert {"recall_low", "recall_high", "test_groups"} <= set(pd.read_csv(table))
    (metrics,) = (photos.folder / "data/08_reporting").glob("*/ce/metrics.json")
    plain = json.loads(metrics.read_text())
    assert plain["test"]["classes"] == plain["validation"]["classes"] == 3
    manifests = (photos.folder / "data/03_primary").glob("photos+*/manifest.csv")
    manifest = max(manifests, key=lambda path: path.stat().st_mtime_ns)
    rows = pd.read_csv(manifest)
    assert set(rows["fold"][rows["split"] == "test"]) == {2}
    assert set(rows["fold"][rows["split"] == "validation"]) == {0}
    groups = rows["group"][rows["split"] == "test"].nunique()
    assert f"by drawing {groups} groups again" in said
    assert plain["test"]["groups"] == groups


@pytest.mark.slow
def test_a_study_on_folds_pairs_its_arms(photos):
    (photos.folder / "conf/photos/parameters_studies.yml").write_text(
        "studies:\n  two_heads:\n    title: Heads\n    seeds: 1\n    arms:\n"
        "      CE: {method: ce}\n      LA: {method: logit_adjustment}\n"
    )
    said = photos.kedro("--pipelines=two_heads", "--env=photos", f"--params={GIVEN}")
    assert "minus CE" in said
    pooled = results(photos, "pooled", "two_heads").set_index("arm")
    ahead = pooled["pooled/mean_recall"]["LA"] - pooled["pooled/mean_recall"]["CE"]
    assert pooled["pooled/mean_recall difference"]["LA"] == pytest.approx(ahead)
    low, high = (pooled[f"pooled/mean_recall difference {end}"]["LA"] for end in ("low", "high"))
    assert low <= ahead <= high
    runs = results(photos, "runs", "two_heads")
    assert runs.groupby(["arm", "fold"]).size().tolist() == [1] * 6


@pytest.mark.slow
def test_a_split_that_a_person_gave_is_not_folded(photos):
    env = photos.folder / "conf" / "photos" / "parameters.yml"
    made = env.read_text()
    env.write_text(made.replace("split: made", "split: given"))
    code, output = photos.run(
        "kedro", "run", "--pipelines=ce", "--env=photos", "--params=data.folds=3"
    )
    env.write_text(made)
    assert code == 1
    assert "data.folds makes its own parts, but these images have a split" in output
    assert "Traceback" not in output


class Nodes:
    """A study on three folds without Kedro: its nodes, in the order in which they run."""

    def __init__(self, folder):
        write_photos(folder / "photos")
        self.parameters = smoke({"seeds": 1, "arms": {"CE": {"method": "ce"}}})
        self.parameters["training"]["batch_size"] = 8
        self.parameters["data"] = {
            "path": str(folder / "photos"), "group": r"(\w+/t\d+)_", "size": 8, "folds": 3,
        }  # fmt: skip
        self.folders = folder / "raw", folder / "packed"
        self.store = folder / "arms"
        self.card = make(data_config(self.parameters), *self.folders).card

    def run(self):
        self.plan = plan_runs("s")(self.parameters, self.card, self.store, *self.folders)
        rows = [
            row
            for name in sorted(self.plan.runs)
            for row in train_on_fold([name])(self.plan, self.card, self.store, *self.folders)
        ]
        self.runs, self.summary, _ = summarise(self.plan, *rows)
        return pool(self.plan, self.card, self.runs, self.store)


def test_what_was_killed_in_a_fold_goes_on_there(tmp_path, monkeypatch, caplog):
    study, trained, once = Nodes(tmp_path), [], module.finish

    def finish(experiment, train, validation, test, checkpoint):
        trained.append(experiment.card.settings["fold"])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return once(experiment, train, validation, test, checkpoint)

    monkeypatch.setattr(module, "finish", finish)
    with pytest.raises(KeyboardInterrupt):
        study.run()
    with caplog.at_level("INFO"):
        pooled, classes = study.run()
    assert trained == [0, 1, 1, 2]
    assert "3 runs, 1 of them there; 2 to train" in caplog.text
    assert "CE (seed 0 fold 1, 0 fold 2)" in caplog.text
    assert "CE · seed 0 · fold 0, kept from before" in caplog.text
    assert pooled["images"].tolist() == [sum(COUNTS.values())]
    assert dict(zip(classes["name"], classes["images"], strict=True)) == COUNTS
    # the pooled accuracy is the folds' own, weighed by their images
    answers = [Store(study.store).answers(name) for name in study.runs[KEPT_IN]]
    right = sum((one["label"] == one["predicted"]).sum() for one in answers)
    assert pooled["pooled/accuracy"][0] == pytest.approx(right / sum(COUNTS.values()))
    means = study.runs["test/mean_recall"]
    assert study.summary["test/mean_recall"][0] == pytest.approx(means.mean())
    assert study.summary["test/mean_recall sd"][0] == pytest.approx(means.std())
    assert study.summary["runs"].tolist() == [3]


def test_an_arm_without_one_of_its_folds_is_not_pooled(tmp_path, monkeypatch):
    study, once = Nodes(tmp_path), module.finish

    def finish(experiment, *rest):
        if experiment.card.settings["fold"] == 1:
            raise UserError("the disk is full")
        return once(experiment, *rest)

    monkeypatch.setattr(module, "finish", finish)
    with pytest.raises(UserError, match="no arm has a run on each of 3 folds"):
        study.run()
    assert failed_runs(study.runs) == ["CE · seed 0 · fold 1 failed: the disk is full"]
