from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from lt_pipeline.learning.losses import experts as losses

COUNTS = torch.tensor([10.0, 100.0, 1.0, 10.0], dtype=torch.float64)  # unsorted, and a tie
PRIOR = COUNTS / COUNTS.sum()
LABELS = torch.tensor([2, 0])


def logits(batch=2, experts=3, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, experts, classes, generator=generator, dtype=torch.float64)


def softmax(values):
    total = math.fsum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def kl(p, q):
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# SADE


@pytest.mark.parametrize(
    ("counts", "reversed_counts"),
    [
        ([8, 4, 2, 1], [1, 2, 4, 8]),
        ([2, 8, 1, 4], [4, 1, 8, 2]),
        # ascending 1, 5, 5, 9, mirrored 9, 5, 5, 1
        ([5, 9, 5, 1], [5, 1, 5, 9]),
        # ascending 1, 10, 10: the tens would get 10 and 1, and share 5.5
        ([10, 1, 10], [5.5, 10, 5.5]),
        ([3, 3, 3], [3, 3, 3]),
        ([7], [7]),
    ],
)
def test_the_inverse_prior_reverses_the_ranks(counts, reversed_counts):
    total = sum(counts)
    reversed_prior = losses.inverse_prior(tensor(counts) / total)
    torch.testing.assert_close(reversed_prior * total, tensor(reversed_counts))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.randoms())
def test_the_inverse_prior_is_a_distribution_that_follows_its_classes(counts, random):
    prior = tensor(counts) / sum(counts)
    reversed_prior = losses.inverse_prior(prior)
    assert reversed_prior.sum().item() == pytest.approx(1)
    for a, b in itertools.combinations(range(len(counts)), 2):
        if counts[a] == counts[b]:
            assert reversed_prior[a] == reversed_prior[b]
        else:
            more, fewer = (a, b) if counts[a] > counts[b] else (b, a)
            assert reversed_prior[more] <= reversed_prior[fewer] + 1e-12
    order = random.sample(range(len(counts)), len(counts))
    torch.testing.assert_close(losses.inverse_prior(prior[order]), reversed_prior[order])


def test_the_three_skills_by_hand():
    skills = losses.by_expert(logits() + losses.skill_shift(PRIOR, 2.0), LABELS)
    inverse = [10 / 121, 1 / 121, 100 / 121, 10 / 121]
    weights = [
        [1.0] * 4,
        PRIOR.tolist(),
        [p / q**2 for p, q in zip(PRIOR.tolist(), inverse, strict=True)],
    ]
    for b, k in itertools.product(range(2), range(3)):
        terms = [w * math.exp(z) for w, z in zip(weights[k], logits()[b, k].tolist(), strict=True)]
        wanted = -math.log(terms[LABELS[b]] / math.fsum(terms))
        assert skills[b, k].item() == pytest.approx(wanted, rel=1e-12)


def test_with_equal_counts_every_skill_is_cross_entropy():
    equal = torch.full((4,), 0.25, dtype=torch.float64)
    skills = losses.by_expert(logits() + losses.skill_shift(equal, 2.0), LABELS)
    for k in range(3):
        plain = F.cross_entropy(logits()[:, k], LABELS, reduction="none")
        torch.testing.assert_close(skills[:, k], plain)


def test_labels_that_name_no_class_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.3, but range from 0 to 4"):
        losses.by_expert(logits(), torch.tensor([0, 4]))


def test_stability_is_the_cosine_of_the_aggregated_predictions():
    one, other, weight = logits(seed=1), logits(seed=2), tensor([0.5, 0.3, 0.2])
    stability = losses.prediction_stability(one, other, weight)
    for b in range(2):
        p, q = (
            softmax(
                [
                    math.fsum(w * view[b, k, c].item() for k, w in enumerate(weight.tolist()))
                    for c in range(4)
                ]
            )
            for view in (one, other)
        )
        dot = math.fsum(x * y for x, y in zip(p, q, strict=True))
        assert stability[b].item() == pytest.approx(
            dot / math.hypot(*p) / math.hypot(*q), rel=1e-12
        )
    torch.testing.assert_close(
        losses.prediction_stability(one, one, weight), torch.ones(2).double()
    )


# RIDE


def test_temperatures_by_hand():
    gamma, mean = 0.1, 121 / 4
    beta = [gamma * n / mean + 1 - gamma for n in COUNTS.tolist()]
    shift = losses.class_temperature(COUNTS, 1.5, gamma, "shift")
    torch.testing.assert_close(shift, tensor([1.5 * (b + 1 - max(beta)) for b in beta]))
    ratio = losses.class_temperature(COUNTS, 1.5, gamma, "ratio")
    torch.testing.assert_close(ratio, tensor([1.5 * b / max(beta) for b in beta]))
    assert shift.argmax() == ratio.argmax() == 1
    assert [shift.max().item(), ratio.max().item()] == pytest.approx([1.5, 1.5])


def test_without_gamma_or_imbalance_all_temperatures_are_alpha():
    for rule in ("shift", "ratio"):
        for counts, gamma in ((COUNTS, 0.0), (torch.full((4,), 7.0).double(), 0.5)):
            temperature = losses.class_temperature(counts, 2.0, gamma, rule)
            torch.testing.assert_close(temperature, torch.full_like(temperature, 2.0))


def test_temperatures_that_are_none_are_refused():
    # gamma (n_max - n_min) / mean = 0.5 * 99 / 30.25 > 1
    with pytest.raises(ValueError, match="lower temperature_gamma, which is 0.5, or use the rule"):
        losses.class_temperature(COUNTS, 1.0, 0.5, "shift")
    with pytest.raises(ValueError, match="class 1 has 0"):
        losses.class_temperature(tensor([3, 0]), 1.0, 0.05, "ratio")


