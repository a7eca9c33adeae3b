from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from lt_pipeline.learning.transforms.mix import (
    Box,
    MixConfig,
    Mixed,
    cutmix,
    draw_box,
    expected_lam,
    mix,
    mixup,
    two_hot_loss,
)

MIXUP, CUTMIX = MixConfig(cutmix=False), MixConfig(mixup=False)
KINDS = [MIXUP, CUTMIX, MixConfig(), MixConfig(both="halves")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, height: int = 8, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, 3, height, width), generator=seeded(seed), dtype=torch.uint8)


def flat(count: int, value: int, height: int = 8, width: int = 6) -> Tensor:
    return torch.full((count, 3, height, width), value, dtype=torch.uint8)


def labels(count: int, start: int = 0) -> Tensor:
    return torch.arange(start, start + count)


def mixed(
    config: MixConfig, count: int = 4, seed: int = 0, height: int = 8, width: int = 6
) -> Mixed:
    """White on black: the mean of an image is 255 times the share of the first."""
    white, black = flat(count, 255, height, width), flat(count, 0, height, width)
    return mix(white, labels(count), black, labels(count, 10), config, seeded(seed))


@pytest.mark.parametrize("config", KINDS)
def test_types_shapes_and_labels(config: MixConfig) -> None:
    a, b = images(5), images(5, seed=1)
    before = a.clone(), b.clone()
    mixture = mix(a, labels(5), b, labels(5, 10), config, seeded())
    assert mixture.images.shape == a.shape
    assert mixture.images.dtype == mixture.lam.dtype == torch.float32
    assert mixture.lam.shape == (5,)
    assert torch.equal(mixture.first, labels(5))
    assert torch.equal(mixture.second, labels(5, 10))
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    assert 0 <= mixture.images.min() <= mixture.images.max() <= 255


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 10))
@settings(deadline=None, max_examples=60)
def test_the_share_of_cutmix_is_the_share_of_pixels_that_stayed(
    seed: int, height: int, width: int, alpha: float
) -> None:
    config = MixConfig(mixup=False, alpha=alpha)
    mixture = mixed(config, 2, seed, height, width)
    stayed = (mixture.images == 255).sum((1, 2, 3))
    assert ((mixture.images == 255) | (mixture.images == 0)).all()
    wanted = stayed.double() / (3 * height * width)
    assert torch.equal(mixture.lam, wanted.float())


@pytest.mark.parametrize("config", KINDS)
def test_the_mean_of_white_on_black_is_the_share(config: MixConfig) -> None:
    for seed in range(20):
        mixture = mixed(config, 5, seed)
        torch.testing.assert_close(mixture.images.mean((1, 2, 3)), 255 * mixture.lam)


@given(st.floats(0, 1))
def test_mixup_by_hand(lam: float) -> None:
    a, b = images(3), images(3, seed=1)
    mixture, lams = mixup(a, b, lam)
    wanted = lam * a.double() + (1 - lam) * b.double()
    torch.testing.assert_close(mixture.double(), wanted, rtol=1e-6, atol=1e-4)
    assert lams.tolist() == [torch.tensor(lam).item()] * 3


@pytest.mark.parametrize("config", KINDS)
def test_the_mix_of_identical_images_is_the_image(config: MixConfig) -> None:
    a = images(6)
    for seed in range(20):
        assert torch.equal(mix(a, labels(6), a, labels(6), config, seeded(seed)).images, a.float())


def test_cutmix_is_that_of_a_pixel_loop() -> None:
    a, b, box = images(2), images(2, seed=1), Box(2, 5, 1, 6)
    mixture, lam = cutmix(a, b, box)
    for n in range(2):
        for y in range(8):
            for x in range(6):
                source = b if 2 <= y < 5 and 1 <= x < 6 else a
                assert torch.equal(mixture[n, :, y, x], source[n, :, y, x].float())
    assert lam.tolist() == [torch.tensor(1 - 15 / 48).item()] * 2
    kept = a.float()
    assert torch.equal(cutmix(kept, b, box)[0], mixture)
    assert torch.equal(kept, a.float()), "floats, too, stay as they are"
    whole, lam = cutmix(a, b, Box(0, 8, 0, 6))
    assert torch.equal(whole, b.float())
    assert lam.tolist() == [0, 0]


