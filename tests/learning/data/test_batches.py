from __future__ import annotations

import pytest
import torch

from lt_pipeline.learning.data import batches as module
from lt_pipeline.learning.data.batches import Batch, batches, mixed_with_itself
from lt_pipeline.learning.transforms.augment import AugmentConfig
from lt_pipeline.learning.transforms.mix import MixConfig
from toys import toy_images

PLAIN = AugmentConfig(crop_padding=0, flip=0.0)
BLEND = MixConfig(cutmix=False)
DATA = toy_images()


def made(order, size, **extra):
    return list(batches(DATA, order, size, PLAIN, torch.Generator().manual_seed(0), **extra))


def order(count):
    return torch.randperm(75, generator=torch.Generator().manual_seed(1))[:count]


@pytest.mark.parametrize("chunk", [1, 20, 8192])
@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [
        (75, 10, [10] * 7 + [5]),
        (70, 10, [10] * 7),
        (7, 10, [7]),
        (11, 10, [10, 1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_with_remainder_every_position_comes_once_in_order(
    monkeypatch, chunk, views, count, size, sizes
):
    monkeypatch.setattr(module, "CHUNK", chunk)
    batches = made(order(count), size, views=views, remainder=True)
    assert [len(batch.labels) for batch in batches] == sizes
    assert torch.equal(torch.cat([b.positions for b in batches]), order(count))
    for batch in batches:
        assert torch.equal(batch.images, DATA.images[batch.positions])
        assert torch.equal(batch.labels, DATA.labels[batch.positions])
        assert len(batch.views) == views
        assert all(view.shape == batch.images.shape for view in batch.views)


@pytest.mark.parametrize(("count", "full"), [(75, 7), (70, 7), (10, 1)])
def test_without_remainder_what_fills_no_batch_is_left_out(count, full):
    batches = made(order(count), 10)
    assert [len(batch.labels) for batch in batches] == [10] * full
    kept = torch.cat([b.positions for b in batches])
    assert torch.equal(kept, order(count)[: 10 * full])


def test_full_batches_are_the_same_with_and_without_remainder():
    flips = AugmentConfig(crop_padding=1, flip=0.5)
    both = [
        list(batches(DATA, order(75), 10, flips, torch.Generator().manual_seed(4), remainder=r))
        for r in (False, True)
    ]
    assert [len(part) for part in both] == [7, 8]
    # crops and flips of a chunk are drawn together, so that only what was seen is the same
    for one, other in zip(*both, strict=False):
        assert torch.equal(one.positions, other.positions)
        assert torch.equal(one.labels, other.labels)


def a_batch(count=20):
    index = order(count)
    return Batch(DATA.images[index], DATA.labels[index], index)


def test_a_batch_is_blended_with_itself_in_another_order():
    given = a_batch()
    mixed = mixed_with_itself(given, BLEND, torch.Generator().manual_seed(2)).mixed
    lam = mixed.lam[0].item()
    assert 0 < lam < 1
    assert (mixed.lam == lam).all()
    assert torch.equal(mixed.first, given.labels)
    # which image each was mixed with is what is left of the mixture
    left = (mixed.images.double() - lam * given.images.double()) / (1 - lam)
    apart = (left[:, None] - given.images.double()).abs().amax((2, 3, 4))
    nearest, other = apart.min(1)
    assert nearest.max() < 1e-2
    assert other.sort().values.tolist() == list(range(20)), "everyone is the second one once"
    assert (other != torch.arange(20)).sum() > 10
    assert torch.equal(mixed.second, given.labels[other])


def test_a_box_is_pasted_from_the_image_of_the_second_label():
    given = a_batch()
    config = MixConfig(mixup=False)
    for seed in range(5):
        mixed = mixed_with_itself(given, config, torch.Generator().manual_seed(seed)).mixed
        generator = torch.Generator().manual_seed(seed)
        other = torch.randperm(20, generator=generator)
        pasted = mixed.images != given.images
        assert torch.equal(mixed.images[pasted], given.images[other].float()[pasted])
        assert torch.equal(mixed.second, given.labels[other])


def test_mixing_leaves_the_batch_itself_as_it_is_and_keeps_what_it_brings():
    given = a_batch()._replace(
        views=(a_batch().images,), pair=a_batch(3), outliers=a_batch().images
    )
    before = given.images.clone()
    mixed = mixed_with_itself(given, BLEND, torch.Generator().manual_seed(0))
    assert torch.equal(given.images, before)
    assert given.mixed is None
    for name in ("images", "labels", "positions", "views", "pair", "outliers"):
        assert getattr(mixed, name) is getattr(given, name)


def test_equal_generators_mix_alike_and_others_do_not():
    one, two, three = (
        mixed_with_itself(a_batch(), BLEND, torch.Generator().manual_seed(s)).mixed
        for s in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert one.lam[0] != three.lam[0]
    assert not torch.equal(one.second, three.second)


def test_a_batch_of_one_image_is_mixed_with_that():
    given = a_batch(1)
    mixed = mixed_with_itself(given, BLEND, torch.Generator().manual_seed(0)).mixed
    torch.testing.assert_close(mixed.images, given.images.float())


def test_a_format_is_that_of_the_mixtures_too():
    data = toy_images(channels=3)
    given = mixed_with_itself(
        Batch(data.images, data.labels, torch.arange(75)), BLEND, torch.Generator().manual_seed(0)
    )
    formatted = given.in_format(torch.channels_last)
    assert formatted.images.is_contiguous(memory_format=torch.channels_last)
    assert formatted.mixed.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(formatted.mixed.images, given.mixed.images)
    assert torch.equal(formatted.mixed.lam, given.mixed.lam)
    assert a_batch().in_format(torch.channels_last).mixed is None
