"""Several experts in one network: early stages are shared, late ones and classifiers are not.

The split is that of RIDE (Wang et al., Long-tailed recognition by routing diverse
distribution-aware experts, ICLR 2021), which SADE (Zhang et al., Self-supervised aggregation of
diverse experts for test-agnostic long-tailed recognition, NeurIPS 2022) takes over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_pipeline.learning.models.backbones import (
    BACKBONES,
    Features,
    TimmBackbone,
    build_backbone,
)
from lt_pipeline.learning.models.clip import ClipBackbone
from lt_pipeline.learning.models.heads import HEADS, HeadInit, l2_normalize, start_kaiming
from lt_pipeline.learning.models.network import ModelConfig, Network, build_network
from lt_pipeline.learning.models.resnet_cifar import WIDTHS, BasicBlock, CifarResNet
from lt_pipeline.learning.schema import UserError, unknown

# RIDE's reduced stages 2 and 3: a training step of three experts of a resnet32 takes 1.75 times the
# plain network's (one CPU thread, benchmarks/results/step_cost_experts_cpu.csv).
REDUCED = (24, 48)

Shared = Literal["stage1", "all"]


class ExpertBlock(BasicBlock):
    """The block of K experts in one computation, from ``[B, sources channels_in, H, W]``.

    It gives ``[B, K channels, H / stride, W / stride]``: the channels of one expert after the
    other, kept apart by grouped convolutions and BatchNorm. ``sources`` is K, or 1 for a block
    that reads what the experts share.
    """

    def __init__(
        self, channels_in: int, channels: int, stride: int, experts: int, sources: int
    ) -> None:
        groups = (sources, experts)
        super().__init__(sources * channels_in, experts * channels, stride, groups)
        self.experts, self.sources, self.added = experts, sources, channels - channels_in

    def _shortcut(self, x: Tensor) -> Tensor:
        if not self.added:
            return x
        # As in BasicBlock, each expert by itself: [B, K, channels, H, W].
        before = self.added // 2
        x = x[:, :, :: self.stride, :: self.stride].unflatten(1, (self.sources, -1))
        x = F.pad(x, (0, 0, 0, 0, before, self.added - before))
        return x.expand(-1, self.experts, -1, -1, -1).flatten(1, 2)


class ExpertCifarResNet(nn.Module):
    """Stem and stage 1 of a CIFAR ResNet, then stages 2 and 3 of K experts.

    ``reduced`` stages of an expert have 24 and 48 channels in place of 32 and 64. ``low_rank`` sees
    one convolution where K experts have theirs: its factor A is then common to all of them.
    """

    layers = CifarResNet.layers

    def __init__(self, plain: CifarResNet, experts: int, reduced: bool = True) -> None:
        """Share the stem and stage 1 of ``plain``; its number of blocks is the experts' too."""
        super().__init__()
        second, third = REDUCED if reduced else WIDTHS[1:]
        self.experts, self.features = experts, third
        self.stem, self.bn, self.stage1 = plain.stem, plain.bn, plain.stage1
        blocks, channels = len(plain.stage1), plain.stem.out_channels
        self.stage2 = _stage(channels, second, blocks, experts, sources=1)
        self.stage3 = _stage(second, third, blocks, experts, sources=experts)
        for module in (*self.stage2.modules(), *self.stage3.modules()):
            if isinstance(module, nn.Conv2d):
                # Fan-in is that of one group: every expert starts as a network of its own would.
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, channels, H, W]`` to features ``[B, K, F]``, F = 48 or 64."""
        x = F.relu(self.bn(self.stem(x)))
        x = self.stage3(self.stage2(self.stage1(x)))  # [B, K F, H / 4, W / 4]
        features: Tensor = torch.mean(x, dim=(2, 3)).unflatten(1, (self.experts, self.features))
        return features


class ExpertResNet(nn.Module):
    """Stem and stages 1 and 2 of one of torchvision's ResNets, then stages 3 and 4 of K experts.

    The experts' stages keep their full width, where RIDE and SADE narrow them: pretrained weights
    then fit.
    """

    def __init__(self, plain: Sequence[Any]) -> None:
        """Take stages 3 and 4 of each of the K networks ``plain``, all else of the first."""
        super().__init__()
        first = plain[0]
        self.features: int = first.features
        self.stem = nn.Sequential(first.conv1, first.bn1, first.relu, first.maxpool)
        self.shared = nn.Sequential(first.layer1, first.layer2)
        self.experts = nn.ModuleList(
            nn.Sequential(net.layer3, net.layer4, net.avgpool, nn.Flatten()) for net in plain
        )
        own = [(*net.layer3, *net.layer4) for net in plain]
        shared = [[block] for block in (*first.layer1, *first.layer2)]
        self.layers = [[self.stem], *shared, *map(list, zip(*own, strict=True))]

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, channels, H, W]`` to features ``[B, K, F]``."""
        x = self.shared(self.stem(x))
        return torch.stack([expert(x) for expert in self.experts], dim=1)


