from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.learning.data.profiles import Exponential, profile_counts
from lt_pipeline.learning.losses import local_global
from lt_pipeline.learning.losses.experts import by_expert
from lt_pipeline.learning.losses.functional import balanced_softmax

COUNTS = torch.tensor([10, 100, 1, 30, 20])  # unsorted
PRIOR = COUNTS.double() / COUNTS.sum()
COUNT_LISTS = st.lists(st.integers(1, 5000), min_size=1, max_size=30)


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def split_by_hand(counts, groups):
    """The number of classes of each group, the rarest classes' first."""
    ascending, total = sorted(counts), sum(counts)
    ends = []
    for g in range(1, groups):
        end = next(n for n in range(1, len(counts) + 1) if groups * sum(ascending[:n]) > g * total)
        end = max(end, ends[-1] + 1 if ends else 1)
        ends.append(end)
    ends = [min(end, len(counts) - groups + g) for g, end in enumerate(ends, 1)]
    return [b - a for a, b in zip([0, *ends], [*ends, len(counts)], strict=True)]


@pytest.mark.parametrize(
    ("classes", "largest", "ratio", "head", "others"),
    [
        (100, 500, 100, 14, 86),
        (100, 500, 50, 16, 84),
        (100, 500, 10, 25, 75),
        (10, 5000, 100, 1, 9),
        (10, 5000, 50, 1, 9),
        (10, 5000, 10, 2, 8),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_the_groups_of_long_tailed_cifar(classes, largest, ratio, head, others, dtype):
    counts = profile_counts(
        Exponential(), classes=classes, max_per_class=largest, imbalance_ratio=ratio
    )
    member = local_global.half_groups(torch.tensor(counts, dtype=dtype), 2)
    assert member.sum(1).tolist() == [head, others]
    assert member[0, :head].all(), "class 0 has the most images"


def test_groups_of_unsorted_classes():
    # ascending 1, 10, 20, 30, 100 sum to 1, 11, 31, 61, 161: only the last exceeds 80.5, and the
    # upper group must have a class
    member = local_global.half_groups(COUNTS, 2)
    assert member.tolist() == [[False, True, False, False, False], [True, False, True, True, True]]
    # 53.7 is crossed by the 30, 107.3 by the 100
    three = local_global.half_groups(COUNTS, 3)
    assert [row.nonzero()[:, 0].tolist() for row in three] == [[1], [3], [0, 2, 4]]


def test_the_crossing_class_is_in_the_lower_group_and_reaching_half_is_not_crossing():
    # 1 + 2 = 3 is half of 6 and does not exceed it; the 3 does, and must leave a class above
    assert local_global.half_groups(torch.tensor([3, 2, 1]), 2).sum(1).tolist() == [1, 2]
    # 3 + 3 = 6 does not exceed 6, the 3 after them does
    assert local_global.half_groups(torch.tensor([3, 3, 3, 3]), 2).sum(1).tolist() == [1, 3]
    # 5 of 8 crosses at once
    assert local_global.half_groups(torch.tensor([3, 5, 5, 3]), 2).sum(1).tolist() == [1, 3]


def test_of_equal_classes_the_higher_label_counts_as_rarer():
    member = local_global.half_groups(torch.tensor([7, 7, 7, 7, 7]), 2)
    assert member.tolist() == [[True, True, False, False, False], [False, False, True, True, True]]


@given(COUNT_LISTS, st.data())
def test_groups_are_those_of_a_loop_and_hold_every_class_once(counts, data):
    groups = data.draw(st.integers(1, min(len(counts), 5)))
    member = local_global.half_groups(torch.tensor(counts), groups)
    assert member.shape == (groups, len(counts))
    assert (member.sum(0) == 1).all()
    assert member.sum(1).tolist() == split_by_hand(counts, groups)[::-1]
    for upper, lower in itertools.pairwise(member):
        smallest = min(n for n, own in zip(counts, upper.tolist(), strict=True) if own)
        assert smallest >= max(n for n, own in zip(counts, lower.tolist(), strict=True) if own)


@pytest.mark.parametrize("groups", [0, 6])
def test_a_number_of_groups_that_cannot_be_is_refused(groups):
    with pytest.raises(ValueError, match=f"1 to 5 groups, .*, but got {groups}"):
        local_global.half_groups(COUNTS, groups)


def test_the_shifts_by_hand():
    member = local_global.half_groups(COUNTS, 2)
    shifts = local_global.expert_shifts(PRIOR, member, 2.5)
    log = [math.log(n / 161) for n in COUNTS.tolist()]
    top = math.log(100 / 161)
    wanted = [[top] * 5, [log[0], top, log[2], log[3], log[4]], [2.5 * value for value in log]]
    torch.testing.assert_close(shifts, torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(shifts[:2], local_global.local_shift(PRIOR, member))
    torch.testing.assert_close(shifts[2], local_global.global_shift(PRIOR, 2.5))


def test_no_class_outside_a_group_is_shifted_against_the_most_frequent():
    member = local_global.half_groups(COUNTS, 3)
    shift = local_global.local_shift(PRIOR, member)
    assert (shift[~member] == PRIOR.max().log()).all()
    assert (shift <= PRIOR.max().log()).all()


def test_one_group_and_tau_1_are_balanced_softmax_twice():
    member = local_global.half_groups(COUNTS, 1)
    z, labels = noise(6, 2, 5), torch.arange(6) % 5
    adjusted = by_expert(z + local_global.expert_shifts(PRIOR, member, 1.0), labels)
    for k in range(2):
        torch.testing.assert_close(adjusted[:, k], balanced_softmax(z[:, k], labels, PRIOR.log()))


# the angular weight


def weight_by_hand(logits, labels, scale, member):
    count, experts, _ = logits.shape
    group = [next(g for g, row in enumerate(member.tolist()) if row[y]) for y in labels.tolist()]
    weights = torch.empty(count, experts, dtype=torch.float64)
    for k in range(experts):
        angles = [
            math.acos(min(max(logits[b, k, labels[b]].item() / scale, -1), 1)) for b in range(count)
        ]
        for b in range(count):
            mates = [angles[other] for other in range(count) if group[other] == group[b]]
            weights[b, k] = 1 + max(0.0, angles[b] - math.fsum(mates) / len(mates))
    return weights


@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 999))
def test_angular_weights_are_those_of_a_loop(count, groups, seed):
    z = 30 * noise(count, 3, 5, seed=seed).tanh()
    labels = torch.randint(5, (count,), generator=torch.Generator().manual_seed(seed))
    member = local_global.half_groups(COUNTS, groups)
    weights = local_global.angular_weight(z, labels, 30.0, member)
    torch.testing.assert_close(weights, weight_by_hand(z, labels, 30.0, member))


def test_an_angular_weight_by_hand():
    # classes 0 and 1 are a group, class 2 another; angles 60, 90, 120 and 30 degrees
    degrees = torch.tensor([60.0, 90, 120, 30], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 2])
    z = torch.zeros(4, 1, 3, dtype=torch.float64)
    z[torch.arange(4), 0, labels] = 16 * torch.deg2rad(degrees).cos()
    member = torch.tensor([[True, True, False], [False, False, True]])
    weights = local_global.angular_weight(z, labels, 16.0, member)
    assert weights[:, 0].tolist() == pytest.approx([1, 1, 1 + math.pi / 6, 1])
    everyone = torch.ones(1, 3, dtype=torch.bool)  # the mean is 75 degrees
    weights = local_global.angular_weight(z, labels, 16.0, everyone)
    assert weights[:, 0].tolist() == pytest.approx([1, 1 + math.pi / 12, 1 + math.pi / 4, 1])


