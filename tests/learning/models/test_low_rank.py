from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision import models

from lt_pipeline.learning.models.low_rank import (
    add_low_rank,
    fold_low_rank,
    freeze_general,
    general_weights,
    low_rank_parameters,
)
from lt_pipeline.learning.models.network import ModelConfig, build_network, parameter_count


def network():
    torch.manual_seed(0)
    return build_network(
        ModelConfig(backbone="resnet8"), classes=5, channels=3, mean=[0.5] * 3, std=[0.2] * 3
    )


def decomposed(rank=0.1):
    net = network()
    add_low_rank(net, rank)
    return net


def fill(net):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in low_rank_parameters(net):
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return net


IMAGES = torch.randint(0, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("name", "without_classifier", "before", "after"),
    # millions; the paper prints 21.3 -> 25.4 and 25.6 -> 29.4
    [("resnet34", True, 21.28, 25.39), ("resnet50", False, 25.56, 29.38)],
)
def test_the_papers_parameter_counts(name, without_classifier, before, after):
    with torch.device("meta"):
        net = models.get_model(name)
        if without_classifier:
            net.fc = nn.Identity()
        plain = parameter_count(net)
        added = add_low_rank(net, 0.1)
    assert round(plain / 1e6, 2) == before
    assert round((plain + added) / 1e6, 2) == after
    assert parameter_count(net) == plain + added


def test_resnet32_gets_83835_more():
    net = build_network(
        ModelConfig(backbone="resnet32"), classes=100, channels=3, mean=[0.5] * 3, std=[0.2] * 3
    )
    assert add_low_rank(net, 0.1) == 83_835


def test_the_sum_is_equation_1_written_out():
    layer = nn.Conv2d(20, 30, 3)
    add_low_rank(nn.Sequential(layer), 0.1)
    fill(layer)
    part = layer.parametrizations.weight[0]
    assert part.down.shape == (2 * 3, 20 * 3)
    assert part.up.shape == (30 * 3, 2 * 3)
    product = part.up.double() @ part.down.double()
    wanted = layer.parametrizations.weight.original + product.reshape(30, 20, 3, 3)
    torch.testing.assert_close(layer.weight.double(), wanted.double())


def test_a_linear_layers_sum_is_equation_1_written_out():
    layer = nn.Linear(20, 30).double()
    assert add_low_rank(nn.Sequential(layer), 0.1, "linear") == 2 * (20 + 30)
    fill(layer)
    part = layer.parametrizations.weight[0]
    assert (part.down.shape, part.up.shape) == ((2, 20), (30, 2))
    wanted = layer.parametrizations.weight.original + part.up @ part.down
    torch.testing.assert_close(layer.weight, wanted, rtol=0, atol=0)
    x = torch.rand(4, 20, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ wanted.T + layer.bias)
    assert torch.linalg.matrix_rank(part(torch.zeros_like(layer.weight))) == 2


@pytest.mark.parametrize(("layers", "count"), [("convolutions", 7), ("linear", 1), ("all", 8)])
def test_which_layers_is_a_choice(layers, count):
    net = network()
    add_low_rank(net, 0.1, layers)
    assert len(list(low_rank_parameters(net))) == 2 * count


@pytest.mark.parametrize(
    ("layer", "rank"),
    [
        (nn.Conv2d(64, 64, 3, groups=64), 1),
        (nn.Conv2d(128, 128, 3, groups=32), 3),
        (nn.Conv2d(60, 72, 3, groups=3), 6),
    ],
)
def test_in_groups_the_product_has_no_full_rank(layer, rank):
    add_low_rank(nn.Sequential(layer), 0.1)
    part = layer.parametrizations.weight[0]
    assert part.up.shape[1] == rank * 3
    assert len(part.up) > part.up.shape[1] or len(layer.weight) == layer.groups


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 16, 3, groups=4), nn.Conv2d(3, 16, 7), nn.Conv2d(64, 8, 1)]
)
def test_grouped_large_and_pointwise_kernels_fit(layer):
    net = nn.Sequential(layer)
    shape = layer.weight.shape
    add_low_rank(net, 0.3)
    fill(net)
    assert layer.weight.shape == shape
    assert torch.isfinite(net(torch.rand(1, layer.in_channels, 9, 9))).all()


def test_it_starts_as_the_plain_network():
    with torch.no_grad():
        assert torch.equal(decomposed().eval()(IMAGES), network().eval()(IMAGES))


def test_the_general_weights_are_those_without_the_product():
    net, plain = fill(decomposed()).eval(), network().eval()
    with torch.no_grad():
        with general_weights(net):
            assert torch.equal(net(IMAGES), plain(IMAGES))
        assert not torch.allclose(net(IMAGES), plain(IMAGES))


