from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.learning.losses import routing

# the worked example of the study: six classes
COUNTS = torch.tensor([500.0, 300, 120, 60, 20, 5], dtype=torch.float64)
ENTROPY = torch.tensor([0.8, 1.0, 1.6, 1.0, 1.7, 1.5], dtype=torch.float64)
ACCURACY = torch.tensor([0.85, 0.70, 0.35, 0.60, 0.25, 0.15], dtype=torch.float64)
START = torch.full((6,), -math.log(6), dtype=torch.float64)


def after(epochs, gamma=0.1, keep=1.0):
    difficulty = routing.class_difficulty(ENTROPY, ACCURACY, 1.0)
    log_weight = START
    for _ in range(epochs):
        log_weight = routing.updated_log_weight(log_weight, difficulty, gamma, keep)
    return log_weight


def test_difficulty_of_the_worked_example():
    weight = routing.class_difficulty(ENTROPY, ACCURACY, 1.0)
    assert weight.tolist() == pytest.approx([0.298, 0.429, 0.771, 0.479, 0.849, 0.844], abs=6e-4)
    only_entropy = routing.class_difficulty(ENTROPY, ACCURACY, 0.0)
    torch.testing.assert_close(only_entropy, ENTROPY / math.log(6))


def test_difficulty_spans_zero_to_one():
    certain, blind = torch.zeros(4), torch.full((4,), math.log(4))
    for balance in (0.0, 0.5, 3.0):
        assert routing.class_difficulty(certain, torch.ones(4), balance).tolist() == [0] * 4
        worst = routing.class_difficulty(blind, torch.zeros(4), balance)
        torch.testing.assert_close(worst, torch.ones(4))


@pytest.mark.parametrize(
    ("epochs", "wanted"),
    [
        (1, [0.969, 0.982, 1.016, 0.987, 1.024, 1.023]),
        (10, [0.714, 0.814, 1.146, 0.855, 1.239, 1.232]),
        (50, [0.127, 0.245, 1.359, 0.315, 2.006, 1.948]),
        (200, [0.000, 0.001, 0.601, 0.002, 2.855, 2.542]),
    ],
)
def test_weights_of_the_worked_example(epochs, wanted):
    assert (6 * after(epochs).exp()).tolist() == pytest.approx(wanted, abs=1.5e-3)


def test_the_update_in_log_space_is_equation_2():
    difficulty = routing.class_difficulty(ENTROPY, ACCURACY, 1.0)
    weight = torch.full((6,), 1 / 6, dtype=torch.float64)
    for _ in range(20):
        weight = weight * torch.exp(0.5 * difficulty)
        weight = weight / weight.sum()
    torch.testing.assert_close(after(20, gamma=0.5).exp(), weight)


def test_forgetting_has_a_fixed_point():
    difficulty = routing.class_difficulty(ENTROPY, ACCURACY, 1.0)
    torch.testing.assert_close(
        after(400, gamma=0.1, keep=0.9).exp(), (0.1 * difficulty / 0.1).softmax(0)
    )


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(0, 5))
def test_400_epochs_of_an_extreme_class_stay_finite_in_single_precision(difficulty, gamma):
    extreme = torch.tensor([*difficulty, 0.0, 1.0])
    log_weight = torch.full((len(extreme),), -math.log(len(extreme)))
    for _ in range(400):
        log_weight = routing.updated_log_weight(log_weight, extreme, gamma, 1.0)
    assert log_weight.isfinite().all()
    assert log_weight.exp().sum().item() == pytest.approx(1, abs=1e-4)
    # what was punished for 400 epochs can come back
    for _ in range(800):
        log_weight = routing.updated_log_weight(log_weight, 1 - extreme, gamma + 0.1, 1.0)
    assert log_weight[-2] > log_weight[-1]


@pytest.mark.parametrize("kind", ["inverse", "square_root", "effective_number"])
def test_quantity_weights(kind):
    weights = routing.quantity_weight(COUNTS, kind)
    assert weights.mean().item() == pytest.approx(1)
    assert (weights.diff() > 0).all(), "rarer classes weigh more"
    if kind == "inverse":
        wanted = [0.043, 0.071, 0.178, 0.357, 1.070, 4.281]
        assert weights.tolist() == pytest.approx(wanted, abs=6e-4)
    if kind == "square_root":
        assert (weights[-1] / weights[0]).item() == pytest.approx(10)
    with pytest.raises(ValueError, match="class 1 has 0"):
        routing.quantity_weight(torch.tensor([3.0, 0.0]), kind)


