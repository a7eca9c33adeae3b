from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.learning.data.profiles import Exponential, Pareto, Step, profile_counts


@pytest.mark.parametrize(
    ("classes", "largest", "ratio", "total"),
    [
        (100, 500, 100, 10_847),
        (100, 500, 50, 12_608),
        (100, 500, 10, 19_573),
        (10, 5000, 100, 12_406),
        (10, 5000, 50, 13_996),
        (10, 5000, 10, 20_431),
    ],
)
def test_the_published_sizes_of_cifar_lt(classes, largest, ratio, total):
    counts = profile_counts(
        Exponential(), classes=classes, max_per_class=largest, imbalance_ratio=ratio
    )
    assert sum(counts) == total
    assert (counts[0], counts[-1]) == (largest, largest / ratio)


def test_step_keeps_the_first_half_whole():
    counts = profile_counts(Step(), classes=5, max_per_class=100, imbalance_ratio=10)
    assert counts == [100, 100, 10, 10, 10]


def test_pareto_meets_both_ends_of_imagenet_lt_below_the_exponential():
    arguments = {"classes": 1000, "max_per_class": 1280, "imbalance_ratio": 256}
    pareto = profile_counts(Pareto(), **arguments)
    assert (pareto[0], pareto[-1]) == (1280, 5)
    # A power law falls faster at the head and slower at the tail than an exponential.
    exponential = profile_counts(Exponential(), **arguments)
    assert all(p <= e for p, e in zip(pareto, exponential, strict=True))


@given(
    st.sampled_from([Exponential(), Step(), Pareto()]),
    st.integers(1, 60),
    st.integers(50, 500),
    st.floats(1, 50),
)
def test_counts_fall_from_the_largest_to_the_smallest(profile, classes, largest, ratio):
    counts = profile_counts(profile, classes=classes, max_per_class=largest, imbalance_ratio=ratio)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == largest
    if classes > 1:
        assert counts[-1] == int(largest / ratio + 1e-9)


@pytest.mark.parametrize("profile", [Exponential(), Step(), Pareto()])
def test_ratio_one_is_balanced(profile):
    counts = profile_counts(profile, classes=4, max_per_class=9, imbalance_ratio=1)
    assert counts == [9, 9, 9, 9]


def test_a_class_left_without_an_image_is_refused():
    with pytest.raises(ValueError, match=r"imbalance_ratio 100 .* must be <= 50"):
        profile_counts(Exponential(), classes=3, max_per_class=50, imbalance_ratio=100)
