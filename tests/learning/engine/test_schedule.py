from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_pipeline.learning.engine.config import TrainingConfig, _log_once
from lt_pipeline.learning.engine.schedule import rate_factor


def factors(epochs=10, per_epoch=4, **values):
    config = TrainingConfig(epochs=epochs, **values)
    steps = epochs * per_epoch
    return [rate_factor(config, step, steps, per_epoch) for step in range(steps)]


def test_warm_up_rises_linearly_and_ends_at_the_full_rate():
    rates = factors(schedule="constant", warmup_epochs=2)
    assert rates[:8] == [(k + 1) / 8 for k in range(8)]
    assert rates[8:] == [1.0] * 32


def test_the_ramp_has_a_mean_rate_of_one_half():
    ramp = factors(epochs=10, per_epoch=84, schedule="constant", warmup_epochs=5)[: 5 * 84]
    assert sum(ramp) / len(ramp) == pytest.approx(0.5, abs=0.002)


def test_steps_fall_at_the_published_epochs():
    config = TrainingConfig(schedule="step", milestones=(0.8, 0.9), decay=0.1)
    by_epoch = [rate_factor(config, epoch * 42, 200 * 42, 42) for epoch in range(200)]
    assert by_epoch[159] == 1.0
    assert by_epoch[160] == by_epoch[179] == pytest.approx(0.1)
    assert by_epoch[180] == by_epoch[199] == pytest.approx(0.01)


@pytest.mark.parametrize(("epochs", "milestones"), [(200, (160, 180)), (7, (3, 5)), (90, (59,))])
def test_milestones_in_epochs_fall_with_the_first_step_behind_them(epochs, milestones):
    rates = factors(epochs, 7, schedule="step", milestones=milestones, warmup_epochs=0)
    for epoch in range(epochs):
        passed = sum(epoch >= m for m in milestones)
        assert rates[7 * epoch : 7 * epoch + 7] == [0.1**passed] * 7


def test_epochs_and_their_fractions_are_one_schedule():
    given = [factors(200, 42, schedule="step", milestones=m) for m in ((0.8, 0.9), (160, 180))]
    assert given[0] == given[1]
    step = {"schedule": "step", "epochs": 200}
    readings = [TrainingConfig(**step, milestones=m).reading for m in ((0.8, 0.9), (160, 180))]
    assert readings[0] == (
        "training.milestones are read as fractions of the run: the rate falls to 0.1 of itself "
        "after epoch 160, 180 of 200"
    )
    assert readings[1] == readings[0].replace("fractions of the run", "epochs")
    assert "no say" in TrainingConfig(schedule="cosine").reading


@pytest.mark.parametrize(
    "values",
    [
        *({"milestones": m} for m in ((0.9, 0.8), (0.5, 0.5), (0.5, 180), (0, 0.5), (-1,), (1.5,))),
        *({"milestones": m} for m in ((180, 160), (200,), (160, 300), ())),
        *({"decay": d} for d in (0, -0.1, 1.1)),
        {"nesterov": True, "momentum": 0},
    ],
)
def test_what_would_never_fall_or_no_optimizer_takes_is_refused(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))}\n"):
        TrainingConfig(**{"schedule": "step", "epochs": 200, **values})


def test_milestones_of_another_schedule_need_not_be_reached():
    assert TrainingConfig(schedule="cosine", epochs=60, milestones=(160, 180)).epochs == 60


@pytest.mark.parametrize(("epochs", "warmup", "used"), [(3, 5, 1), (1, 5, 0), (5, 5, 5), (6, 5, 5)])
def test_a_warm_up_longer_than_the_run_leaves_half_of_it(epochs, warmup, used, caplog):
    _log_once.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            config = TrainingConfig(epochs=epochs, warmup_epochs=warmup)
    assert config.model_dump()["warmup_epochs"] == used
    said = [f"training.warmup_epochs is {warmup} of {epochs} epochs: shortened to {used}"]
    assert caplog.messages == (said if used != warmup else [])


def test_cosine_and_linear_closed_forms():
    cosine = factors(schedule="cosine", warmup_epochs=0)
    linear = factors(schedule="linear", warmup_epochs=0)
    for step in range(40):
        assert cosine[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 40)))
        assert linear[step] == pytest.approx(1 - step / 40)


@given(st.sampled_from(["cosine", "linear", "step", "constant"]), st.integers(0, 10))
def test_the_rate_is_positive_never_above_the_base_and_falls_after_warm_up(schedule, warmup):
    rates = factors(schedule=schedule, warmup_epochs=warmup)
    assert all(0 < factor <= 1 for factor in rates)
    after = rates[4 * warmup :]
    assert after == sorted(after, reverse=True)
