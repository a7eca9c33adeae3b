from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lt_pipeline.learning.data import ood
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.ood import (
    ALL,
    AUXILIARY_SETS,
    InDistribution,
    auxiliary_images,
    check_name,
    load_ood,
    to_shape,
)
from toys import toy_images

MADE = ("gaussian_noise", "uniform_noise", "permuted_pixels", "blurred")
AT_HAND = (*MADE, "digits")


def context(folder, *, channels=3, size=16, counts=(20, 20), **settings) -> InDistribution:
    test = toy_images(counts, channels=channels, size=size)
    return InDistribution(folder, test, "cifar10", **settings)


def of_size(height, width, images=6, channels=3):
    generator = torch.Generator().manual_seed(0)
    shape = (images, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def put_array(folder, name, images):
    (folder / "ood").mkdir(exist_ok=True)
    np.savez(folder / "ood" / f"{name}.npz", images=np.asarray(images))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 8), (3, 9, 14), (1, 28, 28)])
def test_sets_at_hand_have_the_test_sets_shape_and_no_file(tmp_path, shape):
    pixels = of_size(*shape[1:], channels=shape[0], images=4)
    test = ImageSet(pixels, torch.zeros(4).long(), ("one",))
    sets, missing = load_ood(AT_HAND, InDistribution(tmp_path, test, "cifar10"))
    assert tuple(sets) == AT_HAND
    assert not missing
    for name, images in sets.items():
        assert images.dtype == torch.uint8
        assert images.shape[1:] == shape
        assert len(images) == (1797 if name == "digits" else 4)


def test_every_set_is_found_or_has_a_line_that_says_what_to_put_where(tmp_path):
    sets, missing = load_ood(ALL, context(tmp_path))
    assert set(sets) == set(AT_HAND)
    assert sets.keys() | missing.keys() == set(ALL)
    assert missing.pop("cifar10") == "is the in-distribution source"
    assert missing.pop("no_label") == "no test image is without a label"
    for line in missing.values():
        assert "\n" not in line
        assert "put" in line
        assert str(tmp_path) in line


def test_all_names_the_promised_sets():
    assert set(ALL) == {
        *AT_HAND, "cifar10", "cifar100", "fashion_mnist", "svhn", "textures", "places365",
        "tinyimagenet", "inaturalist", "lsun_crop", "lsun_resize", "textures10", "scenes",
        "tinyimagenet_resize", "tinyimagenet_crop", "no_label",
    }  # fmt: skip


def test_the_source_is_no_set_of_its_own_even_where_it_is_there(tmp_path):
    given = context(tmp_path, channels=1, size=8)._replace(source="digits")
    sets, missing = load_ood(["uniform_noise", "digits"], given)
    assert list(sets) == ["uniform_noise"]
    assert missing == {"digits": "is the in-distribution source"}


@pytest.mark.parametrize("name", AT_HAND)
def test_equal_seeds_give_equal_images_and_others_others(name, tmp_path):
    limit = 12
    sets = [
        load_ood([name], context(tmp_path, seed=seed, limit=limit))[0][name] for seed in (3, 3, 4)
    ]
    assert len(sets[0]) == limit
    assert torch.equal(sets[0], sets[1])
    assert not torch.equal(sets[0], sets[2])


def test_a_limit_takes_some_of_the_test_images_each_once(tmp_path):
    given = context(tmp_path, limit=15, seed=7)
    permuted = load_ood(["permuted_pixels"], given)[0]["permuted_pixels"]

    def pixels(images):
        return [tuple(image.flatten(1).sort(1).values.flatten().tolist()) for image in images]

    owners = [pixels(given.test.images).index(values) for values in pixels(permuted)]
    assert len(set(owners)) == 15
    assert owners == sorted(owners)
    assert owners != list(range(15))


def test_permuted_pixels_are_the_images_own_colours_moved(tmp_path):
    given = context(tmp_path)
    images, permuted = given.test.images, load_ood(["permuted_pixels"], given)[0]["permuted_pixels"]
    base = torch.tensor([1, 256, 65536])[:, None]
    colours, moved = ((x.flatten(2).long() * base).sum(1) for x in (images, permuted))
    assert torch.equal(colours.sort(1).values, moved.sort(1).values)
    assert (colours == moved).float().mean() < 0.05
    # every image in an order of its own
    same = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 1, 1, 1)
    test = ImageSet(same, torch.zeros(2).long(), ("one",))
    two = load_ood(["permuted_pixels"], given._replace(test=test))[0]["permuted_pixels"]
    assert not torch.equal(two[0], two[1])


