"""Backbones by name: networks that map images to features and know how many."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from lt_pipeline.learning.models.clip import CLIP, ClipBackbone, check_clip
from lt_pipeline.learning.models.resnet_cifar import CifarResNet
from lt_pipeline.learning.models.weights import (
    DEFAULT,
    IMAGENET,
    NONE,
    Pixels,
    is_own,
    load_weights,
)
from lt_pipeline.learning.schema import MissingFileError, UserError, unknown

CIFAR_DEPTHS = {f"resnet{depth}": depth for depth in (8, 20, 32, 44, 56)}
# name here -> torchvision's
LARGE = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet152": "resnet152",
    "resnext50": "resnext50_32x4d",
}
BACKBONES = (*CIFAR_DEPTHS, *LARGE)
# and the width F: no network, but the place of one whose features were computed before
FEATURES = "features:"


def build_backbone(name: str, channels: int = 3, weights: str = NONE) -> nn.Module:
    """Return the backbone ``name``; it maps ``[B, channels, H, W]`` to ``[B, net.features]``.

    Besides ``BACKBONES`` any name that timm knows, or, behind ``clip:``, open_clip. ``weights`` are
    ``none``, ``default`` (the library's own), or what ``load_weights`` takes; ``net.pixels`` is how
    they want images, None without.

    Raises:
        UserError: for an unknown name, or weights that do not exist for the name or ``channels``.
        MissingFileError: if the weights are not there, damaged, or cannot be downloaded.
    """
    net: Any
    if name.startswith(FEATURES):
        return Features(int(name.removeprefix(FEATURES)))
    check_weights(name, channels, weights)
    if name in CIFAR_DEPTHS:
        net = CifarResNet(CIFAR_DEPTHS[name], channels)
    elif name in LARGE:
        net = _torchvision(LARGE[name], channels, weights == DEFAULT)
    elif name.startswith(CLIP):
        net = ClipBackbone(name, weights)
    else:
        net = TimmBackbone(name, channels, weights == DEFAULT)
    if is_own(weights) and not isinstance(net, ClipBackbone):
        load_weights(net.net if isinstance(net, TimmBackbone) else net, weights)
    net.pixels = None if weights == NONE else Pixels(*getattr(net, "wants", IMAGENET))
    backbone: nn.Module = net
    return backbone


@cache
def width_of(name: str) -> int:
    """Return how many features the backbone ``name`` has, F."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return int(build_backbone(name).features)  # type: ignore[arg-type]


class Features(nn.Module):
    """The place of a backbone in a network of features: of one pixel and F channels."""

    pixels = None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features, self.layers = width, list[Any]()

    def forward(self, features: Tensor) -> Tensor:
        """Return the first view ``[B, F]`` of ``features`` ``[B, F, V, 1]``."""
        return features[:, :, 0, 0]


def check_backbone(name: str) -> None:
    """Refuse a name that neither this package nor timm or open_clip, where installed, know.

    Raises:
        UserError: with the nearest.
    """
    if name.startswith(CLIP):
        check_clip(name)
    if name in BACKBONES or name.startswith(CLIP):
        return
    known = _timm_names()
    if name.split(".")[0] not in known:
        near = get_close_matches(name, (*BACKBONES, *sorted(known)), n=1)
        more = f"or one of timm's {len(known)}"  # too many to be read
        if not known:
            more = "timm's need the extra photos: pip install 'lt_pipeline[photos]'"
        raise UserError(f"{unknown('backbone', name, BACKBONES, next(iter(near), None))}; {more}")


def check_weights(name: str, channels: int, weights: str) -> None:
    """Refuse weights that do not exist for the backbone ``name`` or so many ``channels``.

    Raises:
        UserError: saying for what they do.
    """
    check_backbone(name)
    if weights == DEFAULT and name in CIFAR_DEPTHS:
        raise UserError(
            f"model.weights=default needs one of {', '.join(LARGE)} or timm's: {name} has no "
            f"public weights"
        )
    if name.startswith(CLIP) and channels != 3:
        raise UserError(f"model.backbone={name} needs images with 3 channels, not {channels}")
    if weights != NONE and channels != 3:
        raise UserError(f"model.weights needs images with 3 channels, but they have {channels}")


@cache
def _timm_names() -> frozenset[str]:
    try:
        import timm
    except ImportError:
        return frozenset()
    return frozenset(timm.list_models())


class TimmBackbone(nn.Module):
    """A network of timm's, without its classifier and with its own pooling.

    Vision transformers take images of any size that their patches divide.

    Raises:
        MissingFileError: if timm's weights are not cached and cannot be downloaded.
    """

    def __init__(self, name: str, channels: int, pretrained: bool) -> None:
        super().__init__()
        import timm

        options: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
        if name.startswith(("vit_", "deit")):
            options["dynamic_img_size"] = True
        try:
            net: Any = timm.create_model(name, pretrained=pretrained, **options)
        except (OSError, RuntimeError) as error:
            raise MissingFileError(
                f"timm's weights of {name} are not here and cannot be downloaded "
                f"({str(error).splitlines()[0]}); set model.weights to none, a file or a package"
            ) from error
        self.net, self.features = net, int(net.num_features)
        self.wants = (net.default_cfg["mean"], net.default_cfg["std"])

    @property
    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem and each block, as timm groups them.

        Those of a network of which it does not say are its parts, as they are written down.
        """
        from timm.models import group_parameters

        if not hasattr(self.net, "group_matcher"):
            return [*_parts(self.net)]
        matcher = self.net.group_matcher(coarse=False)
        grouped = group_parameters(self.net, matcher, return_values=True)
        return [grouped[depth] for depth in sorted(grouped)]

    @property
    def undecayed(self) -> list[nn.Parameter]:
        """Return what timm keeps from weight decay, such as tokens and position embeddings."""
        names = self.net.no_weight_decay() if hasattr(self.net, "no_weight_decay") else ()
        return [p for name, p in self.net.named_parameters() if name in names]

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features ``[B, F]`` of normalised ``images`` ``[B, C, H, W]``."""
        features: Tensor = self.net(images)
        return features


def _parts(net: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters of each part of ``net``, its own ones with the first part's."""
    own = list(net.parameters(recurse=False))
    for child in net.children():
        steps = child.children() if isinstance(child, nn.Sequential | nn.ModuleList) else (child,)
        for step in steps:
            if parameters := [*own, *step.parameters()]:
                yield parameters
                own = []


def _torchvision(name: str, channels: int, pretrained: bool) -> nn.Module:
    from torchvision import models

    net: Any = models.get_model(name, weights=None)
    if pretrained:
        net.load_state_dict(_pretrained_weights(name))
    if channels != 3:
        old = net.conv1
        net.conv1 = nn.Conv2d(
            channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False
        )
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.features = net.fc.in_features
    net.fc = nn.Identity()
    blocks = (*net.layer1, *net.layer2, *net.layer3, *net.layer4)
    net.layers = [[net.conv1, net.bn1], *([block] for block in blocks)]
    backbone: nn.Module = net
    return backbone


def _pretrained_weights(name: str) -> dict[str, Tensor]:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        raise MissingFileError(
            f"the pretrained weights of {name} are damaged or cannot be downloaded ({error}); put "
            f"{Path(weights.url).name} into {Path(torch.hub.get_dir()) / 'checkpoints'}, or set "
            f"model.weights to none"
        ) from error
    return state