def test_pairs_are_kept() -> None:
    # image i is grey i in the first batch and 100 + i in the second
    grey = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 8, 6)
    mixture = mix(grey, labels(6), grey + 100, labels(6, 10), MixConfig(both="halves"), seeded(3))
    for n in range(6):
        wanted = n + 100 * (1 - mixture.lam[n].item())
        assert mixture.images[n].mean().item() == pytest.approx(wanted, abs=1e-3)


def box_of(height: int, width: int, lam: float, seed: int) -> Box:
    return draw_box(height, width, lam, np.random.default_rng(seed))


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_boxes_lie_within_the_image_and_are_no_larger_than_drawn(
    height: int, width: int, lam: float, seed: int
) -> None:
    box = box_of(height, width, lam, seed)
    side = math.sqrt(1 - lam)
    for low, high, size in ((box.top, box.bottom, height), (box.left, box.right, width)):
        assert 0 <= low <= high <= size
        assert high - low <= side * size + 0.5
        if low > 0 and high < size:
            assert high - low >= side * size - 0.5, "a box that touches no border is whole"


def test_the_centres_of_boxes_are_uniform_over_the_pixels() -> None:
    counts = torch.zeros(4, 5)
    draws = 4000
    random = np.random.default_rng(0)
    for _ in range(draws):
        # of 4 x 5 pixels, 1/16 makes boxes of 1 x 1: their place is the centre
        box = draw_box(4, 5, 15 / 16, random)
        assert (box.bottom - box.top, box.right - box.left) == (1, 1)
        counts[box.top, box.left] += 1
    expected = draws / 20
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 43.8, "the 99.9 % point for 19 degrees of freedom"


def test_boxes_at_the_border_are_clipped_as_in_the_paper() -> None:
    # half of the side 8 is 4: for centre c the rows c - 2 .. c + 2 within 0..8
    boxes = {box_of(8, 8, 0.75, seed)[:2] for seed in range(200)}
    assert boxes == {(0, 2), (0, 3), (0, 4), (1, 5), (2, 6), (3, 7), (4, 8), (5, 8)}


def entropy(lam: Tensor) -> float:
    return float((torch.special.entr(lam) + torch.special.entr(1 - lam)).mean())


@pytest.mark.parametrize(
    ("alpha", "wanted"), [(0.2, 0.23), (0.5, 0.39), (1.0, 0.50), (2.0, 0.58), (10.0, 0.67)]
)
def test_the_mean_label_entropy_of_mixup(alpha: float, wanted: float) -> None:
    config, generator = MixConfig(cutmix=False, alpha=alpha), seeded()
    image, label = flat(1, 0, 1, 1), labels(1)
    lam = torch.cat(
        [mix(image, label, image, label, config, generator).lam for _ in range(3000)]
    ).double()
    # a standard deviation of at most 0.24 makes 0.0044 of the mean
    assert entropy(lam) == pytest.approx(wanted, abs=0.018)
    assert lam.mean().item() == pytest.approx(0.5, abs=0.03)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)


def test_cutmix_draws_the_share_that_it_aims_at() -> None:
    # in an image of many pixels the boxes that touch no border have the area they were drawn for
    kept = []
    for seed in range(300):
        mixture = mixed(MixConfig(mixup=False, alpha=0.5), 1, seed, 64, 64)
        kept.append(mixture.lam.item())
    # clipping loses pasted area: E[lam] > 1/2. For a side r and a uniform centre the expected
    # length within the image is r - r^2 / 4, so the area is (r - r^2 / 4)^2 with r^2 = 1 - lambda
    r = np.sqrt(1 - np.random.default_rng(1).beta(0.5, 0.5, 200_000))
    wanted = 1 - ((r - r**2 / 4) ** 2).mean()
    assert sum(kept) / len(kept) == pytest.approx(wanted, abs=0.06)
    assert wanted > 0.6