def clipped_normal(mean, std):
    """Mean and standard deviation of a normal variable that is clipped to [0, 1]."""
    low, high = -mean / std, (1 - mean) / std

    def density(z):
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    def below(z):
        return (1 + math.erf(z / math.sqrt(2))) / 2

    inside = below(high) - below(low)
    first = mean * inside - std * (density(high) - density(low)) + 1 - below(high)
    second = (
        (mean**2 + std**2) * inside
        - std * ((mean + 1) * density(high) - mean * density(low))
        + (1 - below(high))
    )
    return first, math.sqrt(second - first**2), below(low)


def test_gaussian_noise_has_the_moments_of_a_clipped_normal(tmp_path):
    images = load_ood(["gaussian_noise"], context(tmp_path, counts=(100, 100)))[0]["gaussian_noise"]
    mean, std, at_zero = clipped_normal(0.5, 0.5)
    pixels = images.double() / 255
    assert pixels.mean() == pytest.approx(mean, abs=0.004)
    assert pixels.std() == pytest.approx(std, abs=0.004)
    assert (images == 0).double().mean() == pytest.approx(at_zero, abs=0.005)
    assert (images == 255).double().mean() == pytest.approx(at_zero, abs=0.005)


def test_auxiliary_noise_is_cocls_and_independent_of_test_noise(tmp_path):
    count = 200
    images = auxiliary_images("gaussian_noise", tmp_path, (3, 16, 16), count, seed=0)
    assert images.shape == (count, 3, 16, 16)
    mean, std, at_zero = clipped_normal(0.5, 0.25)
    assert (images.double() / 255).mean() == pytest.approx(mean, abs=0.002)
    assert (images.double() / 255).std() == pytest.approx(std, abs=0.002)
    assert (images == 0).double().mean() == pytest.approx(at_zero, abs=0.003)
    given = context(tmp_path, counts=(100, 100), seed=0)
    noise = load_ood(["gaussian_noise"], given)[0]["gaussian_noise"]
    together = torch.stack([images.flatten().double(), noise.flatten().double()])
    assert abs(float(together.corrcoef()[0, 1])) < 0.02
    assert torch.equal(images, auxiliary_images("gaussian_noise", tmp_path, (3, 16, 16), count, 0))
    other = auxiliary_images("gaussian_noise", tmp_path, (3, 16, 16), count, 1)
    assert not torch.equal(images, other)


def test_auxiliary_noise_of_many_images_does_not_repeat_itself(tmp_path):
    images = auxiliary_images("gaussian_noise", tmp_path, (1, 4, 4), 2 * ood.MADE_AT_ONCE + 3, 5)
    assert len(images.flatten(1).unique(dim=0)) == len(images)


