from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lt_pipeline.learning.models.merging import (
    StateDict,
    adaptive_weights,
    average,
    check_same,
    greedy_soup,
    interpolate,
)

INTEGER = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}


def network(seed: int, batches: int = 1) -> dict[str, Tensor]:
    """State of a net with BatchNorm that has seen ``batches`` batches."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 5))
    for _ in range(batches):
        net[1](torch.randn(8, 4, 2, 2) * (1 + seed) + seed)
    return net.state_dict()


def bits(state: StateDict) -> dict[str, list[int]]:
    """The bit patterns of floating tensors (0.0 and -0.0 differ), the values of others."""
    return {
        key: (t.view(INTEGER[t.dtype]) if t.is_floating_point() else t).flatten().tolist()
        for key, t in state.items()
    }


def one(*values: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"w": torch.tensor(values, dtype=dtype)}


@pytest.mark.parametrize("weights", [None, [2.0, 3.0, 5.0]])
def test_average_equals_a_sum_by_hand_in_float64(weights):
    states = [network(seed) for seed in range(3)]
    merged = average(states, weights)
    normal = [1 / 3] * 3 if weights is None else [0.2, 0.3, 0.5]
    assert list(merged) == list(states[0])
    for key in ("0.weight", "1.weight", "1.running_mean", "1.running_var", "3.bias"):
        values = zip(*(s[key].flatten().tolist() for s in states), strict=True)
        expected = [math.fsum(n * v for n, v in zip(normal, vs, strict=True)) for vs in values]
        assert merged[key].dtype == torch.float32
        torch.testing.assert_close(
            merged[key].flatten().double(), torch.tensor(expected).double(), rtol=1e-7, atol=1e-9
        )


def test_the_sum_is_taken_in_float64_and_rounded_once():
    # in float32 each 1 is lost beside 2^24; in float64 the mean of the three is exact
    merged = average([one(2.0**24), one(1.0), one(1.0)])
    assert merged["w"].item() == torch.tensor((2.0**24 + 2) / 3).item()
    merged = average([one(256.0, dtype=torch.bfloat16), *[one(1.0, dtype=torch.bfloat16)] * 7])
    assert merged["w"].dtype == torch.bfloat16
    assert merged["w"].item() == torch.tensor(263 / 8, dtype=torch.bfloat16).item()


def test_the_counter_of_batches_is_the_first_networks():
    merged = average([network(0, batches=3), network(1, batches=9)])
    assert merged["1.num_batches_tracked"].dtype == torch.int64
    assert merged["1.num_batches_tracked"].item() == 3
    first, second = {"mask": torch.tensor([True, False])}, {"mask": torch.tensor([False, False])}
    assert average([first, second], [0, 1])["mask"].tolist() == [True, False]


@given(
    st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=5),
    st.integers(1, 12),
    st.sampled_from(list(INTEGER)),
    st.data(),
)
@settings(deadline=None)
def test_averaging_copies_of_one_network_changes_no_bit(values, copies, dtype, data):
    share = st.floats(0, 10).filter(lambda s: s == 0 or s > 0.01)
    shares = data.draw(st.lists(share, min_size=copies, max_size=copies).filter(any))
    state = one(*values, -0.0, dtype=dtype)
    assert bits(average([state] * copies)) == bits(state)
    assert bits(average([state] * copies, shares)) == bits(state)


def test_an_average_of_copies_of_a_whole_network_changes_no_bit():
    state = network(4, batches=2)
    assert bits(average([state] * 10)) == bits(state)


def test_entries_that_nobody_trained_stay_bit_for_bit_beside_others_that_moved():
    merged = average([one(0.1, k, dtype=torch.float64) for k in range(10)])["w"]
    assert merged.tolist() == [0.1, pytest.approx(4.5)]


def test_weights_are_relative():
    states = [network(seed) for seed in range(3)]
    assert bits(average(states, [1, 2, 1])) == bits(average(states, [0.25, 0.5, 0.25]))


def test_a_network_of_weight_0_has_no_influence_even_when_it_diverged():
    merged = average([one(math.nan), one(1.0), one(math.inf), one(3.0)], [0, 1, 0, 1])
    assert merged["w"].tolist() == [2.0]


def test_a_network_that_diverged_shows_in_the_average():
    assert average([one(1.0), one(math.nan)])["w"].isnan().all()


def test_the_results_share_no_memory_with_the_networks_and_ask_for_no_gradient():
    start, end = network(0), network(1)
    before = bits(start), bits(end)
    merged = [
        average([start]),
        average([start, start]),
        interpolate(start, end, 0),
        interpolate(start, end, 0.3),
        interpolate(start, end, 1),
        greedy_soup([start, end], lambda state: 0.0)[0],
    ]
    for state in merged:
        for tensor in state.values():
            tensor.zero_()
    assert (bits(start), bits(end)) == before
    parameter = {"w": nn.Parameter(torch.ones(2))}
    assert not any(average([parameter] * n)["w"].requires_grad for n in (1, 2))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "one weight for each of the 2 networks, but got 1"),
        ([1.0, -0.5], r"finite, >= 0 and have a positive sum, but are \[1.0, -0.5\]"),
        ([0.0, 0.0], "positive sum"),
        ([1.0, math.inf], "finite"),
        ([1.0, math.nan], "finite"),
    ],
)
def test_weights_that_make_no_mean_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        average([one(1.0), one(2.0)], weights)


def test_no_network_is_refused():
    for merge in (check_same, average, lambda states: greedy_soup(states, len)):
        with pytest.raises(ValueError, match="at least one network to merge, but got none"):
            merge([])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": torch.zeros(2)}, "network 2 lacks the tensor 'b'"),
        (
            {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)},
            "network 2 has the tensor 'c', which network 0 lacks",
        ),
        (
            {"a": torch.zeros(2), "b": torch.zeros(3, 1)},
            r"'b' is \[3\] in network 0, but \[3, 1\] in network 2",
        ),
        (
            {"a": torch.zeros(2).half(), "b": torch.zeros(4)},  # of two differences, the first
            "'a' is torch.float32 in network 0, but torch.float16 in network 2",
        ),
    ],
)
def test_the_first_difference_and_the_two_networks_are_named(other, message):
    same = {"a": torch.zeros(2), "b": torch.zeros(3)}
    whole = f"cannot merge network 0 and network 2: {message}; only networks fine-tuned from the "
    for merge in (check_same, average, lambda states: greedy_soup(states, lambda _: 0.0)):
        with pytest.raises(ValueError, match=whole + "same start can be merged"):
            merge([same, dict(same), other])


def test_networks_are_called_by_their_names():
    with pytest.raises(ValueError, match=r"merge fine_tune_0 and fine_tune_1: fine_tune_1 lacks"):
        check_same([one(1.0), {}], ["fine_tune_0", "fine_tune_1"])
    with pytest.raises(ValueError, match=r"merge start and end: 'w' is \[1\] in start, but \[2\]"):
        interpolate(one(1.0), one(1.0, 2.0), 1)


def test_equal_networks_pass_whatever_the_order_of_their_tensors():
    state = network(0)
    backwards = dict(reversed(network(1).items()))
    check_same([state, backwards])
    assert bits(average([state, backwards])) == bits(average([state, network(1)]))


def test_the_ends_of_an_interpolation_are_the_two_networks_bit_for_bit():
    start = {**network(0, batches=2), "odd": torch.tensor([-0.0, math.inf, math.nan, 1e-45])}
    end = {**network(1, batches=7), "odd": torch.tensor([math.inf, math.nan, -0.0, -0.0])}
    assert bits(interpolate(start, end, 0)) == bits(start)
    assert bits(interpolate(start, end, 1)) == bits(end)
    assert interpolate(start, end, 0.99)["1.num_batches_tracked"].item() == 2


@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(0, 1))
def test_an_interpolation_lies_on_the_line(start, end, weight):
    merged = interpolate(one(start, dtype=torch.float64), one(end, dtype=torch.float64), weight)
    assert merged["w"].item() == pytest.approx((1 - weight) * start + weight * end, abs=1e-12)


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan])
def test_a_weight_beyond_the_two_networks_is_refused(weight):
    with pytest.raises(ValueError, match=rf"weight must lie in \[0, 1\].* but got {weight}"):
        interpolate(one(1.0), one(2.0), weight)


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=20))
def test_adaptive_weights_are_proportional_to_the_scores_and_sum_to_1(scores):
    weights = adaptive_weights(scores)
    assert math.fsum(weights) == pytest.approx(1)
    for score, weight in zip(scores, weights, strict=True):
        assert weight / weights[0] == pytest.approx(score / scores[0])


@pytest.mark.parametrize("scores", [[], [0.5, 0.0], [0.5, -1.0], [0.5, math.inf], [math.nan]])
def test_scores_that_are_no_ratio_are_refused(scores):
    with pytest.raises(ValueError, match="finite and > 0, one a network, .* floor under scores"):
        adaptive_weights(scores)


class Counting:
    """A toy score, minus the distance to a target; remembers what it was asked."""

    def __init__(self, target: Tensor) -> None:
        self.target = target
        self.asked: list[list[float]] = []

    def __call__(self, state: StateDict) -> float:
        self.asked.append(state["w"].tolist())
        return -float((state["w"] - self.target).norm())


def brute_force_soup(states: list[StateDict], score: Counting, order: str) -> list[int]:
    """The positions in the soup, searched from the recipe's words."""

    def of(members: list[int]) -> float:
        return score(average([states[i] for i in members]))

    queue: list[int] = []
    while len(queue) < len(states):
        left = [i for i in range(len(states)) if i not in queue]
        top = max(of([i]) for i in left)
        queue.append(left[0] if order == "given" else next(i for i in left if of([i]) == top))
    kept = queue[:1]
    for i in queue[1:]:
        kept += [i] * (of([*kept, i]) >= of(kept))
    return kept


