from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_pipeline.learning.evaluation.metrics.calibration import (
    expected_calibration_error,
    reliability,
)


def brute_force(scores, labels, bins):
    confidence, predicted = scores.double().softmax(1).max(1)
    total = 0.0
    for k in range(bins):
        last = k == bins - 1
        inside = (confidence >= k / bins) & ((confidence < (k + 1) / bins) | last)
        if inside.any():
            accuracy = (predicted[inside] == labels[inside]).double().mean()
            total += inside.double().mean() * (accuracy - confidence[inside].mean()).abs()
    return float(total)


# the first call imports torchmetrics
@settings(deadline=None)
@given(
    st.integers(2, 5),
    st.integers(1, 80),
    st.integers(1, 20),
    st.sampled_from([0.5, 2.0, 20.0]),
    st.integers(0, 1000),
)
def test_both_agree_with_the_definition(classes, images, bins, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(images, classes, generator=generator)
    labels = torch.randint(0, classes, (images,), generator=generator)
    wanted = brute_force(scores, labels, bins)
    assert expected_calibration_error(scores, labels, bins) == pytest.approx(wanted, abs=1e-5)
    diagram = reliability(scores, labels, bins)
    assert sum(diagram["images"]) == images
    gap = sum(
        n * abs(a - c) / images
        for n, a, c in zip(
            diagram["images"], diagram["accuracy"], diagram["confidence"], strict=True
        )
    )
    assert gap == pytest.approx(wanted, abs=1e-9)


def test_sure_and_right_is_perfect_and_sure_and_wrong_is_the_worst():
    scores = torch.tensor([[50.0, 0.0], [50.0, 0.0]])
    assert expected_calibration_error(scores, torch.tensor([0, 0])) == pytest.approx(0, abs=1e-6)
    assert expected_calibration_error(scores, torch.tensor([1, 1])) == pytest.approx(1, abs=1e-6)


def test_a_confidence_that_rounds_to_one_stays_in_the_last_bin():
    scores = torch.tensor([[50.0, 0.0], [3.0, 0.0]])
    labels = torch.tensor([1, 0])
    second = 1 / (1 + math.exp(-3))
    assert scores.softmax(1)[0, 0] == 1
    # one bin of both images: accuracy 1/2; apart they would give 1/2 + (1 - second) / 2
    wanted = (1 + second) / 2 - 1 / 2
    assert expected_calibration_error(scores, labels) == pytest.approx(wanted, abs=1e-6)
    diagram = reliability(scores, labels)
    assert diagram["images"] == [2]
    assert diagram["left_edge"] == pytest.approx([14 / 15])


def test_a_confidence_on_an_edge_is_in_the_bin_above():
    scores, labels = torch.zeros(4, 2), torch.tensor([0, 1, 0, 0])
    scores[2:, 0] = 0.5
    diagram = reliability(scores, labels, bins=4)
    assert (diagram["left_edge"], diagram["images"]) == ([0.5], [4])
    wanted = abs(3 / 4 - (0.5 + 1 / (1 + math.exp(-0.5))) / 2)
    assert expected_calibration_error(scores, labels, bins=4) == pytest.approx(wanted, abs=1e-6)
