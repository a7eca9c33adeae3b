"""Backbones by name: networks that map images to features and know how many."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from lt_pipeline.learning.models.resnet_cifar import CifarResNet
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


def build_backbone(name: str, channels: int = 3, pretrained: bool = False) -> nn.Module:
    """Return the backbone ``name``; it maps ``[B, channels, H, W]`` to ``[B, net.features]``.

    ``pretrained`` takes torchvision's default ImageNet weights.

    Raises:
        UserError: for an unknown name, or weights that do not exist for the name or ``channels``.
        MissingFileError: if the weights are damaged or cannot be downloaded.
    """
    if pretrained:
        check_pretrained(name, channels)
    if name in CIFAR_DEPTHS:
        return CifarResNet(CIFAR_DEPTHS[name], channels)
    if name not in LARGE:
        raise UserError(unknown("backbone", name, BACKBONES))
    return _torchvision(LARGE[name], channels, pretrained)


def check_pretrained(name: str, channels: int) -> None:
    """Refuse weights that do not exist for the backbone ``name`` or so many ``channels``.

    Raises:
        UserError: saying for what they do.
    """
    if name in CIFAR_DEPTHS:
        raise UserError(
            f"model.pretrained needs one of {', '.join(LARGE)}: {name} has no public weights"
        )
    if channels != 3:
        raise UserError(f"model.pretrained needs images with 3 channels, but they have {channels}")


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
    found: nn.Module = net
    return found


def _pretrained_weights(name: str) -> dict[str, Tensor]:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        found: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
        raise MissingFileError(
            f"the pretrained weights of {name} are damaged or cannot be downloaded ({error}); put "
            f"{Path(weights.url).name} into {Path(torch.hub.get_dir()) / 'checkpoints'}, or set "
            f"model.pretrained to false"
        ) from error
    return found