def is_mixup(mixture: Mixed) -> bool:
    grey = mixture.images[0].unique()
    return len(grey) == 1 and 0 < grey.item() < 255


def test_a_fair_coin_chooses_the_kind_of_a_batch() -> None:
    generator = seeded()
    white, black = flat(3, 255, 32, 32), flat(3, 0, 32, 32)
    draws = [
        is_mixup(mix(white, labels(3), black, labels(3), MixConfig(), generator))
        for _ in range(600)
    ]
    assert 240 < sum(draws) < 360  # five standard deviations


def test_a_kind_that_is_off_is_never_chosen() -> None:
    for seed in range(30):
        for both in ("alternate", "halves"):
            only_mixup = mixed(MixConfig(cutmix=False, both=both), 2, seed).images
            assert only_mixup.unique().numel() == 1
            only_cutmix = mixed(MixConfig(mixup=False, both=both), 2, seed).images
            assert ((only_cutmix == 0) | (only_cutmix == 255)).all()


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6])
def test_halves_are_mixup_and_cutmix_each_with_its_share(count: int) -> None:
    mixture = mixed(MixConfig(both="halves"), count, seed=5, height=16, width=16)
    first, second = mixture.images[: count // 2], mixture.images[count // 2 :]
    assert all(image.unique().numel() == 1 and 0 < image.min() < 255 for image in first)
    assert ((second == 0) | (second == 255)).all()
    assert mixture.lam[: count // 2].unique().numel() == min(count // 2, 1)
    assert mixture.lam[count // 2 :].unique().numel() == min(count - count // 2, 1)
    assert mixture.lam.unique().numel() == min(count, 2)


@pytest.mark.parametrize("config", KINDS)
def test_one_share_a_batch_new_ones_for_the_next_the_same_for_a_seed(config: MixConfig) -> None:
    generator = seeded(7)
    a, b = flat(2, 255), flat(2, 0)
    mixtures = [mix(a, labels(2), b, labels(2), config, generator) for _ in range(6)]
    assert len({tuple(one.lam.tolist()) for one in mixtures}) > 3
    if config.both == "alternate":
        assert all(one.lam.unique().numel() == 1 for one in mixtures)
    again = mix(a, labels(2), b, labels(2), config, seeded(7))
    assert torch.equal(again.images, mixtures[0].images)
    assert torch.equal(again.lam, mixtures[0].lam)


def test_the_generator_moves_alike_for_every_config_and_no_other_is_touched() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    state, other = torch.get_rng_state(), np.random.get_state()[1].copy()
    after = []
    for config in KINDS:
        generator = seeded(3)
        mix(flat(4, 1), labels(4), flat(4, 2), labels(4), config, generator)
        after.append(generator.get_state())
    assert all(torch.equal(after[0], one) for one in after)
    assert not torch.equal(after[0], seeded(3).get_state())
    assert torch.equal(state, torch.get_rng_state())
    assert (other == np.random.get_state()[1]).all()


@pytest.mark.parametrize("config", KINDS)
def test_an_empty_batch_stays_empty(config: MixConfig) -> None:
    mixture = mixed(config, 0)
    assert [len(part) for part in mixture] == [0, 0, 0, 0]
    assert mixture.images.dtype == torch.float32


@pytest.mark.parametrize("config", [MIXUP, CUTMIX])
def test_extreme_alphas_give_finite_shares(config: MixConfig) -> None:
    few, many = (
        torch.cat(
            [mixed(config.model_copy(update={"alpha": alpha}), 1, seed).lam for seed in range(40)]
        )
        for alpha in (1e-3, 1e6)
    )
    assert (few > 0.99).any(), "the first batch alone"
    if config.mixup:
        assert ((few < 1e-3) | (few > 1 - 1e-3)).float().mean() > 0.9
        assert (few < 1e-3).any(), "the second batch alone"
        torch.testing.assert_close(many, torch.full_like(many, 0.5), rtol=0, atol=0.01)
    else:
        # half of the area is a box of 6 x 4 of the 8 x 6 pixels, less what is clipped
        assert many.min().item() == 0.5
        assert few.min() < 0.5


def test_neither_kind_is_refused_when_mixing_not_before() -> None:
    config = MixConfig(mixup=False, cutmix=False)
    with pytest.raises(ValueError, match="both false: set one to true"):
        mixed(config)


@pytest.mark.parametrize(
    ("a", "label_a", "b", "label_b"), [(3, 3, 2, 2), (3, 2, 3, 2), (3, 3, 3, 2)]
)
def test_batches_that_cannot_be_paired_are_refused(
    a: int, label_a: int, b: int, label_b: int
) -> None:
    with pytest.raises(ValueError, match=r"the first are \[3, 3, 8, 6\] and \[\d\], the second"):
        mix(images(a), labels(label_a), images(b), labels(label_b), MixConfig(), seeded())


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_an_alpha_without_a_distribution_is_refused(alpha: float) -> None:
    with pytest.raises(ValidationError):
        MixConfig(alpha=alpha)


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_the_two_hot_loss_is_cross_entropy_with_two_hot_labels(shape: tuple[int, ...]) -> None:
    z = torch.randn(*shape, 5, generator=seeded(), dtype=torch.float64).requires_grad_()
    first, second = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 1, 0, 0])
    lam = torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=torch.float64)
    expand = (4, *[1] * (len(shape) - 1))
    log_p = z.log_softmax(-1)

    def losses(label: Tensor) -> Tensor:
        return -log_p.gather(-1, label.view(*expand, 1).expand(*shape, 1))[..., 0]

    loss = two_hot_loss(losses(first), losses(second), lam)
    q = torch.zeros(4, 5, dtype=torch.float64)
    q[torch.arange(4), first] += lam
    q[torch.arange(4), second] += 1 - lam
    wanted = -(q.view(*expand, 5) * log_p).sum(-1)
    torch.testing.assert_close(loss, wanted)
    loss.sum().backward()
    torch.testing.assert_close(z.grad, z.detach().softmax(-1) - q.view(*expand, 5))


