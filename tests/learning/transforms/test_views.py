from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_map
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from lt_pipeline.learning.schema import one_line_errors
from lt_pipeline.learning.transforms import views as contrast
from lt_pipeline.learning.transforms.views import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    Jitter,
    ViewConfig,
    apply_jitter,
    apply_view,
    blend,
    blur,
    crop_and_resize,
    draw_crops,
    draw_jitter,
    draw_view,
    luma,
    random_view,
    turn_hue,
)

ALL = ViewConfig(crop_scale=(0.2, 1.0), flip=0.5, grayscale=0.2, blur_sigma=(0.1, 2.0))
OFF = {"crop_scale": (1, 1), "flip": 0, "jitter": 0, "grayscale": 0, "blur": 0}
SHAPES = [(3, 32, 32), (3, 13, 24), (1, 8, 8)]
ADJUST = {
    BRIGHTNESS: tv.adjust_brightness,
    CONTRAST: tv.adjust_contrast,
    SATURATION: tv.adjust_saturation,
    HUE: tv.adjust_hue,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(shape, generator=seeded(5)) * (high - low) + low


def scenes(count: int, channels: int, height: int, width: int) -> Tensor:
    """Gradients under noise, in colours and a range of their own; some pixels grey, some black."""
    generator = seeded(7)
    low = torch.randint(-40, 140, (count, channels, 1, 1), generator=generator)
    slope = torch.linspace(0, 80, height)[:, None] + torch.linspace(0, 40, width)
    grain = torch.randint(0, 60, (count, channels, height, width), generator=generator)
    images = (low + slope + grain).clamp(0, 255).to(torch.uint8)
    images[:, :, 0, :4] = images[:, :1, 0, :4]
    return images


def assert_near(ours: Tensor, images: Tensor, theirs: Any, rounded: float, exact: float) -> None:
    """Compare with ``theirs(image, index)``, image by image, within so many grey levels.

    On bytes torchvision rounds, or cuts off, after each operation; on floats it does not.
    """
    for i, (mine, image) in enumerate(zip(ours, images, strict=True)):
        torch.testing.assert_close(
            mine.round(), theirs(image, i).float(), atol=rounded, rtol=0, msg=f"bytes, image {i}"
        )
        reference = theirs(image.float() / 255, i) * 255
        torch.testing.assert_close(mine, reference, atol=exact, rtol=0, msg=f"image {i}")


@pytest.mark.parametrize("shape", SHAPES)
def test_crops_are_torchvisions_on_each_image_alone(shape: tuple[int, int, int]) -> None:
    images = scenes(60, *shape)
    boxes = draw_crops(images, (0.05, 1.0), seeded())
    side = list(shape[1:])
    assert_near(
        crop_and_resize(images.float(), boxes),
        images,
        lambda image, i: tv.resized_crop(image, *boxes[:, i].tolist(), size=side),
        rounded=1,
        exact=0.01,
    )


def test_a_crop_of_the_whole_image_changes_nothing() -> None:
    images = scenes(4, 3, 9, 14)
    whole = torch.tensor([0, 0, 9, 14])[:, None].expand(-1, 4)
    resized = crop_and_resize(images.float(), whole)
    assert torch.equal(resized.round().to(torch.uint8), images)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [BRIGHTNESS, CONTRAST, SATURATION])
