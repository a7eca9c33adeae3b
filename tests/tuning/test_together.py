"""Several trials at once in one process: each as it is alone, and none takes another with it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from threading import Barrier, Event

import pytest
import torch
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from lt_pipeline.learning.schema import UnwritableError, UserError
from lt_pipeline.pipelines.tune import nodes
from lt_pipeline.pipelines.tune.task import Task
from lt_pipeline.tracking.processes import this_process
from lt_pipeline.tuning import study as module
from lt_pipeline.tuning.config import Sweep
from lt_pipeline.tuning.search import Follower
from lt_pipeline.tuning.study import REASON, release_lost, running, to_start
from sweeps import parameters, task

LINE = {"training": {"learning_rate": {"low": 0.01, "high": 0.2, "log": True}}}
# no two report at one moment: what they wait for is there, or a test is wrong
SECONDS = 60


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def at_once(folder, together=3, **changes):
    found = parameters(**{"search": LINE, "trials": 3, "pruner": "none", **changes})
    return task(folder, {**found, "together": together})


def alone(one, trial, folder):
    """What a trial's values give by themselves: what is reported, and at the end."""
    config, reported = one.sweep.experiment(trial.params).model_dump(mode="json"), {}
    other = replace(one, folder=folder)
    value = other.train(config, lambda step, value: reported.update({step: value}), trial.number)
    return value, reported


def given(one, *rates):
    """Queue trials of these learning rates."""
    for rate in rates:
        one.study.enqueue_trial({"training.learning_rate": rate})


def left(folder):
    """The states that a trial would go on from."""
    return [path.parent.name.partition("-")[0] for path in folder.glob("trials/[0-9]*/*.pt")]


@pytest.mark.parametrize("method", ["more", "mislas", "dqroute"])
def test_trials_at_once_are_what_they_are_alone(tmp_path, method):
    one = at_once(tmp_path / "one", method=method, epochs=3)
    nodes._do_trials(one)
    assert [trial.state for trial in one.study.trials] == [TrialState.COMPLETE] * 3
    assert len({trial.value for trial in one.study.trials}) > 1
    for trial in one.study.trials:
        reported = trial.intermediate_values
        assert alone(one, trial, tmp_path / "alone") == (trial.value, reported)
    assert not left(tmp_path / "one")


def test_they_are_trained_at_the_same_time_and_others_follow_when_one_ends(tmp_path, monkeypatch):
    first, others = Barrier(3, timeout=SECONDS), Event()

    def train(self, config, report, number):
        if number < 3:
            first.wait()
        if number == 0:
            # as long as all others together
            assert others.wait(SECONDS)
        if number == 5:
            others.set()
        return 0.5

    monkeypatch.setattr(Task, "train", train)
    one = at_once(tmp_path, trials=6)
    one.work()
    # two may have asked at one moment
    states = Counter(trial.state for trial in module.kept_trials(one.study))
    assert states == {TrialState.COMPLETE: 6}


@pytest.mark.parametrize("pruner", ["none", "median", "hyperband"])
@pytest.mark.parametrize("trials", [1, 7])
def test_there_are_as_many_as_were_asked_for_with_what_the_seed_says(
    tmp_path, monkeypatch, pruner, trials
):
    def train(self, config, report, number):
        for epoch in range(1, 28):
            report(epoch, config["training"]["learning_rate"])
        return config["training"]["learning_rate"]

    monkeypatch.setattr(Task, "train", train)
    asked = {"trials": trials, "pruner": pruner, "epochs": 27}
    one, many = (at_once(tmp_path / str(n), n, **asked) for n in (1, 3))
    one.work()
    many.work()
    kept = module.kept_trials(many.study)
    # the first ten are drawn, and need not know of one another
    drawn = [trial.params for trial in one.study.trials]
    assert sorted(map(str, drawn)) == sorted(str(trial.params) for trial in kept)
    assert to_start(many.study, many.sweep.config) == 0
    assert not running(many.study)


def test_one_that_diverges_is_a_trial_that_fell_behind_and_the_others_end(tmp_path):
    rates = {"training": {"learning_rate": {"choices": [0.05, 0.1, 1e37]}}}
    one = at_once(tmp_path / "one", epochs=3, search=rates)
    given(one, 0.05, 1e37, 0.1)
    nodes._do_trials(one)
    good, wild, other = one.study.trials
    assert [t.state for t in (good, other)] == [TrialState.COMPLETE] * 2
    assert wild.state == TrialState.PRUNED
    assert "lower training.learning_rate" in wild.user_attrs[REASON]
    for trial in (good, other):
        value, reported = alone(one, trial, tmp_path / "alone")
        assert (trial.value, trial.intermediate_values) == (value, reported)
    assert not left(tmp_path / "one")