coordinates = st.floats(-1, 1, width=32)


@given(
    st.lists(st.tuples(coordinates, coordinates).map(list), min_size=1, max_size=7),
    st.sampled_from(["sorted", "given"]),
)
@settings(deadline=None)
def test_a_greedy_soup_is_that_of_a_brute_force_search(points, order):
    score = Counting(torch.tensor([0.3, -0.2], dtype=torch.float64))
    states = [one(*point, dtype=torch.float64) for point in points]
    soup, kept = greedy_soup(states, score, order)
    assert len(score.asked) == len(points) + (len(points) - 1) * (order == "sorted")
    assert kept == brute_force_soup(states, score, order)
    assert bits(soup) == bits(average([states[i] for i in kept]))


def test_a_soup_tries_the_best_first_and_the_given_order_the_first_first():
    score = Counting(torch.tensor([0.0, 0.0]))
    states = [one(4.0, 0.0), one(1.0, 0.0), one(-2.0, 0.0), one(0.0, 9.0)]
    soup, kept = greedy_soup(states, score)
    assert (kept, soup["w"].tolist()) == ([1, 2], [-0.5, 0.0])
    soup, kept = greedy_soup(states, score, "given")
    assert (kept, soup["w"].tolist()) == ([0, 1, 2], [1.0, 0.0])