def test_cosines_past_one_by_rounding_stay_finite():
    z = torch.tensor([[[30.0001, 0.0]], [[0.0, -30.0001]]])
    member = torch.ones(1, 2, dtype=torch.bool)
    weights = local_global.angular_weight(z, torch.tensor([0, 1]), 30.0, member)
    torch.testing.assert_close(weights[:, 0], torch.tensor([1.0, 1 + math.pi / 2]))


def test_angular_weights_have_no_gradient_but_the_loss_has():
    z = noise(6, 3, 5).requires_grad_()
    labels, member = torch.arange(6) % 5, local_global.half_groups(COUNTS, 2)
    weight = local_global.angular_weight(10 * z.tanh(), labels, 10.0, member)
    assert not weight.requires_grad
    assert (weight > 1).any()
    shift = local_global.expert_shifts(PRIOR, member, 2.5)
    (weight * by_expert(z + shift, labels)).sum().backward()
    p = (z.detach() + shift).softmax(2)
    one_hot = torch.nn.functional.one_hot(labels, 5)[:, None]
    torch.testing.assert_close(z.grad, weight[..., None] * (p - one_hot))


def test_half_precision_logits_are_weighed_in_single_precision():
    z = (10 * noise(16, 3, 5).tanh()).bfloat16()
    labels, member = torch.arange(16) % 5, local_global.half_groups(COUNTS, 2)
    with torch.autocast("cpu", torch.bfloat16):
        weights = local_global.angular_weight(z, labels, 10.0, member)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), weight_by_hand(z.double(), labels, 10.0, member))


