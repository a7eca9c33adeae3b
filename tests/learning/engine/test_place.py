"""Where a training stands: copies that are put back, and ends of a step that are near enough."""

from __future__ import annotations

import pytest
import torch

from lt_pipeline.learning.engine.place import TOLERANCE, Place

CPU = torch.device("cpu")


def held(weights, steps=0):
    return {"weights": [torch.tensor(weights)], "buffers": [torch.tensor(steps)]}


def test_what_moved_is_put_back_where_it_lies():
    here = held([1.0, 2.0], 3)
    place, tensors = Place.of(here, CPU), [here["weights"][0], here["buffers"][0]]
    for tensor in tensors:
        tensor += 5
    place.put_back(here)
    assert here["weights"][0].tolist() == [1, 2]
    assert here["buffers"][0] == 3
    assert [here["weights"][0], here["buffers"][0]] == tensors
    assert place.generator is None


@pytest.mark.parametrize(
    ("end", "near"),
    [
        ([3.0, 4.0], True),
        ([3.0, 4 + 0.99 * 5 * TOLERANCE], True),
        ([3.0, 4 + 1.01 * 5 * TOLERANCE], False),
        ([0.0, 0.0], False),
        ([float("nan"), 4.0], False),
    ],
)
def test_ends_may_be_a_twentieth_of_the_way_apart(end, near):
    start, plain = Place.of(held([0.0, 0.0]), CPU), Place.of(held([3.0, 4.0]), CPU)
    apart = start.way_apart(Place.of(held(end, 1), CPU), plain)
    assert (apart == "") is near
    assert near or apart.startswith("the weights of a replayed step are ")
    assert near or apart.endswith("away from a plain one's, which go 5")
