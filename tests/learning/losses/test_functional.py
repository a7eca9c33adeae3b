from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.learning.losses import functional as losses

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
    loss = losses.logit_adjusted(LOGITS, LABELS, PRIOR.log(), tau)
    torch.testing.assert_close(loss, expected([p**tau for p in PRIOR.tolist()]))


def test_balanced_softmax_by_hand_and_as_logit_adjustment():
    loss = losses.balanced_softmax(LOGITS, LABELS, PRIOR.log())
    torch.testing.assert_close(loss, expected(COUNTS.tolist()))
    torch.testing.assert_close(loss, losses.logit_adjusted(LOGITS, LABELS, PRIOR.log(), 1.0))


def test_equal_counts_leave_cross_entropy():
    equal = torch.full((3,), 7.0, dtype=torch.float64)
    log_prior = (equal / equal.sum()).log()
    torch.testing.assert_close(
        losses.balanced_softmax(LOGITS, LABELS, log_prior), losses.cross_entropy(LOGITS, LABELS)
    )
    torch.testing.assert_close(
        losses.class_balanced_weight(equal, 0.9999), torch.ones(3, dtype=torch.float64)
    )


def test_class_balanced_weights_are_inverse_effective_numbers():
    beta = 0.99
    # the effective number is the geometric sum 1 + beta + ... + beta^(n - 1)
    effective = [math.fsum(beta**k for k in range(int(n))) for n in COUNTS.tolist()]
    raw = torch.tensor([1 / e for e in effective], dtype=torch.float64)
    weights = losses.class_balanced_weight(COUNTS, beta)
    torch.testing.assert_close(weights, raw * 3 / raw.sum())


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
        lambda z: losses.balanced_softmax(z, LABELS, PRIOR.log()),
        lambda z: losses.focal(z, LABELS, 2.0),
        lambda z: losses.focal(z, LABELS, 0.5),
    ):
        assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_by_hand(gamma):
    focal = losses.focal(LOGITS, LABELS, gamma)
    likely = [math.exp(-loss) for loss in expected([1, 1, 1]).tolist()]
    wanted = [-((1 - p) ** gamma) * math.log(p) for p in likely]
    torch.testing.assert_close(focal, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_of_certain_images_is_finite(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss = losses.focal(logits, torch.tensor([0, 0]), gamma)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.0, 200.0], abs=1e-6)
    assert logits.grad.isfinite().all()


def test_difficulty_weights_by_hand():
    accuracy = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    raw = [0.1**1.5, 0.5**1.5, 0.9**1.5]
    wanted = [3 * value / sum(raw) for value in raw]
    known = torch.ones(3, dtype=torch.bool)
    assert losses.cdb_weight(accuracy, known, 1.5).tolist() == pytest.approx(wanted)
    tau = 2 / (1 + math.exp(-(0.9 / 0.11 - 1)))
    torch.testing.assert_close(
        losses.cdb_weight(accuracy, known), losses.cdb_weight(accuracy, known, tau)
    )


def test_a_class_of_unknown_difficulty_is_as_hard_as_the_others_on_average():
    accuracy = torch.tensor([0.8, 0.0, 0.4])
    known = torch.tensor([True, False, True])
    weights = losses.cdb_weight(accuracy, known)
    full = losses.cdb_weight(torch.tensor([0.8, 0.6, 0.4]), torch.ones(3).bool())
    torch.testing.assert_close(weights, full)


def test_difficulty_weights_of_equal_classes_are_one():
    for accuracy in (0.0, 0.3, 1.0):
        weight = losses.cdb_weight(torch.full((4,), accuracy), torch.ones(4).bool())
        torch.testing.assert_close(weight, torch.ones(4))


def contrast_by_hand(views, labels, prototypes, temperature):
    """Zhu et al.'s equation 6, one anchor, one class and one member at a time."""
    members = [(v, i) for v in range(len(views)) for i in range(len(labels))]
    everyone = [(views[v][i], labels[i], (v, i)) for v, i in members]
    everyone += [(prototype, c, None) for c, prototype in enumerate(prototypes)]
    dot = lambda a, b: math.fsum(x * y for x, y in zip(a, b, strict=True))  # noqa: E731
    losses_by_image = [0.0] * len(labels)
    for v, i in members:
        anchor = views[v][i]
        others = [(x, c) for x, c, place in everyone if place != (v, i)]
        denominator = 0.0
        for wanted in range(len(prototypes)):
            same = [math.exp(dot(anchor, x) / temperature) for x, c in others if c == wanted]
            denominator += math.fsum(same) / len(same)
        positives = [x for x, c in others if c == labels[i]]
        logs = [dot(anchor, x) / temperature - math.log(denominator) for x in positives]
        losses_by_image[i] -= math.fsum(logs) / len(positives) / len(views)
    return losses_by_image