def test_the_mix_of_the_worked_example_and_its_ends():
    quantity, log_weight = routing.quantity_weight(COUNTS, "inverse"), after(50)
    weights = routing.mixed_weight(log_weight, quantity, 0.5)
    wanted = [0.085, 0.158, 0.768, 0.336, 1.538, 3.114]
    assert weights.tolist() == pytest.approx(wanted, abs=1.5e-3)
    assert torch.equal(routing.mixed_weight(log_weight, quantity, 0.0), quantity)
    difficulty = routing.difficulty_weight(log_weight)
    assert torch.equal(routing.mixed_weight(log_weight, quantity, 1.0), difficulty)
    torch.testing.assert_close(difficulty, 6 * log_weight.exp())
    for alpha in (0.0, 0.3, 1.0):
        mixed = routing.mixed_weight(log_weight, quantity, alpha)
        assert mixed.mean().item() == pytest.approx(1)
        assert (mixed > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_weight_is_below_eps_of_the_largest(dtype):
    log_weight = torch.tensor([-900.0, -10.0, 0.0, -1.0], dtype=dtype).log_softmax(0)
    weights = routing.difficulty_weight(log_weight)
    assert (weights[0] / weights[2]).item() == pytest.approx(torch.finfo(dtype).eps)
    assert weights.mean().item() == pytest.approx(1)
    torch.testing.assert_close(weights[1:], 4 * log_weight[1:].exp())


def test_effective_classes():
    assert routing.effective_classes(START).item() == pytest.approx(6)
    halves = torch.tensor([0.5, 0.5, 1e-30]).log()
    assert routing.effective_classes(halves).item() == pytest.approx(2)


def test_experts_have_the_classes_below_their_counts():
    member, rule = routing.expert_classes([5, 500, 20, 99, 100, 19], 100, 20)
    assert member.tolist() == [
        [True] * 6,
        [True, False, True, True, False, True],
        [True, False, False, False, False, True],
    ]
    assert rule == "experts have 6 / 4 / 2 classes (below 100 and 20 training images)"


@pytest.mark.parametrize("counts", [[500, 300, 40, 30, 90, 25], [9, 8, 7, 6, 5, 4]])
def test_where_a_group_would_be_empty_or_all_ranks_decide_and_it_is_said(counts):
    member, rule = routing.expert_classes(counts, 100, 20)
    order = sorted(range(6), key=lambda c: -counts[c])
    assert member.sum(1).tolist() == [6, 4, 2]
    assert not member[1][order[:2]].any()
    assert member[2][order[4:]].all()
    assert "two thirds and a third by rank" in rule


@pytest.mark.parametrize(
    ("counts", "tail"), [([30, 50], [True, False]), ([300, 500], [True, False]), ([9, 9], None)]
)
def test_of_two_classes_the_rarer_one_is_the_tail(counts, tail):
    member, _ = routing.expert_classes(counts, 100, 20)
    assert member.sum(1).tolist() == [2, 1, 1]
    assert tail is None or member[2].tolist() == tail
    assert torch.equal(member[1], member[2])


def test_cifar_100_lt_groups():
    from lt_pipeline.learning.data.profiles import Exponential, profile_counts

    sizes = {}
    for ratio in (100, 50, 10):
        counts = profile_counts(
            Exponential(), classes=100, max_per_class=500, imbalance_ratio=ratio
        )
        sizes[ratio] = routing.expert_classes(counts, 100, 20)[0].sum(1).tolist()
    assert sizes == {100: [100, 65, 30], 50: [100, 59, 18], 10: [100, 66, 33]}


def test_expert_counts_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="tail_below must be < medium_below"):
        routing.expert_classes([5, 6], 20, 20)


def test_routing_is_the_share_of_confidence():
    confidence = torch.tensor([[0.9, 0.6, 0.0], [0.0, 0.0, 0.0], [1e-9, 0, 0], [1e-30, 3e-30, 0]])
    weights = routing.routing_weight(confidence)
    assert weights[0].tolist() == pytest.approx([0.6, 0.4, 0.0])
    assert weights[0, 2] == 0
    assert weights[1].tolist() == pytest.approx([1 / 3] * 3)
    assert weights[2].tolist() == [1, 0, 0], (
        "an expert with s_k = 0 has no say, however small others"
    )
    assert weights[3].tolist() == pytest.approx([0.25, 0.75, 0])
    torch.testing.assert_close(weights.sum(1), torch.ones(4))


