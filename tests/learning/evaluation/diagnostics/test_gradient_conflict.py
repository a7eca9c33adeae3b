from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.diagnostics import gradient_conflict as module
from lt_pipeline.learning.evaluation.diagnostics.gradient_conflict import (
    Readout,
    conflict_by_group,
    gradient_cosines,
    gradient_products,
    paired_conflict_by_group,
    paired_cosines,
    residual,
)
from lt_pipeline.learning.models.heads import CosineHead

CLASSES, WIDTH = 6, 4
LONGTAIL = LongTail.from_counts([300, 200, 60, 50, 9, 5])


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


HEADS = {
    "linear": Readout(draw(CLASSES, WIDTH, seed=1)),
    "with bias": Readout(draw(CLASSES, WIDTH, seed=1), bias=draw(CLASSES, seed=2)),
    "cosine": Readout(draw(CLASSES, WIDTH, seed=1), scale=7.0),
}


def one_hot(*classes):
    return F.one_hot(torch.tensor(classes), CLASSES).double()


def targets(kind, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "exposure":
        return torch.full((n, CLASSES), 1 / CLASSES, dtype=torch.float64)
    first, second = (torch.randint(CLASSES, (n,), generator=generator) for _ in range(2))
    share = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    if kind == "classification":
        return one_hot(*first.tolist())
    return share * one_hot(*first.tolist()) + (1 - share) * one_hot(*second.tolist())


def by_autograd(head, features, target):
    """Gradients of the cross-entropy to ``target`` by weight and bias, one image at a time."""
    rows = []
    for f, q in zip(features, target, strict=True):
        weight = head.weight.clone().requires_grad_()
        leaves = [weight]
        if head.scale is None:
            z = weight @ f
        else:
            z = head.scale * (weight @ f) / (weight.norm(dim=1) * f.norm())
        if head.bias is not None:
            leaves.append(head.bias.clone().requires_grad_())
            z = z + leaves[1]
        grads = torch.autograd.grad(F.cross_entropy(z[None], q[None]), leaves)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


def residual_of(head, features, target):
    return residual(head.logits(features), target)


@pytest.mark.parametrize("other", ["classification", "exposure", "mixed"])
@pytest.mark.parametrize("name", HEADS)
def test_products_and_cosines_are_those_of_autograds_gradients(name, other):
    head = HEADS[name]
    x, y = draw(5, WIDTH, seed=3), draw(7, WIDTH, seed=4)
    q, p = targets("classification", 5), targets(other, 7, seed=5)
    a, b = by_autograd(head, x, q), by_autograd(head, y, p)
    sides = (residual_of(head, x, q), x, residual_of(head, y, p), y, head)
    products = gradient_products(*sides)
    assert (products.dtype, products.shape) == (torch.float64, (5, 7))
    assert torch.allclose(products, a @ b.T, rtol=1e-10, atol=1e-13)
    cosines = gradient_cosines(*sides)
    wanted = F.cosine_similarity(a[:, None], b, dim=2)
    assert torch.allclose(cosines, wanted, rtol=1e-10, atol=1e-12)
    pairs = paired_cosines(sides[0], x, sides[2][:5], y[:5], head)
    assert torch.allclose(pairs, wanted[:, :5].diagonal(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_products_are_symmetric_and_a_gradients_cosine_with_itself_is_1(name):
    head = HEADS[name]
    x, y = draw(5, WIDTH, seed=3), draw(4, WIDTH, seed=4)
    r = residual_of(head, x, targets("classification", 5))
    s = residual_of(head, y, targets("mixed", 4))
    forth, back = gradient_products(r, x, s, y, head), gradient_products(s, y, r, x, head)
    assert torch.allclose(forth, back.T, rtol=1e-12, atol=1e-15)
    own = gradient_cosines(r, x, r, x, head)
    assert torch.allclose(own.diagonal(), torch.ones(5).double(), rtol=0, atol=1e-12)
    assert (own.abs() < 1 + 1e-12).all()


def test_logits_are_those_of_the_networks_heads():
    cosine, linear = CosineHead(WIDTH, CLASSES, 16.0), torch.nn.Linear(WIDTH, CLASSES)
    x = draw(5, WIDTH).float()
    cosine.weight.data.mul_(3)
    for head, network in (
        (Readout(cosine.weight, scale=16.0), cosine),
        (Readout(linear.weight, linear.bias), linear),
    ):
        logits = head.logits(x)
        assert not logits.requires_grad
        assert torch.allclose(logits, network(x).double(), atol=1e-5)


def same_image(*probability, y, target):
    """Product of an ID image's gradient and another's with equal features, under a linear head."""
    p = torch.tensor([probability], dtype=torch.float64)
    e = F.one_hot(torch.tensor([y]), p.shape[1]).double()
    x = torch.ones(1, 3, dtype=torch.float64)
    head = Readout(torch.zeros(p.shape[1], 3))
    q = torch.tensor([target], dtype=torch.float64)
    return float(gradient_products(residual(p.log(), e), x, residual(p.log(), q), x, head))


def test_outlier_exposure_pulls_against_the_class_an_image_shares_features_with():
    # <f, f'> = 3 times |p|^2 - p_y
    products = same_image(0.7, 0.1, 0.1, 0.1, y=0, target=[0.25] * 4)
    assert products == pytest.approx(3 * (0.52 - 0.7))
    assert products < 0
    # the paper's factor 1/C - p is the gradient of -L_OE: it would make equation 2 positive
    p = torch.tensor([0.7, 0.1, 0.1, 0.1], dtype=torch.float64)
    assert 3 * float((p - one_hot(0)[0, :4]) @ (0.25 - p)) > 0


def test_more_than_chance_for_the_class_is_not_enough_for_equation_2():
    assert 0.3 > 1 / 4
    products = same_image(0.3, 0.7, 0, 0, y=0, target=[0.25] * 4)
    assert products == pytest.approx(3 * (0.58 - 0.3))
    assert products > 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_equation_2_holds_wherever_the_class_is_the_likeliest(seed):
    p = draw(CLASSES, seed=seed).mul(2).softmax(0)
    y = int(p.argmax())
    assert same_image(*p.tolist(), y=y, target=[1 / CLASSES] * CLASSES) < 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.5, 1))
def test_mixed_images_with_aligned_features_agree_while_their_label_is_not_reached(seed, share):
    p = draw(CLASSES, seed=seed).mul(0.3).softmax(0)
    target = [share, 1 - share] + [0.0] * (CLASSES - 2)
    assert p[0] < share
    assert same_image(*p.tolist(), y=0, target=target) > 0


def test_equation_5_fails_for_a_mixed_image_taken_for_its_class_too_surely():
    # |p|^2 - p_y + share (1 - p_y) - (1 - share) p_k
    products = same_image(0.8, 0.2, y=0, target=[0.1, 0.9])
    assert products == pytest.approx(3 * (0.68 - 0.8 + 0.1 * 0.2 - 0.9 * 0.2))
    assert products < 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["classification", "exposure", "mixed"]))
