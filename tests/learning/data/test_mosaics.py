from __future__ import annotations

import pytest
import torch

from lt_pipeline.learning.data import mosaics
from lt_pipeline.learning.data.prepare import DataConfig, expected, make
from lt_pipeline.learning.data.profiles import Exponential, Step
from lt_pipeline.learning.data.protocol import digests
from lt_pipeline.learning.data.sources import digits_source

MOSAICS = {"source": "mosaics", "validation": 0.2, "max_per_class": 200, "imbalance_ratio": 10}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    return make(DataConfig(**MOSAICS), folder, folder)


@pytest.mark.parametrize("profile", [Exponential(), Step()])
def test_labels_occur_as_the_profile_says(profile):
    chances = mosaics.rates(profile, 20)
    assert float(chances.sum()) == pytest.approx(1)
    occurs = 1 - (1 - chances) ** 4
    wanted = torch.tensor([profile.fraction(c / 9, 20) for c in range(10)])
    torch.testing.assert_close((occurs / occurs[0]).float(), wanted, rtol=1e-6, atol=0)


def test_a_mosaic_has_the_labels_of_its_four_digits(prepared):
    digits = digits_source()
    known = {
        part: dict(zip(digests(of), of.labels.tolist(), strict=True))
        for part, of in (("train", digits.train), ("test", digits.test))
    }
    for images, part in ((prepared.train, "train"), (prepared.test, "test")):
        for image, labels in zip(images.images[:40], images.labels[:40], strict=True):
            cells = [image[:, r : r + 8, c : c + 8] for r in (0, 8) for c in (0, 8)]
            tiles = {known[part][digest] for digest in digests(torch.stack(cells))}
            assert tiles == set(labels.nonzero().squeeze(1).tolist())


def test_no_digit_is_in_two_parts(prepared):
    def cells(images):
        parts = images.images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(0, 3)
        return set(digests(parts.reshape(-1, 1, 8, 8)))

    train, held, test = map(cells, (prepared.train, prepared.validation, prepared.test))
    assert not train & held
    assert not (train | held) & test


def test_the_test_set_has_every_digit_in_each_cell_once_whatever_the_seed(prepared, tmp_path):
    again = make(DataConfig(**MOSAICS, seed=5), tmp_path, tmp_path)
    assert torch.equal(again.test.images, prepared.test.images)
    assert not torch.equal(again.train.labels, prepared.train.labels)
    counts = prepared.test.labels.sum(0)
    assert counts.max() - counts.min() < 20


def test_what_is_expected_is_what_is_made(prepared):
    card = expected(DataConfig(**MOSAICS))
    assert card.longtail.class_counts == prepared.card.longtail.class_counts
    assert card.longtail.images == len(prepared.train)
    assert card.longtail.several
    statistics = prepared.card.longtail.statistics()
    assert statistics["images"] == len(prepared.train)
    assert statistics["labels_per_image"] == pytest.approx(
        float(prepared.train.labels.sum() / len(prepared.train))
    )
    rows = prepared.manifest()
    assert rows["split"].value_counts().to_dict() == {
        "train": len(prepared.train),
        "validation": len(prepared.validation),
        "test": 500,
    }
    assert set(rows["class"][0].split(";")) == {
        str(c) for c in prepared.train.labels[0].nonzero().squeeze(1).tolist()
    }


def test_equal_seeds_make_equal_mosaics(prepared, tmp_path):
    again = make(DataConfig(**MOSAICS), tmp_path, tmp_path)
    assert again.card == prepared.card


def test_what_no_code_published_is_refused():
    with pytest.raises(ValueError, match="mosaics are drawn"):
        DataConfig(source="mosaics", index="published")
