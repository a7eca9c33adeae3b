"""Runs side by side: processes on one device, and what each of them does."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.gpu.packs import Job

from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.run import run_experiment
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.schema import UserError

Values = dict[str, Any]
SPAWN = get_context("spawn")
CONTROL = "nvidia-cuda-mps-control"
# computes on the GPU as a client, or fails
CLIENT = "import torch; torch.ones(9, device='cuda').sum().item()"


class Epoch(NamedTuple):
    """An epoch of a stage is over, maybe long before: of what was resumed all are told."""

    stage: str
    number: int
    values: Mapping[str, float]


class Finished(NamedTuple):
    """A run is over: its metrics and what it ran on."""

    metrics: dict[str, float]
    facts: Values


class Failed(NamedTuple):
    """A run that failed, and why."""

    reason: str


class Place(NamedTuple):
    """Where runs are computed, and from and to where."""

    pack: Path
    work: Path
    device: str
    threads: int


class Worker:
    """A process that does one run after the other."""

    def __init__(self, place: Place) -> None:
        self.conn, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(theirs, place), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None

    def begin(self, job: Job) -> None:
        """Let it do ``job``."""
        self.job = job
        self.conn.send(job)

    def stop(self) -> None:
        """End it, whatever it does: what it resumes from is written whole or not at all."""
        self.process.terminate()
        self.process.join()
        self.conn.close()


def serve(conn: Connection, place: Place) -> None:
    """Do what is asked for until nobody asks: the life of a worker."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(place.threads)
    while True:
        try:
            job = conn.recv()
        except EOFError:
            return
        try:
            conn.send(do(job, place, conn))
        except Exception as error:  # one run must not take the others with it
            if not isinstance(error, UserError):
                logging.getLogger(__name__).critical("%s", job.title, exc_info=True)
            conn.send(Failed(f"{type(error).__name__}: {error}".partition("\n")[0]))


def do(job: Job, place: Place, conn: Connection) -> Finished:
    """Train and evaluate ``job``, and tell ``conn`` of every epoch."""
    began, (sets, card) = time.monotonic(), job.entry.prepared(place.pack)
    config = job.entry.experiment(job.label, job.seed, place.device).config
    experiment, store = Experiment(config, card), Store(place.work)
    shared = store.shared(experiment, experiment.stages[0])
    fresh = not (store.folder_of(experiment).exists() or (shared and shared.path.exists()))

    def report(stage: str, epoch: int, values: Mapping[str, float]) -> None:
        conn.send(Epoch(stage, epoch, dict(values)))

    if experiment.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(experiment.device)  # of this run
    metrics = run_experiment(experiment, sets, place.pack, store, report)
    shutil.rmtree(store.folder_of(experiment))  # the row is kept instead
    seconds = time.monotonic() - began
    return Finished(metrics, {"wall_seconds": seconds, "fresh": fresh, **_facts(experiment)})


def _facts(experiment: Experiment) -> Values:
    cuda = experiment.device.type == "cuda"
    name = torch.cuda.get_device_name(experiment.device) if cuda else "cpu"
    return {"device": name, "torch": torch.__version__}


@contextmanager
def sharing(wanted: bool) -> Iterator[bool]:
    """Let the processes started inside share the GPU's units by MPS, where that can be had.

    It is a daemon of our own, and no setting of the card is changed. Yields whether it is there.
    """
    control = shutil.which(CONTROL)
    if not (wanted and control):
        yield False
        return
    with tempfile.TemporaryDirectory() as folder:
        names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
        os.environ.update(dict.fromkeys(names, folder))
        try:
            there = _runs([control, "-d"]) and _runs([sys.executable, "-c", CLIENT])
            if not there:
                _forget(control, names)
            yield there
        finally:
            _forget(control, names)


def _forget(control: str, names: tuple[str, ...]) -> None:
    """End the daemon, if it is there, and have no process ask for it."""
    if names[0] in os.environ:
        _runs([control], "quit\n")
    for name in names:
        os.environ.pop(name, None)


def _runs(words: list[str], said: str = "") -> bool:
    try:
        # no pipes to read: a daemon would hold them
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        done = subprocess.run(words, input=said, text=True, timeout=60, **quiet)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