def test_uniform_noise_reaches_every_level_as_often(tmp_path):
    images = load_ood(["uniform_noise"], context(tmp_path, counts=(100, 100)))[0]["uniform_noise"]
    levels = images.flatten().long().bincount(minlength=256).double()
    assert (levels / levels.mean() - 1).abs().max() < 0.2


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 48), (8, 8)])
def test_blurring_is_a_gaussian_filter_of_a_quarter_of_each_side(height, width, tmp_path):
    images = of_size(height, width, images=3)
    # large structures, too: a filter of noise alone is grey, whatever its width
    images[:, :, : height // 2, : width // 3] //= 4
    test = ImageSet(images, torch.zeros(3).long(), ("one",))
    blurred = load_ood(["blurred"], InDistribution(tmp_path, test, "cifar10"))[0]["blurred"]
    wanted = ndimage.gaussian_filter(
        images.double().numpy(), (0, 0, height / 4, width / 4), mode="mirror", truncate=3
    )
    assert (blurred.double() - torch.from_numpy(wanted)).abs().max() <= 0.51


def test_blurring_leaves_nothing_above_one_cycle_an_image(tmp_path):
    x = torch.arange(32) + 0.5
    waves = [127.5 + 120 * torch.cos(2 * torch.pi * k * x / 32) for k in (0, 1, 2, 4, 8)]
    along = torch.stack(waves).round().to(torch.uint8)[:, None, None].repeat(1, 1, 32, 1)
    test = ImageSet(along, torch.zeros(5).long(), ("wave",))
    blurred = load_ood(["blurred"], InDistribution(tmp_path, test, "cifar10"))[0]["blurred"]
    kept = (blurred[:, 0, 0].double() - 127.5).abs().amax(1) / 120
    assert kept[0] == pytest.approx(1, abs=0.01)
    assert 0.2 < kept[1] < 0.4
    assert (kept[2:] < 0.06).all()


def test_both_axes_are_blurred_and_no_channel_bleeds(tmp_path):
    pixels = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    pixels[0, 1, ::2] = 255
    pixels[0, 2, :, ::2] = 255
    test = ImageSet(pixels, torch.zeros(1).long(), ("lines",))
    blurred = load_ood(["blurred"], InDistribution(tmp_path, test, "x"))[0]["blurred"]
    assert (blurred[0, 0] == 0).all()
    assert (blurred[0, 1:].double() - 127.5).abs().max() < 16


def test_blurring_in_parts_is_blurring_at_once(tmp_path, monkeypatch):
    given = context(tmp_path)
    whole = load_ood(["blurred"], given)[0]["blurred"]
    monkeypatch.setattr(ood, "MADE_AT_ONCE", 7)
    assert torch.equal(load_ood(["blurred"], given)[0]["blurred"], whole)


def test_digits_keep_their_grey_levels_and_become_colour(tmp_path):
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images)
    grey = load_ood(["digits"], context(tmp_path, channels=1, size=8))[0]["digits"]
    assert torch.equal(grey[:, 0], (digits * 255 / 16).round().to(torch.uint8))
    colour = load_ood(["digits"], context(tmp_path, size=8))[0]["digits"]
    assert torch.equal(colour, grey.expand(-1, 3, -1, -1))


def test_an_image_of_the_right_shape_stays_as_it_is():
    images = of_size(9, 7)
    assert torch.equal(to_shape(images, (3, 9, 7)), images)


@given(
    height=st.integers(1, 20), width=st.integers(1, 20), channels=st.sampled_from([1, 3]),
    to_channels=st.sampled_from([1, 3]), level=st.integers(0, 255),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_flat_grey_stays_flat_in_any_shape(height, width, channels, to_channels, level):
    images = torch.full((2, channels, height, width), level, dtype=torch.uint8)
    resized = to_shape(images, (to_channels, 5, 11))
    assert resized.shape == (2, to_channels, 5, 11)
    assert (resized == level).all()
    assert torch.equal(to_shape(images.double() / 255, (to_channels, 5, 11)), resized)


def test_colour_becomes_its_luminance():
    from torchvision.transforms.v2 import functional as F

    images = of_size(8, 8)
    grey = to_shape(images, (1, 8, 8))
    exact = F.rgb_to_grayscale(images.double()).round()
    assert torch.equal(grey.double(), exact)
    assert (grey.int() - F.rgb_to_grayscale(images).int()).abs().max() <= 1
    pure = 255 * torch.eye(3, dtype=torch.uint8)[:, :, None, None]
    assert to_shape(pure, (1, 1, 1)).flatten().tolist() == [76, 150, 29]


def test_a_large_image_is_shrunk_with_antialiasing():
    stripes = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    resized = to_shape(stripes, (1, 8, 8)).int()
    assert (resized - 127).abs().max() <= 16


def test_sizes_change_as_torchvision_changes_them():
    from torchvision.transforms.v2 import functional as F

    images = of_size(21, 13)
    resized = to_shape(images, (3, 8, 16))
    wanted = F.resize(images.float(), [8, 16], F.InterpolationMode.BILINEAR, antialias=True)
    assert torch.equal(resized, wanted.round().to(torch.uint8))


def test_conversion_in_parts_is_conversion_at_once(monkeypatch):
    images = of_size(10, 10, images=7)
    whole = to_shape(images, (1, 4, 4))
    monkeypatch.setattr("lt_pipeline.learning.data.ood_files.VALUES_AT_ONCE", 2 * 300)
    assert torch.equal(to_shape(images, (1, 4, 4)), whole)


def test_no_image_stays_no_image():
    assert to_shape(of_size(5, 5, images=0), (1, 4, 4)).shape == (0, 1, 4, 4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (of_size(8, 8)[0], r"\[N, channels, height, width\].*\[3, 8, 8\]"),
        (torch.zeros(2, 3, 0, 4, dtype=torch.uint8), r"\[2, 3, 0, 4\]"),
        (of_size(8, 8).int(), "uint8 or floats.*torch.int32"),
        (of_size(8, 8) > 3, "uint8 or floats.*torch.bool"),
        (of_size(8, 8).float(), r"\[0, 1\], but range from 0 to 255"),
        (torch.full((1, 3, 4, 4), -0.1), "range from -0.1 to -0.1"),
        (torch.full((1, 3, 4, 4), torch.nan), "range from nan"),
        (of_size(8, 8, channels=4), "3 channels.*have 4 .*drop alpha"),
        (of_size(8, 8, channels=2), "have 2 "),
        (of_size(8, 3, channels=32), r"have 32 .*\[6, 32, 8, 3\].*channels second"),
    ],
)
def test_images_of_another_kind_are_refused_with_what_came(images, message):
    with pytest.raises(ValueError, match=message):
        to_shape(images, (3, 8, 8))


