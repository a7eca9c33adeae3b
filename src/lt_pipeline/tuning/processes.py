"""Workers on this machine: their environments, their start and their end."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking.processes import record_of
from lt_pipeline.tuning.workers import POLL_SECONDS, STOP_SECONDS, keep_working, last_line

# the exit code of a worker that ends with what a person can put right; Python's own for a bug is 1
REFUSED = 3


def cores() -> int:
    """Return how many of the CPU's cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def environments(workers: int, device: str) -> list[dict[str, str]]:
    """Return the environment of each worker: a GPU, and a fair share of the CPU's cores."""
    shared = {"OMP_NUM_THREADS": str(max(1, cores() // workers)), **os.environ}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(k) for k in range(torch.cuda.device_count())]
    if device not in ("auto", "cuda") or len(gpus) < 2:
        return [dict(shared) for _ in range(workers)]
    return [{**shared, "CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)]} for k in range(workers)]


class Process:
    """A worker that is a process of this machine: a Python module, its task on standard input.

    What it prints goes to the file ``log``.
    """

    def __init__(self, module: str, task: Path, environment: Mapping[str, str], log: Path) -> None:
        self.module, self.task, self.environment, self.log = module, task, environment, log
        self.key: str | None = None

    def start(self) -> None:
        """Start the process."""
        with self.task.open("rb") as given, self.log.open("ab") as written:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                env=self.environment,
                stdin=given,
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        self.key = str(record_of(self.process.pid)["key"])

    def ended(self) -> bool:
        """Return whether the process is gone.

        Raises:
            UserError: with what it refused.
            ChildProcessError: with what it said last, if it failed by itself.
        """
        code = self.process.poll()
        if code is not None and code > 0:
            reason = last_line(self.log.read_text(errors="replace")) or "no output"
            kind = UserError if code == REFUSED else ChildProcessError
            raise kind(f"a worker failed: {reason} (all of it: {self.log})")
        return code is not None

    @property
    def killed(self) -> str | None:
        """Return which signal killed the process."""
        code = self.process.returncode
        return f"by signal {-code}" if code < 0 else None

    def stop(self) -> None:
        """Ask the process to end."""
        self.process.terminate()

    def wait(self) -> None:
        """Wait until the process is gone; end it if it takes its time."""
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()


def run_workers(
    module: str,
    task: Any,
    environments: Sequence[Mapping[str, str]],
    folder: Path,
    follow: Callable[[list[str]], bool],
    restarts: int,
) -> None:
    """Let processes run ``module`` on ``task``, as ``keep_working`` has it.

    What workers print is in ``folder``.

    Raises:
        UserError: if a worker refuses something, or too many were killed.
        ChildProcessError: if a worker fails by itself.
    """
    with tempfile.NamedTemporaryFile() as file:
        pickle.dump(task, file)
        file.flush()
        place = Path(file.name)
        logs = [folder / f"worker-{k}.log" for k in range(len(environments))]
        for log in logs:
            log.unlink(missing_ok=True)
        both = zip(environments, logs, strict=True)
        workers = [Process(module, place, environment, log) for environment, log in both]
        keep_working(workers, follow, restarts)


def end_with(parent: int) -> None:
    """End this process when the one that started it, ``parent``, is gone, however it ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
