from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses import margins
from lt_pipeline.learning.losses.margins import MarginConfig

# unsorted, and the rarest class is not the last one
LONGTAIL = LongTail.from_counts([50, 5, 200, 10])
SCALE = 32.0
NAMES = ("sphereface", "cosface", "arcface", "ldam", "dbm")


def margin(longtail=LONGTAIL, scale=SCALE, **values):
    built = TypeAdapter(MarginConfig).validate_python(values).build(longtail, scale)
    return built.double()


def cosines(*rows):
    return SCALE * torch.tensor(rows, dtype=torch.float64)


def test_class_margin_by_hand():
    counts = LONGTAIL.counts
    for tau in (0.0, 0.5, 1.0, 2.0):
        wanted = [0.2 * (n / 5) ** -tau for n in (50, 5, 200, 10)]
        assert margins.class_margin(counts, 0.2, tau).tolist() == pytest.approx(wanted)


def test_ldam_margin_by_hand():
    raw = [n**-0.25 for n in (50, 5, 200, 10)]
    wanted = [0.5 * value / max(raw) for value in raw]
    assert margins.ldam_margin(LONGTAIL.counts, 0.5).tolist() == pytest.approx(wanted)


@given(
    st.lists(st.integers(1, 5000), min_size=2, max_size=20), st.floats(0.01, 0.3), st.floats(0, 3)
)
def test_margins_grow_as_counts_fall(counts, k, tau):
    tensor = torch.tensor(counts, dtype=torch.float64)
    for margin in (margins.class_margin(tensor, k, tau), margins.ldam_margin(tensor, k)):
        ranked = margin[tensor.argsort()]
        assert (ranked.diff() <= 1e-12).all()
        assert margin[tensor.argmin()].item() == pytest.approx(k)


def test_a_permutation_of_classes_permutes_the_margins():
    order = torch.tensor([2, 0, 3, 1])
    margin = margins.class_margin(LONGTAIL.counts, 0.1, 1.0)
    moved = margins.class_margin(LONGTAIL.counts[order], 0.1, 1.0)
    torch.testing.assert_close(moved, margin[order])


# image 0: right (class 1); image 1: a hard positive (class 3, but class 0 is nearer)
LOGITS = cosines([0.1, 0.7, -0.3, 0.2], [0.8, 0.0, -0.1, 0.3])
LABELS = torch.tensor([1, 3])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"name": "cosface", "size": 0.35}, [0.7 - 0.35, 0.3 - 0.35]),
        (
            {"name": "arcface", "size": 0.5},
            [math.cos(math.acos(0.7) + 0.5), math.cos(math.acos(0.3) + 0.5)],
        ),
        (
            {"name": "sphereface", "factor": 1.5},
            [math.cos(1.5 * math.acos(0.7)), math.cos(1.5 * math.acos(0.3))],
        ),
        ({"name": "ldam", "largest": 0.5}, [0.7 - 0.5, 0.3 - 0.5 * 2**-0.25]),
        (
            {"name": "dbm", "K": 0.2, "positives": "none"},
            [math.cos(math.acos(0.7) + 0.2), math.cos(math.acos(0.3) + 0.1)],
        ),
        (
            {"name": "dbm", "K": 0.2, "positives": "hard"},
            [math.cos(math.acos(0.7) + 0.2), math.cos(math.acos(0.3) + 0.1 * (1 + 0.35))],
        ),
        (
            {"name": "dbm", "K": 0.2, "positives": "all"},
            [
                math.cos(math.acos(0.7) + 0.2 * (1 + 0.15)),
                math.cos(math.acos(0.3) + 0.1 * (1 + 0.35)),
            ],
        ),
        (
            {"name": "dbm", "K": 0.3, "tau": 0.0, "positives": "none"},
            [math.cos(math.acos(0.7) + 0.3), math.cos(math.acos(0.3) + 0.3)],
        ),
    ],
)
def test_each_margin_by_hand(values, wanted):
    loss = margin(**values)(LOGITS, LABELS)
    target = loss.gather(1, LABELS[:, None]).squeeze(1) / SCALE
    assert target.tolist() == pytest.approx(wanted, abs=1e-7)
    others = torch.ones_like(LOGITS, dtype=torch.bool).scatter_(1, LABELS[:, None], False)
    assert torch.equal(loss[others], LOGITS[others])


def test_of_equal_cosines_the_first_class_is_taken_for_the_nearest():
    tie = cosines([0.5, 0.5, 0.0, 0.0])
    dbm = {"name": "dbm", "K": 0.2, "tau": 0.0}
    hard, none = margin(**dbm), margin(**dbm, positives="none")
    first, second = torch.tensor([0]), torch.tensor([1])
    assert torch.equal(hard(tie, first), none(tie, first))
    assert not torch.equal(hard(tie, second), none(tie, second))


