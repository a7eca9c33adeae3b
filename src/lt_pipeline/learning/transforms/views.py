"""The augmented views that contrastive methods compare (SimCLR, Chen et al., ICML 2020).

Balanced contrastive learning (Zhu et al., CVPR 2022) takes the same ones. Every image has its own
draws. The operations are torchvision's, on batches of floats, rounded to grey levels at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lt_pipeline.learning.schema import Config, UserError
from lt_pipeline.learning.transforms.augment import (
    AugmentConfig,
    HalfTurn,
    Range,
    Shares,
    Strength,
    coins,
    flip_where,
    has_kernel,
)

# Pixels treated together (512 images of 32 x 32): few enough for the intermediate floats to stay in
# a CPU's cache, where they are several times faster, and enough to occupy a GPU.
PIECE = 2**19
SMALL, LARGE = 2**17, 2**22
ASPECTS = (3 / 4, 4 / 3)  # the range of a crop's width to its height
ATTEMPTS = 10  # at a crop that fits
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# of images and what they have drawn
Treatment = Callable[..., Tensor]
Probability = Annotated[float, Field(ge=0, le=1)]


class ViewConfig(Config):
    """How far the views of an image may differ; zeros, and a ``crop_scale`` of (1, 1), are off.

    ``crop_scale`` is the range of a crop's area as a share of the image's. ``flip``, ``jitter``,
    ``grayscale`` and ``blur`` are probabilities. Where there is jitter, the factors of
    ``brightness``, ``contrast`` and ``saturation`` are uniform in 1 - value (at least 0) to
    1 + value, and the hue turns by up to ``hue`` of a full circle either way. ``blur_sigma`` is the
    range of the Gaussian's standard deviation in pixels.
    """

    crop_scale: Shares = (0.5, 1.0)
    flip: Probability = 0.0
    jitter: Probability = 0.8
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.4
    hue: HalfTurn = 0.1
    grayscale: Probability = 0.0
    blur: Probability = 0.5
    blur_sigma: Range = (0.1, 1.0)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raise ValueError where this does not suit images of ``(channels, height, width)``."""
        if shape[0] not in (1, 3) and (self.jitter or self.grayscale):
            raise UserError(
                f"jitter and grayscale need images with 1 or 3 channels, but these have "
                f"{shape[0]}: set both to 0"
            )


