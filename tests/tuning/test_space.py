from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.tuning.space import Choices, Range, Space


def test_a_space_is_read_by_path_and_null_leaves_a_parameter_out():
    block = {
        "options": {
            "criterion": {"margin": {"K": {"low": 0.1, "high": 0.5}}},
            "rank": None,
            "schedule": {"choices": ["sin", "cos"]},
        },
        "training": {"learning_rate": {"low": 0.01, "high": 1, "log": True}},
    }
    dimensions = Space.read(block, "tune.search.more").dimensions
    assert list(dimensions) == [
        "options.criterion.margin.K",
        "options.schedule",
        "training.learning_rate",
    ]
    assert isinstance(dimensions["options.schedule"], Choices)
    assert dimensions["training.learning_rate"].log


@pytest.mark.parametrize("block", [{}, None, {"options": {}}, {"options": {"rank": None}}])
def test_an_empty_space_is_one_line_that_says_what_to_do(block):
    with pytest.raises(ValueError, match=r"^tune.search.more is empty: .*learning_rate.low=0.01"):
        Space.read(block, "tune.search.more")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"optins": {}}, "tune.search.x: unknown block 'optins': did you mean 'options'"),
        ({"options": {"a": 3}}, "options.a: needs low and high, or choices, but got 3"),
        ({"options": {"a": {"low": 1}}}, "options.a.high: Field required"),
        ({"options": {"a": {"low": 2, "high": 1}}}, "options.a: low must be < high"),
        ({"options": {"a": {"low": 0, "high": 1, "log": True}}}, "log needs low > 0"),
        ({"options": {"a": {"low": 0.5, "high": 2, "integer": True}}}, "integer needs whole"),
        ({"options": {"a": {"choices": [1]}}}, "options.a.choices"),
        ({"options": {"a": {"low": 1, "hihg": 2}}}, "did you mean 'high'"),
        (
            {"options": {"a": {"low": 0, "high": 1, "step": 2}}},
            "a: step must be at most",
        ),
        ({"options": {"a": {"low": 0, "high": float("inf")}}}, "a.high: .*finite"),
        ({"options": {"a": {"choices": [1, 2, 1.0]}}}, "a.choices: must differ from one another"),
        (3, "tune.search.x: is a block of ranges by parameter, but got 3"),
    ],
)
def test_a_wrong_dimension_is_named(block, message):
    with pytest.raises(ValueError, match=message):
        Space.read(block, "tune.search.x")


@given(low=st.floats(0.001, 10), width=st.floats(0.001, 100), log=st.booleans())
def test_the_point_between_is_inside_and_in_the_middle_of_what_is_searched(low, width, log):
    first, between, *_, last = Range(low=low, high=low + width, log=log).points()
    assert first <= between <= last
    if log:
        assert math.log(between) == pytest.approx((math.log(first) + math.log(last)) / 2, abs=1e-9)
    else:
        assert between == pytest.approx((first + last) / 2)


def test_steps_and_whole_numbers_are_kept_to():
    assert Range(low=1, high=9, integer=True).points() == [1, 5, 9]
    assert all(isinstance(p, int) for p in Range(low=2, high=21, integer=True).points())
    assert Range(low=0, high=1, step=0.4).points()[1] == pytest.approx(0.4)


def test_corners_have_every_point_of_every_dimension():
    space = Space(
        dimensions={
            "options.a": Range(low=1, high=4),
            "options.b": Choices(choices=("w", "x", "y", "z")),
        }
    )
    corners = list(space.corners())
    assert [c["options.b"] for c in corners] == ["w", "x", "y", "z"]
    assert {c["options.a"] for c in corners} == {1, 2.5, 4}


def test_a_range_of_whole_numbers_that_has_others_in_it_shows_one():
    points = Range(low=1, high=5).points()
    assert [point for point in points if point == int(point)] == [1, 3, 5]
    assert len(points) == 4
    assert 1 < points[2] < 5


def test_a_range_in_the_place_of_choices_leaves_them_out_and_the_reverse():
    given = {"low": 0.5, "high": 8.0}
    both = {"options": {"a": {"choices": [0, 2], **given}}}
    told = r"x.options.a: has both choices and high and low: .*x.options.a.choices=null or by "
    with pytest.raises(ValueError, match=told + "x.options.a.high=null,x.options.a.low=null"):
        Space.read(both, "x")
    both["options"]["a"]["choices"] = None
    assert Space.read(both, "x").dimensions == {"options.a": Range(**given)}
    none = {"choices": [0, 2], "low": None, "high": None, "log": None}
    space = Space.read({"options": {"a": none}}, "x")
    assert space.dimensions == {"options.a": Choices(choices=(0, 2))}
