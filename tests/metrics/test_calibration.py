from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.metrics.calibration import expected_calibration_error, reliability


def brute_force(scores, labels, bins):
    confidence, predicted = scores.double().softmax(1).max(1)
    total = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            accuracy = (predicted[inside] == labels[inside]).double().mean()
            total += inside.double().mean() * (accuracy - confidence[inside].mean()).abs()
    return float(total)


@given(st.integers(2, 5), st.integers(1, 80), st.integers(1, 20), st.integers(0, 1000))
def test_both_agree_with_the_definition(classes, images, bins, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(images, classes, generator=generator)
    labels = torch.randint(0, classes, (images,), generator=generator)
    wanted = brute_force(scores, labels, bins)
    assert expected_calibration_error(scores, labels, bins) == pytest.approx(wanted, abs=1e-5)
    found = reliability(scores, labels, bins)
    assert sum(found["images"]) == images
    gap = sum(
        n * abs(a - c) / images
        for n, a, c in zip(found["images"], found["accuracy"], found["confidence"], strict=True)
    )
    assert gap == pytest.approx(wanted, abs=1e-9)


def test_sure_and_right_is_perfect_and_sure_and_wrong_is_the_worst():
    scores = torch.tensor([[50.0, 0.0], [50.0, 0.0]])
    assert expected_calibration_error(scores, torch.tensor([0, 0])) == pytest.approx(0)
    assert expected_calibration_error(scores, torch.tensor([1, 1])) == pytest.approx(1)