def test_blends_are_torchvisions_on_each_image_alone(
    shape: tuple[int, int, int], kind: int
) -> None:
    images, factors = scenes(40, *shape), uniform(0, 2, 40)
    ours = blend(images.float(), torch.full((40,), kind), factors)
    assert_near(
        ours,
        images,
        lambda image, i: ADJUST[kind](image, float(factors[i])),
        rounded=1 if kind == BRIGHTNESS else 2,  # their greys are cut off, too
        exact=0.02,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_hues_turn_as_torchvisions_do(shape: tuple[int, int, int]) -> None:
    images, turns = scenes(40, *shape), uniform(-0.5, 0.5, 40)
    assert_near(
        turn_hue(images.float(), turns),
        images,
        lambda image, i: tv.adjust_hue(image, float(turns[i])),
        rounded=1,
        exact=0.02,
    )


def test_hue_goes_round_the_colours_and_leaves_grey_alone() -> None:
    red_and_grey = torch.tensor([[200.0, 90], [0, 90], [0, 90]])[None, :, None]  # [1, 3, 1, 2]
    for turns, colour in [(1 / 3, [0, 200, 0]), (-1 / 3, [0, 0, 200]), (1 / 6, [200, 200, 0])]:
        turned = turn_hue(red_and_grey, torch.tensor([turns]))
        assert turned[0, :, 0, 0].tolist() == pytest.approx(colour, abs=1e-3)
        assert turned[0, :, 0, 1].tolist() == [90, 90, 90]


@pytest.mark.parametrize("shape", SHAPES)
def test_grey_is_torchvisions(shape: tuple[int, int, int]) -> None:
    images = scenes(10, *shape)
    assert_near(luma(images.float()), images, lambda image, _: tv.rgb_to_grayscale(image), 1, 0.01)


@pytest.mark.parametrize(
    ("shape", "taps"), [((3, 32, 32), 3), ((3, 13, 24), 3), ((1, 8, 8), 3), ((3, 100, 120), 11)]
)
def test_blurs_are_torchvisions_on_each_image_alone(shape: tuple[int, int, int], taps: int) -> None:
    images, sigma = scenes(20, *shape), uniform(0.1, 2, 20)
    assert_near(
        blur(images.float(), sigma, taps // 2),
        images,
        lambda image, i: tv.gaussian_blur(image, [taps, taps], [float(sigma[i])] * 2),
        rounded=1,
        exact=0.02,
    )


def test_a_view_is_blurred_as_widely_as_its_sigma_says() -> None:
    # the variance of a blurred point is that of the Gaussian
    point = torch.zeros(1, 1, 65, 65)
    point[0, 0, 32, 32] = 1
    for sigma in (1.0, 2.0):
        spread = blur(point, torch.tensor([sigma]), 6)[0, 0].sum(0)
        offsets = torch.arange(65) - 32.0
        assert (spread * offsets**2).sum().sqrt().item() == pytest.approx(sigma, rel=0.03)


def test_blur_of_sigma_zero_is_none_image_by_image() -> None:
    images = scenes(4, 3, 32, 32).float()
    blurred = blur(images, torch.tensor([0, 1.5, 0, 1.5]), 4)
    assert (blurred == images).flatten(1).all(1).tolist() == [True, False, True, False]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_order_of_jitter_is_torchvisions_on_each_image_alone(
    shape: tuple[int, int, int],
) -> None:
    orders = list(permutations(range(4)))
    count = 2 * len(orders)
    images = scenes(count, *shape)
    jitter = Jitter(
        factors=uniform(0.5, 1.5, 3, count),
        hue=uniform(-0.3, 0.3, count),
        kinds=torch.tensor(orders * 2).T,
        applied=torch.arange(count) < len(orders),
    )
    ours = apply_jitter(images.float(), jitter)
    assert torch.equal(ours[len(orders) :], images[len(orders) :].float())
    for i, order in enumerate(orders):
        expected = images[i].float() / 255
        for kind in order:
            amount = jitter.hue[i] if kind == HUE else jitter.factors[kind, i]
            expected = ADJUST[kind](expected, float(amount))
        torch.testing.assert_close(ours[i], expected * 255, atol=0.05, rtol=0)


def test_jitter_draws_are_uniform_in_their_ranges_and_orders_equally_frequent() -> None:
    count = 24_000
    config = ViewConfig(jitter=0.7, brightness=0.4, contrast=0.2, saturation=1.5, hue=0.1)
    jitter = draw_jitter(count, config, seeded())
    ranges = [(0.6, 1.4), (0.8, 1.2), (0.0, 2.5), (-0.1, 0.1)]
    for drawn, (low, high) in zip([*jitter.factors, jitter.hue], ranges, strict=True):
        assert_uniform(drawn, low, high)
    code = (jitter.kinds * torch.tensor([64, 16, 4, 1])[:, None]).sum(0)
    tally = code.unique(return_counts=True)[1].double()
    assert len(tally) == 24
    assert float(((tally - 1000) ** 2 / 1000).sum()) < 51.0  # 23 df, p = 0.0007
    assert float(jitter.applied.double().mean()) == pytest.approx(0.7, abs=0.013)


def assert_uniform(drawn: Tensor, low: float, high: float) -> None:
    assert low <= float(drawn.min())
    assert float(drawn.max()) <= high
    tally = torch.histc(drawn.float(), 20, low, high).double()
    expected = len(drawn) / 20
    assert float(((tally - expected) ** 2 / expected).sum()) < 45.0  # 19 df, p = 0.0007


def blank(count: int, height: int, width: int) -> Tensor:
    return torch.zeros(1, 1, 1, 1).expand(count, 1, height, width)


def test_areas_are_uniform_in_their_range_and_aspects_on_a_log_scale() -> None:
    # Up to half the area, every aspect up to 4/3 fits; large images hide the rounding of sides.
    _, _, height, width = draw_crops(blank(20_000, 3000, 3000), (0.2, 0.5), seeded()).double()
    assert_uniform(height * width / 3000**2, 0.2 - 1e-3, 0.5 + 1e-3)
    assert_uniform((width / height).log(), -0.289, 0.289)  # log 4/3 = 0.2877


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 60)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.7, 0.9)])
def test_crops_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    count = 4000
    ours = draw_crops(blank(count, height, width), scale, seeded()).T.double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = RandomResizedCrop((height, width), scale)
        flat = torch.zeros(1, height, width)
        names = ("top", "left", "height", "width")
        drawn = [theirs.make_params([flat]) for _ in range(count)]
    expected = torch.tensor([[d[name] for name in names] for d in drawn]).double()
    fell_back = 10 / 9 * scale[0] > min(height, width) * 4 / 3 / max(height, width)
    columns = (2, 3) if fell_back else (0, 1, 2, 3)  # theirs prototypes what falls back
    for column in columns:
        levels = torch.arange(max(height, width) + 1)[:, None]
        gap = (ours[:, column] <= levels).double().mean(1) - (
            expected[:, column] <= levels
        ).double().mean(1)
        assert float(gap.abs().max()) < 2 * (2 / count) ** 0.5  # Kolmogorov-Smirnov, p = 0.0007


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    low=st.floats(0.001, 1),
    span=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_crops_lie_within_the_image(
    height: int, width: int, low: float, span: float, seed: int
) -> None:
    scale = (low, low + span * (1 - low))
    boxes = draw_crops(blank(50, height, width), scale, seeded(seed))
    top, left, rows, columns = boxes
    assert boxes.dtype == torch.int64
    assert bool((boxes[:2] >= 0).all() and (boxes[2:] >= 1).all())
    assert bool((top + rows <= height).all() and (left + columns <= width).all())