class SharedBackbone(nn.Module):
    """One backbone for K experts, which differ in their classifiers alone."""

    def __init__(self, plain: nn.Module, experts: int) -> None:
        super().__init__()
        self.plain, self.experts = plain, experts
        self.features = int(plain.features)  # type: ignore[arg-type]
        self.layers = plain.layers

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, channels, H, W]`` to features ``[B, K, F]``: K views of the same."""
        features: Tensor = self.plain(x)
        return features.unsqueeze(1).expand(-1, self.experts, -1)


class ExpertHeads(nn.Module):
    """One linear or cosine classifier for each of K experts, each as ``heads.build_head`` makes it.

    ``weight`` is ``[K, C, F]``; linear heads have a ``bias`` ``[K, C]``.
    """

    def __init__(
        self,
        kind: str,
        experts: int,
        features: int,
        classes: int,
        scale: float = 1.0,
        init: HeadInit = "uniform",
    ) -> None:
        """Build heads of ``kind``; ``scale`` is the cosine heads' s, ``init`` linear ones' start.

        Raises:
            UserError: for a kind that is not in ``heads.HEADS``.
        """
        super().__init__()
        if kind not in HEADS:
            raise UserError(unknown("head", kind, HEADS))
        self.kind, self.scale = kind, scale
        bound = features**-0.5
        weight = torch.empty(experts, classes, features).uniform_(-bound, bound)
        if kind == "linear":
            self.weight = nn.Parameter(weight)
            self.bias = nn.Parameter(torch.empty(experts, classes).uniform_(-bound, bound))
            if init == "kaiming":
                start_kaiming(self.weight)
        else:
            self.weight = nn.Parameter(F.normalize(weight, dim=2))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, K, C]`` of ``features`` ``[B, K, F]``."""
        if self.kind == "cosine":
            return self.scale * self.cosines(features)
        return _products(features, self.weight) + self.bias

    def cosines(self, features: Tensor) -> Tensor:
        """Return cos(features, w_kc), ``[B, K, C]``, in float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return _products(l2_normalize(features), l2_normalize(self.weight))


def build_expert_network(
    config: ModelConfig,
    *,
    experts: int,
    shared: Shared,
    reduced: bool = True,
    classes: int,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Network:
    """Return a network of K ``experts`` from images to logits ``[B, K, C]``.

    Its features are ``[B, K, F]``, its centres ``[K, C, F]``. ``mean`` and ``std`` are fractions
    of 1 by channel.

    Args:
        config: the backbone and the kind of head of every expert.
        experts: how many, K.
        shared: ``stage1`` is RIDE's and SADE's split: a CIFAR ResNet up to stage 1, a larger one
            up to stage 2. ``all`` is the whole backbone, at its full width.
        reduced: the experts' own stages of a CIFAR ResNet are narrower, as RIDE's and SADE's.
        classes: how many each expert tells apart, C.
        channels: of the images.
        mean: of the training pixels.
        std: of the training pixels.

    Raises:
        UserError: for fewer than one expert, an unknown ``shared``, or what ``build_network``
            refuses.
    """
    if experts < 1:
        raise UserError(f"experts must be >= 1, but got {experts}")
    if shared not in get_args(Shared):
        raise UserError(unknown("shared part", shared, get_args(Shared)))
    _check_parts(config, shared)
    plain = build_network(config, classes=classes, channels=channels, mean=mean, std=std)
    backbone: Any
    if shared == "all":
        backbone = SharedBackbone(plain.backbone, experts)
    elif isinstance(plain.backbone, CifarResNet):
        backbone = ExpertCifarResNet(plain.backbone, experts, reduced)
    elif isinstance(plain.backbone, Features):
        raise UserError(
            "training.features=cached leaves experts no part of their own: set the method's "
            "option shared to all, or training.features to none"
        )
    elif isinstance(plain.backbone, TimmBackbone | ClipBackbone):
        raise UserError(
            f"experts of {config.backbone} cannot share a part of it: set the method's option "
            f"shared to all, or model.backbone to one of {', '.join(BACKBONES)}"
        )
    else:
        others = [
            build_backbone(config.backbone, channels, config.weights) for _ in range(experts - 1)
        ]
        backbone = ExpertResNet([plain.backbone, *others])
    head = ExpertHeads(
        config.head, experts, backbone.features, classes, config.scale, config.head_init
    )
    return Network(plain.normalize, backbone, head)


def _check_parts(config: ModelConfig, shared: Shared) -> None:
    if shared != "all" and config.adapter.name != "none":
        raise UserError(
            f"model.adapter.name={config.adapter.name} freezes what experts have of their own: set "
            f"the method's option shared to all, or the adapter to none"
        )
    if config.of_texts:
        raise UserError(
            "experts read no texts: set model.head to linear or cosine, and head_init to uniform"
        )


def _stage(
    channels_in: int, channels: int, blocks: int, experts: int, *, sources: int
) -> nn.Sequential:
    first = ExpertBlock(channels_in, channels, 2, experts, sources)
    rest = (ExpertBlock(channels, channels, 1, experts, experts) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _products(features: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("bkf,kcf->bkc", features, weight)
