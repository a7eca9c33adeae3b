"""Random crop, flip, AutoAugment and Cutout of whole batches, on the device that holds them."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt
from torch import Tensor

from lt_pipeline.learning.schema import Config, UserError


class AugmentConfig(Config):
    """What ``augment`` does to training images; zeros and false turn a part off.

    ``crop_padding`` is in pixels on each side, ``flip`` the probability of a horizontal flip,
    ``autoaugment_fill`` the pixel value that AutoAugment's geometric operations bring in, and
    ``cutout`` the side of the square in pixels.
    """

    crop_padding: NonNegativeInt = 1
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    autoaugment: bool = False
    autoaugment_fill: Annotated[int, Field(ge=0, le=255)] = 128
    cutout: NonNegativeInt = 0

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise ValueError where this does not suit images of ``(channels, height, width)``."""
        channels, height, width = shape
        if self.autoaugment:
            from lt_pipeline.learning.transforms.autoaugment import check_channels

            check_channels(channels)
        if self.crop_padding >= min(height, width):
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

    N >= 1. The order is crop, flip, AutoAugment, Cutout. Cutout is last and before normalisation,
    so that its square is black. ``generator`` lives on the device of ``images``. The input stays as
    it is; when all is off, it is what returns. Of features ``[N, F, V, 1]`` each has one view left:
    the second, which is the mirror image's, with the probability of a flip.
    """
    if images.is_floating_point():
        return one_view(images, config.flip, generator)
    if config.crop_padding:
        images = random_crop(images, config.crop_padding, generator)
    if config.flip:
        images = random_flip(images, config.flip, generator)
    if config.autoaugment:
        # here, because torchvision takes two seconds to import
        from lt_pipeline.learning.transforms.autoaugment import autoaugment

        images = autoaugment(images, generator, config.autoaugment_fill)
    if config.cutout:
        images = cutout(images, config.cutout, generator)
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
