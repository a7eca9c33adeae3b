"""Workers on one study, wherever they run: started, watched, and replaced when they are killed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from lt_pipeline.learning.schema import UserError

LOGGER = logging.getLogger(__name__)
POLL_SECONDS = 0.5
STOP_SECONDS = 10


class Worker(Protocol):
    """A process that does trials, and the one that takes its place when it is killed."""

    def start(self) -> None:
        """Start a process, and do not wait for it."""

    @property
    def key(self) -> str | None:
        """Return what the trials of the last process name as theirs; None before it has begun."""

    def ended(self) -> bool:
        """Return whether the process is gone.

        Raises:
            ChildProcessError: if it failed by itself, which another one would, too.
        """

    @property
    def killed(self) -> str | None:
        """Return what killed the process, once it is gone; None if it went to its end."""

    def stop(self) -> None:
        """Have the process end, and do not wait for that."""

    def wait(self) -> None:
        """Wait until a process that was stopped is gone."""


def keep_working(
    workers: Sequence[Worker], follow: Callable[[list[str]], bool], restarts: int
) -> None:
    """Let ``workers`` work until ``follow`` says that nothing is to do.

    ``follow`` is called twice a second with the keys of processes that are gone. One that was
    killed is replaced, ``restarts`` times in all.

    Raises:
        ChildProcessError: if a worker fails by itself, or too many were killed.
    """
    active: list[Worker] = []
    try:
        for worker in workers:
            worker.start()
            active.append(worker)
        _watch(active, follow, restarts)
    finally:
        for worker in active:
            worker.stop()
        for worker in active:
            worker.wait()


def _watch(active: list[Worker], follow: Callable[[list[str]], bool], restarts: int) -> None:
    dead: list[str] = []
    number = len(active)
    while True:
        time.sleep(POLL_SECONDS)
        ended = [worker for worker in active if worker.ended()]
        killed = [worker for worker in ended if worker.killed]
        for worker in killed:
            LOGGER.warning("Worker %s was killed %s", worker.key, worker.killed)
        for worker in ended:
            active.remove(worker)
        dead += [worker.key for worker in ended if worker.key]
        more = follow(dead)
        if not more and all(worker.key is None for worker in active):
            # those that still wait for a place are not needed
            return
        if len(killed) > restarts:
            raise UserError(
                f"workers are killed again and again (the last one, {killed[-1].key}): is there "
                f"memory enough for {number} of them (tune.workers)?"
            )
        restarts -= len(killed)
        # the last one to end may have left what was given back just then
        again = killed or (ended if not active else [])
        for worker in again if more else []:
            worker.start()
            active.append(worker)


def last_line(text: str) -> str:
    """Return what ``text`` says last, empty if it says nothing."""
    lines = (line.strip() for line in reversed(text.split("\n")))
    return next(filter(None, lines), "")


def places(
    nodes: Sequence[Mapping[str, float]], workers: int, device: str
) -> list[dict[str, float]]:
    """Return what each worker takes of ``nodes``, the resources of each of the cluster's machines.

    That is a GPU where there are any and ``device`` may be one, and a fair share of the CPU's
    cores. There may be more workers than have room at once.

    Raises:
        UserError: if there is no room for one.
    """
    on_gpu = device == "cuda" or (device == "auto" and any(node.get("GPU") for node in nodes))

    def room(cores: int) -> int:
        gpus = (int(node.get("GPU", 0)) if on_gpu else workers for node in nodes)
        cpus = (int(node.get("CPU", 0) // cores) for node in nodes)
        return sum(map(min, gpus, cpus))

    if not room(1):
        what = "a GPU and a CPU core (device: cuda)" if on_gpu else "a CPU core"
        raise UserError(f"no machine of the Ray cluster has {what} to give to a worker")
    most = int(max(node.get("CPU", 0) for node in nodes))
    cores = max((n for n in range(1, most + 1) if room(n) >= workers), default=1)
    return [{"num_cpus": cores, "num_gpus": int(on_gpu)} for _ in range(workers)]
