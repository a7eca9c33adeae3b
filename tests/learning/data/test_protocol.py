"""What is fetched by batches is what lies in memory."""

from __future__ import annotations

import pytest
import torch

from lt_pipeline.learning.data import batches as module
from lt_pipeline.learning.data.batches import batches
from lt_pipeline.learning.data.ood import InDistribution, load_ood
from lt_pipeline.learning.data.prepare import pixel_statistics
from lt_pipeline.learning.data.protocol import content_hash, fetch_parts, in_order, take
from lt_pipeline.learning.transforms.augment import AugmentConfig
from toys import FromAfar, toy_images

# more than a source from afar gives at once, in the wide ones by far
MANY = toy_images((700, 400, 50, 7), channels=3)


@pytest.mark.parametrize("at_once", [1, 7, 512])
@pytest.mark.parametrize("sizes", [1000, 512, 3, [600, 0, 1, 556]])
def test_parts_of_any_size_are_fetched(at_once, sizes):
    order = torch.randperm(len(MANY))
    parts = fetch_parts(FromAfar(MANY, at_once), order, sizes)
    for one, part in zip(parts, order.split(sizes), strict=True):
        assert torch.equal(one, MANY.images[part])


@pytest.mark.parametrize("data", [MANY, MANY.images, FromAfar(MANY)])
def test_a_set_or_a_tensor_comes_in_order_and_at_once(data):
    assert torch.equal(torch.cat([*in_order(data, 600)]), MANY.images)
    index = torch.tensor([3, 1100, 3])
    assert torch.equal(take(data, index), MANY.images[index])
    assert take(data, index[:0]).shape == (0, 3, 8, 8)


def test_too_many_at_once_are_refused():
    with pytest.raises(MemoryError, match="513 images"):
        next(FromAfar(MANY).fetch(torch.arange(513), 513))


def test_a_whole_order_is_known_before_its_first_images_are_asked_for():
    known = []

    class Watched(FromAfar):
        def fetch(self, order, sizes):
            known.append((order, sizes))
            return super().fetch(order, sizes)

    order = torch.randperm(len(MANY))[:1100]
    next(
        batches(
            Watched(MANY), order, 10, AugmentConfig(crop_padding=4, flip=0.5), torch.Generator()
        )
    )
    ((asked, sizes),) = known
    assert torch.equal(asked, order)
    assert sizes == [512, 512, 76]


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("remainder", [False, True])
@pytest.mark.parametrize("chunk", [8192, 600])
def test_batches_are_the_same_from_afar(monkeypatch, views, remainder, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    order = torch.randperm(len(MANY))

    def made(data):
        generator = torch.Generator().manual_seed(5)
        more = {"views": views, "remainder": remainder}
        return [
            *batches(data, order, 100, AugmentConfig(crop_padding=2, flip=0.5), generator, **more)
        ]

    for one, other in zip(made(MANY), made(FromAfar(MANY)), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert all(map(torch.equal, one.views, other.views))


@pytest.mark.parametrize(("side", "together"), [(8, 64), (32, 64), (64, 16)])
def test_fewer_are_augmented_together_where_images_are_large(monkeypatch, side, together):
    seen = []
    monkeypatch.setattr(module, "CHUNK", 64)
    monkeypatch.setattr(module, "CHUNK_BYTES", 64 * 3 * 32 * 32)
    monkeypatch.setattr(module, "augment", lambda images, *_: seen.append(len(images)) or images)
    data = toy_images((64,), channels=3, size=side)
    made = [
        *batches(
            data, torch.arange(64), 4, AugmentConfig(crop_padding=4, flip=0.5), torch.Generator()
        )
    ]
    assert len(made) == 16
    assert set(seen) == {together}


def test_hash_and_statistics_are_the_same_from_afar():
    assert content_hash(FromAfar(MANY)) == content_hash(MANY)
    assert pixel_statistics(FromAfar(MANY)) == pixel_statistics(MANY)


@pytest.mark.parametrize("name", ["gaussian_noise", "uniform_noise", "permuted_pixels", "blurred"])
@pytest.mark.parametrize("limit", [10_000, 550])
def test_ood_sets_made_from_afar_are_the_same(tmp_path, name, limit):
    near, far = (
        load_ood([name], InDistribution(tmp_path, test, "digits", 3, limit))[0][name]
        for test in (MANY, FromAfar(MANY))
    )
    assert torch.equal(near, far)