@pytest.mark.parametrize(
    "values",
    [
        {"name": "dbm", "K": 0.0},
        {"name": "dbm", "K": 0.0, "past_pi": "monotone"},
        {"name": "ldam", "largest": 0.0},
        {"name": "cosface", "size": 0.0},
        {"name": "arcface", "size": 0.0},
    ],
)
def test_no_margin_is_the_plain_cosine_to_the_bit(values):
    generator = torch.Generator().manual_seed(0)
    plain = 2 * torch.rand(500, 4, generator=generator) - 1
    plain[:2] = torch.tensor([1.0, -1.0])[:, None]
    labels = torch.randint(4, (500,), generator=generator)
    built = TypeAdapter(MarginConfig).validate_python(values).build(LONGTAIL, SCALE)
    assert torch.equal(built(SCALE * plain, labels), SCALE * plain)


def test_past_pi_the_formula_rises_and_monotone_falls():
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    cosine = theta.cos()
    size = torch.full_like(theta, 0.5)
    formula = margins.add_angle(cosine, size, "formula")
    monotone = margins.add_angle(cosine, size, "monotone")
    before = theta < math.pi - 0.5
    torch.testing.assert_close(formula[before], monotone[before], rtol=0, atol=0)
    assert (formula[~before].diff() > -1e-9).all()
    assert formula[~before][-1] > formula[~before][0] + 0.1
    assert (monotone.diff() < 1e-9).all()
    assert monotone.diff().abs().max() < 2e-3, "it must not jump"


@given(st.floats(1.0, 4.0))
def test_the_multiplied_angle_falls_without_a_jump(factor):
    theta = torch.linspace(0.01, math.pi - 0.01, 3000, dtype=torch.float64)
    multiplied = margins.multiply_angle(theta.cos(), factor)
    assert (multiplied.diff() < 1e-9).all()
    assert multiplied.diff().abs().max() < 2 * factor * math.pi / 3000
    first = factor * theta <= math.pi
    torch.testing.assert_close(multiplied[first], (factor * theta[first]).cos())


def test_a_factor_of_two_is_the_double_angle():
    cosine = torch.linspace(-0.9, 0.9, 50, dtype=torch.float64)
    doubled = margins.multiply_angle(cosine, 2.0, "formula")
    torch.testing.assert_close(doubled, 2 * cosine.square() - 1)


@pytest.mark.parametrize("past_pi", ["formula", "monotone"])
@pytest.mark.parametrize("positives", ["none", "hard", "all"])
def test_dbm_gradients(positives, past_pi):
    built = margin(name="dbm", K=0.3, tau=0.5, positives=positives, past_pi=past_pi)
    assert torch.autograd.gradcheck(lambda z: built(z, LABELS), LOGITS.clone().requires_grad_())


@pytest.mark.parametrize("name", NAMES[:-1])
def test_other_gradients(name):
    built = margin(name=name)
    assert torch.autograd.gradcheck(lambda z: built(z, LABELS), LOGITS.clone().requires_grad_())


def test_dbm_gradient_by_hand():
    """d logit / d cos = sin(theta + m) (1 / sin(theta) + m_C / 2), the last term not detached."""
    for detach in (False, True):
        logits = LOGITS.clone().requires_grad_()
        built = margin(name="dbm", K=0.2, detach_difficulty=detach)
        built(logits, LABELS)[1, 3].backward()
        theta, by_class = math.acos(0.3), 0.1
        total = theta + by_class * (1 + 0.35)
        extra = 0 if detach else by_class / 2
        wanted = math.sin(total) * (1 / math.sin(theta) + extra)
        assert logits.grad[1, 3].item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cosine", [1.0, -1.0, 1.0000001, -1.0000001])
def test_values_and_gradients_are_finite_where_the_angle_has_no_slope(name, cosine):
    values = {"K": 0.3} if name == "dbm" else {}
    built = TypeAdapter(MarginConfig).validate_python({"name": name, **values})
    logits = torch.full((3, 4), cosine).mul_(SCALE).requires_grad_()
    loss = built.build(LONGTAIL, SCALE)(logits, torch.tensor([0, 1, 2]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    # s (|cos| + the margin's reach): nothing explodes on the way
    assert logits.grad.abs().max() < 1500


@pytest.mark.parametrize("name", NAMES)
def test_labels_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.3, but range from 1 to 4"):
        margin(name=name)(LOGITS, torch.tensor([1, 4]))


def test_counts_with_a_zero_are_refused():
    counts = torch.tensor([3.0, 0.0])
    for make in (
        lambda: margins.class_margin(counts, 0.1, 1),
        lambda: margins.ldam_margin(counts, 1),
    ):
        with pytest.raises(ValueError, match="class 1 has 0"):
            make()
    with pytest.raises(ValueError, match="class 1"):
        LongTail.from_counts([3, 0])


@pytest.mark.parametrize(
    "values",
    [
        {"name": "dbm", "K": -0.1},
        {"name": "dbm", "tau": -1},
        {"name": "dbm", "positives": "easy"},
        {"name": "sphereface", "factor": 0.5},
        {"name": "arcface", "size": 4},
        {"name": "arc"},
    ],
)
def test_wrong_values_are_refused(values):
    with pytest.raises(ValidationError):
        TypeAdapter(MarginConfig).validate_python(values)
