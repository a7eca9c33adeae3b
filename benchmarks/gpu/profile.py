"""What the time of a training goes to: by kernel, by operation, and by function of Python's."""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
from collections.abc import Iterator
from pathlib import Path

import torch
from benchmarks.gpu import steps
from benchmarks.gpu.packs import METHODS, Pack
from benchmarks.gpu.throughput import STEPS, as_measured
from torch.profiler import ProfilerActivity, profile

from lt_pipeline.learning.engine.checkpoint import atomic_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--study", default=METHODS)
    parser.add_argument("--env", nargs="*", default=[], help="the first in the pack unless told")
    parser.add_argument("--arms", nargs="+", required=True)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--steps", type=int, default=20, help="of an epoch, input included")
    parser.add_argument("--rows", type=int, default=15)
    parser.add_argument("--step", choices=STEPS, default="auto", help="how a step is taken")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)


def main(arguments: argparse.Namespace) -> None:
    pack = Pack.read(arguments.pack)
    entry = pack.asked([arguments.study], arguments.env, [], set(arguments.arms))[0]
    data, parts = entry.prepared(arguments.pack), []
    for label in arguments.arms:
        training = steps.Training(as_measured(entry.arms[label], arguments), data)
        parts.append("\n".join([f"# {label}", *look(training, arguments.steps, arguments.rows)]))
        with atomic_path(arguments.out / "profile.txt") as path:
            path.write_text("\n\n".join(parts))
        print(parts[-1], flush=True)


def look(training: steps.Training, count: int, rows: int) -> Iterator[str]:
    """Yield what ``count`` steps take: whole, by kernel or operation, and by Python."""

    def some() -> None:
        for batch in training.batches(count):
            training.taken(batch, 0.5)

    device = training.device
    steps.clock(some, device)
    seconds = min(steps.clock(some, device) for _ in range(3))
    done = min(count, training.stream.steps)
    yield f"{done} steps, {1000 * seconds / done:.2f} ms each, input included"
    alone = steps.clock(training.input(), device) / training.stream.steps
    yield f"input alone: {1000 * alone:.2f} ms a step, {alone / seconds * done:.0%} of it"
    cuda = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *cuda]) as seen:
        steps.clock(some, device)
    averages = seen.key_averages()
    if cuda:
        busy = sum(event.self_device_time_total for event in averages) / 1e6
        yield f"the GPU is busy for {busy / seconds:.0%} of the time"
        yield averages.table(sort_by="self_device_time_total", row_limit=rows)
    yield averages.table(sort_by="self_cpu_time_total", row_limit=rows)
    yield by_function(some, device, rows)


def by_function(work: object, device: torch.device, rows: int) -> str:
    """Return Python's functions by the time in each itself."""
    watched, text = cProfile.Profile(), io.StringIO()
    watched.runcall(steps.clock, work, device)
    pstats.Stats(watched, stream=text).strip_dirs().sort_stats("tottime").print_stats(rows)
    return text.getvalue().strip()
