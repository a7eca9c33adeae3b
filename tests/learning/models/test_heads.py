from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.models.experts import build_expert_network
from lt_pipeline.learning.models.heads import CosineHead, build_head
from lt_pipeline.learning.models.network import ModelConfig, build_network


def test_cosine_logits_do_not_see_lengths():
    head = CosineHead(5, 3, scale=7.0)
    features = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    wanted = 7 * F.cosine_similarity(features[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(features), wanted)
    torch.testing.assert_close(head(100 * features), wanted)


def test_the_weights_start_at_unit_length():
    lengths = CosineHead(64, 100, scale=7.0).weight.detach().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(100))


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


def build(kind, init):
    """A head on its own, or the heads of three experts."""
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet8", head=kind, head_init=init)
    told = {"classes": 100, "channels": 3, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return build_network(config, **told), build_expert_network(
        config, experts=3, shared="stage1", **told
    )


@torch.no_grad()
def test_a_linear_head_of_ldams_family_starts_2_4_times_as_large():
    for uniform, kaiming in zip(
        build("linear", "uniform"), build("linear", "kaiming"), strict=True
    ):
        width = uniform.width
        assert float(uniform.prototypes.std()) == pytest.approx((3 * width) ** -0.5, rel=0.03)
        assert float(uniform.prototypes.abs().max()) <= width**-0.5
        assert float(kaiming.prototypes.std()) == pytest.approx((2 / width) ** 0.5, rel=0.03)
        # normal: one weight in 22 is beyond two deviations, a uniform one has none there
        beyond = (kaiming.prototypes.abs() > 2 * kaiming.prototypes.std()).double().mean()
        assert float(beyond) == pytest.approx(0.0455, abs=0.01)
        assert float(kaiming.head.bias.abs().max()) <= width**-0.5


def test_the_start_of_a_linear_head_leaves_the_rest_of_the_network_and_cosine_heads_alone():
    for plain, other in zip(build("cosine", "uniform"), build("cosine", "kaiming"), strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True)
        )
    plain, other = build("linear", "uniform")[0], build("linear", "kaiming")[0]
    pairs = zip(plain.backbone.parameters(), other.backbone.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="unknown head 'cosin': did you mean 'cosine'"):
        build_head("cosin", 4, 3, 30.0)


@pytest.mark.parametrize("length", [0.0, 1e-30])
def test_features_without_a_direction_leave_a_finite_gradient(length):
    head = CosineHead(5, 3, scale=64.0)
    features = torch.full((1, 5), length, requires_grad=True)
    logits = head(features)
    (1e4 * logits.sum()).backward()
    assert (logits.abs() < 1e-6).all()
    assert torch.isfinite(features.grad).all()