def test_one_that_does_not_fit_into_memory_takes_no_other_with_it(tmp_path, monkeypatch):
    first = Barrier(3, timeout=SECONDS)

    def train(self, config, report, number):
        first.wait()
        if number == 1:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more")
        return 0.5

    monkeypatch.setattr(Task, "train", train)
    one = at_once(tmp_path)
    one.work()
    states = [trial.state for trial in one.study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert one.study.trials[1].user_attrs[REASON] == "CUDA out of memory"


class Second(BasePruner):
    """Stops the second trial behind its second epoch."""

    def prune(self, study, trial):
        return trial.number == 1 and trial.last_step == 2


def test_one_that_is_stopped_ends_early_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "pruner", lambda sweep: Second())
    one = at_once(tmp_path / "one", epochs=4)
    nodes._do_trials(one)
    states = [trial.state for trial in one.study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert [trial.last_step for trial in one.study.trials] == [4, 2, 4]
    for trial in (one.study.trials[0], one.study.trials[2]):
        value, reported = alone(one, trial, tmp_path / "alone")
        assert (trial.value, trial.intermediate_values) == (value, reported)
    assert not left(tmp_path / "one")


class Killed(BaseException):
    """The end of a process that nothing catches."""


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), Killed(), ValueError("a bug"), UnwritableError("no space")]
)
def test_what_ends_one_ends_all_and_they_go_on(tmp_path, monkeypatch, error, caplog):
    once, first, raised = Task.train, Barrier(3, timeout=SECONDS), []

    def train(self, config, report, number):
        def told(step, value):
            report(step, value)
            if step == 2 and not raised:
                # the others have an epoch behind them to go on from
                first.wait()
                if number == 1:
                    raised.append(error)
                    raise error

        return once(self, config, told, number)

    monkeypatch.setattr(Task, "train", train)
    one = at_once(tmp_path / "one", epochs=50)
    with pytest.raises(type(error)) as found:
        one.work()
    assert found.value is error
    lost = one.study.trials[:3]
    # what nothing catches leaves its own as a process that is killed does
    mine = TrialState.RUNNING if isinstance(error, Killed) else TrialState.FAIL
    assert [trial.state for trial in lost] == [TrialState.FAIL, mine, TrialState.FAIL]
    assert all(trial.last_step < 50 for trial in lost), "none was waited for"
    assert sorted(left(tmp_path / "one")) == ["0", "1", "2"]
    release_lost(one.study, one.sweep.config, [this_process()["key"]])
    assert to_start(one.study, one.sweep.config) == 3
    with caplog.at_level("INFO"):
        one.work()
    assert caplog.text.count("Stage train resumes after epoch") == 3
    again = [trial for trial in one.study.trials if trial.state == TrialState.COMPLETE]
    assert sorted(str(t.params) for t in lost) == sorted(str(t.params) for t in again)
    assert not left(tmp_path / "one")


# as many threads as the test has, wherever it runs
WORKER = (
    "import torch; torch.set_num_threads(3); "
    "from lt_pipeline.pipelines.tune.worker import main; main()"
)


@pytest.mark.slow
def test_a_process_that_is_killed_loses_all_of_its_trials_and_they_go_on(tmp_path, caplog):
    one = at_once(tmp_path / "one", epochs=25)
    _ = one.study
    worker = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE)
    worker.stdin.write(pickle.dumps(one))
    worker.stdin.close()
    until = time.monotonic() + SECONDS
    while sum(len(t.intermediate_values) > 1 for t in running(one.study)) < 3:
        assert time.monotonic() < until
        time.sleep(0.02)
    worker.kill()
    worker.wait()
    assert sorted(left(tmp_path / "one")) == ["0", "1", "2"]
    with caplog.at_level("INFO"):
        nodes._do_trials(one)
    assert "Trials [0, 1, 2] were lost with their process; tried again" in caplog.text
    assert caplog.text.count("Stage train resumes after epoch") == 3
    again = one.study.trials[3:]
    assert [trial.state for trial in again] == [TrialState.COMPLETE] * 3
    for trial in again:
        assert alone(one, trial, tmp_path / "alone")[0] == trial.value


def test_each_is_told_once_whichever_thread_ends_it(tmp_path, monkeypatch, caplog):
    ends = Barrier(3, timeout=SECONDS)

    def train(self, config, report, number):
        ends.wait()
        return 0.5

    monkeypatch.setattr(Task, "train", train)
    one = at_once(tmp_path, trials=6)
    with caplog.at_level("INFO"):
        one.work(after=Follower(one.study, one.sweep))
    told = [r.getMessage() for r in caplog.records if "  trial " in r.getMessage()]
    assert [line.partition("  ")[0] for line in told] == [f"{n}/6" for n in range(1, 7)]
    assert {line.split()[2] for line in told} == {str(n) for n in range(6)}


@pytest.mark.parametrize("value", [0, -1, 1.5, "x", [2], None])
def test_a_number_of_trials_that_is_none_is_refused_in_one_line(value):
    with pytest.raises(UserError, match="together") as error:
        Sweep({**parameters(), "together": value})
    assert "\n" not in str(error.value)