def unit(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )


@pytest.mark.parametrize("labels", [[0, 0, 2, 0, 1], [3, 3, 3, 3, 3], [0, 1, 2, 3, 0]])
def test_balanced_contrast_by_hand(labels):
    views, prototypes = unit(2, 5, 6, seed=0), unit(4, 6, seed=1)
    loss = losses.balanced_contrastive(views, torch.tensor(labels), prototypes, 0.1)
    wanted = contrast_by_hand(views.tolist(), labels, prototypes.tolist(), 0.1)
    assert loss.tolist() == pytest.approx(wanted)


def test_balanced_contrast_is_the_mean_of_views_and_knows_no_order():
    views, prototypes = unit(2, 6, 5, seed=2), unit(3, 5, seed=3)
    labels = torch.tensor([0, 1, 1, 2, 0, 0])
    loss = losses.balanced_contrastive(views, labels, prototypes, 0.2)
    swapped = losses.balanced_contrastive(views.flip(0), labels, prototypes, 0.2)
    torch.testing.assert_close(swapped, loss)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = losses.balanced_contrastive(views[:, order], labels[order], prototypes, 0.2)
    torch.testing.assert_close(shuffled, loss[order])
    renamed = torch.tensor([2, 0, 1])  # class c is now called renamed[c]
    again = losses.balanced_contrastive(views, renamed[labels], prototypes[renamed.argsort()], 0.2)
    torch.testing.assert_close(again, loss)


def test_balanced_contrast_does_not_grow_with_the_copies_of_another_class():
    # class averaging: the mean over a class's members, not their sum, is in the denominator
    views, prototypes = unit(2, 3, 4, seed=4), unit(3, 4, seed=5)
    labels = torch.tensor([0, 1, 2])
    once = losses.balanced_contrastive(views, labels, prototypes, 0.1)[0]
    prototypes[1] = views[0, 1]
    views[1, 1] = views[0, 1]
    same = losses.balanced_contrastive(views, labels, prototypes, 0.1)[0]
    copies = torch.cat([views, views[:, 1:2], views[:, 1:2]], 1)
    many = losses.balanced_contrastive(copies, torch.tensor([0, 1, 2, 1, 1]), prototypes, 0.1)[0]
    torch.testing.assert_close(many, same)
    assert once != same


def test_balanced_contrast_is_finite_for_cold_temperatures_in_single_precision():
    views, prototypes = unit(2, 6, 5, seed=2).float(), unit(3, 5, seed=3).float()
    views[0, 0] = prototypes[1] = -views[1, 0]
    views.requires_grad_()
    loss = losses.balanced_contrastive(views, torch.tensor([0, 1, 1, 2, 0, 0]), prototypes, 0.005)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert views.grad.isfinite().all()
    assert loss[0] > 100


def test_balanced_contrast_gradients():
    views, prototypes = unit(2, 4, 3, seed=6), unit(3, 3, seed=7)
    labels = torch.tensor([0, 2, 0, 1])
    assert torch.autograd.gradcheck(
        lambda v, p: losses.balanced_contrastive(v, labels, p, 0.5),
        (views.requires_grad_(), prototypes.requires_grad_()),
    )


def test_counts_with_a_zero_and_labels_out_of_range_are_refused():
    counts = torch.tensor([10.0, 0.0, 3.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="class 1 has 0"):
        losses.class_balanced_weight(counts, 0.99)
    for wrong in ([0, 3], [-1, 0], [-100, 0]):
        labels = torch.tensor(wrong)
        for loss in (
            lambda y: losses.cross_entropy(LOGITS, y),
            lambda y: losses.weighted_cross_entropy(LOGITS, y, COUNTS),
            lambda y: losses.balanced_softmax(LOGITS, y, PRIOR.log()),
            lambda y: losses.logit_adjusted(LOGITS, y, PRIOR.log(), 1.0),
            lambda y: losses.focal(LOGITS, y, 2.0),
            lambda y: losses.balanced_contrastive(unit(2, 2, 3, seed=0), y, unit(3, 3, seed=1), 1),
        ):
            with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, but range from"):
                loss(labels)
