from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lt_pipeline.learning.data.prepare import DataConfig, expected, listed, load_photos, prepare
from lt_pipeline.learning.data.protocol import take
from lt_pipeline.learning.schema import UserError

NATURAL = {"profile": {"name": "natural"}, "size": 8}


def photo(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 12, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """24 images of class b, 12 of a, in groups of two; one of c."""
    for name, count in (("b", 24), ("a", 12), ("c", 1)):
        for k in range(count):
            photo(tmp_path / "photos" / name / f"g{k // 2:02}_{k}.png", 60 * "abc".index(name) + k)
    return tmp_path / "photos"


def config(folder, **given):
    return DataConfig(source="folder", path=str(folder), group=r"(\w+/g\d+)_", **NATURAL, **given)


def test_a_folder_becomes_three_sets_that_part_no_group(folder, tmp_path):
    chosen = config(folder, validation=0.2)
    made = prepare(load_photos(chosen, tmp_path / "cache"), chosen)
    sizes = [len(part) for part in (made.train, made.validation, made.test)]
    assert sum(sizes) == 37
    assert made.train.class_names == ("a", "b", "c")
    rows = made.manifest()
    assert rows.groupby("group")["split"].nunique().max() == 1
    assert made.card.longtail.class_counts[2] == 1
    assert (made.test.labels != 2).all()
    # a group is two images: whatever the part, it keeps its number
    numbers = torch.cat([part.groups for part in (made.train, made.validation, made.test)])
    assert numbers.bincount().tolist() == [2] * 18 + [1]
    tested = rows["group"][rows["split"] == "test"].tolist()
    names = sorted(set(rows["group"]))
    assert [names[k] for k in made.test.groups.tolist()] == tested
    # the pixels say which file they are of
    kept = rows[rows["split"] == "test"].reset_index(drop=True)
    images = take(made.test, torch.arange(len(made.test)))
    number = kept["path"].str.extract(r"_(\d+)\.png")[0].astype(int)
    assert images[:, 0, 0, 0].tolist() == (60 * kept["label"] + number).tolist()


@pytest.mark.parametrize("part", ["val", "train"])
def test_a_hold_out_may_be_a_share_or_the_files_own(folder, tmp_path, part):
    assert not config(folder).holds_out
    assert config(folder, validation=0.2).holds_out
    assert config(folder, folds=3).holds_out
    split = tmp_path / "split.csv"
    rows = listed(config(folder)).table.assign(
        label=lambda t: t["label"].map(list("abc").__getitem__)
    )
    first = rows[rows["split"] == "train"].groupby("label").head(1)["group"]
    rows.loc[rows["group"].isin(first) & (rows["label"] == "b"), "split"] = part
    rows.to_csv(split, index=False)
    given = DataConfig(source="csv", path=str(folder), labels=str(split), **NATURAL)
    assert given.holds_out == (part == "val")


def test_what_is_expected_is_what_comes(folder, tmp_path):
    chosen = config(folder)
    card = prepare(load_photos(chosen, tmp_path / "cache"), chosen).card
    known = expected(chosen)
    assert known.longtail.class_counts == card.longtail.class_counts
    assert known.channels == card.channels == 3
    assert chosen.slug == "photos"


def test_images_that_are_groups_of_their_own_are_independent(folder, tmp_path):
    chosen = DataConfig(source="folder", path=str(folder), **NATURAL)
    assert load_photos(chosen, tmp_path / "cache").test.groups is None


def test_classes_of_one_group_are_dropped_where_asked_to(folder):
    photos = listed(config(folder, rare="drop"))
    assert photos.class_names == ("a", "b")
    assert set(photos.table["label"]) == {0, 1}


def test_a_split_that_a_person_wrote_is_used_as_it_is(folder, tmp_path):
    table = listed(config(folder)).table
    table["label"] = [path.split("/")[0] for path in table["path"]]
    table["split"] = np.where(table["label"] == "c", "train", table["split"])
    table.to_csv(tmp_path / "split.csv", index=False)
    chosen = DataConfig(
        source="csv", labels=str(tmp_path / "split.csv"), path=str(folder), name="mine", **NATURAL
    )
    again = listed(chosen).table.set_index("path")["split"]
    assert again.to_dict() == table.set_index("path")["split"].to_dict()
    assert chosen.slug == "mine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.assign(split=t["split"].where(t.index != 3, "")), "1 images have no part"),
        (
            lambda t: t.assign(split=np.where(t.index % 2, "test", "train")),
            "parts .* groups: .* in train and test",
        ),
        (
            lambda t: t.assign(split=np.where(t["label"] == "a", "train", t["split"])),
            "no test images of a",
        ),
        (
            lambda t: t.assign(split=np.where(t["label"] == "a", "test", t["split"])),
            "no train images of a",
        ),
    ],
)
def test_an_edited_split_is_checked(folder, tmp_path, change, said):
    table = listed(config(folder)).table
    table["label"] = [path.split("/")[0] for path in table["path"]]
    change(table).to_csv(tmp_path / "split.csv", index=False)
    chosen = DataConfig(
        source="csv", labels=str(tmp_path / "split.csv"), path=str(folder), **NATURAL
    )
    with pytest.raises(UserError, match=said):
        listed(chosen)