def test_the_residual_is_the_gradient_by_the_logits_and_sums_to_0(seed, kind):
    z = draw(4, CLASSES, seed=seed).mul(3).requires_grad_()
    q = targets(kind, 4, seed=seed)
    (wanted,) = torch.autograd.grad(F.cross_entropy(z, q, reduction="sum"), z)
    difference = residual(z, q)
    assert not difference.requires_grad
    assert torch.allclose(difference, wanted, rtol=0, atol=1e-14)
    assert torch.allclose(difference.sum(1), torch.zeros(4).double(), rtol=0, atol=1e-15)


def test_the_residual_of_an_image_learnt_to_the_last_digit_keeps_its_direction():
    z = torch.tensor([[60.0, 1.0, 0.0]])
    difference = residual(z, torch.tensor([[1.0, 0.0, 0.0]]))[0]
    others = [math.exp(-59), math.exp(-60)]
    assert difference.tolist() == pytest.approx([-sum(others), *others], rel=1e-12, abs=0)
    head, x = Readout(torch.zeros(3, 2)), torch.ones(1, 2)
    exposed = residual(z, torch.full((1, 3), 1 / 3))
    assert float(gradient_cosines(difference[None], x, exposed, x, head)) < -0.9


def test_a_gradient_of_no_length_has_cosine_0_and_no_conflict():
    zero, r = torch.zeros(1, CLASSES), residual(draw(1, CLASSES), one_hot(0))
    x = draw(1, WIDTH)
    for head in HEADS.values():
        for sides in ((zero, x, r, x), (r, x, zero, x)):
            assert gradient_cosines(*sides, head).tolist() == [[0]]
            assert paired_cosines(*sides, head).tolist() == [0]
        conflict = conflict_by_group(zero, x, torch.tensor([4]), r, x, head, LONGTAIL)
        assert conflict == {key: {"few": 0, "all": 0} for key in ("cosine", "negative_share")}
    # the logit of a feature along its weight is at its maximum
    head = Readout(torch.tensor([[3.0, 4.0]]), scale=5.0)
    along = torch.tensor([[0.6, 0.8]])
    assert gradient_cosines(torch.ones(1, 1), along, torch.ones(1, 1), along, head).tolist() == [
        [0]
    ]


