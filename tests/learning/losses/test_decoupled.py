from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional as F

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses import decoupled
from lt_pipeline.learning.losses import functional as losses
from lt_pipeline.learning.losses.config import CriterionConfig
from lt_pipeline.learning.losses.criteria import Criterion, Head, Outputs
from lt_pipeline.learning.methods.families.experts import ExpertOptions
from lt_pipeline.learning.methods.families.outliers import OutlierOptions

COUNTS = torch.tensor([500, 6, 58, 5], dtype=torch.float64)
LOG_PRIOR = (COUNTS / COUNTS.sum()).log()
SHAPES = ("concave", "linear", "convex", "exponential")
LABELS = torch.tensor([0, 3, 0, 2, 0, 3, 2])


def logits(images=7, classes=4, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(images, classes, generator=generator, dtype=torch.float64)


def criterion(longtail=None, **values):
    longtail = longtail or LongTail.from_counts([500, 6, 58, 5])
    return TypeAdapter(CriterionConfig).validate_python(values).build(longtail, Head(8, scale=16.0))


def smoothing_by_hand(count, least, most, head, tail, shape, power):
    turn = math.pi * (count - least) / (2 * (most - least))
    if shape == "concave":
        return tail + (head - tail) * math.sin(turn)
    if shape == "convex":
        return head + (head - tail) * math.sin(1.5 * math.pi + turn)
    share = (count - least) / (most - least)
    return tail + (head - tail) * (share if shape == "linear" else share**power)


@pytest.mark.parametrize("shape", SHAPES)
def test_smoothing_by_hand(shape):
    smoothing = decoupled.class_smoothing(COUNTS, 0.4, 0.1, shape, 3.0)
    wanted = [smoothing_by_hand(n, 5, 500, 0.4, 0.1, shape, 3.0) for n in COUNTS.tolist()]
    torch.testing.assert_close(smoothing, torch.tensor(wanted, dtype=torch.float64))
    assert (smoothing[0].item(), smoothing[3].item()) == pytest.approx((0.4, 0.1))


@given(
    st.lists(st.integers(1, 5000), min_size=2, max_size=12),
    st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)).map(sorted),
    st.floats(0.1, 9),
)
def test_smoothing_rises_with_the_number_of_images_from_tail_to_head(counts, ends, power):
    tail, head = ends
    counted = torch.tensor(counts, dtype=torch.float64)
    by_shape = {
        shape: decoupled.class_smoothing(counted, head, tail, shape, power) for shape in SHAPES
    }
    order = counted.argsort()
    for smoothing in by_shape.values():
        assert (smoothing[order].diff() >= -1e-12).all()
        assert smoothing.max().item() == pytest.approx(head)
        assert len(set(counts)) == 1 or smoothing.min().item() == pytest.approx(tail)
    assert (by_shape["concave"] >= by_shape["linear"] - 1e-12).all()
    assert (by_shape["linear"] >= by_shape["convex"] - 1e-12).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_classes_of_equal_counts_are_all_smoothed_as_the_largest(shape):
    equal = torch.full((3,), 7.0, dtype=torch.float64)
    assert decoupled.class_smoothing(equal, 0.4, 0.1, shape, 2.0).tolist() == [0.4, 0.4, 0.4]


def test_a_class_without_images_is_refused():
    with pytest.raises(ValueError, match="class 1 has 0"):
        decoupled.class_smoothing(torch.tensor([5.0, 0.0]), 0.4, 0.1, "concave", 2.0)


def test_smoothed_cross_entropy_is_that_to_the_smoothed_targets():
    smoothing = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    scores = logits()
    targets = torch.zeros_like(scores)
    for row, label in enumerate(LABELS.tolist()):
        targets[row] = smoothing[label] / 4
        targets[row, label] = 1 - smoothing[label] + smoothing[label] / 4
    loss = decoupled.label_aware_smoothing(scores, LABELS, smoothing)
    torch.testing.assert_close(loss, F.cross_entropy(scores, targets, reduction="none"))