def test_equal_images_in_two_parts_stop_the_run(folder, tmp_path):
    """Of a given split and of one that was drawn: the audit would have kept them together."""
    split = listed(config(folder)).table.groupby("split")["path"].first()
    photo(folder / split["test"], 250)
    photo(folder / split["train"], 250)
    said = rf"2 images are in two parts, as .*{split['test']} in test"
    with pytest.raises(UserError, match=said) as error:
        load_photos(config(folder), tmp_path / "cache")
    assert f"{split['train']} in train" in str(error.value)
    assert "--pipelines=audit" in str(error.value)


def test_an_unreadable_image_stops_the_run_or_is_left_out(folder, tmp_path):
    (folder / "b" / "g03_6.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"1 of 37 .*g03_6\.png is no image.*data\.unreadable=skip"):
        load_photos(config(folder), tmp_path / "cache")
    source = load_photos(config(folder, unreadable="skip"), tmp_path / "cache")
    assert sum(len(part) for part in source[:3]) == 36
    assert "b/g03_6.png" not in set(source.listed["path"])


def test_images_are_decoded_once_and_again_when_a_file_has_changed(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    load_photos(config(folder), cache)
    load_photos(config(folder, seed=1), cache)
    assert len(list(cache.glob("*.npy"))) == 1
    photo(folder / "a" / "g00_0.png", 250)
    load_photos(config(folder), cache)
    assert len(list(cache.glob("*.npy"))) == 2


def test_a_path_or_a_table_says_the_source_and_that_nothing_is_cut():
    """What conf/base has is of the digits."""
    base = {"source": "digits", "profile": {"name": "exponential"}}
    for given, source in (({"path": "p"}, "folder"), ({"path": "p", "labels": "l.csv"}, "csv")):
        data = DataConfig(**{**base, **given})
        assert (data.source, data.profile.name) == (source, "natural")


@pytest.mark.parametrize(
    ("given", "slug"),
    [
        ({"path": "a/My Photos"}, "My_Photos"),
        ({"path": "a", "name": "../x: y"}, ".._x_y"),
        ({"labels": "b/Fische (neu).csv"}, "Fische_neu_"),
    ],
)
def test_what_all_is_called_can_be_a_folder_and_a_model(given, slug):
    assert DataConfig(**given).slug == slug


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"source": "folder"}, "path must be given where source is folder"),
        ({"source": "csv"}, "labels must be given where source is csv"),
        ({"source": "digits", "profile": {"name": "natural"}}, "natural is for images in files"),
        ({"source": "folder", "path": "x", "test": 0.5, "validation": 0.5}, "leave some to train"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        DataConfig(**{**NATURAL, **given})


def test_a_table_of_parquet_is_read_alike(folder, tmp_path):
    table = pd.DataFrame(listed(config(folder)).table)
    table["label"] = [path.split("/")[0] for path in table["path"]]
    table.to_parquet(tmp_path / "split.parquet")
    chosen = DataConfig(
        source="csv", labels=str(tmp_path / "split.parquet"), path=str(folder), **NATURAL
    )
    assert listed(chosen).class_names == ("a", "b", "c")


@pytest.fixture
def labelled(tmp_path):
    """A table of 90 images of up to two of three labels, every tenth without one."""
    rows = []
    for k in range(90):
        photo(tmp_path / "photos" / f"{k:02}.png", 2 * k)
        labels = [name for name, every in (("a", 1), ("b", 2), ("c", 6)) if k % every == 0]
        rows.append((f"{k:02}.png", ";".join(labels[-2:]) if k % 10 else "", f"g{k // 2}"))
    table = tmp_path / "labels.csv"
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(table, index=False)
    return {"labels": str(table), "path": str(tmp_path / "photos"), "size": 8, "validation": 0.2}


def test_several_labels_come_from_a_table_and_no_group_is_parted(labelled, tmp_path):
    chosen = DataConfig(**labelled)
    made = prepare(load_photos(chosen, tmp_path / "cache"), chosen)
    assert made.train.labels.dtype == torch.uint8
    assert made.train.class_names == ("a", "b", "c")
    rows = made.manifest()
    assert rows.groupby("group")["split"].nunique().max() == 1
    kept = rows[rows["split"] == "train"].reset_index(drop=True)
    for labels, name in zip(made.train.labels, kept["class"], strict=True):
        here = [made.train.class_names[c] for c in labels.nonzero().squeeze(1).tolist()]
        assert ";".join(here) == name
    assert (rows["class"] == "").sum() == 9
    longtail = made.card.longtail
    assert longtail.several
    assert longtail.images == len(made.train)
    assert longtail == replace(expected(chosen).longtail, class_names=longtail.class_names)
    whole = sum(part.labels.sum(0) for part in (made.train, made.validation, made.test))
    for part, share in ((made.train, 0.6), (made.validation, 0.2), (made.test, 0.2)):
        assert (part.labels.sum(0) / whole).tolist() == pytest.approx([share] * 3, abs=0.16)


def test_a_long_tail_is_cut_from_what_is_learned_alone(labelled, tmp_path):
    plain, cut = (DataConfig(**labelled, long_tail=ratio) for ratio in (None, 16))
    prepared = [prepare(load_photos(c, tmp_path / "cache"), c) for c in (plain, cut)]
    before, after = (made.card.longtail for made in prepared)
    assert after.imbalance_ratio > 1.5 * before.imbalance_ratio
    assert after.class_counts == expected(cut).longtail.class_counts
    assert torch.equal(prepared[0].test.labels, prepared[1].test.labels)
    assert len(prepared[0].validation) == len(prepared[1].validation)
    assert (plain.title, cut.title) == ("labels", "labels, IR 16")


def test_each_image_of_several_labels_is_tested_in_one_fold(labelled):
    rows = [
        listed(DataConfig(**{**labelled, "validation": 0.0}, folds=3, fold=k)) for k in range(3)
    ]
    parts = pd.DataFrame({k: one.table["split"] for k, one in enumerate(rows)})
    for part in ("test", "validation"):
        assert (parts == part).sum(axis=1).eq(1).all()
    for one in rows:
        assert one.table.groupby("group")["split"].nunique().max() == 1
        counts = one.by_label.groupby(["label", "split"]).size().unstack()
        shares = counts.div(counts.sum(axis=1), axis=0)
        assert shares["test"].tolist() == pytest.approx([1 / 3] * 3, abs=0.1)


def test_a_label_of_one_group_is_learned_in_each_fold(labelled, caplog):
    table = pd.read_csv(labelled["labels"], keep_default_na=False)
    table.loc[[5, 7], "label"] = ["a;once", "a;b"]
    table.to_csv(labelled["labels"], index=False)
    given = {**labelled, "validation": 0.0, "folds": 3}
    for k in range(3):
        table = listed(DataConfig(**given, fold=k)).table
        assert set(table["split"][table["group"] == "g2"]) == {"train"}
    assert "tested in none, being in one group: once" in caplog.text


def test_a_rare_label_is_dropped_and_what_shows_nothing_else_with_it(labelled):
    table = pd.read_csv(labelled["labels"], keep_default_na=False)
    table.loc[[4, 5], "label"] = ["rare", "b;rare"]
    table.to_csv(labelled["labels"], index=False)
    before = listed(DataConfig(**labelled))
    after = listed(DataConfig(**labelled, rare="drop"))
    assert before.class_names == ("a", "b", "c", "rare")
    assert after.class_names == ("a", "b", "c")
    gone = set(before.table["path"]) - set(after.table["path"])
    assert gone == {"04.png"}
    assert after.table.set_index("path")["label"]["05.png"] == (1,)
    assert (after.table["label"].map(len) == 0).sum() == 9


def test_a_split_of_several_labels_is_checked_by_label(labelled):
    table = pd.read_csv(labelled["labels"], keep_default_na=False)
    parts = ["test" if k % 4 == 0 else "train" for k in range(45)]
    table["split"] = [parts[k // 2] for k in range(90)]
    table.to_csv(labelled["labels"], index=False)
    assert listed(DataConfig(**labelled)).several
    has = table["label"].str.contains("c") & (table["split"] == "test")
    table.loc[has, "label"] = "a"
    table.to_csv(labelled["labels"], index=False)
    with pytest.raises(UserError, match="no test images of c"):
        listed(DataConfig(**labelled, seed=1))
