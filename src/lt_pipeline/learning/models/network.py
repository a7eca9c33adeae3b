"""The network that is trained and deployed: normalisation, backbone, head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import PositiveFloat, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

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
from lt_pipeline.learning.models.clip import CLIP, TEMPLATES, ClipBackbone
from lt_pipeline.learning.models.heads import CosineHead, HeadInit, TextHead, build_head
from lt_pipeline.learning.models.weights import NONE
from lt_pipeline.learning.schema import Config, UserError
from lt_pipeline.learning.transforms.resize import resized


class ModelConfig(Config):
    """Which network; ``scale`` is the cosine head's s.

    ``backbone`` is a name of ours, of timm's, or, behind ``clip:``, of open_clip's. ``weights`` are
    what it starts from: ``none``, the library's own (``default``), a file, or an installed package;
    images are then normalised as those want them.
    ``head_init`` is how a linear head's weights start: ``uniform`` as torch's, or ``kaiming`` as in
    the released codes of LDAM's family, 2.4 times as large. Cosine heads start at unit length.
    ``resize`` is the width and height in pixels that the backbone has images at, however large they
    are kept and augmented; null is as they are. With an ``adapter`` the backbone is frozen, and
    what learns of it, in any method and stage, are small modules.
    With CLIP's backbones the head can be ``text``: the embeddings of the classes' names in
    ``templates``, which do not learn, with CLIP's own scale in place of s; or ``cosine`` and, where
    ``head_init`` is ``text``, start there.
    """

    symbols: ClassVar[Mapping[str, str]] = {"s": "scale"}

    backbone: str = "resnet8"
    head: Literal["linear", "cosine", "text"] = "linear"
    head_init: HeadInit = "uniform"
    scale: PositiveFloat = 32.0
    weights: str = NONE
    resize: PositiveInt | None = None
    adapter: AdapterConfig = AdapterConfig()
    templates: tuple[str, ...] = TEMPLATES

    @field_validator("backbone")
    @classmethod
    def _known(cls, name: str) -> str:
        check_backbone(name)
        return name

    @field_validator("templates")
    @classmethod
    def _name_a_class(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise UserError(
                f"must have one {{}} each, for the class, as in {TEMPLATES[0]!r}, but are "
                f"{list(templates)}"
            )
        return templates

    @model_validator(mode="after")
    def _has_texts(self) -> Self:
        if self.head_init == "text" and self.head != "cosine":
            raise UserError(
                f"head_init=text is a cosine head's: set head to cosine, not {self.head}"
            )
        if self.of_texts and not self.backbone.startswith(CLIP):
            raise UserError(
                f"the embeddings of class names are CLIP's: set backbone to one of its, as "
                f"{CLIP}RN50, or head and head_init to others than text, not {self.backbone}"
            )
        return self

    @property
    def of_texts(self) -> bool:
        """Return whether the head is, or starts at, the embeddings of the classes' names."""
        return "text" in (self.head, self.head_init)


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
        features: Tensor = self.backbone(self.normalize(images))
        return features

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
    names: Sequence[str] = (),
) -> Network:
    """Return the network of ``config``; ``mean`` and ``std`` are fractions of 1 by channel.

    ``names`` are the classes', for heads that are made of texts.

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
    head = _head(config, backbone, width, classes, names)
    on_images = not isinstance(backbone, Features)
    normalize = Normalize(mean, std, config.resize) if on_images else nn.Identity()
    return Network(normalize, backbone, head)


def _head(
    config: ModelConfig, backbone: nn.Module, width: int, classes: int, names: Sequence[str]
) -> nn.Module:
    """Return the head of ``config``, and have CLIP's text encoder gone."""
    if config.head == "text":
        head: nn.Module = TextHead(*_read(config, backbone, names))
    else:
        head = build_head(config.head, width, classes, config.scale, config.head_init)
    if isinstance(head, CosineHead) and config.head_init == "text":
        with torch.no_grad():
            head.weight.copy_(_read(config, backbone, names)[0])
    if isinstance(backbone, ClipBackbone):
        backbone.forget_texts()
    return head


def _read(
    config: ModelConfig, backbone: nn.Module, names: Sequence[str]
) -> tuple[Tensor, float, float]:
    if not isinstance(backbone, ClipBackbone):
        raise UserError("features have no texts: set model.head and head_init to others than text")
    return backbone.read(names, config.templates)


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())