def test_equal_smoothing_is_torchs_label_smoothing_and_none_is_cross_entropy():
    scores = logits()
    for size in (0.0, 0.3):
        loss = decoupled.label_aware_smoothing(scores, LABELS, torch.full_like(scores[0], size))
        wanted = F.cross_entropy(scores, LABELS, reduction="none", label_smoothing=size)
        torch.testing.assert_close(loss, wanted)


def test_the_papers_targets_are_reached_by_a_larger_smoothing():
    # equation: 1 - e for the true class, e / (C - 1) for each of the others
    log_p, share = logits().log_softmax(1), 0.3
    own = log_p.gather(1, LABELS[:, None]).squeeze(1)
    wanted = -(1 - share) * own - share / 3 * (log_p.sum(1) - own)
    smoothing = torch.full((4,), share * 4 / 3, dtype=torch.float64)
    torch.testing.assert_close(decoupled.label_aware_smoothing(logits(), LABELS, smoothing), wanted)


def recalls_by_hand(scores, labels, log_prior, tau):
    """The mean share of the true class over the images of each class of the batch."""
    weight = [math.exp(tau * value) for value in log_prior.tolist()]
    recall: dict[int, list[float]] = {}
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        terms = [w * math.exp(z) for w, z in zip(weight, row, strict=True)]
        recall.setdefault(label, []).append(terms[label] / math.fsum(terms))
    return [math.fsum(values) / len(values) for values in recall.values()]


def geometric_by_hand(scores, labels, log_prior, tau):
    """-log of the geometric mean over the classes of the batch, as a product of averages."""
    means = recalls_by_hand(scores, labels, log_prior, tau)
    return -math.log(math.prod(means) ** (1 / len(means)))


def p_mean_by_hand(scores, labels, log_prior, tau, p):
    """The p-mean of -log recall over the classes of the batch."""
    losses_by_class = [-math.log(r) for r in recalls_by_hand(scores, labels, log_prior, tau)]
    return (math.fsum(x**p for x in losses_by_class) / len(losses_by_class)) ** (1 / p)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("labels", [[0, 3, 0, 2, 0, 3, 2], [1] * 7, [0, 1, 2, 3, 0, 1, 2]])
def test_geometric_mean_by_hand(tau, labels):
    labels = torch.tensor(labels)
    loss = decoupled.geometric_mean(logits(), labels, LOG_PRIOR, tau).mean()
    assert loss.item() == pytest.approx(geometric_by_hand(logits(), labels, LOG_PRIOR, tau))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 99), st.floats(0, 2))