def random_view(images: Tensor, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """Return a random view of each of ``images`` uint8 ``[N, C, H, W]``, of the same shape.

    N >= 1. The order is crop and flip, jitter, grayscale, blur. ``generator`` lives on the device
    of ``images``, which stay as they are. Raises ValueError unless there are 1 or 3 channels, or
    neither jitter nor grayscale. On a GPU small images have one kernel, channels last.
    """
    channels, height, width = images.shape[1:]
    config.check((channels, height, width))
    if has_kernel(images):
        return in_a_kernel(images, draw_view(images, config, generator))
    pieces = images.split(max(1, PIECE // (height * width)))
    return torch.cat([apply_view(piece, draw_view(piece, config, generator)) for piece in pieces])


class View(NamedTuple):
    """What N images draw; None is what is off.

    ``mirrored`` bool ``[N]``; ``boxes`` int64 ``[4, N]`` (``draw_crops``); ``jitter``
    (``draw_jitter``); ``grey`` bool ``[N]``; ``sigma`` float32 ``[N]`` of a blur that reaches
    ``reach`` pixels.
    """

    mirrored: Tensor | None = None
    boxes: Tensor | None = None
    jitter: Jitter | None = None
    grey: Tensor | None = None
    sigma: Tensor | None = None
    reach: int = 0


def draw_view(images: Tensor, config: ViewConfig, generator: torch.Generator) -> View:
    """Draw for ``images`` ``[N, C, H, W]``, on the device of ``generator``."""
    count, crops = len(images), config.crop_scale != (1, 1)
    return View(
        coins(count, config.flip, generator) if config.flip else None,
        draw_crops(images, config.crop_scale, generator) if crops else None,
        draw_jitter(count, config, generator) if config.jitter else None,
        coins(count, config.grayscale, generator) if config.grayscale else None,
        _draw_sigma(count, config, generator) if config.blur else None,
        math.ceil(3 * config.blur_sigma[1]),
    )


def _draw_sigma(count: int, config: ViewConfig, generator: torch.Generator) -> Tensor:
    sigma = _uniform(*config.blur_sigma, (count,), generator)
    return sigma.where(coins(count, config.blur, generator), 0.0)


def apply_view(images: Tensor, drawn: View) -> Tensor:
    """Return ``images`` uint8 ``[N, C, H, W]`` after what each has ``drawn``."""
    if drawn.mirrored is not None:
        images = flip_where(images, drawn.mirrored)  # first: bytes are faster to copy
    view = images.float()
    if drawn.boxes is not None:
        view = crop_and_resize(view, drawn.boxes)
    if drawn.jitter is not None:
        view = apply_jitter(view, drawn.jitter)
    if drawn.grey is not None:
        view = torch.where(drawn.grey.view(-1, 1, 1, 1), luma(view), view)
    if drawn.sigma is not None:
        view = blur(view, drawn.sigma, drawn.reach)
    return view.round_().to(torch.uint8)


def in_a_kernel(images: Tensor, drawn: View) -> Tensor:
    """Do as ``apply_view``, to a grey level, in one launch."""
    from lt_pipeline.learning.transforms import view_kernel

    return view_kernel.apply(images, drawn)


def random_resized_crop(
    images: Tensor, config: AugmentConfig, generator: torch.Generator
) -> Tensor:
    """Return a random box of each of ``images`` uint8 ``[N, C, H, W]``, enlarged to H x W."""
    boxes = draw_crops(images, config.crop_scale, generator, config.crop_ratio)
    if has_kernel(images):
        return in_a_kernel(images, View(boxes=boxes))
    return in_pieces(crop_and_resize, images, boxes)


def color_jitter(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return ``images`` uint8 ``[N, 1 or 3, H, W]``, each in colours of its own draw."""
    strengths = {name: getattr(config, name) for name in ("brightness", "contrast", "saturation")}
    drawn = ViewConfig(jitter=1.0, hue=config.hue, **strengths)
    jitter = draw_jitter(len(images), drawn, generator)
    if has_kernel(images):
        return in_a_kernel(images, View(jitter=jitter))
    return in_pieces(apply_jitter, images, jitter)


def in_pieces(treat: Callable[[Tensor, Any], Tensor], images: Tensor, draws: Any) -> Tensor:
    """Return ``treat`` of ``images`` uint8 ``[N, C, H, W]`` as floats, rounded to grey levels.

    ``draws``, a tensor ``[..., N]`` or a tuple of them, is what each image has drawn.
    """
    size = at_once(images)

    def piece(start: int) -> Tensor:
        mine = slice(start, start + size)
        own = (
            draws[..., mine]
            if isinstance(draws, Tensor)
            else type(draws)(*(draw[..., mine] for draw in draws))
        )
        return treat(images[mine].float(), own).round_().to(torch.uint8)

    return torch.cat([piece(start) for start in range(0, len(images), size)])


def at_once(images: Tensor) -> int:
    """Return how many of ``images`` ``[N, C, H, W]`` to treat together: draws do not depend on it.

    On a CPU fewer than of views: what crops of 128 x 128 take falls to 6/10 of it.
    """
    return max(1, (LARGE if images.is_cuda else SMALL) // (images.shape[2] * images.shape[3]))


def each(
    images: Tensor,
    kind: Tensor,
    treatments: Sequence[Treatment],
    *draws: Tensor,
) -> Tensor:
    """Return ``images`` ``[N, C, H, W]``, each after its own of ``treatments``.

    ``kind``, int64 ``[N]``, says which. One takes images and what these have drawn of ``draws``
    ``[..., N]``. On a GPU every image has all of them, of which its own is kept, and nothing waits
    for the host; on a CPU each has its own alone.
    """
    return (by_mask if images.is_cuda else by_group)(images, kind, treatments, *draws)


def by_mask(
    images: Tensor, kind: Tensor, treatments: Sequence[Treatment], *draws: Tensor
) -> Tensor:
    """Do as ``each``, without a step that depends on ``kind``."""
    treated = images
    for index, treat in enumerate(treatments):
        mine = (kind == index).view(-1, 1, 1, 1)
        treated = treat(images, *draws).where(mine, treated)
    return treated


def by_group(
    images: Tensor, kind: Tensor, treatments: Sequence[Treatment], *draws: Tensor
) -> Tensor:
    """Do as ``each``, with a batch for each treatment that is anyone's."""
    sizes = torch.bincount(kind, minlength=len(treatments)).tolist()
    treated = torch.empty_like(images)
    for treat, mine in zip(treatments, kind.argsort(stable=True).split(sizes), strict=True):
        if len(mine):
            treated[mine] = treat(images[mine], *(draw[..., mine] for draw in draws))
    return treated


def draw_crops(
    images: Tensor,
    scale: tuple[float, float],
    generator: torch.Generator,
    aspects: tuple[float, float] = ASPECTS,
) -> Tensor:
    """Draw boxes in ``images`` ``[N, C, H, W]``: int64 ``[4, N]`` of top, left, height, width.

    As torchvision's ``RandomResizedCrop``: the area is uniform in ``scale``, the aspect log-uniform
    in ``aspects``, and the first of ten attempts that fits into the image is taken. If none does,
    it is the largest box of such an aspect (torchvision centres it, here its place is random).
    """
    count, _, height, width = images.shape
    area = _uniform(*scale, (ATTEMPTS, count), generator) * (height * width)
    low, high = aspects
    aspect = _uniform(math.log(low), math.log(high), (ATTEMPTS, count), generator).exp()
    sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()]).round()  # [2, 10, N]
    limit = torch.stack([torch.full_like(area[0], side) for side in (height, width)])  # [2, N]
    fits = ((sides >= 1) & (sides <= limit[:, None])).all(0)  # [10, N]
    first = fits.int().argmax(0).expand(2, 1, -1)
    by_aspect = torch.stack([limit[1] * (1 / low), limit[0] * high])
    largest = limit.minimum(by_aspect).round()
    size = sides.gather(1, first)[:, 0].where(fits.any(0), largest)  # [2, N]
    corner = (_uniform(0, 1, (2, count), generator) * (limit - size + 1)).floor()
    return torch.cat([corner.minimum(limit - size), size]).long()


def crop_and_resize(images: Tensor, boxes: Tensor) -> Tensor:
    """Return the ``boxes`` of ``images`` float ``[N, C, H, W]``, enlarged to H x W (bilinear).

    ``boxes``, int64 ``[4, N]``, are top, left, height and width, within the image.
    """
    height, width = images.shape[2:]
    y = _samples(boxes[0], boxes[2], height)[:, :, None].expand(-1, -1, width)
    x = _samples(boxes[1], boxes[3], width)[:, None, :].expand(-1, height, -1)
    return F.grid_sample(images, torch.stack([x, y], 3), padding_mode="border", align_corners=False)


def _samples(start: Tensor, size: Tensor, side: int) -> Tensor:
    """Return where ``side`` pixels are read, ``[N, side]``, the image reaching from -1 to 1.

    They spread over ``size`` pixels from ``start`` on, int64 ``[N]``. Held within their centres, as
    pixels outside of a crop must not mix into it.
    """
    step = (torch.arange(side, device=start.device) + 0.5) / side
    inside = (step * size[:, None]).clamp_(min=0.5).minimum(size[:, None] - 0.5)
    return (inside + start[:, None]) * (2 / side) - 1


class Jitter(NamedTuple):
    """What N images draw.

    ``factors`` ``[3, N]`` of brightness, contrast and saturation; ``hue`` ``[N]`` in turns;
    ``kinds`` int64 ``[4, N]``, the operation of each step; ``applied`` bool ``[N]``.
    """

    factors: Tensor
    hue: Tensor
    kinds: Tensor
    applied: Tensor


def draw_jitter(count: int, config: ViewConfig, generator: torch.Generator) -> Jitter:
    """Draw for ``count`` images, on the device of ``generator``; the order is each image's own."""
    strengths = (config.brightness, config.contrast, config.saturation)
    return Jitter(
        torch.stack([_uniform(max(0.0, 1 - s), 1 + s, (count,), generator) for s in strengths]),
        _uniform(-config.hue, config.hue, (count,), generator),
        _uniform(0, 1, (4, count), generator).argsort(0),
        coins(count, config.jitter, generator),
    )


def apply_jitter(images: Tensor, jitter: Jitter) -> Tensor:
    """Return ``images`` float ``[N, 1 or 3, H, W]`` in 0..255 after the steps each has drawn.

    Three of the four operations are one formula, so a batch can mix them in any order. Hue is not:
    images are treated alike by its step.
    """
    hue_step = (jitter.kinds == HUE).int().argmax(0).where(jitter.applied, 4)
    steps: list[Treatment] = [partial(_steps, hue_step=step) for step in range(4)]
    return each(images, hue_step, [*steps, _as_it_is], *jitter)


def _steps(images: Tensor, *draws: Tensor, hue_step: int) -> Tensor:
    jitter = Jitter(*draws)
    for step, kind in enumerate(jitter.kinds):
        if step == hue_step:
            images = turn_hue(images, jitter.hue)
        else:
            # hue's own factor is never read
            factor = jitter.factors.gather(0, kind.clamp(max=SATURATION)[None])[0]
            images = blend(images, kind, factor)
    return images


def _as_it_is(images: Tensor, *draws: Tensor) -> Tensor:
    return images


def blend(images: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Return ``images`` float ``[N, C, H, W]`` moved from (factor < 1: towards) a plainer image.

    That is black for brightness, the mean grey of the image for contrast, its grey for saturation,
    by ``kind`` ``[N]``. ``factor`` ``[N]`` 1 changes nothing. Values stay in 0..255.
    """
    grey = luma(images)
    kind, factor = kind.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    plain = grey.mean((2, 3), keepdim=True) * (kind == CONTRAST) + grey * (kind == SATURATION)
    return torch.lerp(plain, images, factor).clamp_(0, 255)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Return ``images`` float ``[N, C, H, W]``, their hues in HSV moved by ``turns`` ``[N]``.

    One channel has no hue and stays.
    """
    if images.shape[1] == 1:
        return images
    low, high = images.aminmax(dim=1)  # [N, H, W]; HSV's value is high, its saturation span / high
    span = high - low
    red, green, blue = images.unbind(1)
    lead = torch.where(green == high, 2 * span + blue - red, 4 * span + red - green)
    lead = torch.where(red == high, green - blue, lead)
    # In sixths of a turn. A grey pixel, which must not become 0 / 0, has no span to colour.
    hue = lead / span.clamp(min=torch.finfo(span.dtype).tiny) + 6 * turns.view(-1, 1, 1)
    # A channel is at its highest within a sixth of its own hue (0, 2, 4), at its lowest beyond two
    # sixths, and linear between.
    away = [((hue - own + 3).remainder(6) - 3).abs() for own in (0, 2, 4)]
    return torch.stack([high - span * (a - 1).clamp_(0, 1) for a in away], 1)


def luma(images: Tensor) -> Tensor:
    """Return the grey ``[N, 1, H, W]`` of ``images`` float ``[N, 1 or 3, H, W]`` (ITU-R 601)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    grey: Tensor = 0.2989 * red + 0.587 * green + 0.114 * blue
    return grey


def blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Return ``images`` float ``[N, C, H, W]`` blurred by ``sigma`` ``[N]`` pixels; 0 is none.

    The kernel spans ``reach`` pixels to each side, less where the image is smaller; the border is
    reflected. Three times the largest sigma loses nothing, as in PIL; SimCLR's kernel of a tenth
    of the image would at 32 pixels make every sigma above 1 the same.
    """
    count, channels, height, width = images.shape
    reach = min(reach, min(height, width) - 1)
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    # A sigma this small is exactly no blur: every tap but the centre underflows to 0.
    spread = sigma.clamp(min=1e-3)[:, None]
    taps = torch.softmax(-0.5 * (offsets / spread) ** 2, 1).repeat_interleave(channels, 0)
    # Every image has its kernel: all planes are channels of one image, each convolved alone.
    planes = images.reshape(1, count * channels, height, width)
    planes = F.pad(planes, (reach,) * 4, mode="reflect")
    planes = F.conv2d(planes, taps[:, None, :, None], groups=count * channels)
    planes = F.conv2d(planes, taps[:, None, None, :], groups=count * channels)
    return planes.view_as(images)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low
