"""Random crop, flip, AutoAugment and Cutout of whole batches, on the device that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, NamedTuple

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
KERNEL_PIXELS = 64 * 64  # of an image that one program of a kernel holds
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
        self.check_colours(channels)
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

    def check_colours(self, channels: int) -> None:
        """Raise UserError where colours are changed, and not of 1 or 3 ``channels``."""
        coloured = [name for name in COLOURS if getattr(self, name)]
        if coloured and channels not in (1, 3):
            raise UserError(
                f"{coloured[0]} needs images with 1 or 3 channels, but these have {channels}: set "
                f"it to {str(COLOURS[coloured[0]]).lower()}"
            )


class Drawn(NamedTuple):
    """What N images draw; None is what is off.

    ``corner`` int64 ``[2, N]`` is a window's place in the padded image, ``mirrored`` bool ``[N]``;
    ``operation`` int64 and ``size`` float32 ``[S, N]`` are a policy's S steps
    (``operations.operate``), ``centre`` int64 ``[2, N]`` is the middle of Cutout's square.
    """

    corner: Tensor | None = None
    mirrored: Tensor | None = None
    operation: Tensor | None = None
    size: Tensor | None = None
    centre: Tensor | None = None


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return ``images`` uint8 ``[N, C, H, W]``, each cropped, flipped and so on by its own draw.

    N >= 1. The order is crop, flip, colours, AutoAugment or TrivialAugment, Cutout. Cutout is last
    and before normalisation, so that its square is black. ``generator`` lives on the device of
    ``images``. The input stays as it is; when all is off, it is what returns. Of features
    ``[N, F, V, 1]`` each has one view left: the second, which is the mirror image's, with the
    probability of a flip.

    On a GPU all of small images but resized crops and colours is one kernel, channels last.
    """
    if images.is_floating_point():
        return one_view(images, config.flip, generator)
    config.check_colours(images.shape[1])
    if config.resizes or config.jitters:
        images = _crop_and_colour(images, config, generator)
        config = config.model_copy(update={"crop_padding": 0, "flip": 0.0})
    drawn = draw(images.shape, config, generator)
    return (in_a_kernel if has_kernel(images) else apply)(images, drawn, config)


def has_kernel(images: Tensor) -> bool:
    """Return whether one kernel can augment such ``images`` ``[N, C, H, W]`` where they are.

    They must be on a GPU that Triton knows, and small: a program holds a whole one.
    """
    channels, height, width = images.shape[1:]
    small = height * width <= KERNEL_PIXELS and channels in (1, 3)
    return small and has_triton(images.device)


@cache
def has_triton(device: torch.device) -> bool:
    """Return whether Triton is installed, and its kernels do on ``device`` what they should."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(device) < (7, 0):
        return False
    from lt_pipeline.learning.transforms.proof import kernels_agree  # made of this module

    # what is read of the kernels waits for the device, once
    waits = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        return kernels_agree(device)
    finally:
        torch.cuda.set_sync_debug_mode(waits)


def in_a_kernel(images: Tensor, drawn: Drawn, config: AugmentConfig) -> Tensor:
    """Do as ``apply``, to a grey level, in one launch."""
    from lt_pipeline.learning.transforms import kernel

    return kernel.apply(images, drawn, config)


def _crop_and_colour(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    from lt_pipeline.learning.transforms import views  # which is made of this module

    if config.resizes:
        images = views.random_resized_crop(images, config, generator)
    elif config.crop_padding:
        corner = draw_corners(len(images), config.crop_padding, generator)
        images = crop_at(images, config.crop_padding, *corner)
    if config.flip:
        images = random_flip(images, config.flip, generator)
    return views.color_jitter(images, config, generator) if config.jitters else images


def draw(shape: Sequence[int], config: AugmentConfig, generator: torch.Generator) -> Drawn:
    """Draw for images of ``shape`` ``(N, C, H, W)``, on the device of ``generator``."""
    count, _, height, width = shape
    padding, flip = config.crop_padding, config.flip
    corner = draw_corners(count, padding, generator) if padding else None
    mirrored = coins(count, flip, generator) if flip else None
    operation, size = _policy(shape, config, generator)
    centre = draw_centres(count, height, width, generator) if config.cutout else None
    return Drawn(corner, mirrored, operation, size, centre)


def _policy(
    shape: Sequence[int], config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor | None, Tensor | None]:
    """Return the operations and signed magnitudes of what policy there is."""
    for name in ("autoaugment", "trivialaugment"):
        if getattr(config, name):
            # here, because torchvision takes two seconds to import
            policy = import_module(f"lt_pipeline.learning.transforms.{name}")
            drawn: tuple[Tensor, Tensor] = policy.draw(shape[0], generator).operations(*shape[2:])
            return drawn
    return None, None


def draw_corners(count: int, padding: int, generator: torch.Generator) -> Tensor:
    """Draw the places of ``count`` windows, int64 ``[2, count]`` in 0..2 * padding."""
    return torch.randint(2 * padding + 1, (2, count), generator=generator, device=generator.device)


def coins(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Draw bool ``[count]``, true with ``probability``."""
    return torch.rand(count, generator=generator, device=generator.device) < probability


def draw_centres(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Draw pixels of ``count`` images, int64 ``[2, count]``: uniform over all of them.

    DeVries and Taylor (2017): so that a square around one can reach past the border.
    """
    device = generator.device
    return torch.stack([
        torch.randint(side, (count,), generator=generator, device=device)
        for side in (height, width)
    ])  # fmt: skip


def apply(images: Tensor, drawn: Drawn, config: AugmentConfig) -> Tensor:
    """Return ``images`` uint8 ``[N, C, H, W]`` after what each has ``drawn``."""
    if drawn.corner is not None:
        images = crop_at(images, config.crop_padding, *drawn.corner)
    if drawn.mirrored is not None:
        images = flip_where(images, drawn.mirrored)
    if drawn.operation is not None and drawn.size is not None:
        from lt_pipeline.learning.transforms.operations import operate

        for operation, size in zip(drawn.operation, drawn.size, strict=True):
            images = operate(images, operation, size, config.autoaugment_fill)
    if drawn.centre is not None:
        images = cut_at(images, config.cutout, *drawn.centre)
    return images


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
    return flip_where(images, coins(len(images), probability, generator))


def flip_where(images: Tensor, mirrored: Tensor) -> Tensor:
    """Return ``images`` ``[N, C, H, W]``, those that are ``mirrored``, bool ``[N]``, so."""
    # Choosing whole images from both sets is faster than torch.where on pixels.
    both = torch.cat([images, images.flip(3)])
    choice = torch.arange(len(images), device=images.device) + len(images) * mirrored
    return both.index_select(0, choice)


def one_view(features: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Return ``features`` ``[N, F, V, 1]`` with one view, the second with ``probability``."""
    if features.shape[2] == 1:
        return features
    coins = torch.rand(len(features), generator=generator, device=features.device)
    chosen = (coins < probability).long()
    return features[torch.arange(len(features), device=features.device), :, chosen, :, None]


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