def test_geometric_mean_of_any_batch(labels, seed, tau):
    labels, scores = torch.tensor(labels), logits(len(labels), 5, seed)
    log_prior = torch.linspace(-1, -4, 5, dtype=torch.float64)
    each = decoupled.geometric_mean(scores, labels, log_prior, tau)
    wanted = geometric_by_hand(scores, labels, log_prior, tau)
    assert each.mean().item() == pytest.approx(wanted)
    # by Jensen it is below cross-entropy averaged by class, and images of a class share alike
    by_image = losses.logit_adjusted(scores, labels, log_prior, tau)
    by_class = torch.stack([by_image[labels == c].mean() for c in labels.unique()])
    assert wanted <= by_class.mean().item() + 1e-9
    for c in labels.unique():
        torch.testing.assert_close(
            each[labels == c], each[labels == c][:1].expand_as(each[labels == c])
        )


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.integers(0, 99),
    st.floats(0, 2),
    st.floats(1, 12),
)
def test_the_p_mean_of_any_batch(labels, seed, tau, p):
    labels, scores = torch.tensor(labels), logits(len(labels), 5, seed)
    log_prior = torch.linspace(-1, -4, 5, dtype=torch.float64)
    loss = decoupled.geometric_mean(scores, labels, log_prior, tau, p).mean()
    assert loss.item() == pytest.approx(p_mean_by_hand(scores, labels, log_prior, tau, p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_p_1_every_class_counts_the_same_and_its_images_share_alike(dtype):
    scores, prior = logits().to(dtype), LOG_PRIOR.to(dtype)
    loss = decoupled.geometric_mean(scores, LABELS, prior, 1.0, 1.0)
    log_right = -losses.balanced_softmax(scores, LABELS, prior)
    for label in (0, 2, 3):
        mine = label == LABELS
        own = mine.sum().log() - log_right[mine].logsumexp(0)
        wanted = own * len(LABELS) / (3 * mine.sum())
        torch.testing.assert_close(loss[mine], wanted.expand(int(mine.sum())))


def test_the_larger_p_the_more_the_worst_class_counts():
    scores = logits().requires_grad_()
    values, shares = [], []
    for p in (1.0, 2.0, 8.0, 1000.0):
        loss = decoupled.geometric_mean(scores, LABELS, LOG_PRIOR, 1.0, p).mean()
        (slope,) = torch.autograd.grad(loss, scores)
        values.append(loss.item())
        size = torch.stack([slope[c == LABELS].abs().sum() for c in (0, 2, 3)])
        shares.append((size / size.sum()).tolist())
    by_class = [-math.log(r) for r in recalls_by_hand(scores.detach(), LABELS, LOG_PRIOR, 1.0)]
    worst = [0, 2, 1][max(range(3), key=lambda k: by_class[k])]  # they come as 0, 3, 2
    assert values == sorted(values)
    assert values[-1] == pytest.approx(max(by_class), rel=2e-3)
    assert [share[worst] for share in shares] == sorted(share[worst] for share in shares)
    assert shares[-1][worst] == pytest.approx(1)


@pytest.mark.parametrize("p", [1.0, 2.0, 7.5])
def test_a_batch_that_is_all_right_has_no_loss_and_no_gradient(p):
    scores = 500 * F.one_hot(LABELS, 4).float()
    scores.requires_grad_()
    loss = decoupled.geometric_mean(scores, LABELS, LOG_PRIOR.float(), 1.0, p).mean()
    (slope,) = torch.autograd.grad(loss, scores)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert slope.abs().max().item() == pytest.approx(0, abs=1e-6)


def test_one_image_a_class_makes_the_geometric_mean_balanced_softmax():
    labels = torch.tensor([2, 0, 3, 1])
    loss = decoupled.geometric_mean(logits(4), labels, LOG_PRIOR, 1.0)
    torch.testing.assert_close(loss, losses.balanced_softmax(logits(4), labels, LOG_PRIOR))
    plain = decoupled.geometric_mean(logits(4), labels, LOG_PRIOR, 0.0)
    torch.testing.assert_close(plain, losses.cross_entropy(logits(4), labels))


def test_uniform_probabilities_have_a_geometric_mean_of_one_over_classes():
    scores = torch.zeros(7, 4, dtype=torch.float64)
    loss = decoupled.geometric_mean(scores, LABELS, LOG_PRIOR, 0.0).mean()
    assert loss.item() == pytest.approx(math.log(4))
    # with the prior, r_c is the prior of c
    loss = decoupled.geometric_mean(scores, LABELS, LOG_PRIOR, 1.0).mean()
    assert loss.item() == pytest.approx(-LOG_PRIOR[[0, 2, 3]].mean().item())


def test_copies_of_a_class_do_not_make_it_count_more():
    scores = logits()
    loss = decoupled.geometric_mean(scores, LABELS, LOG_PRIOR, 1.0).mean()
    again = torch.cat([torch.arange(7), (LABELS == 0).nonzero().squeeze(1)])
    weighed = decoupled.geometric_mean(scores[again], LABELS[again], LOG_PRIOR, 1.0).mean()
    torch.testing.assert_close(weighed, loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_logits_are_finite_and_so_are_their_gradients(size, dtype):
    scores = (size * logits()).to(dtype).requires_grad_()
    smoothing = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=dtype)
    for loss in (
        decoupled.geometric_mean(scores, LABELS, LOG_PRIOR.to(dtype), 1.0).mean(),
        decoupled.geometric_mean(scores, LABELS, LOG_PRIOR.to(dtype), 1.0, 5.0).mean(),
        decoupled.label_aware_smoothing(scores, LABELS, smoothing).mean(),
    ):
        (slope,) = torch.autograd.grad(loss, scores)
        assert loss.isfinite()
        assert slope.isfinite().all()
        assert slope.abs().max() > 1e-3


def test_a_class_that_is_all_wrong_has_the_loss_of_its_least_wrong_image():
    # both probabilities are far below what float32 holds
    scores = torch.tensor([[0.0, 300.0], [0.0, 200.0]])
    loss = decoupled.geometric_mean(scores, torch.tensor([0, 0]), torch.zeros(2), 1.0).mean()
    assert loss.item() == pytest.approx(200 + math.log(2))


def test_gradients():
    scores = logits().requires_grad_()
    smoothing = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    for loss in (
        lambda z: decoupled.label_aware_smoothing(z, LABELS, smoothing),
        lambda z: decoupled.geometric_mean(z, LABELS, LOG_PRIOR, 1.0),
        lambda z: decoupled.geometric_mean(z, LABELS, LOG_PRIOR, 1.0).mean(),
        lambda z: decoupled.geometric_mean(z, LABELS, LOG_PRIOR, 1.0, 3.0).mean(),
    ):
        assert torch.autograd.gradcheck(loss, scores)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "geometric_mean"},
        {"name": "geometric_mean", "p": 3},
        {"name": "label_aware_smoothing"},
    ],
)
def test_networks_side_by_side_have_the_losses_and_gradients_of_each_alone(values):
    built = criterion(**values)
    stacked = torch.stack([logits(seed=seed).float() for seed in range(3)])
    side_by_side = torch.func.vmap(torch.func.grad(lambda z: built(z, LABELS).mean()))(stacked)
    for loss, scores in zip(side_by_side, stacked, strict=True):
        alone = scores.clone().requires_grad_()
        built(alone, LABELS).mean().backward()
        torch.testing.assert_close(loss, alone.grad)


