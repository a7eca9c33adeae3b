from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy

from lt_pipeline.learning.transforms.augment import AugmentConfig, augment
from lt_pipeline.learning.transforms.autoaugment import LEVELS, POLICY, Draws, draw, spans
from lt_pipeline.learning.transforms.operations import OPERATIONS, SIGNED, magnitudes, operate
from toys import operated, scenes, seeded

THEIRS = AutoAugment(AutoAugmentPolicy.CIFAR10, fill=128)


def autoaugment(images: Tensor, generator: torch.Generator, **fill: int) -> Tensor:
    values = {f"autoaugment_{name}": value for name, value in fill.items()}
    return augment(images, AugmentConfig(crop_padding=0, autoaugment=True, **values), generator)


def their_magnitude(name: str, level: int | None, height: int, width: int) -> float:
    magnitudes = AutoAugment._AUGMENTATION_SPACE[name][0](LEVELS, height, width)
    return 0.0 if magnitudes is None else float(magnitudes[level])


def their_move(image: Tensor, name: str, size: float, fill: int) -> Tensor:
    return THEIRS._apply_image_or_video_transform(
        image,
        name,
        size,
        interpolation=InterpolationMode.NEAREST,
        fill={Tensor: fill},
    )


def test_the_policy_is_torchvisions() -> None:
    assert list(POLICY) == THEIRS._get_policies(AutoAugmentPolicy.CIFAR10)