TEMPERATURE = tensor([1.0, 1.4, 0.6, 0.8])


def tempered(values):
    return softmax([v / t for v, t in zip(values, TEMPERATURE.tolist(), strict=True)])


def test_diversity_from_the_others_by_hand():
    diversity = losses.diversity(logits(), TEMPERATURE, "others")
    for b in range(2):
        p = [tempered(z) for z in logits()[b].tolist()]
        for i in range(3):
            wanted = math.fsum(kl(p[i], p[j]) for j in range(3) if j != i) / 2
            assert diversity[b, i].item() == pytest.approx(wanted, rel=1e-9)


def test_diversity_from_the_mean_by_hand():
    diversity = losses.diversity(logits(), TEMPERATURE, "mean")
    for b in range(2):
        m = tempered(logits()[b].mean(0).tolist())
        for i in range(3):
            wanted = 0.95**2 * kl(m, tempered(logits()[b, i].tolist()))
            assert diversity[b, i].item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("target", ["mean", "others"])
def test_alike_experts_have_no_diversity(target):
    same = logits(experts=1).expand(-1, 3, -1)
    diversity = losses.diversity(same, TEMPERATURE, target)
    torch.testing.assert_close(diversity, torch.zeros_like(diversity), rtol=0, atol=1e-14)


def test_the_mean_has_no_gradient():
    z = logits().requires_grad_()
    losses.diversity(z, TEMPERATURE, "mean").sum().backward()
    m = (logits().mean(1) / TEMPERATURE).softmax(1)[:, None]
    p = (logits() / TEMPERATURE).softmax(2)
    # d/dz_c of -sum m log softmax(z / T) is (p_c - m_c) / T_c
    torch.testing.assert_close(z.grad, 0.95**2 * (p - m) / TEMPERATURE)


def test_the_gradients():
    z, other = logits().requires_grad_(), logits(seed=3).requires_grad_()
    weight = tensor([0.5, 0.3, 0.2]).requires_grad_()
    shift = losses.skill_shift(PRIOR, 2.0)
    gates = tensor([[0.3, -1.0], [2.0, 0.5]]).requires_grad_()
    needed = torch.tensor([[True, False], [False, True]])
    assert gradcheck(lambda x: losses.by_expert(x + shift, LABELS), z)
    assert gradcheck(losses.prediction_stability, (z, other, weight))
    assert gradcheck(lambda x: losses.diversity(x, TEMPERATURE, "others"), z)
    assert gradcheck(lambda g: losses.routing_loss(g, needed, 100.0), gates)
    assert gradcheck(lambda x: losses.routed(x, gates.detach()), z)


def test_running_means():
    means = losses.running_mean(logits())
    for k in range(3):
        torch.testing.assert_close(means[:, k], logits()[:, : k + 1].mean(1))


# The means of two and three experts of [[4, 0], [-6, 0], [8, 0]] favour classes 1, 0; and so on.
@pytest.mark.parametrize(
    ("first_class", "needed"),
    [
        ([4.0, -6.0, 8.0], [False, True]),  # right, wrong, right
        ([-1.0, 3.0, 1.0], [True, False]),  # wrong, right, right
        ([-1.0, -1.0, 5.0], [True, True]),  # wrong, wrong, right
        ([-1.0, 3.0, -5.0], [True, False]),  # wrong, right, wrong: help comes, and goes
        ([-1.0, -1.0, -1.0], [False, False]),  # beyond help
        ([1.0, -3.0, -1.0], [False, False]),  # right, wrong, wrong
        ([1.0, 1.0, 1.0], [False, False]),
    ],
)
def test_an_image_needs_more_where_it_is_wrong_and_becomes_right(first_class, needed):
    z = torch.stack([tensor(first_class), torch.zeros(3).double()], 1)[None]
    assert losses.needs_more(z, torch.tensor([0])).tolist() == [needed]


def test_routing_labels_and_choices_are_those_of_a_loop():
    z, labels = logits(60, 5, 3, seed=4), torch.arange(60) % 3
    gates = logits(60, 1, 4, seed=5)[:, 0]
    needed, scores = losses.needs_more(z, labels), losses.routed(z, gates)
    used = losses.experts_used(gates)
    for b in range(60):
        right = [int(z[b, : k + 1].mean(0).argmax()) == labels[b] for k in range(5)]
        wanted = [not right[k] and any(right[k + 1 :]) for k in range(4)]
        assert needed[b].tolist() == wanted
        count = 1
        while count < 5 and gates[b, count - 1] > 0:
            count += 1
        assert used[b] == count
        torch.testing.assert_close(scores[b], z[b, :count].mean(0))
    assert set(used.tolist()) == {1, 2, 3, 4, 5}


def test_the_routing_loss_by_hand():
    gates, needed = tensor([[0.3, -1.0]]), torch.tensor([[True, False]])
    loss = losses.routing_loss(gates, needed, 100.0)
    wanted = [-100 * math.log(1 / (1 + math.exp(-0.3))), -math.log(1 - 1 / (1 + math.exp(1.0)))]
    torch.testing.assert_close(loss, tensor([wanted]))


def test_a_gate_at_zero_stops_and_those_behind_it_have_no_say():
    assert losses.experts_used(tensor([[0.0, 5.0], [5.0, 0.0], [-1.0, 5.0]])).tolist() == [1, 2, 1]
