from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.losses import functional as losses

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([2, 0])
COUNTS = torch.tensor([100.0, 10.0, 1.0], dtype=torch.float64)
PRIOR = COUNTS / COUNTS.sum()


def by_hand(logits, label, weight):
    """-log(w_y e^z_y / sum_c w_c e^z_c), term by term."""
    terms = [w * math.exp(z) for w, z in zip(weight, logits, strict=True)]
    return -math.log(terms[label] / math.fsum(terms))


def expected(weight):
    pairs = zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    return torch.tensor([by_hand(z, y, weight) for z, y in pairs], dtype=torch.float64)


def test_cross_entropy_by_hand():
    torch.testing.assert_close(losses.cross_entropy(LOGITS, LABELS), expected([1, 1, 1]))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_logit_adjustment_by_hand(tau):
    found = losses.logit_adjusted(LOGITS, LABELS, PRIOR.log(), tau)
    torch.testing.assert_close(found, expected([p**tau for p in PRIOR.tolist()]))


def test_balanced_softmax_by_hand_and_as_logit_adjustment():
    found = losses.balanced_softmax(LOGITS, LABELS, COUNTS)
    torch.testing.assert_close(found, expected(COUNTS.tolist()))
    torch.testing.assert_close(found, losses.logit_adjusted(LOGITS, LABELS, PRIOR.log(), 1.0))


def test_equal_counts_leave_cross_entropy():
    equal = torch.full((3,), 7.0, dtype=torch.float64)
    torch.testing.assert_close(
        losses.balanced_softmax(LOGITS, LABELS, equal), losses.cross_entropy(LOGITS, LABELS)
    )
    torch.testing.assert_close(
        losses.class_balanced_weight(equal, 0.9999), torch.ones(3, dtype=torch.float64)
    )


def test_class_balanced_weights_are_inverse_effective_numbers():
    beta = 0.99
    # the effective number is the geometric sum 1 + beta + ... + beta^(n - 1)
    effective = [math.fsum(beta**k for k in range(int(n))) for n in COUNTS.tolist()]
    raw = torch.tensor([1 / e for e in effective], dtype=torch.float64)
    found = losses.class_balanced_weight(COUNTS, beta)
    torch.testing.assert_close(found, raw * 3 / raw.sum())


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=20), st.floats(0.0, 0.9999))
def test_rarer_classes_never_weigh_less(counts, beta):
    weight = losses.class_balanced_weight(torch.tensor(counts, dtype=torch.float64), beta)
    assert weight.sum().item() == pytest.approx(len(counts))
    order = sorted(range(len(counts)), key=counts.__getitem__)
    ranked = [weight[c].item() for c in order]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(ranked))


def test_gradients():
    logits = LOGITS.clone().requires_grad_()
    weight = losses.class_balanced_weight(COUNTS, 0.99)
    for loss in (
        lambda z: losses.cross_entropy(z, LABELS),
        lambda z: losses.weighted_cross_entropy(z, LABELS, weight),
        lambda z: losses.logit_adjusted(z, LABELS, PRIOR.log(), 1.5),
        lambda z: losses.balanced_softmax(z, LABELS, COUNTS),
    ):
        assert torch.autograd.gradcheck(loss, logits)
