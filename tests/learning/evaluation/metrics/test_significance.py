from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lt_pipeline.learning.evaluation.metrics.significance import (
    paired_difference,
    pairs_needed,
    recall_interval,
)


def test_three_pairs_give_the_textbook_t():
    gap = paired_difference([0.50, 0.52, 0.57], [0.49, 0.49, 0.52])
    # differences 1, 3, 5 hundredths: mean 3, sd 2, t = 3 / (2 / sqrt 3), two degrees of freedom
    assert gap["pairs"] == 3
    assert gap["mean"] == pytest.approx(0.03)
    assert gap["sd"] == pytest.approx(0.02)
    t = 0.03 / (0.02 / math.sqrt(3))
    assert gap["statistic"] == pytest.approx(t)
    # Student's distribution with two degrees of freedom has a closed form
    assert gap["p_value"] == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    # and so has its quantile: 97.5 % lie below 4.3027
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert [gap["low"], gap["high"]] == pytest.approx([0.03 - half, 0.03 + half])
    assert gap["pairs_needed"] == pairs_needed(0.03, 0.02) == 6


def test_more_minus_la_on_cifar_100_lt():
    """The three seeds of benchmarks/results/cifar100_lt_ir100_resnet8.csv, in %."""
    more, la = [32.59, 32.19, 31.74], [32.86, 31.65, 32.36]
    gap = paired_difference(more, la)
    rounded = [round(gap["mean"], 2), round(gap["low"], 1), round(gap["high"], 1)]
    assert rounded == [-0.12, -1.6, 1.4]
    assert pairs_needed(0.7, gap["sd"]) == 8, "the difference that the paper reports"
    assert gap["pairs_needed"] == 207, "the one that was found"


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=8))
def test_the_interval_ends_at_zero_where_the_test_is_on_the_edge(pairs):
    first, second = zip(*[(round(a, 3), round(b, 3)) for a, b in pairs], strict=True)
    gap = paired_difference(first, second)
    if gap["p_value"] is None:
        assert gap["low"] is gap["high"] is gap["pairs_needed"] is None
        return
    assert gap["low"] < gap["mean"] < gap["high"]
    assert (gap["low"] > 0 or gap["high"] < 0) == (gap["p_value"] < 0.05)
    if 1e-6 < gap["p_value"] < 1:
        edge = paired_difference(first, second, 1 - gap["p_value"])
        nearest = min(edge["low"], edge["high"], key=abs)
        assert nearest == pytest.approx(0, abs=1e-6 * (edge["high"] - edge["low"]))


# Cohen's tables and G*Power 3.1: two-sided 5 %, 80 %, by difference / sd
@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_pairs_needed_are_those_of_the_tables(effect, pairs):
    assert pairs_needed(effect, 1.0) == pairs_needed(-3 * effect, 3.0) == pairs


@pytest.mark.parametrize("effect", [0.9, 1.5, 5.4])
def test_so_many_pairs_find_it_as_often_as_is_said_and_one_fewer_does_not(effect):
    needed = pairs_needed(effect, 1.0)
    generator = np.random.default_rng(0)
    for pairs, enough in ((needed, True), (needed - 1, False)):
        drawn = generator.normal(effect, 1.0, size=(40_000, pairs))
        power = (stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05).mean()
        assert (power > 0.8 - 0.005) == enough, (pairs, power)


@pytest.mark.parametrize("effect", [1e-4, 1e-2, 8.0, 30.0, 1e6])
def test_very_small_effects_need_many_pairs_and_very_large_ones_few(effect):
    pairs = pairs_needed(effect, 1.0)
    # the normal distribution's for many: (1.96 + 0.84)^2 / effect^2
    wanted = (stats.norm.isf(0.025) + stats.norm.isf(0.2)) ** 2 / effect**2
    assert pairs == (pytest.approx(wanted, rel=1e-4) if effect < 1 else 3 if effect < 10 else 2)