def test_criteria_bind_the_losses_to_the_class_distribution():
    scores = logits().float()
    for values, wanted in [
        (
            {"name": "label_aware_smoothing"},
            decoupled.label_aware_smoothing(
                scores, LABELS, decoupled.class_smoothing(COUNTS, 0.4, 0.1, "concave", 1).float()
            ),
        ),
        (
            {"name": "label_aware_smoothing", "head": 0.3, "tail": 0, "shape": "exponential"},
            decoupled.label_aware_smoothing(
                scores, LABELS, decoupled.class_smoothing(COUNTS, 0.3, 0, "exponential", 2).float()
            ),
        ),
        (
            {"name": "geometric_mean"},
            decoupled.geometric_mean(scores, LABELS, LOG_PRIOR.float(), 1.0),
        ),
        (
            {"name": "geometric_mean", "tau": 0.5},
            decoupled.geometric_mean(scores, LABELS, LOG_PRIOR.float(), 0.5),
        ),
        (
            {"name": "geometric_mean", "p": 4},
            decoupled.geometric_mean(scores, LABELS, LOG_PRIOR.float(), 1.0, 4.0),
        ),
    ]:
        torch.testing.assert_close(criterion(**values)(scores, LABELS), wanted)


def test_the_geometric_mean_of_a_batch_is_its_term():
    terms = criterion(name="geometric_mean").terms(Outputs(logits().bfloat16()), LABELS)
    assert list(terms) == ["geometric_mean"]
    loss = terms["geometric_mean"]
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    wanted = geometric_by_hand(logits().bfloat16(), LABELS, LOG_PRIOR, 1.0)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_a_loss_of_the_batch_goes_with_outliers_and_not_with_experts():
    assert Criterion.per_image
    batch_loss = {"criterion": {"name": "geometric_mean"}}
    assert not OutlierOptions.model_validate(batch_loss).criterion.kind.per_image
    with pytest.raises(ValidationError, match="'geometric_mean' is a loss of a whole batch"):
        ExpertOptions.model_validate(batch_loss)
    assert ExpertOptions.model_validate({"criterion": {"name": "label_aware_smoothing"}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": 0.1, "tail": 0.4}, "head must be >= tail"),
        ({"head": 1.0}, "head"),
        ({"tail": -0.1}, "tail"),
        ({"shape": "exp"}, "shape"),
        ({"shape": "exponential", "power": 0}, "power"),
        ({"name": "geometric_mean", "tau": -1}, "tau"),
        ({"name": "geometric_mean", "p": 0.5}, "p"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        criterion(**{"name": "label_aware_smoothing", **values})
