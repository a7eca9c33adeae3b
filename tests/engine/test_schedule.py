from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.engine.config import TrainingConfig
from lt_pipeline.engine.schedule import rate_factor


def factors(epochs=10, per_epoch=4, **values):
    config = TrainingConfig(epochs=epochs, **values)
    steps = epochs * per_epoch
    return [rate_factor(config, step, steps, per_epoch) for step in range(steps)]


def test_warm_up_rises_linearly_and_ends_at_the_full_rate():
    found = factors(schedule="constant", warmup_epochs=2)
    assert found[:8] == [(k + 1) / 8 for k in range(8)]
    assert found[8:] == [1.0] * 32


def test_the_ramp_has_a_mean_rate_of_one_half():
    ramp = factors(epochs=10, per_epoch=84, schedule="constant", warmup_epochs=5)[: 5 * 84]
    assert sum(ramp) / len(ramp) == pytest.approx(0.5, abs=0.002)


def test_steps_fall_at_the_published_epochs():
    config = TrainingConfig(schedule="step", milestones=(0.8, 0.9), decay=0.1)
    by_epoch = [rate_factor(config, epoch * 42, 200 * 42, 42) for epoch in range(200)]
    assert by_epoch[159] == 1.0
    assert by_epoch[160] == by_epoch[179] == pytest.approx(0.1)
    assert by_epoch[180] == by_epoch[199] == pytest.approx(0.01)


def test_cosine_and_linear_closed_forms():
    cosine = factors(schedule="cosine", warmup_epochs=0)
    linear = factors(schedule="linear", warmup_epochs=0)
    for step in range(40):
        assert cosine[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 40)))
        assert linear[step] == pytest.approx(1 - step / 40)


@given(st.sampled_from(["cosine", "linear", "step", "constant"]), st.integers(0, 10))
def test_the_rate_is_positive_never_above_the_base_and_falls_after_warm_up(schedule, warmup):
    found = factors(schedule=schedule, warmup_epochs=warmup)
    assert all(0 < factor <= 1 for factor in found)
    after = found[4 * warmup :]
    assert after == sorted(after, reverse=True)
