"""From a folder of photos to a split that a person can edit, and to a model."""

from __future__ import annotations

import json

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pipeline_projects import copy_project

from lt_pipeline.learning.schema import UserError
from lt_pipeline.pipelines.audit.nodes import look, write_environment

pytestmark = pytest.mark.slow

COUNTS = {"01": 20, "blue fish": 12, "rare": 6}


@pytest.fixture(scope="module")
def audited(tmp_path_factory, empty_database):
    """A project with photos after the audit of them, and what that printed.

    Colours by class, two images a group, the rarest class in three groups.
    """
    project = copy_project(tmp_path_factory.mktemp("photos"), empty_database)
    random = np.random.default_rng(0)
    for c, (name, count) in enumerate(COUNTS.items()):
        for k in range(count):
            pixels = random.integers(0, 60, (20 + k, 24, 3), np.uint8)
            pixels[..., c] += 150
            path = project.folder / "photos" / name / f"t{k // 2}_{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=95)
    copy = project.folder / "photos" / "01" / "t9_again.jpg"
    copy.write_bytes((project.folder / "photos" / "01" / "t0_0.jpg").read_bytes())
    return project, project.kedro(
        "--pipelines=audit",
        r"--params=data.path=photos,data.group='(\w+/t\d+)_',data.size=16",
    )


def test_two_commands_lead_from_a_folder_to_a_model(audited):
    photos, said = audited
    assert "39 images of 3 classes, 21 to 6 a class" in said
    assert "pairs of identical images: 1 (0 within a group, 0 across classes)" in said
    for method in ("logit_adjustment", "more"):
        assert f"kedro run --pipelines={method} --env=photos" in said
    written = photos.folder / "conf" / "photos"
    split = pd.read_csv(written / "split.csv", dtype=str)
    assert set(split["label"]) == set(COUNTS), "01 is a name, not a number"
    assert split.groupby("group")["split"].nunique().max() == 1
    both = split[split["path"].isin(["01/t0_0.jpg", "01/t9_again.jpg"])]
    assert both["split"].nunique() == 1, "equal images are never parted"
    (report,) = (photos.folder / "data" / "08_reporting").glob("*/audit/page.html")
    assert report.read_text().count("<img") >= 12

    said = photos.kedro(
        "--pipelines=ce", "--env=photos", "--params=training.epochs=2,training.batch_size=8"
    )
    assert "photos: test set, last epoch" in said
    assert "mean recall" in said.split("accuracy")[0]
    logged = photos.runs[0].data.params
    assert (logged["data.source"], logged["data.profile.name"]) == ("csv", "natural")
    assert logged["serve.input"] == "auto"
    (model,) = photos.client.search_registered_models()
    (version,) = photos.client.search_model_versions(f"name='{model.name}'")
    mlflow.set_tracking_uri(photos.tracking_uri)
    signature = mlflow.models.get_model_info(version.source).signature
    assert (model.name, signature.inputs.input_names()) == ("ce-photos", ["image"])
    card = json.loads((photos.folder / "data/03_primary/photos/data_card.json").read_text())
    assert card["longtail"]["class_names"] == sorted(COUNTS)
    counts = split[split["split"] == "train"]["label"].value_counts()
    assert card["longtail"]["class_counts"] == [counts[name] for name in sorted(COUNTS)]
    manifest = pd.read_csv(photos.folder / "data/03_primary/photos/manifest.csv", dtype=str)
    assert sorted(manifest["path"]) == sorted(split["path"])


def test_what_a_person_has_edited_stays(audited):
    photos, _ = audited
    split = photos.folder / "conf" / "photos" / "split.csv"
    edited = split.read_text().replace(",train", ",TRAIN")
    split.write_text(edited)
    said = photos.kedro("--pipelines=audit", "--params=data.path=photos")
    assert "is there already and stays as it is" in said
    assert split.read_text() == edited


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ({"backbone": "resnet8"}, {"backbone": "tf_efficientnet_lite0"}),
        ({"backbone": "resnet18", "weights": "default"}, None),
        ({"backbone": "resnet34", "weights": "mine.safetensors"}, None),
    ],
)
def test_the_network_is_the_one_whose_weights_were_asked_for(tmp_path, model, wanted):
    facts = pd.DataFrame({"path": ["a/1.jpg"], "label": ["a"], "group": ["1"], "split": ["train"]})
    for name in ("a/1.jpg", "b/1.jpg"):
        (tmp_path / "files" / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "files" / name)
    data = {"source": "folder", "path": str(tmp_path / "files"), "name": "photos"}
    environment = write_environment(data, model, facts, tmp_path)
    wanted_names = {"name": "photos", "split": "conf/photos/split.csv"}
    assert environment == {**wanted_names, "head": "logit_adjustment"}
    files = [tmp_path / "photos" / f"{name}.yml" for name in ("globals", "parameters")]
    told, own = (yaml.safe_load(file.read_text()) for file in files)
    assert told == {"run": "photos", "uses": ["photos"]}
    assert "[photos, fine_tuning]" in files[0].read_text()
    assert own["model"] | (wanted or model) == own["model"]
    assert own["model"]["weights"] != "none"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"backbone": "resnet19"}, "^model.backbone: unknown backbone 'resnet19'"),
        ({"backbone": "resnet8", "weights": "default"}, "resnet8 has no public weights"),
    ],
)
def test_a_network_that_there_is_not_is_refused_before_the_images_are_read(model, message):
    with pytest.raises(UserError, match=message):
        look({"source": "folder", "path": "nowhere"}, model)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("data.path=nowhere", "there is no folder nowhere"),
        ("data.labels=none.csv", "there is no none.csv"),
        ("seed=1", "data.path or data.labels must be given"),
    ],
)
def test_what_is_not_there_is_one_line(audited, given, said):
    photos, _ = audited
    code, output = photos.run("kedro", "run", "--pipelines=audit", f"--params={given}")
    assert code == 1
    assert said in output
    assert "Traceback" not in output
