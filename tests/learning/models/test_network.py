from __future__ import annotations

import pytest
import torch

from lt_pipeline.learning.models.network import ModelConfig, Normalize, build_network

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
