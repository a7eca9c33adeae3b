"""Backbones by name: networks that map images to features and know how many."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from lt_pipeline.models.resnet_cifar import CifarResNet
from lt_pipeline.schema import unknown

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
        ValueError: for an unknown name, or weights that do not exist for the name or ``channels``.
        FileNotFoundError: if the weights cannot be downloaded.
    """
    if name in CIFAR_DEPTHS:
        if pretrained:
            raise ValueError(
                f"model.pretrained needs one of {', '.join(LARGE)}: {name} has no public weights"
            )
        return CifarResNet(CIFAR_DEPTHS[name], channels)
    if name not in LARGE:
        raise ValueError(unknown("backbone", name, BACKBONES))
    if pretrained and channels != 3:
        raise ValueError(f"model.pretrained needs images with 3 channels, but they have {channels}")
    return _torchvision(LARGE[name], channels, pretrained)


def _torchvision(name: str, channels: int, pretrained: bool) -> nn.Module:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT if pretrained else None
    try:
        net: Any = models.get_model(name, weights=weights)
    except (URLError, OSError) as error:
        file = Path(str(weights.url)).name if weights else ""
        raise FileNotFoundError(
            f"the pretrained weights of {name} cannot be downloaded ({error}); put {file} "
            f"into {Path(torch.hub.get_dir()) / 'checkpoints'}, or set model.pretrained to false"
        ) from error
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
