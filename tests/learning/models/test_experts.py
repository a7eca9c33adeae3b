from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lt_pipeline.learning.models import backbones
from lt_pipeline.learning.models.experts import ExpertHeads, build_expert_network
from lt_pipeline.learning.models.low_rank import add_low_rank, fold_low_rank, low_rank_parameters
from lt_pipeline.learning.models.network import ModelConfig, build_network, parameter_count
from lt_pipeline.learning.models.resnet_cifar import BasicBlock

FEW = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(2))
FEW = FEW.to(torch.uint8)
PIXELS = {"channels": 3, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}


def network(backbone="resnet8", head="linear", *, experts=3, shared="stage1", classes=4, seed=0):
    torch.manual_seed(seed)
    config = ModelConfig(backbone=backbone, head=head)
    return build_expert_network(config, experts=experts, shared=shared, classes=classes, **PIXELS)


class Lone(nn.Module):
    """Expert k's own part as an ordinary network, with the values of the grouped one."""

    def __init__(self, net, k, blocks):
        super().__init__()
        down = BasicBlock(16, 24, 2), BasicBlock(24, 48, 2)
        self.stage2, self.stage3 = (
            nn.Sequential(
                b,
                *(
                    BasicBlock(b.conv1.out_channels, b.conv1.out_channels, 1)
                    for _ in range(blocks - 1)
                ),
            )
            for b in down
        )
        self.head = nn.Linear(48, net.prototypes.shape[1])
        self.to(net.prototypes.dtype).train(net.training)
        self.load_state_dict(expert_of(net, k))

    def forward(self, x):
        return self.head(self.stage3(self.stage2(x)).mean((2, 3)))


def own(net):
    """What belongs to single experts: name -> values of K experts, one after the other."""
    stages = {
        name.removeprefix("backbone."): value
        for name, value in net.state_dict(keep_vars=True).items()
        if ".stage2." in name or ".stage3." in name
    }
    return stages | {f"head.{n}": p for n, p in net.head.named_parameters()}


def share(name, value, k, experts=3):
    """Expert k's part of what ``own`` gives."""
    if value.ndim == 0:
        return value
    return value[k] if name.startswith("head.") else value.chunk(experts)[k]


def expert_of(net, k):
    return {
        n: share(n, v, k, net.prototypes.shape[0]).detach().clone() for n, v in own(net).items()
    }


def trunk(net, images):
    body = net.backbone
    return body.stage1(F.relu(body.bn(body.stem(net.normalize(images)))))


def stirred(net):
    """Give every BatchNorm other values than 1, 0, and other statistics than 0, 1."""
    generator = torch.Generator().manual_seed(1)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for value in (m.weight, m.bias, m.running_mean, m.running_var):
                value.data.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return net


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("backbone", "blocks", "experts"), [("resnet8", 1, 3), ("resnet20", 3, 2)])
def test_it_is_k_networks_on_a_shared_first_stage(backbone, blocks, experts, training):
    net = stirred(network(backbone, experts=experts)).double().train(training)
    twin = copy.deepcopy(net)
    alone = [Lone(net, k, blocks) for k in range(experts)]
    before = trunk(twin, FEW)
    wanted = torch.stack([expert(before) for expert in alone], 1)
    logits = net(FEW)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(logits, wanted, **close)

    slopes = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).double()
    (logits * slopes).sum().backward()
    (wanted * slopes).sum().backward()
    for name in ("stem", "bn", "stage1"):
        mine, theirs = getattr(net.backbone, name), getattr(twin.backbone, name)
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, **close)
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), **close)
    for k, expert in enumerate(alone):
        for name, value in expert.state_dict(keep_vars=True).items():
            mine = own(net)[name]
            torch.testing.assert_close(share(name, mine, k, experts), value, **close)
            if isinstance(mine, nn.Parameter):
                torch.testing.assert_close(share(name, mine.grad, k, experts), value.grad, **close)


@pytest.mark.parametrize(
    ("head", "classes", "parameters"),
    # SADE's network: 23 824 shared, 248 544 and the head of each expert
    [("cosine", 100, 783_856), ("linear", 100, 784_156), ("cosine", 10, 770_896)],
)
def test_parameters_are_those_of_sade(head, classes, parameters):
    assert parameter_count(network("resnet32", head, classes=classes)) == parameters


