from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.data.longtail import class_counts
from lt_pipeline.data.prepare import DataCard, DataConfig, prepare
from lt_pipeline.data.sources import Source, load_source
from toys import toy_images

SOURCE = Source(toy_images((30, 28, 26, 25)), toy_images((5, 5, 5, 5), seed=1))


def test_the_training_set_has_the_profile_and_the_test_set_is_untouched():
    prepared = prepare(SOURCE, DataConfig(imbalance_ratio=5))
    assert prepared.card.longtail.class_counts == (25, 14, 8, 5)
    assert class_counts(prepared.train.labels, 4).tolist() == [25, 14, 8, 5]
    assert torch.equal(prepared.test.images, SOURCE.test.images)
    assert len(prepared.validation) == 0


def test_the_seed_chooses_the_images():
    hashes = [
        prepare(SOURCE, DataConfig(imbalance_ratio=5, seed=seed)).card.data_hash
        for seed in (0, 0, 1)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@given(st.floats(0, 0.99), st.floats(1, 25))
def test_the_hold_out_is_stratified_and_never_empties_a_class(validation, ratio):
    whole = prepare(SOURCE, DataConfig(imbalance_ratio=ratio))
    cut = prepare(SOURCE, DataConfig(imbalance_ratio=ratio, validation=validation))
    held = class_counts(cut.validation.labels, 4)
    before = class_counts(whole.train.labels, 4)
    assert min(cut.card.longtail.class_counts) >= 1
    assert torch.equal(held + class_counts(cut.train.labels, 4), before)
    wanted = (validation * before).round().minimum(before - 1).long()
    if validation:
        wanted = wanted.maximum((before >= 3).long())
    assert torch.equal(held, wanted)
    # groups stay those of the whole long-tailed set
    assert cut.card.longtail.class_groups == whole.card.longtail.class_groups
    assert set(cut.train_index.tolist()).isdisjoint(cut.validation_index.tolist())
    together = {*cut.train_index.tolist(), *cut.validation_index.tolist()}
    assert together == set(whole.train_index.tolist())


def test_a_hold_out_has_an_image_of_every_class_with_three_and_never_the_last_one():
    source = Source(toy_images((30, 30, 30, 30)), SOURCE.test)
    # of 30, 13, 6, 3 images, then of 30, 12, 4, 2 and 30, 9, 3, 1
    for ratio, held in ((10, [3, 1, 1, 1]), (15, [3, 1, 1, 0]), (30, [3, 1, 1, 0])):
        cut = prepare(source, DataConfig(imbalance_ratio=ratio, validation=0.1))
        assert class_counts(cut.validation.labels, 4).tolist() == held, ratio
    assert len(prepare(source, DataConfig(imbalance_ratio=10)).validation) == 0


def test_the_manifest_finds_every_image_again():
    prepared = prepare(SOURCE, DataConfig(imbalance_ratio=5, validation=0.2))
    rows = prepared.manifest()
    assert len(rows) == len(prepared.train) + len(prepared.validation)
    for split in ("train", "validation"):
        index = torch.tensor([r["source_index"] for r in rows if r["split"] == split])
        part = getattr(prepared, split)
        assert torch.equal(SOURCE.train.images[index], part.images)
        assert [r["label"] for r in rows if r["split"] == split] == part.labels.tolist()


def test_more_images_than_a_class_has_are_refused_by_its_name():
    with pytest.raises(ValueError, match=r"asks for 30 images of class 1 \('class 1'\).* has 28"):
        prepare(SOURCE, DataConfig(imbalance_ratio=1, max_per_class=30))


def test_the_card_survives_json_and_describes_the_pixels():
    card = prepare(SOURCE, DataConfig(imbalance_ratio=5)).card
    assert DataCard.from_json(json.loads(json.dumps(card.to_json()))) == card
    pixels = prepare(SOURCE, DataConfig(imbalance_ratio=5)).train.images.double() / 255
    assert card.mean == pytest.approx([pixels.mean().item()])
    assert card.std == pytest.approx([pixels.std(correction=0).item()])


def test_a_ratio_below_one_and_an_unknown_source_are_refused():
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        DataConfig(imbalance_ratio=0.5)
    with pytest.raises(ValueError, match="did you mean 'cifar100'"):
        DataConfig(source="cifar-100")


@pytest.mark.parametrize(
    ("source", "ratio", "total"),
    [
        ("cifar100", 100, 10_847),
        ("cifar100", 50, 12_608),
        ("cifar100", 10, 19_573),
        ("cifar10", 100, 12_406),
        ("cifar10", 50, 13_996),
        ("cifar10", 10, 20_431),
    ],
)
def test_the_real_cifar_sets_have_the_published_sizes(raw_cifar, source, ratio, total):
    prepared = prepare(
        load_source(source, raw_cifar), DataConfig(source=source, imbalance_ratio=ratio)
    )
    assert len(prepared.train) == total
    assert len(prepared.test) == 10_000
    classes = prepared.card.longtail.classes
    assert class_counts(prepared.test.labels, classes).unique().tolist() == [10_000 // classes]
    if source == "cifar100" and ratio == 100:
        sizes = [len(members) for members in prepared.card.longtail.groups.values()]
        assert sizes == [35, 35, 30]
