"""Which process works on a trial, whether it lives, and workers of our own."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

LOGGER = logging.getLogger(__name__)
POLL_SECONDS = 0.5
STOP_SECONDS = 10


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others, in plain types."""
    return _record(os.getpid())


def _record(pid: int) -> dict[str, Any]:
    host, created = socket.gethostname(), psutil.Process(pid).create_time()
    return {"key": f"{host}:{pid}:{created:.0f}", "host": host, "pid": pid, "created": created}


def is_alive(record: Mapping[str, Any]) -> bool:
    """Return whether the process that ``this_process`` described lives on this machine."""
    if record["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["created"]) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def environments(workers: int, device: str) -> list[dict[str, str]]:
    """Return the environment of each worker: a GPU, and a fair share of the CPU's cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    shared = {"OMP_NUM_THREADS": str(max(1, cores // workers)), **os.environ}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(k) for k in range(torch.cuda.device_count())]
    if device not in ("auto", "cuda") or len(gpus) < 2:
        return [dict(shared) for _ in range(workers)]
    return [{**shared, "CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)]} for k in range(workers)]


class Worker:
    """A process of ours: a Python module that reads its task from standard input."""

    def __init__(self, module: str, task: Path, environment: Mapping[str, str], log: Path) -> None:
        with task.open("rb") as given, log.open("ab") as written:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                env=environment,
                stdin=given,
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        self.log, self.environment = log, environment
        self.key = str(_record(self.process.pid)["key"])

    def last_line(self) -> str:
        """Return what the worker said last."""
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def run_workers(
    module: str,
    task: Any,
    environments: Sequence[Mapping[str, str]],
    folder: Path,
    follow: Callable[[list[str]], bool],
    restarts: int,
) -> None:
    """Let processes run ``module`` on ``task`` until ``follow`` says that nothing is to do.

    ``follow`` is called twice a second with the keys of workers that died. One that was killed is
    replaced, ``restarts`` times in all. What workers print is in ``folder``.

    Raises:
        ChildProcessError: if a worker fails by itself, or too many were killed.
    """
    with tempfile.NamedTemporaryFile() as file:
        pickle.dump(task, file)
        file.flush()
        place = Path(file.name)
        logs = [folder / f"worker-{k}.log" for k in range(len(environments))]
        for log in logs:
            log.unlink(missing_ok=True)
        both = zip(environments, logs, strict=True)
        workers = [Worker(module, place, environment, log) for environment, log in both]
        dead: list[str] = []
        try:
            while True:
                time.sleep(POLL_SECONDS)
                ended = [w for w in workers if w.process.poll() is not None]
                for worker in ended:
                    workers.remove(worker)
                    dead.append(worker.key)
                    _check(worker)
                more = follow(dead)
                if not workers and not more:
                    return
                killed = [w for w in ended if w.process.returncode < 0]
                if len(killed) > restarts:
                    raise ChildProcessError(
                        f"workers are killed again and again (the last one, {killed[-1].key}): is "
                        f"there memory enough for {len(environments)} of them (tune.workers)?"
                    )
                restarts -= len(killed)
                # the last one to end may have left what was given back just then
                again = killed or (ended if not workers else [])
                for worker in again if more else []:
                    workers.append(Worker(module, place, worker.environment, worker.log))
        finally:
            _stop(workers)


def _check(worker: Worker) -> None:
    code = worker.process.returncode
    if code < 0:
        LOGGER.warning("Worker %s was killed by signal %d", worker.key, -code)
    elif code:
        raise ChildProcessError(f"a worker failed: {worker.last_line()} (all of it: {worker.log})")


def _stop(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        try:
            worker.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()


def end_with(parent: int) -> None:
    """End this process when the one that started it, ``parent``, is gone, however it ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
