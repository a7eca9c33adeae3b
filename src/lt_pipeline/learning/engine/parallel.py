"""Work side by side in threads of one process: each as it is alone, but for who computes when.

On a GPU each has a stream of its own, so that kernels of several trainings share the card. Counted
before that was chosen (benchmarks/together_ops.py, docs/gpu.md): K networks as one batched
computation, by ``torch.vmap`` or with BatchNorm over [K C] channels and grouped convolutions, ask
for fewer launches, which a captured step does not pay for one by one, but for one architecture, one
recipe and one length; what is added to a method would have to be written for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Event, Lock, RLock, local
from typing import TypeVar

import torch

_Result = TypeVar("_Result")

# Held while weights are drawn: the process has one generator, and its seed is set just before.
RANDOM = RLock()
_HERE = local()
_KEYS: defaultdict[object, Lock] = defaultdict(Lock)


class Stopped(BaseException):
    """Ends a training because the process was told to end; no failure of its own."""


class _Crowd:
    """Those who are at work side by side, maybe as one of others."""

    def __init__(self) -> None:
        self.outer: _Crowd | None = getattr(_HERE, "crowd", None)
        self.stop, self.lock, self.working = Event(), Lock(), 0
        self.reason: BaseException | None = None

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Tell all of them to end if what is inside is interrupted, and say of each why."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Stopped):
                self.reason = self.reason or error
            self.stop.set()
            raise (self.reason or error) from None

    @contextmanager
    def member(self) -> Iterator[None]:
        """Be one of them inside."""
        with self.lock:
            self.working += 1
        _HERE.crowd, _HERE.generator = self, torch.Generator()
        try:
            yield
        finally:
            _HERE.crowd = _HERE.generator = None
            with self.lock:
                self.working -= 1


def side_by_side(
    tasks: Sequence[Callable[[], _Result]], device: torch.device
) -> list[_Result | Exception]:
    """Do ``tasks`` as ``as_one`` does; return what each gives, or the error that it ended with."""
    return as_one([partial(_outcome, task) for task in tasks], device)


def as_one(tasks: Sequence[Callable[[], _Result]], device: torch.device) -> list[_Result]:
    """Do ``tasks`` at once; return what each gives.

    On a CPU as many are at work at a time as torch has threads, which they share evenly; on a GPU
    all are. An interrupt, or the error of one, stops those that are at work where they look at
    ``go_on``.
    """
    if len(tasks) < 2:
        return [task() for task in tasks]
    threads, crowd = torch.get_num_threads(), _Crowd()
    workers = len(tasks) if device.type == "cuda" else min(len(tasks), threads)
    before = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def do(task: Callable[[], _Result]) -> _Result:
        with crowd.stopping(), crowd.member(), _own_stream(before):
            go_on()
            return task()

    threads_each = (max(threads // workers, 1),)
    try:
        # told to stop before they are waited for
        with (
            ThreadPoolExecutor(workers, "", torch.set_num_threads, threads_each) as pool,
            crowd.stopping(),
        ):
            return list(pool.map(do, tasks))
    finally:
        # a thread's own number is what later ones begin with, too
        torch.set_num_threads(threads)


def results(outcomes: Sequence[_Result | Exception]) -> list[_Result]:
    """Return what ``side_by_side`` gave if it has no error in it, else raise the first."""
    error = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
    if error is not None:
        raise error
    return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]


def generator() -> torch.Generator:
    """Return what a training draws from, on the CPU, that is given no generator.

    It is the process's, and a thread's own where several train side by side.
    """
    return getattr(_HERE, "generator", None) or torch.default_generator


def begin_draws(seed: int) -> None:
    """Let what has no generator of its own begin anew with ``seed``."""
    if generator() is torch.default_generator:
        torch.manual_seed(seed)  # of every device
    else:
        generator().manual_seed(seed)


def at_once() -> int:
    """Return how many work side by side with the caller, itself among them."""
    count, crowd = 1, getattr(_HERE, "crowd", None)
    while crowd:
        count, crowd = count * max(crowd.working, 1), crowd.outer
    return count


def go_on() -> None:
    """Return, unless those at work side by side were told to end.

    Raises:
        Stopped: if they were.
    """
    crowd = getattr(_HERE, "crowd", None)
    while crowd:
        if crowd.stop.is_set():
            raise Stopped
        crowd = crowd.outer


@contextmanager
def alone(key: object) -> Iterator[None]:
    """Do what is inside while no other thread does what it calls ``key``, as a file, too."""
    with _KEYS[key]:
        yield


@contextmanager
def _own_stream(before: torch.cuda.Stream | None) -> Iterator[None]:
    """Compute inside on a stream of one's own, behind what ``before`` has to do until now."""
    if before is None:
        yield
        return
    own = torch.cuda.Stream(before.device)
    own.wait_stream(before)
    with torch.cuda.stream(own):
        yield
    # others read what was computed
    own.synchronize()


def _outcome(task: Callable[[], _Result]) -> _Result | Exception:
    try:
        return task()
    except Exception as error:  # it takes no other with it
        return error
