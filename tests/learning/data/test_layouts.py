from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lt_pipeline.learning.data.layouts import LAYOUTS, VOC
from lt_pipeline.learning.data.prepare import DataConfig, expected, listed, make
from lt_pipeline.learning.data.protocol import take
from lt_pipeline.learning.schema import MissingFileError, UserError


def photo(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 12, 3), value, np.uint8)).save(path, "PNG")


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def voc_image(folder, year, number, value, *objects):
    """An image with ``objects``, each a name or a name and whether it is difficult."""
    photo(folder / year / "JPEGImages" / f"{number}.jpg", value)
    said = [(one, 0) if isinstance(one, str) else one for one in objects]
    inner = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult>"
        f"<bndbox><xmin>1</xmin></bndbox></object>"
        for name, hard in said
    )
    text(folder / year / "Annotations" / f"{number}.xml", f"<annotation>{inner}</annotation>")


@pytest.fixture
def voc(tmp_path):
    """VOCdevkit: 2007 as it is published, and three images of 2012 that Wu et al. list."""
    folder = tmp_path / "VOCdevkit"
    voc_image(folder, "VOC2007", "000001", 10, *VOC, "cat")
    voc_image(folder, "VOC2007", "000002", 20, "dog", ("cat", 1))
    voc_image(folder, "VOC2007", "000003", 30)
    voc_image(folder, "VOC2007", "000004", 40, "person", ("person", 1))
    voc_image(folder, "VOC2007", "000005", 50, *VOC)
    voc_image(folder, "VOC2007", "000006", 60, ("dog", 1))
    text(folder / "VOC2007/ImageSets/Main/trainval.txt", "000001", "000002", "000003", "000004")
    text(folder / "VOC2007/ImageSets/Main/test.txt", "000005", "000006")
    for number in ("2008_000023", "2008_000028", "2009_000001"):
        last = ("tvmonitor", int(number == "2008_000023"))
        voc_image(folder, "VOC2012", number, 70 + int(number[-1]), *VOC[:-1], last)
    text(folder / "longtail2012/img_id.txt", "2008_000023", "2009_000001")
    return folder


COCO = {1: "person", 3: "car", 90: "toothbrush"}


def instances(year, split):
    """A file of instances of four images, the last without any; numbers of categories have gaps."""
    images = [
        {"id": 900 + k, "file_name": f"COCO_{split}{year}_{k}.jpg", "width": 12, "height": 9}
        for k in range(4)
    ]
    boxes = [(900, 90), (900, 1), (900, 1), (901, 3), (902, 1)]
    return {
        "images": images,
        "categories": [{"id": n, "name": COCO[n], "supercategory": "x"} for n in (90, 1, 3)],
        "annotations": [
            {"id": k, "image_id": image, "category_id": category, "iscrowd": int(k == 3)}
            for k, (image, category) in enumerate(boxes)
        ],
    }


@pytest.fixture
def coco(tmp_path):
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for year in ("2014", "2017"):
        for number, split in enumerate(("train", "val")):
            made = instances(year, split)
            for k, image in enumerate(made["images"]):
                photo(folder / f"{split}{year}" / image["file_name"], 20 * k + 100 * number)
            file = folder / "annotations" / f"instances_{split}{year}.json"
            file.write_text(json.dumps(made))
    # the name is the released one; it is a text
    text(folder / "longtail2017/img_id.pkl", "903", "901", "900")
    return folder


SCENES = {"airport": "1010 01", "sky": "1100 11", "window": "0001 01"}


@pytest.fixture(params=["whole", "scene"])
def nus_wide(request, tmp_path):
    folder = tmp_path / "nus"
    number = 0
    for place, part in enumerate(("Train", "Test")):
        size = (4, 2)[place]
        names = [f"sky\\{part}_{k}.jpg" for k in range(size)]
        for name in names:
            number += 1
            photo(folder / "Flickr" / name.replace("\\", "/"), 10 * number)
        whole = request.param == "whole"
        listing = f"ImageList/{part}Imagelist.txt"
        text(folder / (listing if whole else f"image list/{part}_imageOutPutFileList.txt"), *names)
        for concept, flags in SCENES.items():
            file = (
                f"Groundtruth/TrainTestLabels/Labels_{concept}_{part}.txt"
                if whole
                else f"ground truth/{part}_Labels_{concept}.txt"
            )
            text(folder / file, *flags.split()[place])
    if request.param == "whole":
        text(folder / "ConceptsList/Concepts33.txt", "window", "airport", "sky")
    return folder


def config(source, folder, **given):
    return DataConfig(source=source, path=str(folder), size=8, **given)


def of(source, folder, **given):
    """Label names and part of every image, by its file's name."""
    photos = listed(config(source, folder, **given))
    table = photos.table
    return {
        path.split("/")[-1].partition(".")[0]: ([photos.class_names[c] for c in own], part)
        for path, own, part in zip(table["path"], table["label"], table["split"], strict=True)
    }


