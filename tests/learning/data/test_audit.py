from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lt_pipeline.learning.data.audit import (
    audit,
    identical,
    inspect,
    joined_groups,
    largest_chain,
    near_pairs,
)
from lt_pipeline.learning.data.listing import list_folder, list_table
from toys import PROJECT


def picture(seed, size=(64, 48)):
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """One picture as PNG, as a copy of it, as BMP and as JPEG; others; one damaged."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    picture(0).save(tmp_path / "a" / "one.png")
    (tmp_path / "a" / "copy.png").write_bytes((tmp_path / "a" / "one.png").read_bytes())
    picture(0).save(tmp_path / "b" / "same.bmp")
    picture(0).save(tmp_path / "a" / "similar.jpg", quality=80)
    picture(1).convert("L").save(tmp_path / "b" / "other.webp")
    (tmp_path / "b" / "broken.png").write_bytes(b"nothing")
    return tmp_path


def fish():
    with np.load(PROJECT / "tests/fixtures/fish_hashes.npz") as kept:
        table = pd.DataFrame({name: kept[name] for name in ("near", "label", "group")})
    return table.assign(group=table["group"].astype(str))


def test_every_file_is_described(photos):
    facts = inspect(list_folder(photos)).set_index("path")
    assert facts.loc["a/one.png", ["width", "height", "mode"]].tolist() == [64, 48, "RGB"]
    assert facts.loc["b/other.webp", "format"] == "WEBP"
    assert facts.loc["a/one.png", "bytes"] == facts.loc["a/copy.png", "bytes"]
    assert facts.loc["a/one.png", "bytes"] != facts.loc["b/same.bmp", "bytes"]
    assert "broken.png" in facts.loc["b/broken.png", "error"]
    assert (facts["error"] != "").sum() == 1


def test_equal_pixels_are_found_whatever_the_format_and_never_what_is_unreadable(photos):
    facts = inspect(list_folder(photos))
    pairs = [tuple(facts["path"][list(pair)]) for pair in identical(facts)]
    assert pairs == [("a/copy.png", "a/one.png"), ("a/copy.png", "b/same.bmp")]


def test_what_looks_alike_is_near_and_another_picture_is_not(photos):
    facts = inspect(list_folder(photos))
    facts = facts[facts["error"] == ""].reset_index(drop=True)
    near = near_pairs(facts["near"].to_numpy(np.uint64))
    named = {tuple(facts["path"][list(pair)]) for pair in near}
    assert ("a/one.png", "a/similar.jpg") in named
    assert not any("b/other.webp" in pair for pair in named)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(0, 12), st.data())
def test_near_pairs_are_all_that_brute_force_finds(hashes, bits, data):
    """Some of the hashes are others with a few bits turned, else there would be no pair."""
    for value in hashes[:10]:
        turned = data.draw(st.sets(st.integers(0, 63), max_size=bits + 2))
        hashes.append(value ^ sum(1 << bit for bit in turned))
    near = {tuple(pair) for pair in near_pairs(np.array(hashes, dtype=np.uint64), bits).tolist()}
    assert near == {
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if (hashes[i] ^ hashes[j]).bit_count() <= bits
    }


def test_ten_bits_chain_the_fish_over_their_species_and_four_do_not():
    """7,725 fish of 23 species (Fish4Knowledge)."""
    facts = fish()
    hashes = facts["near"].to_numpy()
    assert largest_chain(facts["group"], near_pairs(hashes, 10)) == 4648
    assert largest_chain(facts["group"], near_pairs(hashes, 4)) == 216


def test_what_looks_alike_joins_groups_within_a_class_up_to_a_share_of_all_images():
    facts = fish()
    none, near = np.zeros((0, 2), np.int64), near_pairs(facts["near"].to_numpy())
    joined = facts.assign(group=joined_groups(facts, none, near))
    assert joined["group"].value_counts().iloc[0] < 0.02 * len(facts)
    assert joined.groupby("group")["label"].nunique().max() == 1
    assert joined["group"].nunique() < facts["group"].nunique()
    # whoever was together still is
    assert joined.groupby(facts["group"])["group"].nunique().max() == 1


def test_equal_images_join_groups_across_classes_whatever_their_size():
    facts = pd.DataFrame({"label": [0, 0, 1, 1], "group": ["a", "a", "b", "c"]})
    same = np.array([[1, 2]])
    assert joined_groups(facts, same, np.zeros((0, 2), np.int64)) == ["a", "a", "a", "c"]
    near = np.array([[0, 3], [2, 3]])
    assert joined_groups(facts, same, near, most=0.5) == ["a", "a", "a", "c"]
    assert joined_groups(facts, same, near, most=1.1) == ["a"] * 4


def test_alike_images_of_several_labels_join_where_they_have_one_in_common():
    """Or where neither has any."""
    labels = [(0, 1), (1, 2), (3,), (), (), (3, 4)]
    facts = pd.DataFrame({"label": labels, "group": list("abcdef")})
    none, near = np.zeros((0, 2), np.int64), np.array([[0, 1], [1, 2], [2, 3], [3, 4], [2, 5]])
    assert joined_groups(facts, none, near, most=1.0) == list("aacddc")


def test_images_of_several_labels_are_audited_by_the_sets_of_them(tmp_path):
    """Equal ones whose labels differ contradict each other."""
    rows = []
    for k in range(24):
        picture(100 + k).save(tmp_path / f"{k:02}.png")
        rows.append((f"{k:02}.png", ["cat", "cat;dog", "dog", ""][k % 4]))
    for name, of, label in (("x.png", 0, "dog"), ("y.jpg", 1, "dog;bird"), ("z.jpg", 3, "")):
        picture(100 + of).save(tmp_path / name, **({"quality": 80} if "jpg" in name else {}))
        rows.append((name, label))
    picture(102).save(tmp_path / "other.jpg", quality=80)
    rows.append(("other.jpg", "cat"))
    pd.DataFrame(rows, columns=["path", "label"]).to_csv(tmp_path / "labels.csv", index=False)
    audited = audit(list_table(tmp_path / "labels.csv"), 0.2, 0.2, seed=0, size=16)
    group = audited.facts.set_index("path")["group"]
    assert group["x.png"] == group["00.png"], "equal images, whatever they are called"
    pairs = audited.pairs.set_index("other")
    assert not pairs.loc["x.png", "same_class"]
    assert pairs.loc["z.jpg", "same_class"]
    counts = audited.classes.set_index("class")["images"]
    assert counts.to_dict() == {"bird": 1, "cat": 13, "dog": 14}
    said = "\n".join(audited.notes)
    assert "28 images of 3 classes, 14 to 1 a class" in said
    assert "1 labels an image, and 7 images without one" in said
    assert "1 pairs of identical images differ in their labels, as 00.png and x.png" in said
    assert audited.facts.groupby("group")["split"].nunique().max() == 1
