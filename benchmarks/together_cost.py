"""Cost of K trainings at once against one after the other.

    python benchmarks/together_cost.py --env cifar100_lt --networks 2 4 --out FILE.csv

Each is a method's first stage on the same images of noise, with a seed of its own: whole epochs as
``fit`` has them, with augmentation, and neither monitoring nor checkpoints. The ways take turns in
one run, so that a busy machine slows both; a ratio is the median over the turns. CPU seconds are
those of all threads, those that wait in a loop, too; other work on the machine changes them less.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

PROJECT = Path(__file__).parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "benchmarks")]

from benchmarks.gpu.tiles import Prepared  # noqa: E402

from lt_pipeline.learning.engine.device import choose_device, peak_memory_mib  # noqa: E402
from lt_pipeline.learning.engine.parallel import results, side_by_side  # noqa: E402
from lt_pipeline.learning.engine.trainer import fit  # noqa: E402
from lt_pipeline.learning.experiments.config import ExperimentConfig  # noqa: E402
from lt_pipeline.learning.experiments.experiment import Experiment  # noqa: E402
from step_ops import noise  # noqa: E402
from variants import parameters  # noqa: E402

Turns = dict[str, list[tuple[float, float]]]


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    lines = list(rows(arguments, device))
    table = pd.DataFrame({**row, **facts(arguments, device)} for row in lines)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False)
    print(table.T.to_string())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="cifar100_lt")
    parser.add_argument("--methods", nargs="+", default=["ce"])
    parser.add_argument("--networks", type=int, nargs="+", default=[2, 4], help="at once")
    parser.add_argument("--backbone", default="resnet32")
    parser.add_argument("--images", type=int, help="of the training set; all unless told")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch's; as many as it takes unless told")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def rows(arguments: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield a row a method, number of trainings and way."""
    changes = {
        "device": arguments.device,
        "model.backbone": arguments.backbone,
        "training.epochs": arguments.epochs,
        "training.warmup_epochs": 0,
        "training.monitor_every": 0,
    }
    base = parameters(arguments.env, [f"{key}={value}" for key, value in changes.items()])
    data = noise(base)
    for method in arguments.methods:
        config = ExperimentConfig.resolve(method, base)
        for count in arguments.networks:
            tasks = [partial(train, config, seed, data, arguments.images) for seed in range(count)]
            ways = {
                "one after the other": lambda tasks=tasks: [task() for task in tasks],
                "and each on one thread": lambda tasks=tasks: on_one_thread(tasks),
                "at once": lambda tasks=tasks: results(side_by_side(tasks, device)),
            }
            taken = take_turns(ways, arguments.repeats, device)
            seen = count * arguments.epochs * (arguments.images or len(data.sets.train))
            for row in against_first(taken, seen):
                yield {"method": method, "networks": count, **row}


def on_one_thread(tasks: Sequence[Callable[[], object]]) -> None:
    """Do ``tasks`` one after the other, with one thread of torch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for task in tasks:
        task()
    torch.set_num_threads(before)


def train(config: ExperimentConfig, seed: int, data: Prepared, images: int | None) -> None:
    """Train the first stage of ``config`` from the start."""
    experiment = Experiment(config.model_copy(update={"seed": seed}), data.card)
    stage = experiment.stages[0]
    own, train = experiment.begun(stage, {}), data.sets.train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    some = train[order[: images or len(train)]]
    beside = data.sets.auxiliary
    fit(own, stage, some, config.training, seed=seed, device=experiment.device, auxiliary=beside)


def take_turns(
    ways: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> Turns:
    """Return each way's wall and CPU seconds, turn by turn, after one that does not count."""
    taken: Turns = {name: [] for name in ways}
    for turn in range(-1, repeats):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 0:
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return taken


def against_first(taken: Turns, seen: int) -> Iterator[dict[str, Any]]:
    """Yield seconds, and the median ratios to the first way's, turn by turn."""
    base = next(iter(taken.values()))
    for name, turns in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*turns, strict=True))
        ratios = [[t[i] / b[i] for t, b in zip(turns, base, strict=True)] for i in (0, 1)]
        yield {
            "way": name,
            "wall_seconds": round(wall, 3),
            "cpu_seconds": round(cpu, 3),
            "wall_over_base": round(statistics.median(ratios[0]), 3),
            "lowest": round(min(ratios[0]), 3),
            "highest": round(max(ratios[0]), 3),
            "cpu_over_base": round(statistics.median(ratios[1]), 3),
            "images_per_second": round(seen / wall),
            "load": round(os.getloadavg()[0], 1),
        }


def facts(arguments: argparse.Namespace, device: torch.device) -> dict[str, object]:
    return {
        "environment": arguments.env,
        "backbone": arguments.backbone,
        "images": arguments.images,
        "epochs": arguments.epochs,
        "repeats": arguments.repeats,
        "peak_memory_mib_of_all": round(peak_memory_mib(device)),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