def test_an_empty_batch_has_no_weights():
    member = local_global.half_groups(COUNTS, 2)
    weights = local_global.angular_weight(noise(0, 3, 5), torch.zeros(0).long(), 30.0, member)
    assert weights.shape == (0, 3)


def test_no_value_is_read_on_the_host():
    member = torch.ones(2, 5, dtype=torch.bool, device="meta")
    labels = torch.zeros(6, dtype=torch.int64, device="meta")
    z = torch.zeros(6, 3, 5, device="meta")
    assert local_global.angular_weight(z, labels, 30.0, member).shape == (6, 3)
    assert local_global.expert_shifts(z[0, 0], member, 2.0).shape == (3, 5)


def test_shifts_for_many_priors_are_those_of_each():
    member = local_global.half_groups(COUNTS, 2)
    priors = noise(2, 4, 5).softmax(-1)
    shifts = local_global.expert_shifts(priors, member, 2.5)
    assert shifts.shape == (2, 4, 3, 5)
    for index in itertools.product(range(2), range(4)):
        torch.testing.assert_close(
            shifts[index], local_global.expert_shifts(priors[index], member, 2.5)
        )


def test_a_level_prior_adds_nothing():
    member = local_global.half_groups(COUNTS, 2)
    shift = local_global.expert_shifts(torch.full((5,), 0.2).double(), member, 2.5)
    logits = noise(3, 5)
    torch.testing.assert_close((logits + shift).softmax(1), logits.softmax(1))


def test_what_is_left_of_the_prior_is_what_the_best_logits_hold_beside_the_likelihood():
    likelihood = noise(7, 5).softmax(0)  # p(x | y) of 7 images
    shift = local_global.expert_shifts(PRIOR, local_global.half_groups(COUNTS, 2), 2.5)
    joint = likelihood * PRIOR
    best = noise(7, 3, 5).requires_grad_()
    optimiser = torch.optim.LBFGS([best], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimiser.zero_grad()
        loss = -(joint[:, None] * (best + shift).log_softmax(2)).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    held = (best.detach().mean(1) - likelihood.log()).log_softmax(1)  # up to a constant an image
    left = local_global.prior_left(PRIOR, shift).log_softmax(0)
    torch.testing.assert_close(held, left.expand_as(held), atol=1e-4, rtol=0)
    assert torch.equal(
        local_global.prior_left(torch.stack([PRIOR, PRIOR]), shift)[1],
        local_global.prior_left(PRIOR, shift),
    )