def test_all_off_changes_nothing() -> None:
    for shape in [*SHAPES, (5, 6, 7)]:
        images = scenes(4, *shape)
        assert torch.equal(random_view(images, ViewConfig(**OFF), seeded()), images)


@pytest.mark.parametrize(
    "weak",
    [
        {"jitter": 1, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
        {"blur": 1, "blur_sigma": (0.01, 0.02)},
    ],
)
def test_operations_of_no_strength_change_nothing(weak: dict[str, Any]) -> None:
    images = scenes(40, 3, 16, 16)
    assert torch.equal(random_view(images, ViewConfig(**OFF | weak), seeded()), images)


@pytest.mark.parametrize(
    ("part", "share"),
    [({"flip": 0.3}, 0.3), ({"jitter": 0.6}, 0.6), ({"grayscale": 0.2}, 0.2), ({"blur": 0.5}, 0.5)],
)
def test_each_operation_falls_on_images_with_its_probability(
    part: dict[str, float], share: float
) -> None:
    count = 2000
    images = scenes(1, 3, 12, 12).expand(count, -1, -1, -1)
    config = ViewConfig(**OFF | part | {"blur_sigma": (1.0, 2.0)})
    changed = (random_view(images, config, seeded()) != images).flatten(1).any(1)
    bound = 4 * (share * (1 - share) / count) ** 0.5
    assert float(changed.double().mean()) == pytest.approx(share, abs=bound)


@pytest.mark.parametrize("part", ["crop_scale", "jitter", "blur"])
def test_equal_images_of_a_batch_get_draws_of_their_own(part: str) -> None:
    images = scenes(1, 3, 32, 32).expand(50, -1, -1, -1)
    given = {"blur_sigma": (0.1, 2.0), part: (0.2, 0.9) if part == "crop_scale" else 1}
    views = random_view(images, ViewConfig(**OFF | given), seeded())
    assert len(views.flatten(1).unique(dim=0)) > 40


def test_certain_grayscale_makes_equal_channels() -> None:
    images = scenes(5, 3, 16, 16)
    views = random_view(images, ViewConfig(**OFF | {"grayscale": 1}), seeded())
    assert torch.equal(views, views[:, :1].expand_as(views))


@pytest.mark.parametrize("part", [{"saturation": 5.0}, {"hue": 0.5}, {"grayscale": 1.0}])
def test_one_channel_has_no_colour_to_change(part: dict[str, float]) -> None:
    images = scenes(60, 1, 8, 8)
    still = {"jitter": 1, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    assert torch.equal(random_view(images, ViewConfig(**OFF | still | part), seeded()), images)


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 12),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_views_keep_shape_type_and_input_and_repeat_with_their_generator(
    count: int, channels: int, height: int, width: int, seed: int
) -> None:
    images = torch.randint(
        256, (count, channels, height, width), generator=seeded(seed), dtype=torch.uint8
    )
    before = images.clone()
    view = random_view(images, ALL, seeded(seed))
    assert view.shape == images.shape
    assert view.dtype == torch.uint8
    assert torch.equal(images, before)
    torch.manual_seed(seed + 1)
    assert torch.equal(view, random_view(images, ALL, seeded(seed)))


def test_two_views_and_two_seeds_differ() -> None:
    images, generator = scenes(16, 3, 16, 16), seeded()
    first, second = (random_view(images, ALL, generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, random_view(images, ALL, seeded(1)))


def test_images_that_are_not_contiguous_give_the_same_views() -> None:
    images = scenes(6, 3, 12, 16).permute(0, 1, 3, 2)
    expected = random_view(images.contiguous(), ALL, seeded())
    assert torch.equal(random_view(images, ALL, seeded()), expected)


@pytest.mark.parametrize(("pixels", "together"), [(100 * 64, 100), (64, 1), (1, 1)])
def test_pieces_are_one_after_the_other_with_draws_of_their_own(
    pixels: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = scenes(1, 3, 8, 8).expand(103, -1, -1, -1)
    generator = seeded()
    expected = [random_view(p, ALL, generator) for p in images.split(together)]
    monkeypatch.setattr(contrast, "PIECE", pixels)
    views = random_view(images, ALL, seeded())
    assert torch.equal(views, torch.cat(expected))
    assert not torch.equal(views[:3], views[-3:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop_scale": (0.0, 1.0)}, "crop_scale.0: Input should be greater than 0, but got 0.0"),
        ({"crop_scale": (0.2, 1.1)}, "crop_scale.1: Input should be less than or equal to 1"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale: the smallest must not exceed the largest"),
        ({"crop_scale": (0.5,)}, "crop_scale.1: Field required"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma.0: Input should be greater than 0"),
        ({"blur_sigma": (2.0, 0.1)}, r"blur_sigma: .* but they are \(2.0, 0.1\)"),
        ({"blur_sigma": (0.1, float("inf"))}, "blur_sigma.1: Input should be a finite number"),
        ({"flip": 1.1}, "flip: Input should be less than or equal to 1, but got 1.1"),
        ({"jitter": -0.1}, "jitter: "),
        ({"grayscale": float("nan")}, "grayscale: "),
        ({"blur": 2}, "blur: "),
        ({"brightness": -1}, "brightness: "),
        ({"contrast": float("inf")}, "contrast: "),
        ({"saturation": -0.1}, "saturation: "),
        ({"hue": 0.6}, "hue: Input should be less than or equal to 0.5, but got 0.6"),
        ({"colour": 1}, "unknown parameter 'colour'"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}[^\n]*$"), one_line_errors():
        ViewConfig.model_validate(options)


@pytest.mark.parametrize("part", [{"jitter": 0.5}, {"grayscale": 0.5}])
@pytest.mark.parametrize("channels", [2, 4])
def test_colour_operations_refuse_other_numbers_of_channels(
    part: dict[str, float], channels: int
) -> None:
    config = ViewConfig(**OFF | part)
    words = f"need images with 1 or 3 channels, but these have {channels}: set both to 0"
    with pytest.raises(ValueError, match=words):
        config.check((channels, 8, 8))
    with pytest.raises(ValueError, match=words):
        random_view(scenes(2, channels, 8, 8), config, seeded())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_cpu_result_but_for_rounding() -> None:
    images = scenes(500, 3, 32, 32)
    drawn = draw_view(images, ALL, seeded())
    expected = apply_view(images, drawn)
    there = tree_map(lambda part: part.cuda() if isinstance(part, Tensor) else part, drawn)
    for treat in (apply_view, contrast.in_a_kernel):
        difference = (treat(images.cuda(), there).cpu().int() - expected.int()).abs()
        assert float((difference <= 1).double().mean()) > 0.999