@pytest.mark.parametrize("config", KINDS)
def test_no_value_is_read_on_the_host(config: MixConfig) -> None:
    a = torch.zeros(5, 3, 8, 6, dtype=torch.uint8, device="meta")
    label = torch.zeros(5, dtype=torch.int64, device="meta")
    for seed in range(6):  # both sides of the coin
        mixture = mix(a, label, a, label, config, seeded(seed))
        assert {part.device.type for part in mixture} == {"meta"}
    assert two_hot_loss(mixture.lam, mixture.lam, mixture.lam).shape == (5,)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("mixup", "cutmix"), [(True, False), (False, True), (True, True)])
def test_the_expected_lam_is_the_mean_of_many_draws(alpha, mixup, cutmix):
    config = MixConfig(mixup=mixup, cutmix=cutmix, alpha=alpha)
    images = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    generator, label = torch.Generator().manual_seed(0), torch.zeros(1).long()
    draws = [mix(images, label, images, label, config, generator).lam for _ in range(1500)]
    lams = torch.cat(draws).double()
    error = lams.std() / len(lams) ** 0.5
    assert abs(lams.mean().item() - expected_lam(config)) < 4 * error + 0.004  # whole pixels


def test_no_mixing_has_no_share():
    with pytest.raises(ValueError, match="mixup and cutmix are both false"):
        expected_lam(MixConfig(mixup=False, cutmix=False))
