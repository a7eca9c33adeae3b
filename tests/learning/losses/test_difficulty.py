from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.losses.difficulty import SizeCorrelation, with_group

# places in (many, medium, few)
GROUP = torch.tensor([0, 0, 2, 2, 1])
SUMS = torch.tensor([[10.0, 5.0, 1.0, 3.0, 0.0], [9.0, 3.0, 1.0, 0.0, 0.0]])
LONGTAIL = LongTail.from_counts([500, 200, 90, 40, 40, 9])
HARD_TAIL, HARD_HEAD = torch.arange(6.0), -torch.arange(6.0)


def figures(images):
    means, total = with_group(SUMS, GROUP, images)
    return (total / means).tolist()


def test_a_figure_is_shrunk_towards_its_group_by_its_images():
    wanted = [(9 + 2 * 0.8) / 12, (3 + 2 * 0.8) / 7, (1 + 2 * 0.25) / 3, (0 + 2 * 0.25) / 5]
    assert figures(2.0)[:4] == pytest.approx(wanted)
    assert figures(1e9)[:4] == pytest.approx([0.8, 0.8, 0.25, 0.25])


def test_a_class_without_an_image_has_its_group_s_figure_and_a_group_without_one_none():
    sums = torch.tensor([[4.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    means = with_group(sums, torch.tensor([2, 2, 1]), 0.5)
    assert (means[1] / means[0])[:2].tolist() == [0.25, 0.25]
    assert means[:, 2].tolist() == [0, 0]


def test_without_shrinkage_nothing_is_added():
    assert torch.equal(with_group(SUMS, GROUP, 0.0), SUMS)


@settings(deadline=None)  # the first call imports torchmetrics
@given(st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_the_correlation_is_scipy_s_ties_and_all_and_0_where_all_are_alike(difficulty):
    followed = SizeCorrelation(LONGTAIL, warns=False)
    followed.update(torch.tensor(difficulty))
    wanted = 0.0
    if len(set(difficulty)) > 1:
        wanted = stats.spearmanr(difficulty, LONGTAIL.class_counts).statistic
    assert followed.value.item() == pytest.approx(wanted, abs=1e-5)


def run(*difficulties, warns=True):
    followed = SizeCorrelation(LONGTAIL, warns=warns)
    for difficulty in difficulties:
        followed.update(difficulty)
    return followed


def test_a_turn_of_the_sign_is_said_once_when_it_happens_and_noted_ever_after(caplog):
    caplog.set_level(logging.WARNING)
    followed = run(HARD_TAIL, HARD_TAIL)
    assert followed.notes() == []
    followed.update(HARD_HEAD)
    (record,) = caplog.records
    for _ in range(2):
        followed.update(HARD_TAIL)
        followed.update(HARD_HEAD)
    assert len(caplog.records) == 1
    (note,) = followed.notes()
    assert note == record.message
    assert note.startswith(
        "difficulty on the training batches has a rank correlation of +0.99 with class size "
        "(turned in epoch 3, -0.99 at the lowest): rarer classes passed for the easier ones"
    )
    assert "difficulty: validation measures on a hold-out" in note
    followed.update(HARD_TAIL)
    assert "correlation of -0.99 with class size (turned in epoch 3" in followed.notes()[0]


def test_what_never_was_the_right_way_is_noted_in_the_end_and_is_no_turn(caplog):
    followed = run(HARD_HEAD, HARD_HEAD)
    assert not followed.turned
    assert not caplog.records
    assert "of +0.99 with class size: rarer classes passed" in followed.notes()[0]
    followed.update(HARD_TAIL)
    assert followed.notes() == []


def test_what_is_within_chance_or_goes_the_other_way_is_no_turn():
    slight = torch.tensor([2.0, 5.0, 1.0, 3.0, 4.0, 0.0])  # +0.4 of 0.45
    assert 0.3 < run(slight).value < 5**-0.5
    for quiet in ((HARD_TAIL, slight), (slight,), (HARD_HEAD, HARD_TAIL)):
        assert run(*quiet).notes() == []
    assert not run(-slight, HARD_HEAD).turned


def test_a_turn_is_not_said_of_what_is_only_followed(caplog):
    followed = run(HARD_TAIL, HARD_HEAD, warns=False)
    assert followed.turned == 2
    assert followed.notes() == []
    assert not caplog.records


def test_a_turn_survives_a_checkpoint():
    halfway, after = run(HARD_TAIL), SizeCorrelation(LONGTAIL, warns=True)
    after.load_state_dict(halfway.state_dict())
    after.update(HARD_HEAD)
    assert after.notes() == run(HARD_TAIL, HARD_HEAD).notes() != []
