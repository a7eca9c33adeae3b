"""Folds of images in files: every image is tested once, by groups that are never parted."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from lt_pipeline.learning.data.listing import Listing
from lt_pipeline.learning.data.photos import ALWAYS, FOLD, _check_fold, in_folds, of_fold
from lt_pipeline.learning.data.prepare import DataConfig, listed, make
from lt_pipeline.learning.data.protocol import take
from lt_pipeline.learning.experiments.config import data_config
from lt_pipeline.learning.schema import UserError
from toys import PROJECT


def listing(tmp_path, rows, split=""):
    """Images of (class, group) pairs, as many as there are of each."""
    table = pd.DataFrame(rows, columns=["label", "group"])
    table["path"] = [f"{k:05}.png" for k in range(len(table))]
    names = tuple("abcdefghijklmnopqrstuvwxyz"[: table["label"].max() + 1])
    return Listing(tmp_path, table.assign(split=split), names)


@pytest.fixture
def fish(tmp_path):
    """The 7,725 fish (Fish4Knowledge): their classes and trajectories."""
    sizes = json.loads((PROJECT / "tests/fixtures/fish_groups.json").read_text())
    return listing(
        tmp_path,
        [
            (c, f"{name}/{k}")
            for c, (name, lengths) in enumerate(sorted(sizes.items()))
            for k, length in enumerate(lengths)
            for _ in range(length)
        ],
    )


def test_each_fish_is_tested_once_and_no_trajectory_is_parted(fish):
    folds = in_folds(fish, 5, seed=0)
    assert folds.table[FOLD].between(0, 4).all()
    pd.testing.assert_frame_equal(folds.table, in_folds(fish, 5, seed=0).table)
    assert not folds.table[FOLD].equals(in_folds(fish, 5, seed=1).table[FOLD])
    parts = pd.DataFrame({k: of_fold(folds, 5, k).table["split"] for k in range(5)})
    assert (parts == "test").sum(axis=1).eq(1).all()
    assert (parts == "validation").sum(axis=1).eq(1).all()
    for k in range(5):
        table = of_fold(folds, 5, k).table
        assert table.groupby("group")["split"].nunique().max() == 1
        by_class = table.groupby("split")["label"].nunique()
        assert (by_class == 23).all(), "each part has each class"
        assert (parts[k] == "test").equals(parts[(k + 4) % 5] == "validation")


@pytest.mark.parametrize("folds", [3, 4, 5, 7])
@pytest.mark.parametrize("groups", [2, 3])
def test_a_class_of_few_groups_is_learned_wherever_it_is_tested(tmp_path, folds, groups):
    rows = [(0, f"a{k}") for k in range(30)] + [(1, f"b{k}") for k in range(groups)] * 3
    folded = in_folds(listing(tmp_path, rows), folds, seed=2)
    tested = 0
    for k in range(folds):
        table = of_fold(folded, folds, k).table
        rare = table[table["label"] == 1]
        tested += (rare["split"] == "test").sum()
        assert (rare["split"] == "train").any()
    assert tested == 3 * groups


def test_a_class_of_one_group_is_learned_always_and_tested_never(tmp_path, caplog):
    """With all that its group holds, which is as a camera's site is."""
    rows = [(0, f"a{k}") for k in range(9)] + [(1, "a3"), (2, "c1"), (2, "c2"), (2, "c3")]
    with caplog.at_level(logging.WARNING):
        folded = in_folds(listing(tmp_path, rows), 3, seed=0)
    assert "tested in none, being in one group: b" in caplog.text
    always = folded.table[folded.table[FOLD] == ALWAYS]
    assert set(always["group"]) == {"a3"}
    for k in range(3):
        assert set(of_fold(folded, 3, k).table["split"][always.index]) == {"train"}
    dropped = in_folds(listing(tmp_path, rows), 3, seed=0, rare="drop")
    assert dropped.class_names == ("a", "c")
    assert (dropped.table[FOLD] >= 0).all()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(0, "a"), (0, "b"), (1, "a"), (1, "b")], "folds is 5, but fold . has no .* 2 groups"),
        ([(0, "a"), (1, "b")], "fold 0 has no .* images, as there are 2 groups"),
    ],
)
def test_what_folds_cannot_be_made_of_is_refused(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        in_folds(listing(tmp_path, rows), 5, seed=0)


def test_a_class_that_a_fold_would_test_unlearned_is_refused(tmp_path):
    """Sites in a ring, where the search cannot bring both of each class's apart."""
    listed = listing(tmp_path, [(0, f"a{k}") for k in range(6)] + [(1, "b1"), (1, "b2")])
    table = listed.table.assign(**{FOLD: [0, 1, 2, 0, 1, 2, 1, 1]})
    parted = of_fold(Listing(tmp_path, table, listed.class_names), 3, 1)
    with pytest.raises(UserError, match="fold 1 of 3 would test b without having learned it"):
        _check_fold(parted, 1, 3)


def test_a_split_that_was_given_is_not_left_aside(tmp_path):
    rows = [(0, f"a{k}") for k in range(9)]
    given = listing(tmp_path, rows, split=["train", "test", "validation"] * 3)
    with pytest.raises(UserError, match=r"split of their own: .*data\.split=made"):
        in_folds(given, 3, seed=0)
    assert (in_folds(given, 3, seed=0, made=True).table[FOLD] >= 0).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"folds": 5}, "folds are of images in files .*, and digits has a test set of its own"),
        ({"path": "p", "folds": 2}, "folds must be 3 or more, or 0 for none, but is 2"),
        ({"path": "p", "folds": 1}, "folds must be 3 or more"),
        ({"path": "p", "folds": -1}, "data.folds: .*greater than or equal to 0"),
        ({"path": "p", "folds": 5, "fold": 5}, "fold must be 0 to 4, but is 5"),
        ({"path": "p", "fold": 0}, r"fold is one of data\.folds, which is 0"),
    ],
)
def test_folds_that_cannot_be_are_refused_in_one_line(given, said):
    with pytest.raises(UserError, match=said) as error:
        data_config({"data": given})
    assert "\n" not in str(error.value)


def test_all_folds_are_gone_through_unless_one_is_named():
    assert DataConfig(path="p", folds=4).each_fold == (0, 1, 2, 3)
    assert DataConfig(path="p", folds=4, fold=0).each_fold == ()
    assert DataConfig(path="p").each_fold == DataConfig().each_fold == ()
    assert DataConfig(path="p", folds=3).holds_out
    with pytest.raises(ValidationError):
        DataConfig(path="p", folds=3, split="mine")


def test_images_of_a_fold_are_those_that_the_listing_says(tmp_path):
    for k in range(24):
        file = tmp_path / "photos" / "ab"[k % 2] / f"g{k // 4}_{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * k, np.uint8)).save(file)
    given = {"path": str(tmp_path / "photos"), "size": 8, "group": r"(g\d+)_", "folds": 3}
    made = [
        make(DataConfig(**given, fold=k), tmp_path / "raw", tmp_path / "packed") for k in range(3)
    ]
    assert sum(len(one.test) for one in made) == 24
    assert len({one.card.data_hash for one in made}) == 3
    for k, one in enumerate(made):
        tested = take(one.test, torch.arange(len(one.test)))[:, 0, 0, 0]
        again = listed(DataConfig(**given, fold=k)).table
        paths = again["path"][again["split"] == "test"]
        assert tested.tolist() == [10 * int(path[:-4].split("_")[1]) for path in paths]
    assert len(list((tmp_path / "packed").glob("*.npy"))) == 1, "decoded once"
