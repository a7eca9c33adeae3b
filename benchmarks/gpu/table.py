"""A paper's table: several arms and seeds at once, until they are done or the time is up."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml
from benchmarks.gpu.packs import Entry, Job, Pack, command, jobs
from benchmarks.gpu.workers import Epoch, Failed, Finished, Place, Worker, sharing

from lt_pipeline.learning.engine.checkpoint import atomic_path
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.reports.studies import summarise, tabulate

PAPERS = Path(__file__).parents[2] / "conf/base/papers.yml"
# seconds of the budget that stopping and the tables take
LAST = 8.0
# of a run's estimated time: what two runs of an arm differ by beside others
SPREAD = 1.05

Values = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--study", nargs="+", required=True, help="or the table that it is of")
    parser.add_argument("--env", nargs="*", default=[], help="of those in the pack")
    parser.add_argument("--ratios", type=float, nargs="*", default=[])
    parser.add_argument("--arms", type=_words, default=[], help="as in CE,LA; none is all")
    parser.add_argument("--seeds", type=_numbers, default=[0], help="as in 0,1,2")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds, from the start on")
    parser.add_argument("--workers", type=int, default=8, help="processes on the device")
    parser.add_argument("--no-mps", action="store_true", help="they take turns on the GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=Path("build/gpu/work"), help="to resume from")
    parser.add_argument("--out", type=Path, required=True)


def main(arguments: argparse.Namespace) -> None:
    end = psutil.Process().create_time() + arguments.budget - LAST
    entries = Pack.read(arguments.pack).asked(
        arguments.study, arguments.env, arguments.ratios, set(arguments.arms)
    )
    asked = jobs(entries, arguments.seeds, arguments.device)
    results = Results(arguments.out)
    queue = Queue([job for job in asked if job.key not in results.keys], arguments, end)
    print(f"{len(asked)} runs, {len(asked) - len(queue.waiting)} of them there", flush=True)
    place = Place(arguments.pack, arguments.work, arguments.device, _threads(arguments.workers))
    with sharing(not arguments.no_mps and bool(queue.waiting)) as shared:
        facts = {"workers": arguments.workers, "mps": shared, "command": command()}
        train(queue, place, arguments.workers, results, facts)
    text = "\n".join([*tables(entries, arguments, results.rows), *queue.left()])
    with atomic_path(arguments.out / "table.md") as path:
        path.write_text(f"{text}\n")
    print(text)


def train(queue: Queue, place: Place, count: int, results: Results, facts: Values) -> None:
    """Do what is in ``queue`` and fits its time, ``count`` runs at once."""
    workers = [Worker(place) for _ in range(min(count, len(queue.waiting)))]
    try:
        while workers:
            for worker in workers:
                if worker.job is None and (job := queue.next()):
                    worker.begin(job)
            busy = {worker.conn: worker for worker in workers if worker.job}
            seconds = queue.end - time.time()
            if not busy or seconds <= 0:
                return
            for conn in wait(list(busy), seconds):
                if not heard(busy[conn], queue, results, facts):
                    workers.remove(busy[conn])
    finally:
        for worker in workers:
            worker.stop()


def heard(worker: Worker, queue: Queue, results: Results, facts: Values) -> bool:
    """Take up what ``worker`` says; return whether it is still there."""
    job = worker.job
    try:
        said = worker.conn.recv()
    except (EOFError, OSError):
        queue.ended(job, Failed("its process is gone"))
        return False
    if isinstance(said, Epoch):
        queue.told(job, said)
        results.curve(job, said)
        return True
    queue.ended(job, said)
    worker.job = None
    if isinstance(said, Finished):
        results.keep(job, said, facts)
    return True


class Queue:
    """Which run is next, and whether it can still end in time.

    How long one takes is known by the seconds an image of its arm takes, the work that goes round
    a training counted in; of an arm that none has told of yet, by the slowest that has.
    """

    def __init__(self, waiting: list[Job], arguments: argparse.Namespace, end: float) -> None:
        self.waiting, self.end, self.store = waiting, end, Store(arguments.work)
        self.plans = {job.key: job.entry.experiment(job.label, job.seed, "cpu") for job in waiting}
        self.running: dict[str, Progress] = {}
        self.paces: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def next(self) -> Job | None:
        """Return a run to begin now, None where none can be."""
        for job in self.waiting:
            if self.fits(job) and not self.doubled(job):
                self.waiting.remove(job)
                self.running[job.key] = Progress(self.plans[job.key])
                return job
        return None

    def fits(self, job: Job) -> bool:
        """Return whether ``job`` ends in time, as far as is known."""
        known = {**self.paces}
        for other in self.running.values():
            if other.pace:
                known.setdefault(_arm(other.job), other.pace)
        pace = known.get(_arm(self.plans[job.key]), max(known.values(), default=0.0))
        return time.time() + SPREAD * pace * work(self.plans[job.key]) <= self.end

    def doubled(self, job: Job) -> bool:
        """Return whether a first stage of ``job`` that others have, too, is trained just now."""
        mine = self.first(job.key)
        return mine is not None and not mine.exists() and mine in map(self.first, self.running)

    def first(self, key: str) -> Path | None:
        """Return where the first stage of a run is kept, None where it is its own."""
        found = self.store.shared(self.plans[key], self.plans[key].stages[0])
        return found and found.path

    def told(self, job: Job, said: Epoch) -> None:
        """Take up that an epoch is over."""
        self.running[job.key].tell(said)

    def ended(self, job: Job, said: Finished | Failed) -> None:
        """Take up that a run is over."""
        progress = self.running.pop(job.key)
        if isinstance(said, Failed):
            self.failed[job.title] = said.reason
        elif said.facts["fresh"]:
            self.paces[_arm(progress.job)] = said.facts["wall_seconds"] / work(progress.job)
        print(f"{job.title}: {_outcome(said)}", flush=True)

    def left(self) -> list[str]:
        """Return in sentences what was not finished."""
        lines = [f"- {title} failed: {reason}" for title, reason in self.failed.items()]
        if self.running:
            lines.append(f"- stopped, and resumed by the same command: {len(self.running)} runs")
        if self.waiting:
            lines.append(f"- not begun, as the time was up: {len(self.waiting)} runs")
        return lines


class Progress:
    """How far a run is."""

    def __init__(self, job: Experiment) -> None:
        self.job, self.heard = job, 0.0
        self.images = self.seconds = 0.0
        self.stages = {stage.name: stage for stage in job.stages}

    @property
    def pace(self) -> float:
        """Return the seconds an image has taken, 0 where that is not known."""
        return self.seconds / self.images if self.images else 0.0

    def tell(self, said: Epoch) -> None:
        """Count an epoch, but not the first, nor those of before: they are told all at once."""
        now, before = time.time(), self.heard
        self.heard = now
        if before and now - before >= said.values["train/seconds"]:
            self.images += seen(self.job, self.stages[said.stage])
            self.seconds += now - before


class Results:
    """Finished runs and their curves, each written whole as soon as it is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows, self.points = (_read(folder / name) for name in ("runs.csv", "curves.csv"))
        self.keys = {row["key"] for row in self.rows}
        self.growing: dict[str, dict[tuple[str, int], Values]] = {}

    def curve(self, job: Job, said: Epoch) -> None:
        """Remember an epoch of a run."""
        values = {name: float(f"{value:.6g}") for name, value in said.values.items()}
        point = {"key": job.key[:12], "stage": said.stage, "epoch": said.number, **values}
        self.growing.setdefault(job.key, {})[said.stage, said.number] = point

    def keep(self, job: Job, said: Finished, facts: Values) -> None:
        """Write the curve of a run and, after it, its row."""
        entry = job.entry
        about = {"key": job.key, "study": entry.study, "env": entry.env, "arm": job.label}
        data = {"seed": job.seed, "data": entry.data.slug, "data_hash": entry.data_hash}
        self.points += self.growing.pop(job.key, {}).values()
        self.rows.append({**about, **data, **said.metrics, **said.facts, **facts})
        self.keys.add(job.key)
        for name, rows in ("curves.csv", self.points), ("runs.csv", self.rows):
            with atomic_path(self.folder / name) as path:
                pd.DataFrame(rows).to_csv(path, index=False)


