from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from lt_pipeline.learning.losses import ambiguity
from lt_pipeline.learning.losses.ambiguity import Ambiguity
from lt_pipeline.learning.losses.experts import by_expert
from lt_pipeline.learning.losses.functional import logit_adjusted

# the worked example of the study: eight samples at tau = 1, head to tail
PRINTED = [-6.01, -5.04, -7.01, -6.02, -3.25, -3.32, -2.38, -2.08]
ENERGIES = torch.tensor(PRINTED, dtype=torch.float64)
TAUS = st.floats(0.05, 50)


def noise(*shape, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def energy_by_hand(z, tau):
    return -tau * math.log(math.fsum(math.exp(value / tau) for value in z))


def softmax_by_hand(values):
    total = math.fsum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


@pytest.mark.parametrize("tau", [0.1, 1.0, 8.0, 100.0])
def test_energy_by_hand(tau):
    z = noise(4, 3, 5)
    energies = ambiguity.energy(z, tau)
    wanted = [[energy_by_hand(row, tau) for row in sample] for sample in z.tolist()]
    torch.testing.assert_close(energies, torch.tensor(wanted, dtype=torch.float64))


def test_energy_at_the_ends_of_tau():
    z = noise(6, 5)
    torch.testing.assert_close(ambiguity.energy(z, 1e-3), -z.max(1).values)
    far = -1e6 * math.log(5) - z.mean(1)
    torch.testing.assert_close(ambiguity.energy(z, 1e6), far, rtol=0, atol=1e-4)


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20), TAUS)
def test_energy_of_large_logits_is_finite_and_between_its_bounds(z, tau):
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor(z, dtype=dtype)
        energies = ambiguity.energy(logits, tau)
        assert energies.isfinite()
        slack = 1e-2 if dtype == torch.float32 else 1e-7
        assert energies <= -logits.max() + slack
        assert energies >= -logits.max() - tau * math.log(len(z)) - slack


@given(st.floats(-100, 100), TAUS, st.integers(0, 99))
def test_energy_follows_a_common_shift_of_the_logits(shift, tau, seed):
    z = noise(3, 4, seed=seed)
    torch.testing.assert_close(ambiguity.energy(z + shift, tau), ambiguity.energy(z, tau) - shift)


def test_a_less_dominant_logit_has_more_energy():
    z = torch.tensor([[5.0, 0, 0], [3.0, 0, 0], [1.0, 0, 0]])
    assert (ambiguity.energy(z, 1.0).diff() > 0).all()


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_a_tau_that_is_not_positive_is_refused(tau):
    with pytest.raises(ValueError, match="tau must be > 0, but is"):
        ambiguity.energy(noise(2, 3), tau)
    with pytest.raises(ValueError, match="tau must be > 0, but is"):
        ambiguity.energy_terms(noise(2, 3), noise(2, 3), tau)


@given(TAUS, st.integers(0, 999), st.floats(0, 1))
def test_equation_6_is_an_identity(tau, seed, lam):
    z = noise(7, 2, 5, seed=seed)
    soft = noise(7, 2, 5, seed=seed + 1).softmax(-1)
    one_hot, other = F.one_hot(torch.arange(7) % 5, 5), F.one_hot(torch.arange(7) % 4, 5)
    two_hot = (lam * one_hot + (1 - lam) * other).double()[:, None].expand(7, 2, 5)
    for q in (soft, two_hot):
        terms = ambiguity.energy_terms(z, q, tau)
        torch.testing.assert_close(sum(terms), -ambiguity.energy(z, tau))


