from __future__ import annotations

import pytest
import torch

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.mixtures import Mixtures
from lt_pipeline.learning.data.protocol import take
from lt_pipeline.learning.transforms.mix import MixConfig, Mixed, mix
from toys import FromAfar, toy_images


def all_of(mixtures):
    return take(mixtures, torch.arange(len(mixtures)))


def at_once(data, seed):
    """What ``mix`` makes of 16 pairs after the other, all kept."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    parts = []
    for first, second in zip(order.split(16), order.roll(1).split(16), strict=True):
        pairs = [
            part for index in (first, second) for part in (data.images[index], data.labels[index])
        ]
        parts.append(mix(*pairs, MixConfig(both="halves"), generator))
    return Mixed(*(torch.cat(column)[order.argsort()] for column in zip(*parts, strict=True)))


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize(
    ("counts", "shape"),
    [((40, 20, 10, 5), (1, 8)), ((30, 3), (3, 32)), ((17,), (1, 28)), ((1,), (1, 8))],
)
def test_they_are_those_of_mix_to_the_digit(counts, shape, far):
    data = toy_images(counts, channels=shape[0], size=shape[1])
    wanted = at_once(data, seed=7)
    mixtures = Mixtures(FromAfar(data, at_once=11) if far else data, seed=7)
    assert torch.equal(all_of(mixtures), wanted.images)
    assert torch.equal(mixtures.first, wanted.first)
    assert torch.equal(mixtures.second, wanted.second)
    assert torch.equal(mixtures.lam, wanted.lam)
    order = torch.randperm(len(data)).repeat(2)
    assert torch.equal(take(mixtures, order), wanted.images[order])


def test_every_image_is_mixed_with_another_and_is_the_first_of_its_mixture():
    count = 40
    labels = torch.arange(count)
    grey = (6 * labels).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    mixed = Mixtures(ImageSet(grey, labels, tuple(map(str, range(count)))), seed=0)
    assert torch.equal(mixed.first, labels)
    assert torch.equal(mixed.second.sort().values, labels)
    assert (mixed.second != labels).all()
    wanted = 6 * (mixed.lam * mixed.first + (1 - mixed.lam) * mixed.second)
    torch.testing.assert_close(all_of(mixed).mean((1, 2, 3)), wanted)


def test_a_set_that_is_sorted_by_class_is_mixed_both_ways_in_every_class():
    data = toy_images((40,) * 4)
    mixed = Mixtures(data, seed=0)
    images = all_of(mixed)
    cut = torch.isclose(images, images.round()).flatten(1).all(1)
    by_class = torch.stack([cut[data.labels == c].double().mean() for c in range(4)])
    assert ((by_class > 0.25) & (by_class < 0.75)).all()
    # and not with its own class alone
    assert (mixed.first != mixed.second).double().mean() > 0.6
    # with one share for all, a mean over mixtures would be that share's
    assert mixed.lam.unique().numel() > 10
