"""Cost of BTM's fine-tunings at once against one after the other.

    python benchmarks/branch_cost.py --backbone resnet32 --networks 10 --out FILE.csv

The ways take turns in one run, so that a busy machine slows all of them; a ratio is the median over
the turns. CPU seconds are those of all threads, those that wait in a loop, too; other work on the
machine changes them less than wall seconds. Images are random: the time does not depend on what
they show. There is neither monitoring nor a checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.prepare import DataCard, DataConfig
from lt_pipeline.learning.data.profiles import Exponential, profile_counts
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.device import choose_device, peak_memory_mib
from lt_pipeline.learning.engine.parallel import fit_together
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.transforms.augment import AugmentConfig
from variants import parameters

CLASSES = 100
RECIPE = AugmentConfig(crop_padding=4, flip=0.5, autoaugment=True, cutout=16)
WAYS = ("sequential", "vmap", "side_by_side")


class Work(NamedTuple):
    """What is trained: the start, and a stage and a set for each network."""

    method: Method
    stages: Sequence[Stage]
    sets: Sequence[ImageSet]
    config: TrainingConfig
    device: torch.device

    def sequential(self) -> None:
        """Train one network after the other, each by fit."""
        for seed, (stage, data) in enumerate(zip(self.stages, self.sets, strict=True)):
            trained = copy.deepcopy(self.method)
            fit(trained, stage, data, self.config, seed=seed, device=self.device)

    def together(self, vmap: bool) -> None:
        """Train all at once."""
        fit_together(*self[:4], seeds=range(len(self.sets)), device=self.device, vmap=vmap)


def main() -> None:
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    work = build(arguments, device)
    ways = {
        "sequential": work.sequential,
        "vmap": partial(work.together, True),
        "side_by_side": partial(work.together, False),
    }
    taken = take_turns({name: ways[name] for name in arguments.ways}, arguments.repeats, device)
    table = pd.DataFrame(
        {**row, **facts(arguments, device)} for row in against_first(taken, arguments)
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False)
    print(table.T.to_string())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet32")
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--images", type=int, default=256, help="of each network")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch's; as many as it takes unless told")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="first is the base")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def build(arguments: argparse.Namespace, device: torch.device) -> Work:
    """Return BTM's fine-tunings of random images."""
    changes = {
        "model.backbone": arguments.backbone,
        "training.monitor_every": 0,
        "btm.options.branches.sets": arguments.networks,
        "btm.options.branches.epochs": arguments.epochs,
        "btm.options.branches.batch_size": arguments.batch_size,
    }
    values = parameters("base", [f"{key}={value}" for key, value in changes.items()])
    config = ExperimentConfig.resolve("btm", values)
    data, card = cifar_like(torch.device("cpu"))
    method = methods.get("btm")(config.options, config.model, card).to(device)
    branches = [stage for stage in method.stages(config.options) if stage.role == "branch"]
    method.start(branches[0], {})
    # as many images as are asked for, whatever the profile has
    drawn = torch.randint(len(data), (arguments.networks, arguments.images))
    return Work(
        method,
        branches,
        [data[positions] for positions in drawn],
        config.training.model_copy(update={"augment": RECIPE}),
        device,
    )


def cifar_like(device: torch.device) -> tuple[ImageSet, DataCard]:
    """Return random images with the counts of CIFAR-100-LT at IR 100, and their card."""
    counts = profile_counts(Exponential(), classes=CLASSES, max_per_class=500, imbalance_ratio=100)
    labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(counts))
    images = torch.randint(0, 256, (len(labels), 3, 32, 32), dtype=torch.uint8)
    names = tuple(str(c) for c in range(CLASSES))
    card = DataCard(
        LongTail.from_counts(counts), 3, (0.5,) * 3, (0.25,) * 3, DataConfig().model_dump(), ""
    )
    return ImageSet(images, labels, names).to(device), card


def take_turns(
    ways: Mapping[str, Callable[[], None]], repeats: int, device: torch.device
) -> dict[str, list[tuple[float, float]]]:
    """Return each way's wall and CPU seconds, turn by turn, after one that does not count."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(-1, repeats):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 0:
                taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return taken


def against_first(
    taken: Mapping[str, list[tuple[float, float]]], arguments: argparse.Namespace
) -> list[dict[str, object]]:
    """Return seconds, and the median ratios to the first way's, turn by turn."""
    base = next(iter(taken.values()))
    seen = arguments.networks * arguments.images * arguments.epochs
    rows = []
    for name, turns in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*turns, strict=True))
        ratios = [
            statistics.median(t[i] / b[i] for t, b in zip(turns, base, strict=True)) for i in (0, 1)
        ]
        rows.append(
            {
                "way": name,
                "wall_seconds": round(wall, 3),
                "cpu_seconds": round(cpu, 3),
                "wall_over_base": round(ratios[0], 3),
                "cpu_over_base": round(ratios[1], 3),
                "images_per_second": round(seen / wall),
            }
        )
    return rows


def facts(arguments: argparse.Namespace, device: torch.device) -> dict[str, object]:
    return {
        "backbone": arguments.backbone,
        "networks": arguments.networks,
        "images": arguments.images,
        "batch_size": arguments.batch_size,
        "epochs": arguments.epochs,
        "repeats": arguments.repeats,
        "classes": CLASSES,
        "peak_memory_mib_of_all": round(peak_memory_mib(device)),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
