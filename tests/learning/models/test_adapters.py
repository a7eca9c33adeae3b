"""Adapters: nothing changes until they learn, nothing else learns, and LoRA folds into weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.freeze import with_frozen
from lt_pipeline.learning.engine.optim import set_trainable, trained_parameters
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.learning.models.adapters import (
    AdapterConfig,
    AdaptFormer,
    Lora,
    adapters_of,
    add_adapters,
)
from lt_pipeline.learning.models.backbones import Features
from lt_pipeline.learning.models.network import ModelConfig, build_network, parameter_count
from lt_pipeline.learning.models.resnet_cifar import CifarResNet
from lt_pipeline.learning.schema import UserError
from toys import toy_card

# a convolution network of ours, torchvision's, timm's, and transformers of timm's
BACKBONES = ("resnet8", "resnet18", "tf_efficientnet_lite0", "test_vit", "convnext_atto")
PLACES = [("resnet8", "adaptformer")] + [
    (name, kind) for name in BACKBONES[1:] for kind in ("adaptformer", "lora")
]
IMAGES = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(2))


def network(backbone, kind="none", dim=None, classes=5):
    torch.manual_seed(0)
    model = ModelConfig(backbone=backbone, adapter=AdapterConfig(name=kind, dim=dim))
    built = build_network(model, classes=classes, channels=3, mean=[0.5] * 3, std=[0.2] * 3)
    return built.eval()


def fill(net):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in adapters_of(net.backbone):
            for p in adapter.parameters():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return net


@pytest.mark.parametrize(("backbone", "kind"), PLACES)
@torch.no_grad()
def test_features_are_the_frozen_networks_until_adapters_have_learned(backbone, kind):
    net, plain = network(backbone, kind), network(backbone)
    assert torch.equal(net.features(IMAGES), plain.features(IMAGES))
    assert not torch.allclose(fill(net).features(IMAGES), plain.features(IMAGES), atol=1e-6)


@pytest.mark.parametrize(("backbone", "kind"), PLACES)
def test_the_adapters_learn_and_nothing_else_of_the_backbone(backbone, kind):
    card, adapter = toy_card(channels=3), AdapterConfig(name=kind)
    method = Method(MethodOptions(), ModelConfig(backbone=backbone, adapter=adapter), card)
    stage = with_frozen(method, Stage("train"), TrainingConfig())
    learning = {id(p) for _, p in trained_parameters(method, stage)}
    wanted = {id(p) for part in adapters_of(method.net.backbone) for p in part.parameters()}
    assert learning == wanted | {id(p) for p in method.net.head.parameters()}
    set_trainable(method, stage)
    norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)


@pytest.mark.parametrize(
    ("backbone", "kind", "learning"),
    [
        ("tf_efficientnet_lite0", "adaptformer", 8208),
        ("tf_efficientnet_lite0", "lora", 21184),
        ("vit_tiny_patch16_224", "adaptformer", 11544),
        ("vit_tiny_patch16_224", "lora", 9216),
    ],
)
def test_less_than_a_hundredth_of_the_backbone_learns(backbone, kind, learning):
    net = network(backbone, kind, classes=23)
    assert parameter_count(net.learned) == learning
    assert learning < 0.01 * parameter_count(net.backbone)
    kept = sum(p.numel() for p in net.kept.values())
    assert kept == parameter_count(network(backbone).backbone)


@pytest.mark.parametrize(
    ("kind", "classes", "blocks", "width"),
    [
        # ViT-B/16 has 12 blocks: CIFAR-100, ImageNet, Places, iNaturalist 2018
        ("adaptformer", 100, 12, 4),
        ("adaptformer", 1000, 12, 32),
        ("adaptformer", 365, 12, 8),
        ("adaptformer", 8142, 12, 256),
        ("lora", 1000, 12, 16),
        ("adaptformer", 10, 12, 1),
    ],
)
def test_the_rule_of_the_width(kind, classes, blocks, width):
    assert AdapterConfig(name=kind).width(classes, blocks) == width
    assert AdapterConfig(name=kind, dim=7).width(classes, blocks) == 7


@pytest.mark.parametrize("maps", [False, True])
def test_adaptformer_written_out(maps):
    torch.manual_seed(0)
    adapter = AdaptFormer(6, 3, 5, maps=maps, stride=2 if maps else 1)
    with torch.no_grad():
        for p in adapter.parameters():
            p.copy_(torch.randn(p.shape))
    x = torch.randn(2, 6, 4, 4)
    rows = x[:, :, ::2, ::2].movedim(1, -1) if maps else x.movedim(1, -1)
    normed = F.layer_norm(rows, (6,), adapter.norm.weight, adapter.norm.bias)
    hidden = (normed @ adapter.down.weight.T + adapter.down.bias).clamp(min=0)
    wanted = adapter.scale * (hidden @ adapter.up.weight.T + adapter.up.bias)
    adapted = adapter(x) if maps else adapter(x.movedim(1, -1))
    torch.testing.assert_close(adapted, wanted.movedim(-1, 1) if maps else wanted)


def test_lora_adds_to_queries_and_values_and_leaves_keys():
    torch.manual_seed(0)
    weight, part = torch.randn(12, 5), Lora(torch.empty(12, 5), 2, (True, False, True))
    with torch.no_grad():
        part.up.copy_(torch.randn(part.up.shape))
    queries, keys, values = (part(weight) - weight).split(4)
    torch.testing.assert_close(queries, part.up[0] @ part.down[0] / 2)
    torch.testing.assert_close(values, part.up[1] @ part.down[1] / 2)
    assert not keys.any()


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "test_vit"])
@torch.no_grad()
def test_folded_lora_is_the_plain_network_with_the_same_features(backbone):
    net = fill(network(backbone, "lora"))
    unfolded, before = copy.deepcopy(net), net.features(IMAGES)
    net.fold_adapters()
    torch.testing.assert_close(net.features(IMAGES), before, rtol=1e-4, atol=1e-5)
    assert net.state_dict().keys() == network(backbone).state_dict().keys()
    assert not net.kept
    assert torch.equal(unfolded.features(IMAGES), before)


@pytest.mark.parametrize(
    ("backbone", "kind", "says"),
    [
        (CifarResNet(8), "lora", "lora finds no place.*none or adaptformer"),
        (Features(8), "adaptformer", "adaptformer finds no place.*none$"),
    ],
)
def test_a_backbone_without_a_place_for_them_is_refused(backbone, kind, says):
    with pytest.raises(UserError, match=says):
        add_adapters(backbone, AdapterConfig(name=kind), 5, 3)