def test_gradients_of_routing_are_finite_where_all_confidence_is_gone():
    confidence = torch.tensor([[0.9, 0.6, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    (routing.routing_weight(confidence) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert confidence.grad.isfinite().all()
    assert confidence.grad[0].any()


def test_fusion_is_the_mean_of_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    alphas = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(4, 3)
    wanted = (alphas[:, :, None] * logits.softmax(2)).sum(1)
    fused = routing.fused_log_probability(logits, alphas)
    torch.testing.assert_close(fused.exp(), wanted)
    torch.testing.assert_close(fused.softmax(1), wanted)
    silent = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).expand(4, 3)
    before = routing.fused_log_probability(logits, silent)
    logits[:, 2] = 100 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    assert torch.equal(routing.fused_log_probability(logits, silent), before)


def test_classes_that_an_expert_does_not_know_are_left_to_the_others():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
    alphas = torch.rand(4, 3, generator=generator, dtype=torch.float64).softmax(1)
    known = logits.clone()
    known[:, 1, :2] = -torch.inf
    p = logits.softmax(2)
    p[:, 1, :2] = 0
    p[:, 1] /= p[:, 1].sum(1, keepdim=True)
    fused = routing.fused_log_probability(known, alphas)
    torch.testing.assert_close(fused.exp(), (alphas[:, :, None] * p).sum(1))
    mixed = routing.fused_logits(known, alphas)
    torch.testing.assert_close(mixed[:, 2:], (alphas[:, :, None] * logits).sum(1)[:, 2:])
    both = alphas[:, [0, 2]] / alphas[:, [0, 2]].sum(1, keepdim=True)
    wanted = (both[:, :, None] * logits[:, [0, 2]]).sum(1)[:, :2]
    torch.testing.assert_close(mixed[:, :2], wanted)
    alone = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand(4, 3)
    fused = routing.fused_log_probability(known, alone)
    assert fused.isfinite().all()
    assert not fused.softmax(1)[:, :2].any()


GATES = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64)
MEMBER = torch.tensor([[True, True, False]])
LOGITS = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]]], dtype=torch.float64)


def by_hand(kind):
    rows = []
    for u, b, z in zip(GATES[0].tolist(), MEMBER[0].tolist(), LOGITS[0].tolist(), strict=True):
        s = 1 / (1 + math.exp(-u))
        if kind == "margin":
            rows.append(max(0.0, 1 - u) if b else max(0.0, 1 + u))
            continue
        bce = -math.log(s) if b else -math.log(1 - s)
        if kind == "focal":
            bce *= (1 - s) ** 2 if b else s**2
        if kind == "entropy" and not b:
            total = math.log(sum(math.exp(v) for v in z))
            bce += 0.1 * sum(total - v for v in z) / len(z)
        rows.append(bce)
    return rows


@pytest.mark.parametrize("kind", ["bce", "entropy", "focal", "margin"])
def test_ood_losses_by_hand(kind):
    losses = routing.ood_loss(kind, GATES, MEMBER, LOGITS, 0.1)
    assert losses[0].tolist() == pytest.approx(by_hand(kind))
    assert torch.autograd.gradcheck(
        lambda u, z: routing.ood_loss(kind, u, MEMBER, z, 0.1),
        (GATES.clone().requires_grad_(), LOGITS.clone().requires_grad_()),
    )


@pytest.mark.parametrize("kind", ["bce", "entropy", "focal", "margin"])
def test_ood_losses_of_certain_heads_are_finite(kind):
    gates = torch.tensor([[200.0, -200.0, 200.0]], requires_grad=True)
    member = torch.tensor([[True, True, False]])
    loss = routing.ood_loss(kind, gates, member, LOGITS.float(), 0.1)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert gates.grad.isfinite().all()


def test_the_entropy_term_raises_the_entropy_of_outsiders_and_bce_does_not():
    logits = LOGITS.clone().requires_grad_()
    assert not routing.ood_loss("bce", GATES, MEMBER, logits, 0.1).requires_grad
    routing.ood_loss("entropy", GATES, MEMBER, logits, 0.1).sum().backward()
    assert not logits.grad[0, :2].any(), "members are left alone"
    moved = LOGITS[0, 2] - 0.1 * logits.grad[0, 2]
    assert spread(moved) < spread(LOGITS[0, 2])


def spread(z):
    return (z.max() - z.min()).item()