def test_voc_has_the_labels_of_its_objects_and_none_of_difficult_ones_alone(voc):
    rows = of("voc2007", voc)
    assert rows["000001"] == ([*VOC], "train")
    assert rows["000002"] == (["dog"], "train")
    assert rows["000003"] == ([], "train")
    assert rows["000004"] == (["person"], "train")
    assert rows["000006"] == ([], "test")
    assert len(rows) == 6
    counted = of("voc2007", voc, difficult="present")
    assert counted["000002"] == (["cat", "dog"], "train")
    assert counted["000006"] == (["dog"], "test")


def test_voc_mlt_is_the_listed_images_of_2012_and_the_test_images_of_2007(voc):
    rows = of("voc_mlt", voc)
    assert {name: part for name, (_, part) in rows.items()} == {
        "2008_000023": "train", "2009_000001": "train", "000005": "test", "000006": "test"
    }  # fmt: skip
    # the released code gives difficult objects a label
    assert rows["2008_000023"][0] == [*VOC]
    assert "tvmonitor" not in of("voc_mlt", voc, difficult="absent")["2008_000023"][0]


def test_coco_has_its_categories_in_order_and_images_without_annotations(coco):
    photos = listed(config("coco2014", coco))
    assert photos.class_names == ("person", "car", "toothbrush")
    rows = of("coco2014", coco)
    assert rows["COCO_train2014_0"] == (["person", "toothbrush"], "train")
    assert rows["COCO_train2014_1"] == (["car"], "train"), "a crowd"
    assert rows["COCO_train2014_3"] == ([], "train")
    assert rows["COCO_val2014_2"] == (["person"], "test")
    assert len(rows) == 8


def test_coco_mlt_is_the_listed_images_of_2017(coco):
    rows = of("coco_mlt", coco)
    learned = [name for name, (_, part) in rows.items() if part == "train"]
    assert learned == ["COCO_train2017_0", "COCO_train2017_1", "COCO_train2017_3"]
    assert len(rows) == 7
    assert rows["COCO_val2017_0"] == (["person", "toothbrush"], "test")


def test_nus_wide_is_read_by_its_lists_as_either_archive_has_them(nus_wide):
    assert of("nuswide_scene", nus_wide) == {
        "Train_0": (["airport", "sky"], "train"),
        "Train_1": (["sky"], "train"),
        "Train_2": (["airport"], "train"),
        "Train_3": (["window"], "train"),
        "Test_0": (["sky"], "test"),
        "Test_1": (["airport", "sky", "window"], "test"),
    }


def test_what_comes_is_what_a_table_gives(voc, tmp_path):
    """Nothing behind the listing knows which source it is of."""
    chosen = config("voc2007", voc)
    made = make(chosen, tmp_path, tmp_path / "cache")
    assert [len(part) for part in (made.train, made.validation, made.test)] == [4, 0, 2]
    assert made.train.labels.dtype == torch.uint8
    assert made.train.class_names == VOC
    assert made.train.labels.sum(1).tolist() == [20, 1, 0, 1]
    assert take(made.train, torch.arange(4))[:, 0, 0, 0].tolist() == [10, 20, 30, 40]
    assert made.card.longtail == replace(expected(chosen).longtail, class_names=VOC)
    rows = made.manifest()
    assert rows["class"].tolist()[1:4] == ["dog", "", "person"]
    assert (chosen.title, chosen.slug, chosen.balanced) == ("voc2007", "voc2007", False)
    assert config("voc2007", voc, name="mine", long_tail=4).title == "mine, IR 4"


def test_a_share_of_the_training_images_is_held_out(coco, tmp_path):
    chosen = config("coco2014", coco, validation=0.3)
    assert chosen.holds_out
    made = make(chosen, tmp_path, tmp_path / "cache")
    assert [len(part) for part in (made.train, made.validation, made.test)] == [3, 1, 4]
    assert (made.train.labels.sum(0) > 0).all()
    assert {part for _, part in of("coco2014", coco).values()} == {"train", "test"}


def test_a_published_split_is_kept_though_two_images_are_equal(voc, tmp_path, caplog):
    shutil.copy(voc / "VOC2007/JPEGImages/000003.jpg", voc / "VOC2007/JPEGImages/000006.jpg")
    with caplog.at_level(logging.WARNING):
        made = make(config("voc2007", voc), tmp_path, tmp_path / "cache")
    assert len(made.test) == 2
    assert "000003.jpg in train and VOC2007/JPEGImages/000006.jpg in test" in caplog.text


def test_images_that_are_gone_are_named_or_left_out(voc, tmp_path, caplog):
    (voc / "VOC2007/JPEGImages/000003.jpg").unlink()
    with pytest.raises(MissingFileError, match=r"1 of 6 listed .*000003\.jpg.*unreadable=skip"):
        listed(config("voc2007", voc))
    made = make(config("voc2007", voc, unreadable="skip"), tmp_path, tmp_path / "cache")
    assert len(made.train) == 3
    assert "000003.jpg: they are left out" in caplog.text


