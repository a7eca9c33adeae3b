from __future__ import annotations

import pytest
import torch
from torch import nn

from lt_pipeline.learning.models.network import parameter_count
from lt_pipeline.learning.models.resnet_cifar import BasicBlock, CifarResNet


@pytest.mark.parametrize(
    ("depth", "classes", "parameters"),
    # He et al. 2016, table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M
    [
        (20, 10, 269_722),
        (32, 10, 464_154),
        (32, 100, 470_004),
        (44, 10, 658_586),
        (56, 10, 853_018),
    ],
)
def test_parameters_are_the_published_ones(depth, classes, parameters):
    net = nn.Sequential(CifarResNet(depth), nn.Linear(64, classes))
    assert parameter_count(net) == parameters


@pytest.mark.parametrize("depth", [8, 20, 32])
def test_the_depth_counts_the_convolutions_and_the_classifier(depth):
    convolutions = [m for m in CifarResNet(depth).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == depth


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (1, 28)])
def test_any_small_image_gives_64_features(channels, size):
    assert CifarResNet(8, channels)(torch.rand(2, channels, size, size)).shape == (2, 64)


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    block = BasicBlock(2, 4, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
    x = torch.rand(1, 2, 4, 4)
    out = block(x)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert (out[:, [0, 3]] == 0).all()


def test_a_depth_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"6 n \+ 2 .*got 18"):
        CifarResNet(18)