def test_sharing_all_costs_only_heads():
    plain = build_network(ModelConfig(backbone="resnet8"), classes=4, **PIXELS)
    assert parameter_count(network(shared="all")) == parameter_count(plain) + 2 * (64 + 1) * 4


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("backbone", "shared", "width"),
    [("resnet8", "stage1", 48), ("resnet8", "all", 64), ("resnet18", "stage1", 512)],
)
def test_shapes(backbone, shared, width, head):
    net = network(backbone, head, shared=shared).eval()
    with torch.no_grad():
        features = net.features(FEW)
        assert features.shape == (5, 3, width)
        assert net.prototypes.shape == (3, 4, width)
        assert net.width == width
        assert net.prototypes is net.head.weight
        assert net(FEW).shape == (5, 3, 4)
        torch.testing.assert_close(net.head(features), net(FEW))


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_every_backbone_can_be_split_and_one_expert_is_allowed(name):
    with torch.device("meta"):
        net = network(name, experts=1).eval()
        assert net(torch.rand(1, 3, 32, 32)).shape == (1, 1, 4)


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (28, 1), (33, 3)])
def test_any_small_image_fits(size, channels):
    net = build_expert_network(
        ModelConfig(backbone="resnet8"),
        experts=2,
        shared="stage1",
        classes=4,
        channels=channels,
        mean=[0.5] * channels,
        std=[0.2] * channels,
    )
    assert net(torch.rand(2, channels, size, size)).shape == (2, 2, 4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_an_experts_values_reach_no_other_logits(head, training):
    net = network(head=head).train(training)
    with torch.no_grad():
        before = net(FEW)
        for name, value in own(net).items():
            if value.ndim:
                share(name, value, 1).mul_(1.5).add_(0.1)
        after = net(FEW)
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.isclose(after[:, 1], before[:, 1]).any()


@pytest.mark.parametrize("shared", ["stage1", "all"])
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_an_experts_loss_has_no_gradient_for_another(head, shared):
    net = network(head=head, shared=shared)
    net(FEW)[:, 2].square().sum().backward()
    for name, value in own(net).items():
        if isinstance(value, nn.Parameter) and (shared == "stage1" or name.startswith("head.")):
            moved = [bool(share(name, value.grad, k).any()) for k in range(3)]
            assert moved == [False, False, True], name
    assert next(net.backbone.parameters()).grad.any()


def test_torchvisions_experts_are_independent_and_start_apart():
    net = network("resnet18", experts=2)
    first, second = net.backbone.experts
    assert all(
        not torch.equal(a, b)
        for a, b in zip(first.parameters(), second.parameters(), strict=True)
        if a.ndim == 4
    )
    net(FEW)[:, 0].sum().backward()
    assert all(p.grad is not None for p in first.parameters())
    assert all(p.grad is None or not p.grad.any() for p in second.parameters())


def test_torchvisions_split_is_the_plain_network_with_other_last_stages():
    net = network("resnet18", experts=2).eval()
    plain = build_network(ModelConfig(backbone="resnet18"), classes=4, **PIXELS).eval()
    stem, body = net.backbone.stem, net.backbone.shared
    for k in range(2):
        layers = dict(zip(["conv1", "bn1"], stem, strict=False))
        layers |= dict(zip(["layer1", "layer2"], body, strict=True))
        layers |= dict(zip(["layer3", "layer4"], net.backbone.experts[k], strict=False))
        for name, layer in layers.items():
            getattr(plain.backbone, name).load_state_dict(layer.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(net.features(FEW)[:, k], plain.features(FEW))


def test_pretrained_weights_reach_every_expert(monkeypatch):
    weights = backbones._torchvision("resnet18", 3, False)
    weights.fc = nn.Linear(512, 1000)
    monkeypatch.setattr(backbones, "_pretrained_weights", lambda name: weights.state_dict())
    net = build_expert_network(
        ModelConfig(backbone="resnet18", weights="default"),
        experts=2,
        shared="stage1",
        classes=4,
        **PIXELS,
    )
    for expert in net.backbone.experts:
        for mine, theirs in zip(expert, (weights.layer3, weights.layer4), strict=False):
            torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert torch.equal(net.backbone.stem[0].weight, weights.conv1.weight)


def test_experts_that_share_all_see_the_same_features_without_copies():
    features = network(shared="all").eval().features(FEW)
    assert features.stride(1) == 0


def test_every_expert_starts_like_a_network_of_its_own():
    body = network("resnet32").backbone
    for name, m in (*body.stage2.named_modules(), *body.stage3.named_modules()):
        if isinstance(m, nn.Conv2d):
            inputs = m.weight.shape[1] * 9
            for part in m.weight.detach().chunk(3):
                error = 6 / (2 * part.numel()) ** 0.5  # six standard errors of a deviation
                ratio = (part.std() / (2 / inputs) ** 0.5).item()
                assert ratio == pytest.approx(1, abs=error), name
    inputs = [m.weight.shape[1] for m in body.stage2[0].children() if isinstance(m, nn.Conv2d)]
    assert inputs == [16, 24]


def test_the_heads_start_as_torchs_and_the_papers_do():
    torch.manual_seed(0)
    linear = ExpertHeads("linear", 3, 64, 200)
    for values in (*linear.weight, *linear.bias):
        assert values.abs().max() <= 1 / 8
    assert linear.weight.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.02)
    assert linear.bias.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)
    cosine = ExpertHeads("cosine", 3, 64, 200)
    torch.testing.assert_close(cosine.weight.detach().norm(dim=2), torch.ones(3, 200))
    assert not hasattr(cosine, "bias")