@pytest.mark.parametrize("tau", [0.5, 1.0, 8.0])
def test_each_term_of_equation_6_is_what_it_is_called(tau):
    z, q = noise(6, 5), noise(6, 5, seed=1).softmax(1)
    q[0] = torch.tensor([0.3, 0, 0.7, 0, 0])
    divergence, uncertainty, magnitude = ambiguity.energy_terms(z, q, tau)
    p = (z / tau).softmax(1)
    torch.testing.assert_close(
        divergence, tau * F.kl_div(p.log(), q, reduction="none").sum(1), atol=1e-12, rtol=1e-9
    )
    assert uncertainty[0].item() == pytest.approx(
        -tau * (0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    )
    torch.testing.assert_close(magnitude, torch.einsum("bc,bc->b", q, z))


def test_more_label_entropy_at_the_same_mean_logit_does_not_change_the_energy():
    z = torch.tensor([[2.0, 2.0, -1.0]], dtype=torch.float64)
    sharp = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    mixed = torch.tensor([[0.5, 0.5, 0]], dtype=torch.float64)
    one, two = ambiguity.energy_terms(z, sharp, 1.0), ambiguity.energy_terms(z, mixed, 1.0)
    assert two[1] > one[1]
    assert two[0] < one[0], "the divergence pays for it"
    torch.testing.assert_close(sum(one), sum(two))


# the weight


def test_weights_of_the_worked_example():
    literal = ambiguity.ambiguity_weight(ENERGIES, "softmax")
    shares = [0.008, 0.021, 0.003, 0.008, 0.127, 0.119, 0.303, 0.410]
    assert (literal - 1).tolist() == pytest.approx(shares, abs=2.5e-3)  # of two-digit energies
    assert [round(w, 2) for w in literal.tolist()] == [1.01, 1.02, 1, 1.01, 1.13, 1.12, 1.3, 1.41]
    scaled = ambiguity.ambiguity_weight(ENERGIES, "scaled_softmax")
    wanted = [1.06, 1.17, 1.02, 1.06, 2.02, 1.95, 3.42, 4.28]
    assert scaled.tolist() == pytest.approx(wanted, abs=2e-2)
    assert literal.mean().item() == pytest.approx(1 + 1 / 8)
    assert scaled.mean().item() == pytest.approx(2)


@pytest.mark.parametrize("mode", ["softmax", "scaled_softmax"])
def test_every_expert_is_normalised_over_the_batch_by_itself(mode):
    energies = noise(6, 3)
    weights = ambiguity.ambiguity_weight(energies, mode)
    factor = 6 if mode == "scaled_softmax" else 1
    for k in range(3):
        wanted = [1 + factor * share for share in softmax_by_hand(energies[:, k].tolist())]
        assert weights[:, k].tolist() == pytest.approx(wanted)
        torch.testing.assert_close(
            weights[:, k], ambiguity.ambiguity_weight(energies[:, k].clone(), mode)
        )


@given(
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30),
    st.floats(-1e4, 1e4),
    st.sampled_from(["softmax", "scaled_softmax"]),
)
def test_weights_sum_up_rise_with_energy_and_know_no_common_shift(values, shift, mode):
    for dtype, slack in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        energies = torch.tensor(values, dtype=dtype)
        weights = ambiguity.ambiguity_weight(energies, mode)
        count = len(values)
        assert weights.isfinite().all()
        assert (weights >= 1).all()
        total = 2 * count if mode == "scaled_softmax" else count + 1
        assert weights.sum().item() == pytest.approx(total, rel=slack)
        order = energies.argsort()
        assert (weights[order].diff() >= 0).all()
    moved = ambiguity.ambiguity_weight(energies + shift, mode)
    torch.testing.assert_close(moved, weights, rtol=1e-7, atol=1e-7)


@settings(max_examples=25)
@given(st.lists(st.floats(-20, 0), min_size=1, max_size=10), st.integers(2, 5))
def test_only_the_scaled_weight_is_free_of_the_batch_size(values, copies):
    energies = torch.tensor(values, dtype=torch.float64)
    many = energies.repeat(copies)
    scaled, literal = (
        [ambiguity.ambiguity_weight(e, mode)[0].item() for e in (energies, many)]
        for mode in ("scaled_softmax", "softmax")
    )
    assert scaled[0] == pytest.approx(scaled[1])
    assert literal[0] - 1 == pytest.approx(copies * (literal[1] - 1), rel=1e-6)


