"""One study on a Ray cluster of two nodes, of which one claims to be another machine."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import warm
from gated import Gated
from lt_pipeline.learning.schema import UserError
from lt_pipeline.pipelines.tune import nodes
from lt_pipeline.tracking.processes import this_process
from lt_pipeline.tuning.config import TuneConfig
from lt_pipeline.tuning.storage import JOURNAL
from lt_pipeline.tuning.study import PROCESS, kept_trials, open_study, release_lost, running
from sweeps import task
from toys import PROJECT

ray_workers = pytest.importorskip("lt_pipeline.tuning.ray_workers")
LINE = {"training": {"learning_rate": {"low": 0.01, "high": 0.2, "log": True}}}
ELSEWHERE = "elsewhere"
# what Python runs first: another name for the machine
RENAMED = (
    "import os, socket\n"
    "if 'PRETENDED_HOST' in os.environ:\n"
    "    socket.gethostname = lambda: os.environ['PRETENDED_HOST']\n"
)
DRIVER = (
    "import logging, pickle, sys; logging.basicConfig(level='INFO');"
    "from lt_pipeline.pipelines.tune import nodes;"
    "nodes._do_trials(pickle.load(open(sys.argv[1], 'rb')))"
)


def python_path(*before):
    """Where other processes find this test's modules."""
    known = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join(filter(None, (*map(str, before), str(PROJECT / "tests"), known)))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a cluster: a head that does no work, and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    names = tmp_path_factory.mktemp("names")
    (names / "sitecustomize.py").write_text(RENAMED)
    # Ray's workers would yield to everything else that this machine does
    here = {"RAY_worker_niceness": "0", "PYTHONPATH": python_path(names)}
    there = {**here, "PRETENDED_HOST": ELSEWHERE}
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    for environment in (here, there):
        started.add_node(num_cpus=1, env_vars={**os.environ, **environment}, **small)
    yield started.address
    started.shutdown()


def gated(folder, result=None, **given):
    one = task(folder, result, **{"search": LINE, "engine": "ray", "workers": 2, **given})
    return Gated(**{k: v for k, v in one.__dict__.items() if k not in ("study", "sweep")})


def until(condition, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def at_the_gate(one, driver):
    """The trials that wait, by their machine, once there is one on each of two."""
    waiting = {
        trial.user_attrs[PROCESS]["host"]: trial
        for trial in running(one.study)
        if trial.intermediate_values and trial.user_attrs[PROCESS]["owner"]["pid"] == driver
    }
    return waiting if len(waiting) == 2 else None


def ended(one, trials):
    """The numbers of those of ``trials`` that went to their end."""
    ended_trials = one.study.get_trials()
    numbers = [trial.number for trial in trials.values()]
    return [n for n in numbers if ended_trials[n].state == TrialState.COMPLETE]


def history(trial):
    return trial.system_attrs.get("retry_history", [])


@pytest.mark.slow
def test_a_sweep_on_two_machines_survives_the_end_of_a_worker_and_of_its_driver(
    tmp_path, cluster, monkeypatch, caplog
):
    one = gated(tmp_path, pruner="none", trials=5, address=cluster)
    given = tmp_path / "task"
    given.write_bytes(pickle.dumps(one))
    command = [sys.executable, "-c", DRIVER, str(given)]
    driver = warm.Process(command, tmp_path, {**os.environ, "PYTHONPATH": python_path()})
    first = until(lambda: at_the_gate(one, driver.pid))
    assert set(first) == {socket.gethostname(), ELSEWHERE}
    # they are not lost only because they are not on this machine
    assert release_lost(one.study, one.sweep.config) == []

    lost = first[ELSEWHERE]
    os.kill(lost.user_attrs[PROCESS]["pid"], signal.SIGKILL)
    until(lambda: one.study.trials[lost.number].state == TrialState.FAIL)
    second = until(lambda: at_the_gate(one, driver.pid))
    assert second[socket.gethostname()].number == first[socket.gethostname()].number
    assert history(second[ELSEWHERE]) == [lost.number]
    assert second[ELSEWHERE].params == lost.params

    for host in second:
        one.open(host)
    until(lambda: [second[host].number for host in second] == ended(one, second))
    third = until(lambda: at_the_gate(one, driver.pid))
    driver.kill()
    driver.wait()
    workers = [trial.user_attrs[PROCESS]["pid"] for trial in third.values()]
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 15)
    text, _ = driver.communicate()
    key = re.escape(lost.user_attrs[PROCESS]["key"])
    assert re.search(f"Worker {key} was killed or its machine is gone", text)
    assert f"Trials [{lost.number}] were lost with their worker; tried again" in text
    assert "raylet" not in text
    assert "ray::" not in text

    monkeypatch.setattr(ray_workers, "PLACE_SECONDS", 0.1)
    again = gated(tmp_path, {**one.parameters, "tune": {**one.parameters["tune"], "workers": 1}})
    again.open()
    with caplog.at_level("WARNING"):
        nodes._do_trials(again)
    assert "1 of 1 workers wait for a place in the Ray cluster, of {'num_cpus': 1" in caplog.text
    trials = kept_trials(again.study)
    complete = {t.number: t for t in trials if t.state == TrialState.COMPLETE}
    failed = {t.number for t in trials if t.state == TrialState.FAIL}
    assert len(complete) == 5
    assert failed == {lost.number, *(t.number for t in third.values())}
    assert {complete[t.number].user_attrs[PROCESS]["host"] for t in second.values()} == set(first)
    assert {history(t)[-1] for t in complete.values() if history(t)} == failed