def damage(file, content=None):
    """Return what writes ``content`` into a file of the set, or takes the file away."""

    def done(folder):
        (folder / file).unlink() if content is None else (folder / file).write_text(content)

    return done


VOC_LIST = "VOC2007/ImageSets/Main/test.txt"
VOC_XML = "VOC2007/Annotations/000002.xml"
COCO_TRAIN, COCO_VAL = (f"annotations/instances_{part}2014.json" for part in ("train", "val"))
STRANGE_OBJECT = "<annotation><object><name>kat</name></object></annotation>"
STRANGE_IMAGE = json.dumps(
    {**instances("", ""), "annotations": [{"image_id": 7, "category_id": 1}]}
)
NO_CATEGORIES = json.dumps({"images": [], "annotations": [], "categories": []})


@pytest.mark.parametrize(
    ("source", "how", "said"),
    [
        ("voc2007", damage(VOC_LIST), r"there is no .*test\.txt"),
        ("voc2007", damage(VOC_LIST, "\n"), r"test\.txt lists nothing"),
        ("voc2007", damage(VOC_XML), r"there is no .*000002\.xml"),
        ("voc2007", damage(VOC_XML, "<annotation>"), r"000002\.xml is damaged"),
        ("voc2007", damage(VOC_XML, STRANGE_OBJECT), r"000002\.xml has an object 'kat', which is"),
        ("voc_mlt", damage("longtail2012/img_id.txt"), r"there is no .*img_id\.txt"),
        ("coco2014", damage(COCO_VAL), r"there is no .*instances_val2014\.json"),
        ("coco2014", damage(COCO_VAL, "{"), r"val2014\.json is damaged"),
        ("coco2014", damage(COCO_VAL, "[]"), r"val2014\.json is damaged"),
        ("coco2014", damage(COCO_TRAIN, STRANGE_IMAGE), r"train2014\.json is damaged.*no 7"),
        ("coco2014", damage(COCO_VAL, NO_CATEGORIES), r"val2014\.json has other categories"),
        ("coco_mlt", damage("longtail2017/img_id.pkl", "900\n5\n"), r"img_id\.pkl lists '5'"),
    ],
)
def test_what_is_damaged_or_missing_is_said_in_a_line_with_its_file(
    source, how, said, voc, coco, tmp_path
):
    folder = voc if source.startswith("voc") else coco
    how(folder)
    with pytest.raises(UserError, match=said) as error:
        listed(config(source, folder))
    assert "\n" not in str(error.value)
    assert "data.path" in str(error.value)


@pytest.mark.parametrize(
    ("lines", "said"), [("01", "has 2 lines, and 4 images"), ("0120", "has '2' where 0 or 1")]
)
def test_labels_of_a_concept_must_fit_the_list_of_images(nus_wide, lines, said):
    (file,) = (f for f in nus_wide.rglob("*Labels_sky*") if "Train" in f.name)
    text(file, *lines)
    with pytest.raises(UserError, match=said) as error:
        listed(config("nuswide_scene", nus_wide))
    assert file.name in str(error.value)


def test_a_listed_concept_must_have_labels_else_files_say_which_there_are(nus_wide):
    for file in nus_wide.rglob("*Labels_window*"):
        file.unlink()
    if (nus_wide / "ConceptsList").is_dir():
        with pytest.raises(MissingFileError, match=r"there is no .*Labels_window_Train\.txt"):
            listed(config("nuswide_scene", nus_wide))
    else:
        assert listed(config("nuswide_scene", nus_wide)).class_names == ("airport", "sky")


def test_without_lists_or_labels_it_says_what_must_be_there(tmp_path):
    for source in LAYOUTS:
        with pytest.raises(MissingFileError, match=r"data\.path: there is no folder"):
            listed(config(source, tmp_path / "none"))
    text(tmp_path / "image list/Train_imageOutPutFileList.txt", "a.jpg")
    with pytest.raises(MissingFileError, match=r"there is no .*Train_Labels_\*\.txt"):
        listed(config("nuswide_scene", tmp_path))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"source": "voc2007"}, "path must be given where source is voc2007"),
        ({"source": "voc2007", "path": "p", "labels": "l.csv"}, "has lists of its own"),
        ({"source": "coco2014", "path": "p", "difficult": "absent"}, "is of objects of voc2007"),
        ({"source": "digits", "difficult": "absent"}, "and source is digits"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        DataConfig(**given)


def test_a_path_leaves_a_published_set_what_it_is():
    data = DataConfig(source="coco2014", path="p", profile={"name": "exponential"})
    assert (data.source, data.profile.name) == ("coco2014", "natural")