def tables(
    entries: Iterable[Entry], arguments: argparse.Namespace, rows: Sequence[Values]
) -> Iterator[str]:
    """Yield the table of every entry beside its papers' figures."""
    known = {row["key"]: _metrics(row) for row in rows}
    papers = yaml.safe_load(PAPERS.read_text())
    for entry in entries:
        own = [
            {"arm": job.label, "seed": job.seed, **known[job.key]}
            for job in jobs([entry], arguments.seeds, arguments.device)
            if job.key in known
        ]
        yield f"## {entry.title}\n"
        if not own:
            yield "no run is finished\n"
            continue
        plan = entry.plan
        runs, summary, _ = summarise(plan, *own)
        card = entry.experiment(own[0]["arm"], 0, "cpu").card
        yield f"{tabulate(plan, card, runs, summary, papers)[1]}\n"


def work(experiment: Experiment) -> float:
    """Return how many images a run sees while it trains."""
    epochs = experiment.config.training.epochs
    stages = (stage for stage in experiment.stages if stage.trains)
    return sum(stage.passes(epochs) * seen(experiment, stage) for stage in stages)


def seen(experiment: Experiment, stage: Any) -> float:
    """Return how many images an epoch of ``stage`` has."""
    longtail, drawn = experiment.card.longtail, stage.subset
    if not drawn:
        return sum(longtail.class_counts)
    return drawn.per_class * len(drawn.numbers) * longtail.classes


def _arm(plan: Experiment) -> str:
    """Return what runs have in common that take equally long."""
    kept = plan.config.model_dump(mode="json", exclude={"seed", "device", "evaluation"})
    return repr(kept)


def _metrics(row: Mapping[str, Any]) -> Values:
    return {n: v for n, v in row.items() if "/" in n and pd.notna(v)}


def _outcome(said: Finished | Failed) -> str:
    if isinstance(said, Failed):
        return f"failed: {said.reason}"
    found, seconds = said.metrics, said.facts["wall_seconds"]
    best = found.get("best_epoch/test/accuracy")
    also = "" if best is None else f", best epoch {100 * best:.1f}"
    return f"{100 * found['test/accuracy']:.1f} %{also}; {seconds:.0f} s"


def _threads(workers: int) -> int:
    return max(len(os.sched_getaffinity(0)) // workers, 1)


def _read(path: Path) -> list[Values]:
    text = {"key": str}
    return pd.read_csv(path, dtype=text).to_dict("records") if path.exists() else []


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]