@pytest.mark.slow
def test_a_worker_that_fails_by_itself_ends_the_sweep_with_its_last_line(tmp_path, cluster):
    first = gated(tmp_path, pruner="none", trials=1, address=cluster, workers=1)
    other = gated(tmp_path, pruner="none", trials=1, address=cluster, workers=1, epochs=3)
    other.__dict__["study"] = first.study
    line = "a worker failed: the study .*epochs was 1 and is 3 now.*worker.log"
    with pytest.raises(UserError, match=line) as error:
        nodes._do_trials(other)
    assert "\n" not in str(error.value)
    assert "open_study" in (tmp_path / "worker.log").read_text()


@pytest.mark.slow
def test_a_machine_with_other_code_is_refused(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(ray_workers, "_code", lambda: "mine")
    one = gated(tmp_path, pruner="none", trials=1, address=cluster, workers=1)
    line = "a worker failed: lt_pipeline on .* is another than where the sweep was"
    with pytest.raises(UserError, match=line):
        nodes._do_trials(one)
    assert one.study.get_trials() == []


@pytest.mark.slow
def test_a_cluster_that_answers_is_taken(cluster):
    ray_workers.check_cluster(TuneConfig(address=cluster))


def test_what_does_not_answer_is_one_line_within_seconds(monkeypatch):
    monkeypatch.setattr(ray_workers, "PROBE_SECONDS", 3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"{address} .*no answer in 3 s from Ray") as e:
            ray_workers.check_cluster(TuneConfig(address=address))
    assert "\n" not in str(e.value)
    before = time.monotonic()
    with pytest.raises(ConnectionError, match="Connection refused.*leave tune.address null"):
        ray_workers.check_cluster(TuneConfig(address=address))
    assert time.monotonic() - before < 2


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "http://head:8265", "head:port"])
def test_an_address_of_something_else_is_one_line(address):
    with pytest.raises(ValueError, match="as in head:6379, or auto .* but got"):
        ray_workers.check_cluster(TuneConfig(address=address))


def test_the_address_is_that_of_the_parameters_else_of_the_environment(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_workers.address_of(TuneConfig()) is None
    monkeypatch.setenv("RAY_ADDRESS", "head:1")
    assert ray_workers.address_of(TuneConfig()) == "head:1"
    assert ray_workers.address_of(TuneConfig(address="other:2")) == "other:2"


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "lt_pipeline.tuning.ray_workers")
    monkeypatch.delattr("lt_pipeline.tuning.ray_workers")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ValueError, match=r"tune.engine is ray, .* pip install 'lt_pipeline\[ray\]'"
    ):
        importlib.import_module("lt_pipeline.tuning.ray_workers")


def test_a_machine_without_the_folder_trains_in_one_of_its_own(tmp_path):
    journal = JournalFileBackend(str(tmp_path / JOURNAL))
    one = task(tmp_path / "not here", search=LINE, trials=1, pruner="none")
    ray_workers._Trials.work(None, replace(one, journal=journal, owner=this_process()))
    assert not one.folder.exists()
    study = open_study(one.sweep, one.card.data_hash, tmp_path)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE]
