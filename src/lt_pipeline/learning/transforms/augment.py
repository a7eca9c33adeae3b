"""Random crop, flip, AutoAugment and Cutout of whole batches, on the device that holds them."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field, NonNegativeInt, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor

from lt_pipeline.learning.schema import Config, UserError


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise UserError(f"the smallest must not exceed the largest, but they are {limits}")
    return limits


# what is on colours, and how it is off
COLOURS: dict[str, Any] = {
    **{"autoaugment": False, "trivialaugment": False},
    **{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
}
_Share = Annotated[float, Field(gt=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
Shares = Annotated[tuple[_Share, _Share], AfterValidator(_ordered)]
Range = Annotated[tuple[_Positive, _Positive], AfterValidator(_ordered)]
Strength = Annotated[float, Field(ge=0)]
HalfTurn = Annotated[float, Field(ge=0, le=0.5)]


class AugmentConfig(Config):
    """What ``augment`` does to training images; zeros and false turn a part off.

    Attributes:
        crop_padding: pixels on each side that images are padded with, to be cropped to their size.
        crop_scale: in its place a crop of such a share of the area, resized; (1, 1) is off.
        crop_ratio: of that crop's width to its height.
        flip: the probability of a horizontal flip.
        brightness: its factor is uniform in 1 - value, at least 0, to 1 + value.
        contrast: likewise.
        saturation: likewise.
        hue: the share of a full circle that hues turn by, at most, either way.
        autoaugment: CIFAR-10's policy.
        trivialaugment: one of 14 operations at a strength of its own for every image.
        autoaugment_fill: the pixel value that geometric operations of the two bring in.
        cutout: the side of the black square in pixels.
    """

    crop_padding: NonNegativeInt = 1
    crop_scale: Shares = (1.0, 1.0)
    crop_ratio: Range = (0.75, 1.333)
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: HalfTurn = 0.0
    autoaugment: bool = False
    trivialaugment: bool = False
    autoaugment_fill: Annotated[int, Field(ge=0, le=255)] = 128
    cutout: NonNegativeInt = 0

    @field_validator("trivialaugment")
    @classmethod
    def _alone(cls, chosen: bool, info: ValidationInfo) -> bool:
        if chosen and info.data.get("autoaugment"):
            raise UserError("must be false where autoaugment is true: choose one")
        return chosen

    @property
    def resizes(self) -> bool:
        """Return whether crops are resized."""
        return self.crop_scale != (1, 1)

    @property
    def jitters(self) -> bool:
        """Return whether colours are jittered."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0

    @property
    def for_noise(self) -> AugmentConfig:
        """Return what leaves noise what it is: crop and flip."""
        return self.model_copy(update={**COLOURS, "cutout": 0})

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise ValueError where this does not suit images of ``(channels, height, width)``."""
        channels, height, width = shape
        coloured = [name for name in COLOURS if getattr(self, name)]
        if coloured and channels not in (1, 3):
            raise UserError(
                f"{coloured[0]} needs images with 1 or 3 channels, but these have {channels}: set "
                f"it to {str(COLOURS[coloured[0]]).lower()}"
            )
        if not self.resizes and self.crop_padding >= min(height, width):
            raise UserError(
                f"crop_padding must be smaller than the image, {height} x {width}, but is "
                f"{self.crop_padding}: a crop could be all padding"
            )
        if self.cutout > 2 * min(height, width):
            raise UserError(
                f"cutout must be at most twice the image, {height} x {width}, but is "
                f"{self.cutout}: larger squares hide whole images"
            )


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return ``images`` uint8 ``[N, C, H, W]``, each cropped, flipped and so on by its own draw.

    N >= 1. The order is crop, flip, colours, AutoAugment or TrivialAugment, Cutout. Cutout is last
    and before normalisation, so that its square is black. ``generator`` lives on the device of
    ``images``. The input stays as it is; when all is off, it is what returns. Of features
    ``[N, F, V, 1]`` each has one view left: the second, which is the mirror image's, with the
    probability of a flip.
    """
    if images.is_floating_point():
        return one_view(images, config.flip, generator)
    images = _crop_and_colour(images, config, generator)
    if config.autoaugment:
        # here, because torchvision takes two seconds to import
        from lt_pipeline.learning.transforms.autoaugment import autoaugment

        images = autoaugment(images, generator, config.autoaugment_fill)
    if config.trivialaugment:
        from lt_pipeline.learning.transforms.trivialaugment import trivialaugment

        images = trivialaugment(images, generator, config.autoaugment_fill)
    if config.cutout:
        images = cutout(images, config.cutout, generator)
    return images


