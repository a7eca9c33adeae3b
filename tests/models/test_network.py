from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.models.heads import CosineHead, build_head
from lt_pipeline.models.network import ModelConfig, Normalize, build_network

RESNET8 = ModelConfig(backbone="resnet8")


def test_normalisation_follows_its_definition_for_bytes_and_floats():
    layer = Normalize([0.5, 0.25], [0.2, 0.1])
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3).repeat(1, 2, 1, 1)
    pixels = torch.tensor([0.0, 0.2, 1.0])
    wanted = torch.stack([(pixels - 0.5) / 0.2, (pixels - 0.25) / 0.1]).view(1, 2, 1, 3)
    torch.testing.assert_close(layer(images), wanted)
    torch.testing.assert_close(layer(images.float()), wanted)


def test_a_channel_without_contrast_stays_finite():
    assert torch.isfinite(Normalize([0.5], [0.0])(torch.zeros(1, 1, 2, 2))).all()


def test_cosine_logits_do_not_see_lengths():
    head = CosineHead(5, 3, scale=7.0)
    features = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    wanted = 7 * F.cosine_similarity(features[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(features), wanted)
    torch.testing.assert_close(head(100 * features), wanted)
    assert torch.isfinite(head(torch.zeros(1, 5))).all()


def test_cosines_are_single_precision_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert CosineHead(5, 3, 1.0)(torch.rand(2, 5).bfloat16()).dtype == torch.float32


def test_gradients_of_the_cosine_head():
    head = CosineHead(4, 3, 2.0).double()
    features = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head, features)


def test_heads_by_name():
    assert isinstance(build_head("cosine", 4, 3, 30.0), CosineHead)
    linear = build_head("linear", 4, 3, 30.0)
    assert (linear.in_features, linear.out_features, linear.bias is not None) == (4, 3, True)


def test_the_network_is_normalisation_backbone_and_head_in_this_order():
    net = build_network(RESNET8, classes=3, channels=1, mean=[0.3], std=[0.1]).eval()
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        features = net.backbone((images / 255 - 0.3) / 0.1)
        torch.testing.assert_close(net.features(images), features)
        torch.testing.assert_close(net(images), net.head(features))


def test_constants_that_do_not_fit_the_channels_are_refused():
    with pytest.raises(ValueError, match="each of the 3 channels, but have 1 and 3"):
        build_network(RESNET8, classes=3, channels=3, mean=[0.5], std=[0.1] * 3)


def test_an_unknown_backbone_is_refused_when_parameters_are_read():
    with pytest.raises(ValueError, match="unknown backbone 'resnet31': did you mean 'resnet3"):
        ModelConfig(backbone="resnet31")
