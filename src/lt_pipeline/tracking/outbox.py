"""Values of epochs on their way to MLflow, which no training waits for.

One thread of its own sends them. What a server did not take is tried again, and in the end kept in
files: ``python -m lt_pipeline.tracking.unsent`` brings them in once the server is back.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from threading import Condition, Thread
from typing import Any, NamedTuple

import mlflow
from mlflow.entities import Metric

LOGGER = logging.getLogger(__name__)
# a call takes some milliseconds, which is much for an epoch of a small training
SECONDS_BETWEEN_CALLS = 1.0
# between calls that a server does not take
SECONDS_BETWEEN_TRIES = 10.0
# MLflow takes no more in one call
MAX_METRICS = 1000
# what waits in memory; beyond it goes to files
MAX_WAITING = 20_000
# that a process waits, in all, at the ends of trainings
TRAINING_SECONDS = 2.0
# that it waits at the end of its run
RUN_SECONDS = 10.0
# where values are kept that could not be sent; processes that a run starts are told by it
FOLDER = "LT_PIPELINE_UNSENT"
BRING_IN = "python -m lt_pipeline.tracking.unsent"


class Waiting(NamedTuple):
    """A value that is not in MLflow yet: of which run of which server."""

    uri: str
    run: str
    metric: Metric

    @property
    def goes_to(self) -> tuple[str, str]:
        """Return what values of one call have in common."""
        return self.uri, self.run


class Outbox:
    """The values that are to be sent, in order, and the thread that does."""

    def __init__(self) -> None:
        self.waiting: list[Waiting] = []
        self.changed = Condition()
        self.thread: Thread | None = None
        self.left = TRAINING_SECONDS
        self.hurry = self.failing = False
        self.failed = 0
        self.due = 0.0

    def add(self, run: str, metrics: Sequence[Metric]) -> None:
        """Take ``metrics`` of ``run`` of the server that is in use; it never waits for that."""
        uri = mlflow.get_tracking_uri()
        with self.changed:
            self.waiting += [Waiting(uri, run, metric) for metric in metrics]
            if len(self.waiting) > MAX_WAITING:
                self._keep()
            self._start()
            self.changed.notify_all()

    def training_ends(self) -> None:
        """Send what waits, for as long as trainings may be held up."""
        started = time.monotonic()
        self._send(self.left)
        self.left = max(0.0, self.left - (time.monotonic() - started))

    def run_ends(self) -> None:
        """Send what waits, keep what cannot be sent in files, and say so."""
        self._send(RUN_SECONDS)
        with self.changed:
            self._keep()
            self.left = TRAINING_SECONDS

    def _send(self, seconds: float) -> None:
        """Wait until all is sent or a call has failed, ``seconds`` at most."""
        with self.changed:
            self.hurry, failed = True, self.failed
            self._start()
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self.waiting or self.failed > failed, seconds)
            self.hurry = False

    def _start(self) -> None:
        if self.waiting and (self.thread is None or not self.thread.is_alive()):
            if self.thread is None:
                atexit.register(self.run_ends)
            self.thread = Thread(target=self._run, name="epochs to MLflow", daemon=True)
            self.thread.start()

    def _run(self) -> None:
        while True:
            with self.changed:
                while not self._is_due():
                    pause = self.due - time.monotonic()
                    self.changed.wait(pause if self.waiting else None)
                batch = self._next()
            error = _call(*batch[0].goes_to, [entry.metric for entry in batch])
            with self.changed:
                self._called(batch, error)

    def _next(self) -> list[Waiting]:
        """Return the first values that one call may have."""
        first = self.waiting[0].goes_to
        return list(takewhile(lambda entry: entry.goes_to == first, self.waiting[:MAX_METRICS]))

    def _is_due(self) -> bool:
        """Return whether there is something to send, and it is time."""
        many = len(self.waiting) >= MAX_METRICS // 2 and not self.failing
        return bool(self.waiting) and (self.hurry or many or time.monotonic() >= self.due)

    def _called(self, batch: list[Waiting], error: str | None) -> None:
        """Note how a call ended: of those that fail one after another the first is told."""
        if error is None:
            # of a full outbox they may be in a file by now
            sent = {id(entry) for entry in batch}
            self.waiting = [entry for entry in self.waiting if id(entry) not in sent]
        else:
            if not self.failing:
                LOGGER.warning("%s are not in MLflow yet: %s", _epochs(batch), error)
            self.failed += 1
            self.hurry = False
        self.failing = error is not None
        self.due = time.monotonic() + (SECONDS_BETWEEN_TRIES if error else SECONDS_BETWEEN_CALLS)
        self.changed.notify_all()

    def _keep(self) -> None:
        """Move what waits to a file a run."""
        if not self.waiting:
            return
        folder = Path(os.environ.get(FOLDER, "unsent"))
        folder.mkdir(parents=True, exist_ok=True)
        for run in dict.fromkeys(entry.run for entry in self.waiting):
            lines = [json.dumps(_plain(entry.metric)) for entry in self.waiting if entry.run == run]
            with (folder / f"{run}.jsonl").open("a") as file:
                file.write("\n".join(lines) + "\n")
        LOGGER.warning(
            "%s are not in MLflow but in %s: once the server answers, %s brings them in",
            *(_epochs(self.waiting), folder, BRING_IN),
        )
        self.waiting = []


def _call(uri: str, run: str, metrics: Sequence[Metric]) -> str | None:
    """Send ``metrics``, and return in a line why they were not taken."""
    try:
        mlflow.MlflowClient(tracking_uri=uri).log_batch(run, metrics=metrics)
    except Exception as error:
        # whatever it is, it does not end a training
        return str(error).partition("\n")[0] or type(error).__name__
    return None


def _plain(metric: Metric) -> dict[str, Any]:
    return {name: getattr(metric, name) for name in ("key", "value", "timestamp", "step")}


def _epochs(waiting: Sequence[Waiting]) -> str:
    steps = {entry.metric.step for entry in waiting}
    return f"Epochs {min(steps)} to {max(steps)}"