def test_heads_follow_their_closed_forms():
    features = torch.rand(5, 3, 7, generator=torch.Generator().manual_seed(0)) - 0.5
    linear, cosine = ExpertHeads("linear", 3, 7, 4), ExpertHeads("cosine", 3, 7, 4, scale=9.0)
    for k in range(3):
        wanted = features[:, k] @ linear.weight[k].T + linear.bias[k]
        torch.testing.assert_close(linear(features)[:, k], wanted)
        wanted = 9 * F.cosine_similarity(features[:, k, None], cosine.weight[k], dim=2)
        torch.testing.assert_close(cosine(features)[:, k], wanted)
        torch.testing.assert_close(cosine(50 * features)[:, k], wanted)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_gradients_of_the_heads(kind):
    head = ExpertHeads(kind, 2, 4, 3, scale=2.0).double()
    features = torch.rand(2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head, features)


def test_cosines_keep_their_precision():
    head = ExpertHeads("cosine", 2, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.rand(4, 2, 5).bfloat16()).dtype == torch.float32
    assert head.double()(torch.rand(4, 2, 5).double()).dtype == torch.float64


@pytest.mark.parametrize("length", [0.0, 1e-30])
def test_features_without_a_direction_leave_a_finite_gradient(length):
    features = torch.full((1, 2, 5), length, requires_grad=True)
    logits = ExpertHeads("cosine", 2, 5, 3, scale=64.0)(features)
    (1e4 * logits.sum()).backward()
    assert (logits.abs() < 1e-6).all()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("shared", ["stage1", "all"])
def test_batch_mates_do_not_matter_in_eval_mode(shared):
    net = stirred(network(shared=shared)).double().eval()
    with torch.no_grad():
        single = torch.cat([net(image[None]) for image in FEW])
        torch.testing.assert_close(net(FEW), single, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", ["stage1", "all"])
def test_the_state_is_whole(shared):
    net, other = stirred(network(shared=shared)).eval(), network(shared=shared, seed=1).eval()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(other(FEW), net(FEW))
        assert torch.equal(copy.deepcopy(net)(FEW), net(FEW))
    again = network(shared=shared)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.parameters(), network(shared=shared).parameters(), strict=True)
    )


def test_channels_last_gives_the_same():
    net = stirred(network("resnet20")).double().eval()
    with torch.no_grad():
        wanted = net(FEW)
        net.to(memory_format=torch.channels_last)
        images = FEW.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(net(images), wanted)


@pytest.mark.parametrize(
    ("backbone", "shared", "head"),
    [
        ("resnet8", "stage1", "linear"),
        ("resnet8", "all", "cosine"),
        ("resnet18", "stage1", "cosine"),
    ],
)
def test_it_exports_for_any_number_of_images(backbone, shared, head):
    net = network(backbone, head, shared=shared).eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(net, (FEW[:2],), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        for images in (FEW[:1], FEW):
            torch.testing.assert_close(program(images), net(images))


def test_it_compiles():
    net = network(head="cosine").eval()
    with torch.no_grad():
        wanted = net(FEW)
        net.compile(backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(net(FEW), wanted)


def test_low_rank_starts_as_the_plain_network_and_folds():
    net, plain = network().double().eval(), network().double().eval()
    add_low_rank(net, 0.1)
    with torch.no_grad():
        assert torch.equal(net(FEW), plain(FEW))
        for _, p in low_rank_parameters(net):
            p.add_(0.05)
        before = net(FEW)
        fold_low_rank(net)
        torch.testing.assert_close(net(FEW), before)
        assert not torch.allclose(before, plain(FEW))
    assert net.state_dict().keys() == plain.state_dict().keys()


def test_low_rank_factor_a_is_common_to_the_experts():
    net = network().eval()
    add_low_rank(net, 0.1)
    before = net(FEW).detach()
    part = net.backbone.stage2[0].conv2.parametrizations.weight[0]
    assert part.down.shape[1] == 3 * 24 * 3
    with torch.no_grad():
        part.up.fill_(0.1)
        assert not torch.isclose(net(FEW), before).all(2).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": 0}, "experts must be >= 1, but got 0"),
        ({"shared": "stage2"}, "unknown shared part 'stage2': did you mean 'stage1'"),
        ({"std": [0.2]}, "each of the 3 channels, but have 3 and 1"),
        (
            {"config": ModelConfig(backbone="resnet8", weights="default")},
            "resnet8 has no public weights",
        ),
        (
            {"config": ModelConfig.model_construct(backbone="resnet31", weights="none")},
            "unknown backbone 'resnet31': did you mean 'resnet3",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    sound = {"config": ModelConfig(backbone="resnet8"), "experts": 2, "shared": "stage1"}
    with pytest.raises(ValueError, match=message):
        build_expert_network(**sound | {"classes": 4} | PIXELS | change)


def test_an_unknown_kind_of_head_is_refused():
    with pytest.raises(ValueError, match="unknown head 'cosin': did you mean 'cosine'"):
        ExpertHeads("cosin", 2, 4, 3)
