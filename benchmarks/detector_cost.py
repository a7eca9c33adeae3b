"""Seconds a thousand images of every OOD detector, and their ratio to classifying them.

    python benchmarks/detector_cost.py --method lgla --out FILE.csv

The detectors take turns in one run; a ratio is the median over the turns. Images are random and
weights untrained: the time does not depend on either. A detector's time is that of the passes
through the network that it needs (features and logits once, ODIN's own two and a half) and its own.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.prepare import DataCard, DataConfig
from lt_pipeline.learning.data.profiles import Exponential, profile_counts
from lt_pipeline.learning.engine.device import choose_device
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.evaluation.detectors import (
    DETECTORS,
    DetectorConfig,
    build_detectors,
    extract_outputs,
)
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.methods.families.base import Method
from variants import parameters

CLASSES, TRAIN, IMAGES = 100, 2000, 1000


def main() -> None:
    arguments = parse()
    device = choose_device(arguments.device)
    method, train = create(arguments.method, arguments.backbone)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    tasks = {"classify": lambda: predict(method, method.score, images, device=device)}
    detectors = build_detectors(tuple(DETECTORS), method, train, DetectorConfig(), device)
    for name, detector in detectors.items():
        tasks[name] = lambda detector=detector: detector(extract_outputs(method, images, device))
    table = pd.DataFrame(measure(tasks, arguments.turns))
    table["method"], table["backbone"] = arguments.method, arguments.backbone
    table["device"] = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    table["threads"], table["torch"] = torch.get_num_threads(), torch.__version__
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False)
    print(table.to_string())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="lgla")
    parser.add_argument("--backbone", default="resnet32")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def create(name: str, backbone: str) -> tuple[Method, ImageSet]:
    """Return the untrained method for 100 classes, and random training images."""
    values = parameters("base", [f"model.backbone={backbone}"])
    config = ExperimentConfig.resolve(name, values)
    counts = profile_counts(Exponential(), classes=CLASSES, max_per_class=500, imbalance_ratio=100)
    card = DataCard(
        LongTail.from_counts(counts), 3, (0.5,) * 3, (0.25,) * 3, DataConfig().model_dump(), "0"
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (TRAIN, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(TRAIN) % CLASSES
    names = tuple(str(c) for c in range(CLASSES))
    return methods.get(name)(config.options, config.model, card), ImageSet(images, labels, names)


def measure(tasks: dict[str, Callable[[], object]], turns: int) -> list[dict[str, object]]:
    """Return a row a task: median seconds, and its median ratio to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(turns + 1):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()  # ends on the CPU, which waits for the device
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    base = seconds[next(iter(tasks))]
    return [
        {
            "detector": name,
            "seconds_a_thousand": round(statistics.median(times), 3),
            "over_classify": round(
                statistics.median(t / b for t, b in zip(times, base, strict=True)), 2
            ),
        }
        for name, times in seconds.items()
    ]


if __name__ == "__main__":
    main()
