from __future__ import annotations

import pandas as pd
import pytest
from PIL import Image

from lt_pipeline.learning.data.listing import list_folder, list_table
from lt_pipeline.learning.schema import MissingFileError, UserError


def touch(folder, *paths):
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(file, "PNG")


def table(folder, text, name="labels.csv"):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_class_folders_are_classes_by_name(tmp_path):
    touch(tmp_path, "zebra fish/a.PNG", "Äal/1.jpg", "Äal/deep/2.webp", "zebra fish/.hidden.png")
    (tmp_path / "zebra fish" / "notes.txt").write_text("no image")
    photos = list_folder(tmp_path)
    assert photos.class_names == ("zebra fish", "Äal")
    assert photos.table["path"].tolist() == [
        "zebra fish/a.PNG",
        "Äal/1.jpg",
        "Äal/deep/2.webp",
    ]
    assert photos.table["label"].tolist() == [0, 1, 1]
    assert photos.table["group"].tolist() == photos.table["path"].tolist()
    assert not photos.has_split
    assert all(file.is_file() for file in photos.files())


def test_a_class_that_one_part_lacks_shifts_no_label(tmp_path):
    touch(tmp_path, "Train/a/1.png", "Train/b/2.png", "Train/c/3.png", "VAL/c/4.png")
    touch(tmp_path, "test/c/5.png", "test/a/6.png")
    photos = list_folder(tmp_path)
    assert photos.class_names == ("a", "b", "c")
    rows = photos.table.set_index("path")
    assert rows.loc["test/c/5.png", "label"] == 2
    assert rows.loc["VAL/c/4.png", "split"] == "validation"
    assert rows["split"].value_counts().to_dict() == {"train": 3, "test": 2, "validation": 1}


def test_classes_named_as_parts_are_classes_unless_all_are(tmp_path):
    touch(tmp_path, "test/1.png", "train/2.png", "car/3.png")
    assert list_folder(tmp_path).class_names == ("car", "test", "train")


def test_links_are_followed_and_a_circle_ends(tmp_path):
    touch(tmp_path, "elsewhere/1.png", "photos/b/2.png")
    (tmp_path / "photos" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "b" / "again").symlink_to(tmp_path / "photos" / "b")
    assert list_folder(tmp_path / "photos").table["path"].tolist() == ["a/1.png", "b/2.png"]


def test_classes_txt_says_the_label_order_and_must_know_all(tmp_path):
    touch(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "classes.txt").write_text("b\nunseen\na\n")
    photos = list_folder(tmp_path)
    assert photos.class_names == ("b", "unseen", "a")
    assert photos.table["label"].tolist() == [2, 0]
    (tmp_path / "classes.txt").write_text("b\n")
    with pytest.raises(UserError, match="does not list 'a'"):
        list_folder(tmp_path)


def test_a_group_is_what_the_pattern_finds_in_the_path(tmp_path):
    touch(tmp_path, "a/site1_01.png", "a/site1_02.png", "b/site2_01.png")
    photos = list_folder(tmp_path, group=r"(site\d+)_")
    assert photos.table["group"].tolist() == ["site1", "site1", "site2"]
    with pytest.raises(UserError, match=r"neither a column nor in 3 paths, as in a/site1_01\.png"):
        list_folder(tmp_path, group="(camera)")
    with pytest.raises(UserError, match="is no pattern"):
        list_folder(tmp_path, group="(")
    with pytest.raises(UserError, match=r"has no \(\.\.\.\)"):
        list_folder(tmp_path, group="site")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_with_its_own_column_names(tmp_path, separator):
    touch(tmp_path, "img/1.png", "img/2.png")
    rows = [("file", "species", "camera", "use"), ("img/1.png", "lynx", "k7", "val")]
    rows.append(("img/2.png", "01", "k8", "train"))
    file = table(tmp_path, "\n".join(separator.join(row) for row in rows))
    columns = {"path": "file", "label": "species", "split": "use"}
    photos = list_table(file, columns, group="camera")
    assert photos.class_names == ("01", "lynx")
    assert photos.table["group"].tolist() == ["k7", "k8"]
    assert photos.table["split"].tolist() == ["validation", "train"]


def test_a_table_of_parquet_and_a_folder_of_its_own(tmp_path):
    touch(tmp_path, "photos/1.png")
    pd.DataFrame({"path": ["1.png"], "label": [7]}).to_parquet(tmp_path / "labels.parquet")
    photos = list_table(tmp_path / "labels.parquet", folder=tmp_path / "photos")
    assert photos.class_names == ("7",)
    assert photos.files()[0].is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,species\n1.png,a\n", r"no column 'label', but 'path', 'species': .*columns\.label"),
        ("path,label\n1.png,a\n3.png,b\n", r"1 rows .* the first is 3\.png, perhaps .*\.png"),
        ("path,label\n1.png,a\n1.png,b\n", r"lists 1\.png twice, as a and b: .*one row with a;b"),
        ("path,label\n1.png,\n2.png,a\n", r"1\.png has no label"),
        ("path,label\n1.png,a\n1.png,a\n", r"lists 1\.png twice"),
        ("path,label\n1.png,a\n2.png,A\n", "differ in case or blanks only"),
        ("path,label,split\n1.png,a,holdout\n", "split of .* has 'holdout'"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, said):
    touch(tmp_path, "1.png", "2.png")
    with pytest.raises(UserError, match=said):
        list_table(table(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "path,label,group\n1.png,b;a,g\n2.png,,h\n3.png,c | a,h\n",
        "path,a,b,c,group\n1.png,1,1,0,g\n2.png,0,0,0,h\n3.png,1,0,1,h\n",
    ],
)
def test_several_labels_stand_in_a_cell_or_in_columns(tmp_path, text):
    touch(tmp_path, "1.png", "2.png", "3.png")
    photos = list_table(table(tmp_path, text))
    assert photos.several
    assert photos.class_names == ("a", "b", "c")
    assert photos.table["label"].tolist() == [(0, 1), (), (0, 2)]
    assert photos.table["group"].tolist() == ["g", "h", "h"]
    rows = photos.by_label
    assert list(zip(rows["path"], rows["label"], strict=True)) == [
        ("1.png", 0), ("1.png", 1), ("3.png", 0), ("3.png", 2)
    ]  # fmt: skip


def test_a_label_column_counts_whatever_other_columns_say(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    photos = list_table(table(tmp_path, "path,label,night,wet\n1.png,a,1,0\n2.png,b,0,0\n"))
    assert not photos.several
    assert photos.by_label is photos.table


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(MissingFileError, match=r"data\.path"):
        list_folder(tmp_path / "none")
    with pytest.raises(MissingFileError, match=r"data\.labels"):
        list_table(tmp_path / "none.csv")
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="no images in folders of classes"):
        list_folder(tmp_path / "empty")
    touch(tmp_path, "case/Cat/1.png", "case/cat/2.png")
    with pytest.raises(UserError, match="differ in case"):
        list_folder(tmp_path / "case")
