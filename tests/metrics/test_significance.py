from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.metrics.significance import paired_difference, recall_interval


def test_three_pairs_give_the_textbook_t():
    found = paired_difference([0.50, 0.52, 0.57], [0.49, 0.49, 0.52])
    # differences 1, 3, 5 hundredths: mean 3, sd 2, t = 3 / (2 / sqrt 3), two degrees of freedom
    assert found["pairs"] == 3
    assert found["mean"] == pytest.approx(0.03)
    assert found["sd"] == pytest.approx(0.02)
    t = 0.03 / (0.02 / math.sqrt(3))
    assert found["statistic"] == pytest.approx(t)
    # Student's distribution with two degrees of freedom has a closed form
    assert found["p_value"] == pytest.approx(1 - t / math.sqrt(t**2 + 2))


def test_one_pair_has_a_difference_and_no_test():
    assert paired_difference([0.5], [0.4]) == {
        "pairs": 1,
        "mean": pytest.approx(0.1),
        "sd": None,
        "statistic": None,
        "p_value": None,
    }


@pytest.mark.parametrize("second", [[0.4, 0.5, 0.6], [0.5, 0.6, 0.7]])
def test_differences_that_are_all_the_same_are_not_tested(second):
    found = paired_difference([0.5, 0.6, 0.7], second)
    assert found["sd"] == pytest.approx(0, abs=1e-15)
    assert found["p_value"] is None


@pytest.mark.parametrize(("first", "second"), [([], []), ([0.1], []), ([0.1], [0.1, 0.2])])
def test_what_is_no_pair_is_refused(first, second):
    with pytest.raises(ValueError, match=f"there are {len(first)} and {len(second)}"):
        paired_difference(first, second)


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
