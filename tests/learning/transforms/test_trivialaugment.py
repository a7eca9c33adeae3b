from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import TrivialAugmentWide

from lt_pipeline.learning.transforms import operations
from lt_pipeline.learning.transforms.augment import AugmentConfig, augment
from lt_pipeline.learning.transforms.operations import SIGNED
from lt_pipeline.learning.transforms.trivialaugment import (
    LEVELS,
    SPANS,
    Draws,
    draw,
)
from toys import operated, scenes, seeded

OPERATIONS = (*SPANS,)
THEIRS = TrivialAugmentWide(fill=90)
# of which torchvision cuts grey levels off on the way where images are bytes: compared as floats
BLENDS = ("Brightness", "Color", "Contrast", "Sharpness")
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
SHAPES = [(3, 64, 48), (1, 28, 28), (3, 34, 40)]


def trivialaugment(images: Tensor, generator: torch.Generator) -> Tensor:
    return augment(images, AugmentConfig(crop_padding=0, trivialaugment=True), generator)


def every_level(name: str) -> Draws:
    """Draw each level of an operation, with both signs."""
    level = torch.arange(LEVELS).repeat(2)
    operation = torch.full_like(level, OPERATIONS.index(name))
    return Draws(operation, level, torch.arange(2 * LEVELS) >= LEVELS)


def theirs(image: Tensor, name: str, level: int, negative: bool) -> Tensor:
    function, signed = THEIRS._AUGMENTATION_SPACE[name]
    magnitudes = function(LEVELS, *image.shape[-2:])
    size = 0.0 if magnitudes is None else float(magnitudes[level])
    size = -size if signed and negative else size
    image = image / 255 if name in BLENDS else image
    changed: Tensor = THEIRS._apply_image_or_video_transform(
        image, name, size, interpolation=InterpolationMode.NEAREST, fill={Tensor: 90}
    )
    return changed * 255 if name in BLENDS else changed


def test_operations_and_which_of_them_go_both_ways_are_torchvisions() -> None:
    space = TrivialAugmentWide._AUGMENTATION_SPACE
    assert tuple(space) == OPERATIONS
    assert {name for name, (_, signed) in space.items() if signed} == {*SIGNED}
    assert operations.OPERATIONS[: len(OPERATIONS)] == OPERATIONS


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_level_of_every_operation_is_torchvisions_on_each_image_alone(
    name: str, shape: tuple[int, int, int]
) -> None:
    draws = every_level(name)
    images = scenes(2 * LEVELS, *shape)
    kept = images.clone()
    ours = operated(images, draws, 90)
    assert torch.equal(images, kept)
    assert (ours.dtype, ours.shape) == (torch.uint8, images.shape)
    expected = torch.stack([
        theirs(image, name, int(level), bool(negative))
        for image, level, negative in zip(images, draws.level, draws.negative, strict=True)
    ])  # fmt: skip
    gap = (ours.double() - expected.double()).abs()
    if name in MOVES:  # a place half between two pixels is either's
        assert float((gap > 0).float().flatten(1).mean(1).max()) < 0.005
    else:
        assert float(gap.max()) <= 0.501 * (name in BLENDS), "what rounding does"
    still = name == "Identity" or (name == "Color" and shape[0] == 1)
    assert torch.equal(ours, images) == still


def test_images_of_every_operation_at_once_are_as_alone() -> None:
    images, draws = scenes(200, 3, 16, 16), draw(200, seeded(1))
    together = operated(images, draws, 90)
    for k in range(len(images)):
        alone = operated(images[k : k + 1], Draws(*(d[k : k + 1] for d in draws)), 90)
        assert torch.equal(together[k : k + 1], alone)


def test_operations_levels_and_signs_are_equally_frequent_and_independent() -> None:
    count = 14 * 31 * 2 * 40
    operation, level, negative = draw(count, seeded())
    cell = (operation * LEVELS + level) * 2 + negative
    tally = torch.bincount(cell, minlength=868).double()
    assert len(tally) == 868
    assert float(((tally - 40) ** 2 / 40).sum()) < 1003  # 867 df, p = 0.0009


def test_equal_generators_give_equal_images_and_go_on() -> None:
    images = scenes(40, 3, 16, 16)
    one, other = seeded(3), seeded(3)
    assert torch.equal(trivialaugment(images, one), trivialaugment(images, other))
    assert torch.equal(one.get_state(), other.get_state())
    assert not torch.equal(trivialaugment(images, one), trivialaugment(images, seeded(3)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_a_cpu_does_for_the_same_draws() -> None:
    images, draws = scenes(300, 3, 32, 32), draw(300, seeded(1))
    on_gpu = operated(images.cuda(), Draws(*(d.cuda() for d in draws)), 90).cpu()
    gap = (on_gpu.int() - operated(images, draws, 90).int()).abs()
    assert float((gap > 1).float().mean()) < 0.001
