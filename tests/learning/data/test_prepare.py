from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lt_pipeline.learning.data import prepare as module
from lt_pipeline.learning.data.distribution import class_counts
from lt_pipeline.learning.data.prepare import INDEX, DataCard, DataConfig, pixel_statistics, prepare
from lt_pipeline.learning.data.sources import Source, load_source
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
        index = torch.tensor(rows["source_index"][rows["split"] == split].tolist())
        part = getattr(prepared, split)
        assert torch.equal(SOURCE.train.images[index], part.images)
        assert rows["label"][rows["split"] == split].tolist() == part.labels.tolist()


def test_more_images_than_a_class_has_are_refused_by_its_name_with_what_would_fit():
    source, many = uneven((9, 30, 40)), DataConfig(imbalance_ratio=2, max_per_class=31)
    wanted = r"asks for {} images of class 0 \('class 0'\), .* has 9: in the order of {} .* <= {}$"
    for order, asked, largest in (("label", 31, 9), ("size", 15, 19)):
        with pytest.raises(ValueError, match=wanted.format(asked, order, largest)):
            prepare(source, many.model_copy(update={"order": order}))


def uneven(counts):
    """A source whose classes differ in size, with a test set of one image a class."""
    return Source(toy_images(counts), toy_images((1,) * len(counts), seed=1))


def test_in_label_order_the_smallest_class_bounds_all_and_by_size_only_itself():
    source = uneven((6, 90, 12, 90, 40))
    by_label = prepare(source, DataConfig(imbalance_ratio=3))
    assert by_label.card.longtail.class_counts == (6, 4, 3, 2, 2)
    by_size = prepare(source, DataConfig(imbalance_ratio=20, order="size"))
    assert by_size.card.longtail.class_counts == (4, 90, 9, 42, 20)
    assert class_counts(by_size.train.labels, 5).tolist() == [4, 90, 9, 42, 20]
    assert by_size.card.longtail.class_groups == ("few", "medium", "few", "medium", "medium")


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.floats(1, 30),
    st.sampled_from([{"name": "exponential"}, {"name": "step"}, {"name": "pareto"}]),
)
def test_by_size_no_class_is_asked_for_more_than_it_has_and_one_image_more_would_be(
    counts, ratio, profile
):
    source = uneven(counts)
    config = DataConfig(imbalance_ratio=ratio, profile=profile, order="size")
    try:
        kept = prepare(source, config).card.longtail.class_counts
    except ValueError as error:
        assert "leaves the rarest class" in str(error)  # noqa: PT017 (the other outcome is tested)
        return
    assert all(n <= has for n, has in zip(kept, counts, strict=True))
    ranked = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    assert [kept[c] for c in ranked] == sorted(kept, reverse=True)
    with pytest.raises(ValueError, match=rf"it must be <= {max(kept)}$"):
        prepare(source, config.model_copy(update={"max_per_class": max(kept) + 1}))


def test_classes_of_one_size_are_cut_alike_in_both_orders():
    source = uneven((20,) * 6)
    by_label, by_size = (
        prepare(source, DataConfig(imbalance_ratio=10, order=order)) for order in ("label", "size")
    )
    assert torch.equal(by_label.train_index, by_size.train_index)


def one_class_after_the_other(labels, classes, seed):
    """What prepare did with a scan of all labels for each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return [order[labels[order] == c] for c in range(classes)]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(0, 99))
def test_the_sort_by_class_keeps_the_images_that_a_scan_of_every_class_chose(counts, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))]
    positions = INDEX["seeded"](labels, len(counts), seed)
    wanted = one_class_after_the_other(labels, len(counts), seed)
    assert len(positions) == len(counts)
    assert all(torch.equal(a, b) for a, b in zip(positions, wanted, strict=True))


@pytest.mark.parametrize("index", sorted(INDEX))
def test_every_index_is_a_shuffle_of_each_class_by_the_seed(index):
    labels = torch.tensor([2, 0, 2, 2, 0, 2, 1, 2, 2])
    for parts in (INDEX[index](labels, 4, seed) for seed in (0, 0, 1)):
        assert [sorted(part.tolist()) for part in parts] == [[1, 4], [6], [0, 2, 3, 5, 7, 8], []]
    first, again, other = (INDEX[index](labels, 4, seed)[2].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_every_index_has_a_name():
    assert set(get_args(DataConfig.model_fields["index"].annotation)) == set(INDEX)


def test_the_hold_out_of_a_published_subset_is_its_first_images():
    whole = prepare(SOURCE, DataConfig(imbalance_ratio=5, index="published"))
    cut = prepare(SOURCE, DataConfig(imbalance_ratio=5, index="published", validation=0.2))
    for c in range(4):
        all_of_c = whole.train_index[whole.train.labels == c].tolist()
        held = cut.validation_index[cut.validation.labels == c].tolist()
        kept = cut.train_index[cut.train.labels == c].tolist()
        assert held + kept == all_of_c


def test_the_card_survives_json_and_describes_the_pixels():
    card = prepare(SOURCE, DataConfig(imbalance_ratio=5)).card
    kind = TypeAdapter(DataCard)
    assert kind.validate_json(kind.dump_json(card)) == card
    assert (card.mean, card.std) == pixel_statistics(
        prepare(SOURCE, DataConfig(imbalance_ratio=5)).train.images
    )


def exact_statistics(images):
    """Mean and deviation by channel, from fractions."""
    statistics = []
    for channel in images.unbind(1):
        values = [Fraction(v, 255) for v in channel.flatten().tolist()]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        statistics.append((float(mean), math.sqrt(variance)))
    return tuple(zip(*statistics, strict=True))


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 99), st.sampled_from([1, 7, 2**20]))
def test_pixel_statistics_are_exact_in_parts_of_any_size(count, channels, seed, chunk):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, 3, 4), generator=generator, dtype=torch.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        assert pixel_statistics(images) == exact_statistics(images)


@pytest.mark.parametrize("level", [0, 1, 254, 255])
def test_pixels_of_one_level_have_no_deviation(level):
    images = torch.full((3, 2, 5, 5), level, dtype=torch.uint8)
    assert pixel_statistics(images) == ((level / 255,) * 2, (0.0, 0.0))


def test_the_network_s_constants_are_those_of_sums_in_float64():
    for images in (SOURCE.train.images, toy_images((300, 20), channels=3, size=32).images):
        pixels = images.double() / 255
        mean, std = pixel_statistics(images)
        for constants, wanted in (
            (mean, pixels.mean(dim=(0, 2, 3))),
            (std, pixels.std(dim=(0, 2, 3), correction=0)),
        ):
            torch.testing.assert_close(torch.tensor(constants).double(), wanted, rtol=1e-6, atol=0)
            assert torch.equal(torch.tensor(constants), wanted.float())


PEAK = """
import resource, sys, torch
from lt_pipeline.learning.data.prepare import pixel_statistics
torch.set_num_threads(1)
images = torch.randint(0, 256, (20_000, 3, 32, 32), dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixel_statistics(images)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / images.numel())
"""


@pytest.mark.slow
def test_pixel_statistics_need_less_memory_than_the_images():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    # in bytes a byte of image; as float64 it was 16
    assert float(done.stdout) < 0.5


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
