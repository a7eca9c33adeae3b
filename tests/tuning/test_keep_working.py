"""Workers of any kind: what is done when they end, and what each takes of a cluster."""

from __future__ import annotations

import socket

import pytest

from lt_pipeline.learning.schema import UserError
from lt_pipeline.tuning import workers
from lt_pipeline.tuning.runs import Tracked
from lt_pipeline.tuning.workers import keep_working, places


class Fake:
    """A worker whose processes end as they are told: ``ends`` says how, a poll each."""

    def __init__(self, name, *ends):
        self.name, self.ends = name, iter(ends)
        self.key = self.killed = None
        self.starts = 0
        self.said = []

    def start(self):
        self.starts += 1

    def ended(self):
        how = next(self.ends)
        if how == "fails":
            raise ChildProcessError("by itself")
        if how != "waits":
            self.key = f"{self.name}:{self.starts}"
        self.killed = "by signal 9" if how == "killed" else None
        return how in ("killed", "done")

    def stop(self):
        self.said.append("stop")

    def wait(self):
        self.said.append("wait")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(workers, "POLL_SECONDS", 0)


def following(*answers):
    """What follows, and the keys it was told each time."""
    told, left = [], iter(answers)

    def follow(dead):
        told.append(list(dead))
        return next(left)

    return follow, told


def test_a_killed_worker_is_replaced_and_its_key_told(caplog):
    one = Fake("one", "works", "killed", "works", "done")
    other = Fake("other", "works", "works", "done")
    follow, told = following(True, True, False, False)
    keep_working([one, other], follow, restarts=1)
    assert (one.starts, other.starts) == (2, 1)
    assert told == [[], ["one:1"], ["one:1", "other:1"], ["one:1", "other:1", "one:2"]]
    assert "Worker one:1 was killed by signal 9" in caplog.text
    assert one.said == other.said == []


def test_workers_that_are_killed_again_and_again_end_the_sweep():
    one, other = Fake("one", "killed", "killed", "killed"), Fake("other", *["works"] * 3)
    follow, _ = following(True, True, True)
    with pytest.raises(UserError, match="again and again .*one:3.* for 2 of them"):
        keep_working([one, other], follow, restarts=2)
    assert one.starts == 3
    assert other.said == ["stop", "wait"]
    assert one.said == []


def test_one_that_fails_by_itself_ends_all():
    one, other = Fake("one", "fails"), Fake("other", "works")
    with pytest.raises(ChildProcessError, match="by itself"):
        keep_working([other, one], following()[0], restarts=5)
    assert one.said == other.said == ["stop", "wait"]


def test_one_that_has_no_place_is_not_waited_for_when_nothing_is_to_do():
    one, waiting = Fake("one", "works", "done"), Fake("waiting", "waits", "waits")
    follow, _ = following(True, False)
    keep_working([one, waiting], follow, restarts=0)
    assert waiting.said == ["stop", "wait"]
    assert one.said == []


def test_one_without_a_place_is_waited_for_while_there_is_something_to_do():
    waiting = Fake("waiting", "waits", "waits", "works", "done")
    follow, told = following(True, True, True, False)
    keep_working([waiting], follow, restarts=0)
    assert len(told) == 4


def test_the_last_one_to_end_starts_again_where_something_was_given_back():
    one = Fake("one", "done", "done")
    keep_working([one], following(True, False)[0], restarts=0)
    assert one.starts == 2


def test_each_worker_takes_a_fair_share_of_the_cores_of_a_machine():
    def cores(machines, number):
        spread = places([{"CPU": n} for n in machines], number, "cpu")
        assert len(spread) == number
        (share,) = {place["num_cpus"] for place in spread}
        assert {place["num_gpus"] for place in spread} == {0}
        return share

    assert cores([8], 2) == 4
    assert cores([8], 3) == 2
    # no worker spans machines: 3 and 3 cores would leave no room on the smaller one
    assert cores([4, 2], 2) == 2
    assert cores([4, 2], 1) == 4
    # those that find no room wait for it
    assert cores([1, 1], 5) == 1
    assert cores([0, 1], 1) == 1


def test_each_worker_takes_a_gpu_where_there_are_any():
    nodes = [{"CPU": 16, "GPU": 2}, {"CPU": 6, "GPU": 1}, {"CPU": 64}]
    assert places(nodes, 3, "auto") == [{"num_cpus": 6, "num_gpus": 1}] * 3
    assert places(nodes, 2, "cuda") == [{"num_cpus": 8, "num_gpus": 1}] * 2
    assert places(nodes, 4, "auto") == [{"num_cpus": 1, "num_gpus": 1}] * 4
    assert places(nodes, 2, "cpu") == [{"num_cpus": 32, "num_gpus": 0}] * 2
    assert places([{"CPU": 2}], 1, "auto") == [{"num_cpus": 2, "num_gpus": 0}]


def test_a_cluster_without_room_is_one_line():
    with pytest.raises(ValueError, match="no machine of the Ray cluster has a GPU and a CPU core"):
        places([{"CPU": 4}], 1, "cuda")
    with pytest.raises(ValueError, match="no machine of the Ray cluster has a CPU core to give"):
        places([{}], 1, "cpu")


@pytest.mark.parametrize(
    "uri",
    ["sqlite:////data/mlflow.db", "/data/mlruns", "file:///mlruns", "http://localhost:5000"],
)
def test_trials_on_several_machines_need_a_server_that_all_can_reach(uri):
    tracked = Tracked(uri, parent="run")
    tracked.check_reach(1)
    with pytest.raises(ValueError, match="on 2 machines, but only this one can log to") as error:
        tracked.check_reach(2)
    assert f"--allowed-hosts {socket.gethostname()}:5000" in str(error.value)


def test_a_server_or_no_tracking_will_do_for_several_machines():
    Tracked("http://10.0.0.5:5000", parent="run").check_reach(2)
    Tracked("databricks", parent="run").check_reach(2)
    Tracked().check_reach(2)
