"""The network that is trained and deployed: normalisation, backbone, head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from lt_pipeline.learning.models.adapters import (
    AdapterConfig,
    adapters_of,
    add_adapters,
    fold_lora,
)
from lt_pipeline.learning.models.backbones import (
    FEATURES,
    Features,
    build_backbone,
    check_backbone,
    width_of,
)
from lt_pipeline.learning.models.heads import HeadInit, build_head
from lt_pipeline.learning.models.weights import NONE
from lt_pipeline.learning.schema import Config


class ModelConfig(Config):
    """Which network; ``scale`` is the cosine head's s.

    ``backbone`` is a name of ours or of timm's. ``weights`` are what it starts from: ``none``, the
    library's own (``default``), a file, or an installed package; images are then normalised as
    those want them.
    ``head_init`` is how a linear head's weights start: ``uniform`` as torch's, or ``kaiming`` as in
    the released codes of LDAM's family, 2.4 times as large. Cosine heads start at unit length.
    ``resize`` is the width and height in pixels that the backbone has images at, however large they
    are kept and augmented; null is as they are. With an ``adapter`` the backbone is frozen, and
    what learns of it, in any method and stage, are small modules.
    """

    symbols: ClassVar[Mapping[str, str]] = {"s": "scale"}

    backbone: str = "resnet8"
    head: Literal["linear", "cosine"] = "linear"
    head_init: HeadInit = "uniform"
    scale: PositiveFloat = 32.0
    weights: str = NONE
    resize: PositiveInt | None = None
    adapter: AdapterConfig = AdapterConfig()

    @field_validator("backbone")
    @classmethod
    def _known(cls, name: str) -> str:
        check_backbone(name)
        return name


def on_features(model: ModelConfig) -> ModelConfig:
    """Return ``model`` with the features of its backbone in place of images."""
    width = width_of(model.backbone)
    plain = {"weights": NONE, "resize": None, "adapter": AdapterConfig()}
    return model.model_copy(update={"backbone": f"{FEATURES}{width}", **plain})


def frozen_backbone(model: ModelConfig) -> nn.Sequential:
    """Return the backbone and what normalises images for it, in eval mode, to features ``[B, F]``.

    It starts from ``model.weights``, which are not ``none``.
    """
    backbone = build_backbone(model.backbone, weights=model.weights)
    mean, std = backbone.pixels  # type: ignore[misc]
    normalize = Normalize(mean, std, model.resize)
    return nn.Sequential(normalize, backbone).eval()


class Normalize(nn.Module):
    """Pixels 0..255 to (x / 255 - mean) / std by channel, at ``size`` unless that is None.

    The constants are buffers: they travel with the weights and cannot be those of another set.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], size: int | None = None
    ) -> None:
        super().__init__()
        self.size = size
        # A channel without any contrast is only centred.
        spread = [s if s > 0 else 1.0 for s in std]
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(spread).view(1, -1, 1, 1) * 255)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Return ``images`` ``[B, C, H, W]``, uint8 or float in 0..255, in the buffers' type."""
        images = images.to(self.mean.dtype)
        images = images if self.size is None else resized(images, self.size)
        return (images - self.mean) / self.std


def resized(images: Tensor, size: int) -> Tensor:
    """Return float ``images`` ``[B, C, H, W]`` at ``size`` x ``size``, bilinearly."""
    if images.shape[2:] == (size, size):
        return images
    smaller = size < min(images.shape[2:])
    return F.interpolate(images, (size, size), mode="bilinear", antialias=smaller)


class Network(nn.Module):
    """Images ``[B, channels, H, W]`` in 0..255 -> logits ``[B, C]``."""

    def __init__(self, normalize: nn.Module, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.normalize, self.backbone, self.head = normalize, backbone, head

    @property
    def width(self) -> int:
        """Return the number of features of an image, F."""
        return int(self.backbone.features)  # type: ignore[arg-type]

    @property
    def prototypes(self) -> Tensor:
        """Return the classifier's weights, ``[C, F]``."""
        weight: Tensor = self.head.weight  # type: ignore[assignment]
        return weight

    @property
    def layers(self) -> list[list[nn.Parameter]]:
        """Return the backbone's layers from the input on; experts' beside one another are one."""
        layers: Any = self.backbone.layers
        return [[*chain.from_iterable(map(_parameters, layer))] for layer in layers]

    @property
    def learned(self) -> nn.Module:
        """Return the backbone or, where it has adapters, those."""
        return nn.ModuleList(adapters_of(self.backbone)) or self.backbone

    @property
    def kept(self) -> dict[str, nn.Parameter]:
        """Return the parameters that never learn: beside adapters, all others of the backbone."""
        learning = {id(p) for p in self.learned.parameters()}
        named = self.backbone.named_parameters()
        return {f"backbone.{name}": p for name, p in named if id(p) not in learning}

    def features(self, images: Tensor) -> Tensor:
        """Return what the head sees, ``[B, F]``."""
        found: Tensor = self.backbone(self.normalize(images))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, C]``."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def fold_adapters(self) -> None:
        """Add into the backbone's weights what of adapters is a part of them."""
        fold_lora(self.backbone)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile both ways in: the whole, and what ``features`` calls."""
        super().compile(*args, **kwargs)
        self.backbone.compile(*args, **kwargs)


def _parameters(part: nn.Module | nn.Parameter) -> Iterable[nn.Parameter]:
    return (part,) if isinstance(part, nn.Parameter) else part.parameters()


def build_network(
    config: ModelConfig,
    *,
    classes: int,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Network:
    """Return the network of ``config``; ``mean`` and ``std`` are fractions of 1 by channel.

    Weights that the backbone starts from have their own in place of those.

    Raises:
        ValueError: if there is not one mean and one standard deviation a channel.
    """
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"mean and std need one value for each of the {channels} channels, "
            f"but have {len(mean)} and {len(std)}"
        )
    backbone = build_backbone(config.backbone, channels, config.weights)
    add_adapters(backbone, config.adapter, classes, channels)
    mean, std = backbone.pixels or (mean, std)  # type: ignore[misc]
    width = int(backbone.features)  # type: ignore[arg-type]
    head = build_head(config.head, width, classes, config.scale, config.head_init)
    on_images = not isinstance(backbone, Features)
    normalize = Normalize(mean, std, config.resize) if on_images else nn.Identity()
    return Network(normalize, backbone, head)


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())