def test_the_general_weights_end_with_the_block_also_after_an_error():
    net = fill(decomposed()).eval()
    with torch.no_grad():
        before = net(IMAGES)
        with pytest.raises(RuntimeError, match="mine"), general_weights(net):
            raise RuntimeError("mine")
        with general_weights(net), general_weights(net):
            inside = net(IMAGES)
        assert torch.equal(net(IMAGES), before)
        assert not torch.equal(inside, before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_folding_keeps_the_logits_and_leaves_the_plain_parameters(dtype, tolerance):
    net, plain = fill(decomposed()).to(dtype).eval(), network()
    with torch.no_grad():
        before = net(IMAGES)
        fold_low_rank(net)
        torch.testing.assert_close(net(IMAGES), before, rtol=0, atol=tolerance)
    assert before.dtype == dtype
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert parameter_count(net) == parameter_count(plain)
    assert all(p.requires_grad for p in net.parameters())


def test_while_b_is_zero_only_b_and_the_general_weights_get_a_gradient():
    net = decomposed()
    net(IMAGES).square().sum().backward()
    for name, p in low_rank_parameters(net):
        assert (p.grad.abs().sum() > 0) == name.endswith(".up"), name
    assert net.backbone.stem.parametrizations.weight.original.grad.abs().sum() > 0


def test_frozen_general_weights_get_none():
    net = fill(decomposed())
    freeze_general(net)
    net(IMAGES).square().sum().backward()
    assert net.backbone.stem.parametrizations.weight.original.grad is None
    assert all(p.grad is not None for _, p in low_rank_parameters(net))


def test_names_are_those_of_the_module():
    net = decomposed()
    named = dict(net.named_parameters())
    assert all(named[name] is p for name, p in low_rank_parameters(net))
    assert len(list(low_rank_parameters(net))) == 2 * 7


def test_copies_and_checkpoints_are_whole():
    net, other = fill(decomposed()).eval(), decomposed().eval()
    other.load_state_dict(net.state_dict())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        assert torch.equal(other(IMAGES), net(IMAGES))
        assert torch.equal(twin(IMAGES), net(IMAGES))


@pytest.mark.parametrize("folded", [0, 1])
def test_folding_a_network_leaves_its_deep_copy_decomposed(folded):
    nets = [fill(decomposed()).eval()]
    nets.append(copy.deepcopy(nets[0]))
    with torch.no_grad():
        before = nets[0](IMAGES)
        fold_low_rank(nets[folded])
        for net in nets:
            torch.testing.assert_close(net(IMAGES), before)
        other = nets[1 - folded]
        with general_weights(other):
            assert not torch.allclose(other(IMAGES), before)
        fold_low_rank(other)
        torch.testing.assert_close(other(IMAGES), before)
    assert type(other.backbone.stem) is nn.Conv2d


def test_folding_while_disabled_still_adds_the_product():
    net = fill(decomposed()).eval()
    with torch.no_grad():
        before = net(IMAGES)
        with general_weights(net):
            fold_low_rank(net)
        torch.testing.assert_close(net(IMAGES), before)


def test_folding_leaves_other_parametrisations_alone():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)))
    fold_low_rank(net)
    freeze_general(net)
    assert nn.utils.parametrize.is_parametrized(net[0], "weight")


def test_a_compiled_network_follows_the_switch():
    net = fill(decomposed()).eval()
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        full, wanted_full = compiled(IMAGES), net(IMAGES)
        with general_weights(net):
            general, wanted_general = compiled(IMAGES), net(IMAGES)
    torch.testing.assert_close(full, wanted_full)
    torch.testing.assert_close(general, wanted_general)
    assert not torch.allclose(full, general)
    fold_low_rank(net)
    with torch.no_grad():
        torch.testing.assert_close(compiled(IMAGES), full)


@pytest.mark.parametrize("rank", [0, -0.1, 1, 2])
def test_a_rank_that_is_no_share_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be > 0 and < 1, but got {rank}"):
        add_low_rank(network(), rank)


def test_decomposing_twice_and_uneven_kernels_are_refused():
    with pytest.raises(ValueError, match="decomposed already"):
        add_low_rank(decomposed(), 0.1)
    with pytest.raises(ValueError, match="square kernels, but got 1 x 3"):
        add_low_rank(nn.Sequential(nn.Conv2d(4, 4, (1, 3))), 0.1)


def test_a_refused_network_is_as_it_was():
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, (1, 3)))
    with pytest.raises(ValueError, match="square"):
        add_low_rank(net, 0.1)
    assert not list(low_rank_parameters(net))
    assert type(net[0]) is nn.Conv2d
