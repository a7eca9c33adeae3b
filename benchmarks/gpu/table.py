"""A paper's table: several arms and seeds at once, until they are done or the time is up."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml
from benchmarks.gpu.packs import Entry, Job, Pack, command, jobs
from benchmarks.gpu.schedule import Queue, work
from benchmarks.gpu.workers import Epoch, Failed, Finished, Place, Worker, sharing

from lt_pipeline.learning.engine.checkpoint import atomic_path
from lt_pipeline.reports.studies import summarise, tabulate

PAPERS = Path(__file__).parents[2] / "conf/base/papers.yml"
# of a row of throughput.csv
AT_ONCE = re.compile(r"(\d+) at once (by MPS|in turns)")
# seconds of the budget that stopping and the tables take
LAST = 8.0

Values = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--study", nargs="+", required=True, help="or the table that it is of")
    parser.add_argument("--env", nargs="*", default=[], help="of those in the pack")
    parser.add_argument("--ratios", type=float, nargs="*", default=[])
    parser.add_argument("--arms", type=_words, default=[], help="as in CE,LA; none is all")
    parser.add_argument("--seeds", type=_numbers, default=[0], help="as in 0,1,2")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds, from the start on")
    parser.add_argument(
        "--workers", type=int, help="processes on the device; throughput's best in --out, or 8"
    )
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
    images = sum(map(work, queue.plans.values())) / 1e6
    there = len(asked) - len(queue.waiting)
    workers, mps = best_of(arguments.out)
    workers = arguments.workers or workers
    print(f"{len(asked)} runs, {there} of them there; {images:,.1f} million images", flush=True)
    place = Place(arguments.pack, arguments.work, arguments.device, _threads(workers))
    with sharing(mps and not arguments.no_mps and bool(queue.waiting)) as shared:
        facts = {"workers": workers, "mps": shared, "command": command()}
        train(queue, place, workers, results, facts)
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
        message = worker.conn.recv()
    except (EOFError, OSError):
        queue.ended(job, Failed("its process is gone"))
        return False
    if isinstance(message, Epoch):
        queue.epoch_over(job, message)
        results.curve(job, message)
        return True
    queue.ended(job, message)
    worker.job = None
    if isinstance(message, Finished):
        results.keep(job, message, facts)
    return True


class Results:
    """Finished runs and their curves, each written whole as soon as it is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows, self.points = (_read(folder / name) for name in ("runs.csv", "curves.csv"))
        self.keys = {row["key"] for row in self.rows}
        self.growing: dict[str, dict[tuple[str, int], Values]] = {}

    def curve(self, job: Job, message: Epoch) -> None:
        """Remember an epoch of a run."""
        values = {name: float(f"{value:.6g}") for name, value in message.values.items()}
        point = {"key": job.key[:12], "stage": message.stage, "epoch": message.number, **values}
        self.growing.setdefault(job.key, {})[message.stage, message.number] = point

    def keep(self, job: Job, message: Finished, facts: Values) -> None:
        """Write the curve of a run and, after it, its row."""
        entry = job.entry
        about = {"key": job.key, "study": entry.study, "env": entry.env, "arm": job.label}
        data = {"seed": job.seed, "data": entry.data.slug, "data_hash": entry.data_hash}
        self.points += self.growing.pop(job.key, {}).values()
        self.rows.append({**about, **data, **message.metrics, **message.facts, **facts})
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


def best_of(folder: Path) -> tuple[int, bool]:
    """Return how many runs at once were fastest in ``folder``'s throughput.csv, and if by MPS."""
    path = folder / "throughput.csv"
    parts = pd.read_csv(path)[["part", "value"]] if path.exists() else pd.DataFrame()
    rows = [
        (value, int(placed[1]), placed[2] == "by MPS")
        for part, value in parts.itertuples(index=False)
        if (placed := AT_ONCE.fullmatch(part))
    ]
    return max(rows)[1:] if rows else (8, True)


def _metrics(row: Mapping[str, Any]) -> Values:
    return {n: v for n, v in row.items() if "/" in n and pd.notna(v)}


def _threads(workers: int) -> int:
    return max(len(os.sched_getaffinity(0)) // workers, 1)


def _read(path: Path) -> list[Values]:
    text = {"key": str}
    return pd.read_csv(path, dtype=text).to_dict("records") if path.exists() else []


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]
