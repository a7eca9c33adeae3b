from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from lt_pipeline.learning.transforms import views
from lt_pipeline.learning.transforms.augment import (
    AugmentConfig,
    augment,
    crop_at,
    cut_at,
    random_flip,
)
from lt_pipeline.learning.transforms.views import ViewConfig, draw_crops, draw_jitter

SHAPES = st.tuples(
    st.integers(1, 6), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)
)  # [N, C, H, W]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, low: int = 1) -> Tensor:
    return torch.randint(low, 256, shape, generator=seeded(99), dtype=torch.uint8)


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    return augment(images, AugmentConfig(crop_padding=padding), generator)


def cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    return augment(images, AugmentConfig(crop_padding=0, cutout=side), generator)


def crop_one(image: Tensor, padding: int, dy: int, dx: int) -> Tensor:
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                row, column = y + dy - padding, x + dx - padding
                if 0 <= row < height and 0 <= column < width:
                    out[c, y, x] = image[c, row, column]
    return out


def cut_one(image: Tensor, side: int, y: int, x: int) -> Tensor:
    _, height, width = image.shape
    top, bottom = (min(max(y + d, 0), height) for d in (-(side // 2), side // 2))
    left, right = (min(max(x + d, 0), width) for d in (-(side // 2), side // 2))
    out = image.clone()
    out[:, top:bottom, left:right] = 0
    return out


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, padding=st.integers(0, 5), data=st.data())
def test_crops_are_the_windows_that_a_pixel_loop_finds(
    shape: tuple[int, ...], padding: int, data: st.DataObject
) -> None:
    images = noise(*shape)
    offsets = st.lists(st.integers(0, 2 * padding), min_size=shape[0], max_size=shape[0])
    dy, dx = data.draw(offsets), data.draw(offsets)
    expected = [crop_one(*case) for case in zip(images, [padding] * len(dy), dy, dx, strict=True)]
    crops = crop_at(
        images, padding, torch.tensor(dy, dtype=torch.int64), torch.tensor(dx, dtype=torch.int64)
    )
    assert crops.shape == images.shape
    assert crops.dtype == torch.uint8
    for crop, one in zip(crops, expected, strict=True):
        assert torch.equal(crop, one)


def test_crops_take_images_that_are_not_contiguous() -> None:
    images = noise(3, 8, 6, 2).permute(0, 3, 1, 2)
    dy, dx = torch.tensor([0, 4, 1]), torch.tensor([3, 0, 4])
    assert torch.equal(crop_at(images, 2, dy, dx), crop_at(images.contiguous(), 2, dy, dx))


def test_every_offset_of_a_random_crop_is_equally_frequent_and_rows_ignore_columns() -> None:
    count, padding = 25_000, 2
    # Every pixel says where it is, so the centre pixel of a crop tells its offsets.
    grid = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).expand(count, -1, -1, -1)
    crops = random_crop(grid, padding, seeded())
    tally = torch.bincount(crops[:, 0, 2, 2].long() - 1, minlength=25).double()
    expected = count / 25
    assert float(((tally - expected) ** 2 / expected).sum()) < 52.6  # 24 df, p = 0.0007


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_certain_flip_is_certain(probability: float) -> None:
    images = noise(50, 3, 4, 7)
    expected = images.flip(3) if probability else images
    assert torch.equal(random_flip(images, probability, seeded()), expected)


def test_flips_fall_on_whole_images_with_the_probability() -> None:
    images = noise(10_000, 2, 2, 5)
    flipped = random_flip(images, 0.3, seeded())
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert float(mirrored.double().mean()) == pytest.approx(0.3, abs=4 * (0.21 / 10_000) ** 0.5)


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, side=st.integers(0, 24), data=st.data())
def test_cuts_are_the_clipped_squares_of_a_slice_loop(
    shape: tuple[int, ...], side: int, data: st.DataObject
) -> None:
    images = noise(*shape)
    count, _, height, width = shape
    y = data.draw(st.lists(st.integers(0, height - 1), min_size=count, max_size=count))
    x = data.draw(st.lists(st.integers(0, width - 1), min_size=count, max_size=count))
    cut = cut_at(
        images, side, torch.tensor(y, dtype=torch.int64), torch.tensor(x, dtype=torch.int64)
    )
    assert cut.dtype == torch.uint8
    for result, image, cy, cx in zip(cut, images, y, x, strict=True):
        assert torch.equal(result, cut_one(image, side, cy, cx))


def test_the_mean_hole_is_the_expected_one() -> None:
    size, side, count = 32, 16, 20_000
    holes = (cutout(noise(count, 1, size, size), side, seeded()) == 0).double().mean((1, 2, 3))
    # Rows covered, averaged over the centres, by the clip rule; rows and columns are independent.
    rows = [min(c + side // 2, size) - max(c - side // 2, 0) for c in range(size)]
    share = (sum(rows) / size / size) ** 2
    assert float(holes.max()) == (side / size) ** 2
    assert float(holes.mean()) == pytest.approx(share, abs=4 * float(holes.std()) / count**0.5)


def test_centres_of_cutout_are_uniform_over_all_pixels() -> None:
    count = 24_000
    holes = cutout(noise(1, 1, 4, 6).expand(count, -1, -1, -1), 2, seeded()) == 0
    # A 2 x 2 square hides rows y - 1 and y: the last black pixel is the centre.
    last = (holes.flatten(1) * torch.arange(24)).max(1).values
    tally = torch.bincount(last, minlength=24).double()
    assert float(((tally - 1000) ** 2 / 1000).sum()) < 51.0  # 23 df, p = 0.0007


CONFIGS = st.builds(
    AugmentConfig,
    crop_padding=st.integers(0, 3),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    autoaugment=st.booleans(),
    cutout=st.integers(0, 8),
)


@settings(deadline=None, max_examples=30)
@given(
    config=CONFIGS,
    count=st.integers(1, 12),
    channels=st.sampled_from([1, 3]),
    height=st.integers(4, 12),
    width=st.integers(4, 12),
)
def test_augment_keeps_shape_type_and_input_and_repeats_with_its_generator(
    config: AugmentConfig, count: int, channels: int, height: int, width: int
) -> None:
    images = noise(count, channels, height, width)
    before = images.clone()
    config.check((channels, height, width))
    first = augment(images, config, seeded())
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(first, augment(images, config, seeded()))


def test_augment_is_crop_flip_autoaugment_cutout_in_that_order() -> None:
    images, generator = noise(64, 3, 16, 16), seeded(3)
    expected = random_crop(images, 4, generator)
    expected = random_flip(expected, 0.5, generator)
    policy = AugmentConfig(crop_padding=0, autoaugment=True, autoaugment_fill=77)
    expected = augment(expected, policy, generator)
    expected = cutout(expected, 8, generator)
    config = AugmentConfig(
        crop_padding=4, flip=0.5, autoaugment=True, autoaugment_fill=77, cutout=8
    )
    assert torch.equal(augment(images, config, seeded(3)), expected)


def test_another_seed_and_another_call_give_other_images() -> None:
    images, config, generator = (
        noise(16, 3, 16, 16),
        AugmentConfig(crop_padding=4, flip=0.5),
        seeded(),
    )
    first, second = augment(images, config, generator), augment(images, config, generator)
    assert not torch.equal(first, second)
    assert not torch.equal(first, augment(images, config, seeded(1)))


def test_all_off_changes_nothing() -> None:
    images = noise(4, 5, 6, 7)
    assert torch.equal(augment(images, AugmentConfig(crop_padding=0, flip=0), seeded()), images)


def test_equal_images_of_a_batch_are_augmented_unequally() -> None:
    images = noise(1, 3, 16, 16).expand(40, -1, -1, -1)
    for step in (
        lambda g: random_crop(images, 4, g),
        lambda g: random_flip(images, 0.5, g),
        lambda g: cutout(images, 8, g),
    ):
        results = step(seeded())
        assert any(not torch.equal(one, other) for one, other in pairwise(results))


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({"autoaugment": True}, (2, 32, 32), "1 or 3 channels, but these have 2"),
        ({"crop_padding": 8}, (3, 32, 8), "crop_padding must be smaller than the image, 32 x 8"),
        ({"cutout": 17}, (3, 8, 32), "cutout must be at most twice the image, 8 x 32"),
    ],
)
def test_check_refuses_what_does_not_suit_the_images(
    options: dict[str, int], shape: tuple[int, int, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        AugmentConfig(**options).check(shape)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"autoaugment": True}, (1, 32, 32)),
        ({"autoaugment": True}, (3, 32, 32)),
        ({"autoaugment": False}, (2, 32, 32)),
        ({"crop_padding": 7}, (3, 32, 8)),
        ({"cutout": 16}, (3, 8, 32)),
    ],
)
def test_check_accepts_what_suits_the_images(
    options: dict[str, int], shape: tuple[int, int, int]
) -> None:
    AugmentConfig(**options).check(shape)


@pytest.mark.parametrize(
    "options",
    [
        {"flip": 1.1},
        {"flip": -0.1},
        {"crop_padding": -1},
        {"autoaugment_fill": 256},
        {"cutout": -1},
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        AugmentConfig(**options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_crop_flip_and_cutout_never_wait_for_the_device() -> None:
    images = noise(64, 3, 32, 32).cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = augment(images, AugmentConfig(crop_padding=4, flip=0.5, cutout=16), generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.device == images.device
    dy, dx = torch.randint(9, (2, 64), generator=seeded())
    on_device = crop_at(images, 4, dy.cuda(), dx.cuda())
    assert torch.equal(on_device.cpu(), crop_at(images.cpu(), 4, dy, dx))
    on_device = cut_at(images, 16, dy.cuda(), dx.cuda())
    assert torch.equal(on_device.cpu(), cut_at(images.cpu(), 16, dy, dx))


PHOTOS = AugmentConfig(crop_padding=0, crop_scale=(0.3, 1.0), flip=0.5, brightness=0.4, hue=0.1)


@pytest.mark.parametrize("shape", [(3, 64, 48), (1, 28, 28)])
@pytest.mark.parametrize("aspects", [(0.75, 1.333), (0.4, 2.5)])
def test_resized_crops_are_torchvisions_box_by_box_to_a_grey_level(
    shape: tuple[int, int, int], aspects: tuple[float, float]
) -> None:
    images = noise(60, *shape, low=0)
    config = AugmentConfig(crop_padding=0, crop_scale=(0.1, 1.0), crop_ratio=aspects)
    ours = augment(images, config, seeded(4))
    boxes = draw_crops(images, (0.1, 1.0), seeded(4), aspects).T.tolist()
    assert len({tuple(box) for box in boxes}) > 50
    for crop, image, (top, left, height, width) in zip(ours, images, boxes, strict=True):
        theirs = tv.resized_crop(image, top, left, height, width, list(shape[1:]))
        assert int((crop.int() - theirs.int()).abs().max()) <= 1
    assert ours.dtype == torch.uint8


def test_aspects_of_crops_are_what_is_asked_for() -> None:
    blank = torch.zeros(1, 1, 1, 1).expand(4000, 1, 2000, 2000)
    _, _, height, width = draw_crops(blank, (0.05, 0.3), seeded(), (0.5, 3.0)).double()
    aspect = (width / height).log()
    assert -0.70 < float(aspect.min()) < -0.68
    assert 1.08 < float(aspect.max()) < 1.11
    assert float(aspect.mean()) == pytest.approx((math.log(3) - math.log(2)) / 2, abs=0.04)
    _, _, height, width = draw_crops(blank[:5], (1.0, 1.0), seeded(), (2.0, 3.0))
    assert {*zip(height.tolist(), width.tolist(), strict=True)} == {(1000, 2000)}


@pytest.mark.parametrize(
    ("name", "adjust"),
    [
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
        ("hue", tv.adjust_hue),
    ],
)
def test_colours_are_torchvisions_factor_by_factor_to_a_grey_level(name: str, adjust: Any) -> None:
    images = noise(80, 3, 20, 24, low=0)
    config = AugmentConfig(crop_padding=0, **{name: 0.4})
    ours = augment(images, config, seeded(5))
    jitter = draw_jitter(
        len(images),
        ViewConfig(**{"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, name: 0.4}),
        seeded(5),
    )
    kinds = ("brightness", "contrast", "saturation")
    factors = jitter.hue if name == "hue" else jitter.factors[kinds.index(name)]
    assert float(factors.max() - factors.min()) > 0.7
    for changed, image, factor in zip(ours, images, factors.tolist(), strict=True):
        gap = (changed.int() - adjust(image, factor).int()).abs()
        assert int(gap.max()) <= 1
    assert not torch.equal(ours, images)


@pytest.mark.parametrize("more", [{}, {"trivialaugment": True}, {"autoaugment": True}])
def test_photos_come_the_same_from_the_same_generator_and_pieces_do_not_matter(
    more: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, config = noise(50, 3, 16, 16), PHOTOS.model_copy(update=more)
    one, other = seeded(3), seeded(3)
    first = augment(images, config, one)
    monkeypatch.setattr(views, "SMALL", 7 * 16 * 16)
    assert torch.equal(augment(images, config, other), first)
    assert torch.equal(one.get_state(), other.get_state()), "resuming goes on from here"
    assert not torch.equal(augment(images, config, one), first)
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)


def test_a_resized_crop_takes_the_place_of_the_padded_one() -> None:
    images = noise(20, 3, 16, 16)
    values = {"crop_scale": (0.2, 0.9), "flip": 0.5}
    padded, plain = (AugmentConfig(crop_padding=p, **values) for p in (9, 0))
    assert torch.equal(augment(images, padded, seeded()), augment(images, plain, seeded()))
    AugmentConfig(crop_padding=99, **values).check((3, 16, 16))


def test_auxiliary_images_keep_their_colours() -> None:
    config = AugmentConfig(
        flip=0.5, hue=0.1, contrast=0.2, saturation=1, brightness=3, cutout=4, trivialaugment=True
    )
    assert config.for_noise == AugmentConfig(flip=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"autoaugment": True, "trivialaugment": True}, "where autoaugment is true: choose one"),
        ({"crop_scale": (0.9, 0.1)}, "the smallest must not exceed the largest"),
        ({"crop_ratio": (0, 1)}, "greater than 0"),
        ({"hue": 0.6}, "less than or equal to 0.5"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"saturation": 0.1}, "saturation needs images with 1 or 3 .* 2: set it to 0.0"),
        ({"trivialaugment": True}, "trivialaugment needs images .* set it to false"),
    ],
)
def test_colours_of_other_channels_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**values).check((2, 32, 32))
