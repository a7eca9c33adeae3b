"""Images a second: of every method's input, step and epochs, and of several runs side by side.

In the same run the device's own ceilings are measured, and a plain loop, which all is held against.
Methods take turns step by step, so that a busy machine slows all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from benchmarks.gpu import steps
from benchmarks.gpu.packs import METHODS, Entry, Pack, command
from benchmarks.gpu.tiles import Prepared
from benchmarks.gpu.workers import SPAWN, sharing

from lt_pipeline.learning.engine.checkpoint import atomic_path
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import choose_device
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.run import run_stages
from lt_pipeline.learning.experiments.store import Store

Values = dict[str, Any]
PLAIN = "plain loop"
STEPS = get_args(TrainingConfig.model_fields["step"].annotation)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--study", default=METHODS, help="whose arms are measured")
    parser.add_argument("--env", nargs="*", default=[], help="the first in the pack unless told")
    parser.add_argument("--arms", nargs="*", default=[], help="the first is what others' are over")
    parser.add_argument("--batch-size", type=int, help="of all in place of each one's")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each")
    parser.add_argument("--epochs", type=int, default=3, help="of every stage; the last counts")
    parser.add_argument("--side", type=int, nargs="*", default=[], help="runs at once, as in 1 4 8")
    parser.add_argument("--step", choices=STEPS, default="auto", help="how a step is taken")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)


def main(arguments: argparse.Namespace) -> None:
    pack = Pack.read(arguments.pack)
    entry = pack.asked([arguments.study], arguments.env, [], set(arguments.arms))[0]
    labels = arguments.arms or list(entry.arms)
    configs = {label: as_measured(entry.arms[label], arguments) for label in labels}
    device, rows = choose_device(arguments.device), []
    for line in measure(configs, entry.prepared(arguments.pack), device, arguments):
        rows.append(line)
        write(rows, arguments.out / "throughput.csv", device)
    for line in side_by_side(entry, configs, arguments):
        rows.append(line)
        write(rows, arguments.out / "throughput.csv", device)
    print(pd.DataFrame(rows).to_string(index=False, na_rep="", float_format="{:,.4g}".format))


def as_measured(config: ExperimentConfig, arguments: argparse.Namespace) -> ExperimentConfig:
    """Return ``config`` as it is measured."""
    size = {"batch_size": arguments.batch_size} if arguments.batch_size else {}
    changes = {"step": arguments.step, **size}
    training = config.training.model_copy(update=changes)
    return config.model_copy(update={"training": training, "device": arguments.device})


def write(rows: list[Values], path: Path, device: torch.device) -> None:
    """Write what is known so far, and on what."""
    cuda = device.type == "cuda"
    about = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "command": command(),
    }
    with atomic_path(path) as target:
        pd.DataFrame([{**row, **about} for row in rows]).to_csv(target, index=False)


def measure(
    configs: Mapping[str, ExperimentConfig],
    data: Prepared,
    device: torch.device,
    arguments: argparse.Namespace,
) -> Iterator[Values]:
    """Yield rows: the ceilings, the plain loop, and each arm's step, input, scoring and epochs."""
    ceilings, images = steps.Ceilings.of(device), len(data.sets.train)
    yield {"arm": "matrix product", "part": "TFLOP/s", "value": ceilings.operations / 1e12}
    yield {"arm": "device copy", "part": "GB/s", "value": ceilings.bytes / 1e9}
    trainings = {label: steps.Training(config, data) for label, config in configs.items()}
    first = next(iter(trainings.values()))
    loop = steps.plain_loop(data, first.config.batch_size, device, first.network())
    plain = images / min(steps.clock(loop, device) for _ in range(arguments.epochs))
    yield {"arm": PLAIN, "part": "epoch", "value": plain}
    by_image: dict[str, float] = {}  # seconds of each one's step
    for part in ("step", "input", "scoring"):  # in this order: scoring folds
        work = {label: getattr(training, part)() for label, training in trainings.items()}
        taken = steps.take_turns(work, arguments.steps, device)
        base = next(iter(taken.values()))
        for label, seconds in taken.items():
            training, middle = trainings[label], statistics.median(seconds)
            size = training.stream.images if part == "input" else training.config.batch_size
            over = statistics.median(t / b for t, b in zip(seconds, base, strict=True))
            row = {"arm": label, "part": part, "value": size / middle, "over_base": over}
            if part == "input":
                row |= {"of_step": middle / size / by_image[label]}
            if part == "step":
                by_image[label] = middle / size
                row |= {"batch_size": size, "step": type(training.taken).__name__.lower()}
                one_by_one = training.one_by_one()
                row |= needed(one_by_one, size, middle, ceilings) if one_by_one else {}
            yield {**row, "of_plain": row["value"] / plain}
    for label, config in configs.items():
        for stage, rate in epochs(config, data, arguments.epochs):
            yield {"arm": label, "part": f"epoch {stage}", "value": rate, "of_plain": rate / plain}