def test_shifts_are_cut_off_to_whole_pixels_where_released_codes_round() -> None:
    used = {(name, level) for steps in POLICY for name, _, level in steps if "Translate" in name}
    ramp = torch.arange(1, 33, dtype=torch.uint8).expand(1, 1, 32, 32)
    shifts = {}
    for name, level in used:
        image = ramp if name == "TranslateX" else ramp.mT
        released = Image.fromarray(image[0, 0].numpy()).transform(
            (32, 32), Image.Transform.AFFINE, shifted(name, 150 / 331 * 32 * level / 9), fillcolor=0
        )
        size = -magnitudes(spans(32, 32)[name], LEVELS)[[level]]
        ours = operate(image, torch.tensor([OPERATIONS.index(name)]), size, 0)
        shifts[int((ours == 0).sum()) // 32] = int((np.asarray(released) == 0).sum()) // 32
    assert shifts == {4: 5, 12: 13, 14: 15}


def shifted(name: str, pixels: float) -> tuple[float, ...]:
    return (1, 0, pixels, 0, 1, 0) if name == "TranslateX" else (1, 0, 0, 0, 1, pixels)


def test_which_operations_have_a_sign_is_as_in_torchvision() -> None:
    for name in spans(8, 8):
        assert (name in SIGNED) == AutoAugment._AUGMENTATION_SPACE[name][1]


def test_operations_are_those_of_the_policy() -> None:
    assert set(spans(8, 8)) == {name for steps in POLICY for name, _, _ in steps}


@pytest.mark.parametrize(("height", "width"), [(32, 32), (13, 24)])
def test_levels_are_torchvisions(height: int, width: int) -> None:
    for name, span in spans(height, width).items():
        theirs = [their_magnitude(name, level, height, width) for level in range(LEVELS)]
        ours = magnitudes(span, LEVELS)  # of bits the nearest whole number counts
        assert (ours.round() if name == "Posterize" else ours).tolist() == theirs


def test_every_sub_policy_coin_and_sign_leads_to_its_own_two_operations() -> None:
    # All 25 x 2^4 cases at once, against torchvision on each image alone.
    cases = torch.cartesian_prod(torch.arange(len(POLICY)), *[torch.arange(2)] * 4)
    cases = cases[torch.randperm(len(cases), generator=seeded())]
    sub_policy, coins = cases[:, 0], cases[:, 1:].bool().T
    images = scenes(len(cases), 3, 12, 10)
    results = operated(images, Draws(sub_policy, coins[:2], coins[2:]), fill=128)
    for image, result, index, row in zip(images, results, sub_policy, coins.T, strict=True):
        expected = image
        for step, (name, _, level) in enumerate(POLICY[int(index)]):
            if row[step]:
                size = their_magnitude(name, level, 12, 10)
                size = -size if bool(row[2 + step]) and name in SIGNED else size
                expected = their_move(expected, name, size, 128)
        gap = (result.int() - expected.int()).abs()
        # a level of the first step's rounding is more once contrast has been stretched
        assert float((gap > 4).float().mean()) < 0.03, (POLICY[int(index)], row)


def test_autoaugment_applies_what_the_same_generator_draws() -> None:
    images = scenes(200, 3, 16, 16)
    expected = operated(images, draw(200, seeded(5)), fill=9)
    assert torch.equal(autoaugment(images, seeded(5), fill=9), expected)
    assert not torch.equal(autoaugment(images, seeded(6), fill=9), expected)


def test_128_is_the_fill_unless_told() -> None:
    images = scenes(200, 3, 16, 16)
    expected = autoaugment(images, seeded(), fill=128)
    assert torch.equal(autoaugment(images, seeded()), expected)
    assert not torch.equal(autoaugment(images, seeded(), fill=0), expected)


def test_sub_policies_are_equally_frequent() -> None:
    count = 50_000
    tally = torch.bincount(draw(count, seeded()).sub_policy, minlength=25).double()
    expected = count / 25
    assert len(tally) == 25
    assert float(((tally - expected) ** 2 / expected).sum()) < 52.6  # 24 df, p = 0.0007


def test_operations_and_signed_magnitudes_are_as_frequent_as_the_policy_says() -> None:
    count, spread = 200_000, spans(32, 32)
    for step, (operation, size) in enumerate(
        zip(*draw(count, seeded(4)).operations(32, 32), strict=True)
    ):
        expected: Counter[tuple[int, float]] = Counter()
        for name, probability, level in (steps[step] for steps in POLICY):
            magnitude = float(magnitudes(spread[name], LEVELS)[level or 0])
            for sign in (1, -1) if name in SIGNED else (1,):
                share = probability / (25 * (1 + (name in SIGNED)))
                expected[OPERATIONS.index(name), sign * magnitude] += count * share
            expected[0, 0.0] += count * (1 - probability) / 25
        # of what is not applied there is no magnitude
        drawn = zip(operation.tolist(), size.where(operation > 0, 0.0).tolist(), strict=True)
        counts = Counter(drawn)
        cells = {cell: often for cell, often in expected.items() if often}
        assert counts.keys() <= cells.keys()
        far = sum((counts[cell] - often) ** 2 / often for cell, often in cells.items())
        freedom = len(cells) - 1
        assert freedom > 15
        assert far < freedom + 4 * (2 * freedom) ** 0.5


def test_coins_fall_with_the_probability_of_their_step_and_independently() -> None:
    draws = draw(100_000, seeded(1))
    for index, steps in enumerate(POLICY):
        mine = draws.sub_policy == index
        count = int(mine.sum())
        first, second = (applied[mine].double() for applied in draws.applied)
        rates = (first.mean(), second.mean(), (first * second).mean())
        p, q = (probability for _, probability, _ in steps)
        for rate, expected in zip(rates, (p, q, p * q), strict=True):
            bound = 4.5 * (expected * (1 - expected) / count) ** 0.5
            assert float(rate) == pytest.approx(expected, abs=bound), steps


def test_signs_are_fair_and_independent_of_each_other_and_of_the_coins() -> None:
    count = 40_000
    draws = draw(count, seeded(2))
    bound = 4.5 * 0.5 / count**0.5
    first, second = draws.negative
    assert float(first.double().mean()) == pytest.approx(0.5, abs=bound)
    assert float(second.double().mean()) == pytest.approx(0.5, abs=bound)
    assert float((first == second).double().mean()) == pytest.approx(0.5, abs=bound)
    for negative, applied in zip(draws.negative, draws.applied, strict=True):
        share = float((negative & applied).sum() / applied.sum())
        assert share == pytest.approx(0.5, abs=4.5 * 0.5 / float(applied.sum()) ** 0.5)


def test_equal_images_of_a_batch_get_draws_of_their_own() -> None:
    images = scenes(1, 3, 16, 16).expand(300, -1, -1, -1)
    distinct = autoaugment(images, seeded()).flatten(1).unique(dim=0)
    assert len(distinct) > 40  # 62 single moves, pairs of them, and none


def test_results_do_not_depend_on_batch_mates() -> None:
    images, draws = scenes(60, 3, 16, 16), draw(60, seeded())
    together = operated(images, draws, 128)
    for i in range(60):
        own = Draws(
            draws.sub_policy[i : i + 1], draws.applied[:, i : i + 1], draws.negative[:, i : i + 1]
        )
        assert torch.equal(operated(images[i : i + 1], own, 128)[0], together[i])


@settings(deadline=None, max_examples=15)
@given(
    count=st.integers(0, 40),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
)
def test_shape_type_and_input_stay(count: int, channels: int, height: int, width: int) -> None:
    images = (
        scenes(count, channels, height, width)
        if min(height, width) > 1
        else (torch.full((count, channels, height, width), 9, dtype=torch.uint8))
    )
    before = images.clone()
    result = autoaugment(images, seeded())
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=f"1 or 3 channels, but these have {channels}"):
        autoaugment(scenes(2, channels, 8, 8), seeded())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_cpu_result_but_for_rounding() -> None:
    images, draws = scenes(500, 3, 32, 32), draw(500, seeded())
    on_device = Draws(*(part.cuda() for part in draws))
    result = operated(images.cuda(), on_device, 128).cpu()
    assert float((result == operated(images, draws, 128)).double().mean()) > 0.99
    assert autoaugment(images.cuda(), torch.Generator("cuda").manual_seed(0)).is_cuda