def _crop_and_colour(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    from lt_pipeline.learning.transforms import views  # which is made of this module

    if config.resizes:
        images = views.random_resized_crop(images, config, generator)
    elif config.crop_padding:
        images = random_crop(images, config.crop_padding, generator)
    if config.flip:
        images = random_flip(images, config.flip, generator)
    if config.jitters:
        images = views.color_jitter(images, config, generator)
    return images


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Return ``images`` ``[N, C, H, W]``, zero-padded and cropped to their size at random."""
    dy, dx = torch.randint(
        2 * padding + 1, (2, len(images)), generator=generator, device=images.device
    )
    return crop_at(images, padding, dy, dx)


def crop_at(images: Tensor, padding: int, dy: Tensor, dx: Tensor) -> Tensor:
    """Return the ``[N, C, H, W]`` windows of zero-padded ``images`` ``[N, C, H, W]``.

    ``dy`` and ``dx``, int64 ``[N]`` in 0..2 * padding, are the upper left corners of the windows in
    the padded images; ``padding`` gives the images unmoved.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    padded_height, padded_width = padded.shape[2:]
    device = images.device
    plane = torch.arange(count * channels, device=device).view(count, channels, 1)
    y = dy.view(-1, 1, 1) + torch.arange(height, device=device)  # [N, 1, H]
    starts = (plane * padded_height + y) * padded_width + dx.view(-1, 1, 1)  # [N, C, H]
    # A window is rows of adjacent pixels, and copying rows is several times faster than gathering
    # pixels; the view has every run of ``width`` pixels, and costs nothing.
    runs = padded.flatten().unfold(0, width, 1)
    return runs.index_select(0, starts.view(-1)).view_as(images)


def random_flip(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Return ``images`` ``[N, C, H, W]``, each mirrored left to right with ``probability``."""
    coins = torch.rand(len(images), generator=generator, device=images.device)
    # Choosing whole images from both sets is faster than torch.where on pixels.
    both = torch.cat([images, images.flip(3)])
    choice = torch.arange(len(images), device=images.device) + len(images) * (coins < probability)
    return both.index_select(0, choice)


def one_view(features: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Return ``features`` ``[N, F, V, 1]`` with one view, the second with ``probability``."""
    if features.shape[2] == 1:
        return features
    coins = torch.rand(len(features), generator=generator, device=features.device)
    chosen = (coins < probability).long()
    return features[torch.arange(len(features), device=features.device), :, chosen, :, None]


def cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Return ``images`` ``[N, C, H, W]``, each with a black square of ``side`` pixels.

    DeVries and Taylor (2017): the centre is uniform over all pixels, so the square can reach past
    the border.
    """
    count, _, height, width = images.shape
    y = torch.randint(height, (count,), generator=generator, device=images.device)
    x = torch.randint(width, (count,), generator=generator, device=images.device)
    return cut_at(images, side, y, x)


def cut_at(images: Tensor, side: int, y: Tensor, x: Tensor) -> Tensor:
    """Return ``images`` ``[N, C, H, W]`` with squares around ``y`` and ``x``, int64 ``[N]``, zero.

    The square covers rows y - side // 2 up to, not including, y + side // 2, and columns likewise,
    as in the authors' code: an odd side makes it one pixel smaller.
    """
    rows = _near(y, side // 2, images.shape[2])[:, None, :, None]
    columns = _near(x, side // 2, images.shape[3])[:, None, None, :]
    return images * ~(rows & columns)  # faster than masked_fill


def _near(centre: Tensor, reach: int, size: int) -> Tensor:
    """Return, bool ``[N, size]``, which positions lie in centre - reach up to centre + reach."""
    distance = torch.arange(size, device=centre.device) - centre[:, None]
    return (-reach <= distance) & (distance < reach)