def needed(
    work: Callable[[], object], images: int, seconds: float, ceilings: steps.Ceilings
) -> Values:
    """Return what a step needs by image, and the share of its time that the device must take."""
    needs = steps.Needs.of(work)
    return {
        "of_ceiling": ceilings.least(needs) / seconds,
        "mflop_image": needs.operations / images / 1e6,
        "mb_image": needs.bytes / images / 1e6,
    }


def epochs(config: ExperimentConfig, data: Prepared, count: int) -> Iterator[tuple[str, float]]:
    """Yield the images a second of every stage's last epoch, of ``count`` at most."""
    experiment = Experiment(steps.shortened(config, count), data.card)
    trained = [stage for stage in experiment.stages if stage.trains]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        where = store.folder_of(experiment)
        _, histories = run_stages(experiment, experiment.stages, data.sets, where, store)
    for stage, history in zip(trained, histories, strict=True):
        yield stage.name, history["train/images_per_second"][-1]["value"]


def side_by_side(
    entry: Entry, configs: Mapping[str, ExperimentConfig], arguments: argparse.Namespace
) -> Iterator[Values]:
    """Yield the images a second of the first arm's runs at once, all together, for each number.

    Where MPS can be had, they share the GPU by it, and after that take turns on it.
    """
    label, config = next(iter(configs.items()))
    for wanted in (True, False) if arguments.side else ():
        with sharing(wanted) as shared:
            if wanted and not shared:
                continue
            rates = together(entry, config, arguments)
            for count, rate in rates.items():
                how = "by MPS" if shared else "in turns"
                yield {"arm": label, "part": f"{count} at once {how}", "value": rate}


def together(
    entry: Entry, config: ExperimentConfig, arguments: argparse.Namespace
) -> dict[int, float]:
    """Return the images a second of all, by how many train at once."""
    pipes, processes = [], []
    for _ in range(max(arguments.side)):
        mine, theirs = SPAWN.Pipe()
        given = (theirs, entry, config, arguments.pack, arguments.epochs)
        processes.append(SPAWN.Process(target=train_when_told, args=given, daemon=True))
        processes[-1].start()
        pipes.append(mine)
    try:
        deque((pipe.recv() for pipe in pipes), maxlen=0)  # all are there
        return {count: _rate(pipes[:count]) for count in arguments.side}
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _rate(pipes: list[Connection]) -> float:
    started = time.perf_counter()
    for pipe in pipes:
        pipe.send(True)
    return sum(pipe.recv() for pipe in pipes) / (time.perf_counter() - started)


def train_when_told(
    conn: Connection, entry: Entry, config: ExperimentConfig, pack: Path, count: int
) -> None:
    """Train ``count`` epochs when told to, and say how many images that were."""
    torch.set_num_threads(max(len(os.sched_getaffinity(0)) // 8, 1))
    training = steps.Training(config, entry.prepared(pack))

    def epoch() -> int:
        done = [training.taken(batch, 0.5) for batch in training.batches(10**9)]
        if training.device.type == "cuda":
            torch.cuda.synchronize()
        return len(done) * training.config.batch_size

    conn.send(epoch())
    while conn.recv():
        conn.send(sum(epoch() for _ in range(count)))