def test_nothing_needs_no_number_of_pairs_and_no_spread_is_refused():
    assert pairs_needed(0.0, 1.0) is pairs_needed(1e-17, 1.0) is None
    # the rounding of floats, as in the digits' runs of MORE with BatchNorm updated or not
    assert paired_difference([0.1 + 0.2, 0.5, 0.4], [0.3, 0.4, 0.5])["pairs_needed"] is None
    with pytest.raises(ValueError, match="sd must be > 0"):
        pairs_needed(1.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_runs_without_a_number_are_no_pairs(bad):
    with pytest.raises(ValueError, match="pairs need finite numbers"):
        paired_difference([0.5, bad], [0.4, 0.4])


def test_one_pair_has_a_difference_and_no_test():
    assert paired_difference([0.5], [0.4]) == {
        "pairs": 1,
        "mean": pytest.approx(0.1),
        **dict.fromkeys(("sd", "low", "high", "statistic", "p_value", "pairs_needed")),
    }


@pytest.mark.parametrize("second", [[0.4, 0.5, 0.6], [0.5, 0.6, 0.7]])
def test_differences_that_are_all_the_same_are_not_tested(second):
    gap = paired_difference([0.5, 0.6, 0.7], second)
    assert gap["sd"] == pytest.approx(0, abs=1e-15)
    assert gap["p_value"] is None


@pytest.mark.parametrize(("first", "second"), [([], []), ([0.1], []), ([0.1], [0.1, 0.2])])
def test_what_is_no_pair_is_refused(first, second):
    with pytest.raises(ValueError, match=f"there are {len(first)} and {len(second)}"):
        paired_difference(first, second)


def test_the_interval_of_many_classes_is_that_of_few_with_as_many_images():
    """Classes of equal recall are one class; without any to merge, nothing changes."""
    low, high = recall_interval([0.5, 0.8], [6000, 3000])
    many = recall_interval([0.5] * 600 + [0.8] * 300, [10] * 900)
    assert many == pytest.approx((low, high), abs=2e-3)
    assert recall_interval([0.5, 0.8], [6000, 3000], resamples=50) != many


def test_the_interval_is_the_normal_one_where_there_are_many_images():
    low, high = recall_interval([0.5, 0.9], [4000, 1000])
    variance = (4000 * 0.5 * 0.5 + 1000 * 0.9 * 0.1) / 5000**2
    assert low == pytest.approx(0.58 - 1.96 * math.sqrt(variance), abs=5e-4)
    assert high == pytest.approx(0.58 + 1.96 * math.sqrt(variance), abs=5e-4)


def test_it_is_of_classes_each_by_itself():
    # drawn over all images together, classes would change in size and widen it
    assert recall_interval([0.0, 1.0], [100, 100]) == (0.5, 0.5)


def test_it_agrees_with_drawing_the_images_themselves():
    generator = np.random.default_rng(1)
    images = [np.repeat([1, 0], [3, 7]), np.repeat([1, 0], [16, 4])]
    drawn = [
        np.mean(np.concatenate([generator.choice(own, len(own)) for own in images]))
        for _ in range(8000)
    ]
    wanted = np.quantile(drawn, [0.025, 0.975])
    assert recall_interval([0.3, 0.8], [10, 20]) == pytest.approx(wanted, abs=0.034)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=6))
def test_the_accuracy_lies_within_and_a_lower_level_is_narrower(classes):
    images = [count for count, _ in classes]
    recalls = [round(share * count) / count for count, share in classes]
    accuracy = sum(r * n for r, n in zip(recalls, images, strict=True)) / sum(images)
    low, high = recall_interval(recalls, images, resamples=500)
    assert 0 <= low <= accuracy + 0.02
    assert accuracy - 0.02 <= high <= 1
    inner = recall_interval(recalls, images, level=0.5, resamples=500)
    assert low <= inner[0] <= inner[1] <= high


def test_it_is_the_same_every_time_and_needs_images():
    assert recall_interval([0.3], [50]) == recall_interval([0.3], [50])
    with pytest.raises(ValueError, match="needs test images"):
        recall_interval([0.0], [0])