def sides_of(n, m, head):
    x, y = draw(n, WIDTH, seed=3), draw(m, WIDTH, seed=4)
    labels = torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(6))
    r = residual_of(head, x, one_hot(*labels.tolist()))
    return r, x, labels, residual_of(head, y, targets("exposure", m)), y


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk", [1, 50, 2**22])
def test_the_summary_is_the_mean_over_all_pairs_whatever_the_chunks(monkeypatch, name, chunk):
    monkeypatch.setattr(module, "CHUNK_NUMBERS", chunk)
    head = HEADS[name]
    r, x, labels, s, y = sides_of(40, 13, head)
    cosines = gradient_cosines(r, x, s, y, head)
    conflict = conflict_by_group(r, x, labels, s, y, head, LONGTAIL)
    assert list(conflict) == ["cosine", "negative_share"]
    assert (
        set(conflict["cosine"])
        == set(conflict["negative_share"])
        == {"many", "medium", "few", "all"}
    )
    for group, classes in {**LONGTAIL.groups, "all": range(CLASSES)}.items():
        own = cosines[[int(label) in classes for label in labels]]
        assert conflict["cosine"][group] == pytest.approx(float(own.mean()), rel=1e-12)
        share = float((own < 0).double().mean())
        assert 0 < share < 1
        assert conflict["negative_share"][group] == pytest.approx(share, rel=1e-12)


def test_memory_is_bounded_by_chunks_of_all_pairs(monkeypatch):
    sizes = []
    products = module._Factors.products

    def watched(self, other):
        result = products(self, other)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(module, "CHUNK_NUMBERS", 50)
    monkeypatch.setattr(module._Factors, "products", watched)
    conflict_by_group(*sides_of(40, 13, HEADS["cosine"]), HEADS["cosine"], LONGTAIL)
    assert sizes == [39] * 13 + [13]


def test_partners_alone_are_summarised_by_group():
    head = HEADS["cosine"]
    r, x, labels, s, y = sides_of(40, 40, head)
    cosines = paired_cosines(r, x, s, y, head)
    conflict = paired_conflict_by_group(r, x, labels, s, y, head, LONGTAIL)
    few = torch.tensor([int(label) in (4, 5) for label in labels])
    assert conflict["cosine"]["few"] == pytest.approx(float(cosines[few].mean()))
    assert conflict["negative_share"]["few"] == pytest.approx(
        float((cosines[few] < 0).double().mean())
    )
    assert conflict["cosine"]["all"] == pytest.approx(float(cosines.mean()))


def test_a_group_without_an_image_is_left_out():
    head = HEADS["linear"]
    r, x, labels, s, y = sides_of(40, 13, head)
    keep = labels < 4
    conflict = conflict_by_group(r[keep], x[keep], labels[keep], s, y, head, LONGTAIL)
    assert set(conflict["cosine"]) == {"many", "medium", "all"}


def test_what_does_not_fit_is_refused():
    head = HEADS["linear"]
    r, x, labels, s, y = sides_of(4, 3, head)
    with pytest.raises(ValueError, match=r"\[N, 6\] and \[N, 4\], .*are \[4, 6\] and \[4, 3\]"):
        gradient_products(r, x[:, :3], s, y, head)
    with pytest.raises(ValueError, match=r"are \[4, 6\] and \[3, 4\]"):
        gradient_products(s, y, r, x[:3], head)
    with pytest.raises(ValueError, match="there are 3 and 4"):
        paired_cosines(r, x, s, y, head)
    with pytest.raises(ValueError, match="4 ID images and 0 others"):
        conflict_by_group(r, x, labels, s[:0], y[:0], head, LONGTAIL)
    with pytest.raises(ValueError, match="0 ID images and 3 others"):
        paired_conflict_by_group(r[:0], x[:0], labels[:0], s, y, head, LONGTAIL)
    with pytest.raises(ValueError, match=r"shape \[4, 6\], but have \[3, 6\]"):
        residual(r, s)
    with pytest.raises(ValueError, match="sum to 1"):
        residual(r, 2 * targets("mixed", 4))
    with pytest.raises(ValueError, match="no bias"):
        Readout(head.weight, bias=torch.zeros(CLASSES), scale=3.0)
    with pytest.raises(ValueError, match=r"bias must be \[6\], one a class, but is \[5\]"):
        Readout(head.weight, bias=torch.zeros(5))
    with pytest.raises(ValueError, match=r"weight must be \[C, F\], but is \[6\]"):
        Readout(torch.zeros(6))