def test_weights_from_class_means_are_those_of_the_labels():
    labels, class_energy = torch.tensor([2, 0, 2, 1, 3]), noise(3, 4)
    weights = ambiguity.ambiguity_weight(
        noise(5, 3), "class_means", class_energy=class_energy, labels=labels
    )
    assert weights.shape == (5, 3)
    for k in range(3):
        by_class = [1 + 4 * share for share in softmax_by_hand(class_energy[k].tolist())]
        assert sum(by_class) / 4 == pytest.approx(2)
        assert weights[:, k].tolist() == pytest.approx([by_class[y] for y in labels.tolist()])
    alone = ambiguity.ambiguity_weight(
        noise(5), "class_means", class_energy=class_energy[0], labels=labels
    )
    torch.testing.assert_close(alone, weights[:, 0])


def test_class_means_without_their_means_are_refused():
    with pytest.raises(ValueError, match="needs class_energy and labels: give both"):
        ambiguity.ambiguity_weight(noise(5), "class_means", labels=torch.zeros(5).long())
    with pytest.raises(ValueError, match="needs class_energy and labels: give both"):
        ambiguity.ambiguity_weight(noise(5), "class_means", class_energy=noise(4))


def test_constant_weights():
    assert ambiguity.ambiguity_weight(noise(2, 3), "none").tolist() == [[1.0] * 3] * 2
    assert ambiguity.ambiguity_weight(noise(2, 3), "constant").tolist() == [[2.0] * 3] * 2
    weights = ambiguity.ambiguity_weight(noise(2), "constant", constant=1.5)
    assert weights.tolist() == [1.5] * 2


@pytest.mark.parametrize("mode", get_args(Ambiguity))
def test_an_empty_batch_has_no_weights(mode):
    weights = ambiguity.ambiguity_weight(
        noise(0, 3), mode, class_energy=noise(3, 4), labels=torch.zeros(0).long()
    )
    assert weights.shape == (0, 3)


# running class means


def test_class_means_follow_those_of_the_batch_and_absent_classes_stay():
    previous, energies = noise(2, 4), noise(6, 2, seed=1)
    labels = torch.tensor([3, 0, 3, 3, 1, 0])
    before = previous.clone()
    means = ambiguity.class_mean_energy(previous, energies, labels, 0.9)
    assert torch.equal(previous, before), "the input stays"
    for k in range(2):
        assert means[k, 2] == previous[k, 2]
        for c in (0, 1, 3):
            rows = [energies[b, k].item() for b in range(6) if labels[b] == c]
            wanted = 0.9 * previous[k, c].item() + 0.1 * math.fsum(rows) / len(rows)
            assert means[k, c].item() == pytest.approx(wanted)
    alone = ambiguity.class_mean_energy(previous[1], energies[:, 1], labels, 0.9)
    torch.testing.assert_close(alone, means[1])


def test_class_means_converge_and_have_no_gradient():
    labels, energies = torch.tensor([0, 1, 1]), torch.tensor([-3.0, -1.0, -2.0])
    means = torch.full((3,), -10.0)
    for _ in range(200):
        means = ambiguity.class_mean_energy(means, energies.requires_grad_(), labels, 0.9)
    assert not means.requires_grad
    torch.testing.assert_close(means, torch.tensor([-3.0, -1.5, -10.0]))
    same = ambiguity.class_mean_energy(means, energies[:0], labels[:0], 0.9)
    assert torch.equal(same, means)


# the adjusted logits


def test_equation_9_by_hand():
    z, weight, shift = noise(4, 3, 5), noise(4, 3, seed=1), noise(3, 5, seed=2)
    adjusted = ambiguity.adjusted_logits(z, weight, shift)
    for b in range(4):
        for k in range(3):
            for c in range(5):
                wanted = z[b, k, c] + weight[b, k] * shift[k, c]
                assert adjusted[b, k, c].item() == pytest.approx(wanted.item())


