"""Lost trials in a study's file."""

from __future__ import annotations

import os

from optuna.trial import TrialState

from lt_pipeline.tracking.processes import is_alive, this_process
from lt_pipeline.tuning.storage import JOURNAL
from lt_pipeline.tuning.study import PROCESS, counted, release_lost, to_start
from sweeps import task

LINE = {"training": {"learning_rate": {"low": 0.01, "high": 0.2, "log": True}}}


def lose(one, key):
    """Begin a trial in the name of a process, and let that die; return what is given up."""
    trial = one.study.ask()
    trial.set_user_attr(PROCESS, {**this_process(), "key": key})
    assert release_lost(one.study, one.sweep.config, [key]) == [trial.number]
    return [t.number for t in counted(one.study, one.sweep.config) if t.state == TrialState.FAIL]


def test_a_lost_trial_is_tried_as_often_as_was_asked_for(tmp_path):
    one = task(tmp_path, search=LINE, trials=1, retries=2)
    assert lose(one, "first") == []
    assert lose(one, "second") == []
    assert to_start(one.study, one.sweep.config) == 1
    assert lose(one, "third") == [2]
    assert to_start(one.study, one.sweep.config) == 0
    assert [t.system_attrs.get("retry_history") for t in one.study.trials] == [None, [0], [0, 1]]


def test_a_trial_that_begins_again_is_not_lost_with_the_process_of_the_first(tmp_path):
    one = task(tmp_path, search=LINE, trials=1)
    lose(one, "first")
    again = one.study.ask()
    assert PROCESS not in again.user_attrs
    assert release_lost(one.study, one.sweep.config, ["first"]) == []


def test_a_line_that_was_not_finished_costs_no_more_than_itself(tmp_path):
    task(tmp_path, search=LINE).study.ask()
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"work')
    other = task(tmp_path, search=LINE)
    assert len(other.study.trials) == 1
    other.study.ask()
    assert journal.read_bytes().startswith(whole)
    assert len(task(tmp_path, search=LINE).study.trials) == 2
    assert not list(tmp_path.glob("*.lock*"))


def test_a_process_on_another_machine_lives_as_long_as_its_owner(tmp_path):
    mine = this_process()
    gone = {**mine, "created": mine["created"] - 100}
    there = {**mine, "host": "there", "pid": 1}
    assert this_process(mine)["owner"] == mine
    assert not is_alive(there)
    assert is_alive({**there, "owner": mine})
    assert not is_alive({**there, "owner": gone})
    assert not is_alive({**mine, "owner": gone})
    assert is_alive({**mine, "pid": os.getpid()})
