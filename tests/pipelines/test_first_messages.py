"""What a person is told first of all: which file or class, what came, what to do, in a line."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_projects import copy_project

pytestmark = pytest.mark.slow
MADE = ("photos", "labels.csv", "weights.pt", "data", "conf/photos")
FAST = "training.epochs=1,training.batch_size=4,data.size=16,evaluation.ood=false"


@pytest.fixture(scope="module")
def one_project(tmp_path_factory, empty_database):
    return copy_project(tmp_path_factory.mktemp("messages"), empty_database)


@pytest.fixture
def project(one_project):
    """A project of which nothing is left but what MLflow has."""
    yield one_project
    for path in (one_project.folder / name for name in MADE):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def photos(project, counts, folder="photos"):
    random = np.random.default_rng(len(counts))
    for name, count in counts.items():
        (project.folder / folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            pixels = random.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(project.folder / folder / name / f"{k}.png")


def table(project, rows, columns="path,label"):
    (project.folder / "labels.csv").write_text("\n".join([columns, *rows, ""]))


def listed(last="test", dog="test"):
    """Six images of cat and of dog, the last two of each in a part of their own."""
    parts = {"cat": last, "dog": dog}
    return [f"{c}/{k}.png,{c},{parts[c] if k > 3 else 'train'}" for c in parts for k in range(6)]


def no_class_folders(project):
    photos(project, {"": 3})


def no_column(project):
    table(project, ["cat/0.png,cat"], "path,species")


def no_file(project):
    table(project, ["cat/0.png,cat", "cat/1.PNG,cat", "dog/0.png,dog"])


def no_folder(project):
    (project.folder / "photos/cat/5.png").rename(project.folder / "photos/cat/lone.png")
    table(project, ["cat/0.png,cat", "cats/lone.png,cat", "dog/0.png,dog"])


def unreadable(project):
    (project.folder / "photos/dog/2.png").write_bytes(b"no image")


def same_image(project):
    shutil.copy(project.folder / "photos/cat/0.png", project.folder / "photos/cat/5.png")
    table(project, listed(), "path,label,split")


def no_test_images(project):
    table(project, listed(dog="train"), "path,label,split")


def case(project):
    table(project, ["cat/0.png,cat", "cat/1.png,Cat", "dog/0.png,dog"])


def several(project):
    rows = [*(f"cat/{k}.png,cat;dog" for k in range(6)), *(f"dog/{k}.png,dog" for k in range(6))]
    table(project, rows)


def several_rows(project):
    table(project, ["cat/0.png,cat", "cat/0.png,dog", "dog/0.png,dog"])


def other_weights(project):
    torch.save({"a": torch.zeros(3)}, project.folder / "weights.pt")


CSV = "data.path=photos,data.labels=labels.csv"
MESSAGES = {
    no_class_folders: (
        "data.path=photos",
        ["photos has no images in folders of classes", "put each class's into a folder", "csv"],
    ),
    no_column: (
        CSV,
        ["labels.csv has no column 'label', but 'path', 'species'", "data.columns.label"],
    ),
    no_file: (CSV, ["1 rows of labels.csv", "cat/1.PNG, perhaps cat/1.png: correct them"]),
    no_folder: (CSV, ["the first is cats/lone.png, perhaps cat/lone.png: correct them"]),
    unreadable: (
        "data.path=photos",
        ["1 of 12 images", "photos/dog/2.png is no image", "data.unreadable=skip"],
    ),
    same_image: (
        CSV,
        ["2 images are in two parts, as cat/0.png in train and cat/5.png in test", "Take one out"],
    ),
    no_test_images: (CSV, ["split has no test images of dog: move a group of it there"]),
    case: (CSV, ["the labels 'Cat', 'cat' of labels.csv differ in case", "one name"]),
    several: (CSV, ["images of one label, and those of labels have several: cross_entropy is of"]),
    several_rows: (
        CSV,
        ["labels.csv lists cat/0.png twice, as cat and dog", "one row with cat;dog"],
    ),
    other_weights: (
        "data.path=photos,model.weights=weights.pt",
        ["weights.pt does not fit model.backbone: of its 42 tensors 0", "name the backbone"],
    ),
}


@pytest.mark.parametrize("wrong", MESSAGES, ids=lambda wrong: wrong.__name__)
def test_what_is_wrong_is_one_line_that_says_what_to_do(project, wrong):
    if wrong is not no_class_folders:
        photos(project, {"cat": 6, "dog": 6})
    wrong(project)
    given, said = MESSAGES[wrong]
    code, output = project.run("kedro", "run", "--pipelines=ce", f"--params={FAST},{given}")
    line = output.strip().splitlines()[-1]
    assert code == 1
    assert line.startswith("Error: ")
    for part in said:
        assert part in line
    assert "Traceback" not in output


def test_a_class_of_one_image_and_one_that_a_model_does_not_know(project):
    photos(project, {"cat": 6, "dog": 6, "one": 1})
    given = f"--params={FAST},data.path=photos"
    output = " ".join(project.kedro("--pipelines=ce", given).split())
    assert "Learned and not tested, being one image or one group: one; more of another" in output
    photos(project, {"eel": 4})
    again = ("kedro", "run", "--pipelines=evaluate", f"{given},evaluate.model=ce")
    code, output = project.run(*again)
    assert code == 1
    line = output.strip().splitlines()[-1]
    assert "was trained on 3 classes, and photos has 4 now: it knows no class 'eel'" in line
    assert line.endswith("put the classes of then there, or train anew")
    assert "Traceback" not in output


def test_the_audit_says_which_equal_images_a_given_split_parts(project):
    photos(project, {"cat": 6, "dog": 6})
    same_image(project)
    output = project.kedro("--pipelines=audit", f"--params={CSV},data.size=16")
    said = "1 pairs of identical images are in two parts, so that what is learned is tested on, as "
    assert f"{said}cat/0.png and cat/5.png" in " ".join(output.split())