@pytest.mark.parametrize(("mode", "tau"), [("none", 1.0), ("constant", 2.0)])
def test_with_a_constant_weight_it_is_plain_logit_adjustment(mode, tau):
    z, labels = noise(6, 3, 5), torch.arange(6) % 5
    log_prior = torch.tensor([500.0, 100, 30, 10, 5]).double().softmax(0).log()
    weight = ambiguity.ambiguity_weight(ambiguity.energy(z, 8.0), mode)
    adjusted = ambiguity.adjusted_logits(z, weight, log_prior.expand(3, 5))
    losses = by_expert(adjusted, labels)
    for k in range(3):
        plain = logit_adjusted(z[:, k], labels, log_prior, tau)
        torch.testing.assert_close(losses[:, k], plain, rtol=1e-14, atol=1e-14)


def test_ambiguous_samples_get_larger_margins_for_rare_classes():
    shift = torch.tensor([[0.9, 0.1]]).log()
    z = torch.zeros(2, 1, 2)
    losses = by_expert(
        ambiguity.adjusted_logits(z, torch.tensor([[1.0], [2.0]]), shift), torch.tensor([1, 1])
    )
    assert losses[1, 0] > losses[0, 0]


# gradients, types, devices


@pytest.mark.parametrize("mode", ["softmax", "scaled_softmax"])
def test_gradients(mode):
    z, labels, shift = noise(4, 2, 3).requires_grad_(), torch.arange(4) % 3, noise(2, 3, seed=5)
    q = noise(4, 2, 3, seed=3).softmax(-1)

    def loss(x):
        weight = ambiguity.ambiguity_weight(ambiguity.energy(x, 2.0), mode)
        return by_expert(ambiguity.adjusted_logits(x, weight, shift), labels)

    assert gradcheck(lambda x: ambiguity.energy(x, 2.0), z)
    assert gradcheck(lambda x: ambiguity.energy_terms(x, q, 2.0), z)
    assert gradcheck(loss, z)


def test_the_gradient_of_the_energy_is_minus_the_softmax():
    z = noise(4, 5).requires_grad_()
    ambiguity.energy(z, 8.0).sum().backward()
    torch.testing.assert_close(z.grad, -(z.detach() / 8).softmax(1))


def test_a_certain_two_hot_sample_has_finite_gradients():
    z = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    q = torch.tensor([[0.0, 1.0, 0.0]])
    terms = ambiguity.energy_terms(z, q, 1.0)
    sum(terms).sum().backward()
    assert all(term.isfinite().all() for term in terms)
    assert z.grad.isfinite().all()


def test_half_precision_logits_are_treated_in_single_precision():
    z = noise(16, 3, 10, scale=10).bfloat16()
    exact = ambiguity.energy(z.double(), 8.0)
    shift = noise(3, 10, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        energies = ambiguity.energy(z, 8.0)
        weight = ambiguity.ambiguity_weight(energies, "scaled_softmax")
        adjusted = ambiguity.adjusted_logits(z, weight, shift)
        terms = ambiguity.energy_terms(z, z.float().softmax(-1), 8.0)
    assert {t.dtype for t in (energies, weight, adjusted, *terms)} == {torch.float32}
    torch.testing.assert_close(energies.double(), exact, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(sum(terms).double(), -exact, rtol=1e-5, atol=1e-4)
    wanted = ambiguity.ambiguity_weight(exact, "scaled_softmax")
    torch.testing.assert_close(weight.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", get_args(Ambiguity))
def test_no_value_is_read_on_the_host(mode):
    z, labels = torch.empty(6, 3, 5, device="meta"), torch.empty(6, device="meta").long()
    energies = ambiguity.energy(z, 8.0)
    means = ambiguity.class_mean_energy(energies.new_empty(3, 5), energies, labels, 0.9)
    weight = ambiguity.ambiguity_weight(energies, mode, class_energy=means, labels=labels)
    assert ambiguity.adjusted_logits(z, weight, means).shape == (6, 3, 5)
    assert len(ambiguity.energy_terms(z, z, 8.0)) == 3