def test_a_soup_asks_for_no_score_twice():
    states = [one(4.0, 0.0), one(1.0, 0.0), one(-2.0, 0.0)]
    score = Counting(torch.tensor([0.0, 0.0]))
    greedy_soup(states, score)
    singles, tries = [[4, 0], [1, 0], [-2, 0]], [[-0.5, 0], [1, 0]]
    assert score.asked == singles + tries
    score = Counting(torch.tensor([0.0, 0.0]))
    greedy_soup(states, score, "given")
    assert score.asked == [[4, 0], [2.5, 0], [1, 0]]


def test_a_network_that_makes_the_soup_worse_stays_out_and_one_that_changes_nothing_gets_in():
    score = Counting(torch.tensor([0.0]))
    assert greedy_soup([one(1.0), one(2.0), one(1.0)], score, "given")[1] == [0, 2]
    assert greedy_soup([one(2.0), one(1.0), one(1.0)], score)[1] == [1, 2]  # ties: earlier first


def test_a_try_is_measured_against_the_soup_and_not_against_the_first_network():
    score = Counting(torch.tensor([0.0]))
    # 8 -> mean 1 -> with 5 it would be 2.33: better than 8 alone, worse than the soup
    assert greedy_soup([one(8.0), one(-6.0), one(5.0)], score, "given")[1] == [0, 1]


def test_a_diverged_network_never_decides_a_soup():
    def score(state):
        return state["w"].item()

    states = [one(1.0), one(math.nan), one(2.0)]
    with pytest.raises(ValueError, match=r"theirs are \[1.0, nan, 2.0\]; leave out those whose"):
        greedy_soup(states, score)
    soup, kept = greedy_soup(states, score, "given")
    assert (kept, soup["w"].item()) == ([0, 2], 1.5)