def test_other_channels_are_fine_where_they_are_the_same():
    assert to_shape(of_size(8, 8, channels=4), (4, 4, 4)).shape == (6, 4, 4, 4)


def test_grey_data_cannot_take_four_channels_nor_four_take_grey():
    for channels, wanted in ((4, 1), (1, 4), (2, 1)):
        with pytest.raises(ValueError, match=f"must have {wanted} channels"):
            to_shape(of_size(8, 8, channels=channels), (wanted, 8, 8))


@pytest.mark.parametrize("name", [*ALL, "folder:paintings", "folder:my.set-2", "folder:a b"])
def test_known_names_pass(name):
    check_name(name)


def test_an_unknown_name_gets_the_nearest_and_all(tmp_path):
    with pytest.raises(ValueError, match="unknown set 'places': did you mean 'places365'.*folder:"):
        check_name("places")
    with pytest.raises(ValueError, match="did you mean 'svhn'"):
        load_ood(["uniform_noise", "svnh"], context(tmp_path))


@pytest.mark.parametrize("name", ["", ".", "..", "../secret", "a/b", "a\\b", "/etc", "a\0b"])
def test_a_folder_is_one_right_under_ood(name):
    with pytest.raises(ValueError, match="folder:NAME must"):
        check_name(f"folder:{name}")


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="limit must be >= 1"):
        load_ood(["blurred"], context(tmp_path, limit=0))


def test_auxiliary_images_are_as_many_as_asked_for_or_all(tmp_path):
    images = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 3, 6, 6)
    put_array(tmp_path, "extra", images)
    some = auxiliary_images("folder:extra", tmp_path, (1, 4, 4), 20, seed=0)
    assert some.shape == (20, 1, 4, 4)
    levels = some[:, 0, 0, 0].tolist()
    assert len(set(levels)) == 20
    assert levels != list(range(20))
    every = auxiliary_images("folder:extra", tmp_path, (1, 4, 4), 100, seed=0)
    assert every[:, 0, 0, 0].tolist() == list(range(50))


@pytest.mark.parametrize("name", sorted({*AUXILIARY_SETS, "folder:none"} - {"gaussian_noise"}))
def test_auxiliary_images_that_are_not_there_say_what_to_put_where(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"put .*{tmp_path}|{tmp_path}.*put"):
        auxiliary_images(name, tmp_path, (3, 8, 8), 10, seed=0)


@pytest.mark.parametrize("name", ["blurred", "digits", "uniform_noise", "gaussian"])
def test_auxiliary_images_without_files_are_gaussian_noise_only(name, tmp_path):
    with pytest.raises(ValueError, match=f"unknown set {name!r}"):
        auxiliary_images(name, tmp_path, (3, 8, 8), 10, seed=0)


def test_no_auxiliary_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="count must be >= 1"):
        auxiliary_images("gaussian_noise", tmp_path, (3, 8, 8), 0, seed=0)
