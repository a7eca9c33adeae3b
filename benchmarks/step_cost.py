"""Cost of a training step with and without MORE, and the input pipeline's share of an epoch.

    python benchmarks/step_cost.py --out benchmarks/results/step_cost.csv

Both methods alternate in one run, so that a busy machine slows both; the ratio is of medians.
Images are random: the time does not depend on what they show.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import pandas as pd
import torch

from lt_pipeline import methods
from lt_pipeline.config import ExperimentConfig
from lt_pipeline.data.augment import AugmentConfig
from lt_pipeline.data.batches import Batch, batches
from lt_pipeline.data.images import ImageSet
from lt_pipeline.data.longtail import LongTail
from lt_pipeline.data.prepare import DataCard, DataConfig
from lt_pipeline.data.profiles import Exponential, profile_counts
from lt_pipeline.engine.device import autocast, choose_device, memory_format

CLASSES = 100
RECIPE = AugmentConfig(crop_padding=4, flip=0.5, autoaugment=True, cutout=16)


def main() -> None:
    arguments = parse()
    device = choose_device(arguments.device)
    rows = [
        measure(arguments.backbone, size, arguments.steps, device, arguments.compile)
        for size in arguments.batch_sizes
    ]
    table = pd.DataFrame(rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False)
    print(table.T.to_string())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each method")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


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


def measure(
    backbone: str, size: int, steps: int, device: torch.device, compiled: bool
) -> dict[str, object]:
    data, card = cifar_like(device)
    run = {
        name: trainer(name, backbone, card, device, compiled)
        for name in ("logit_adjustment", "more")
    }
    batch = Batch(data.images[:size], data.labels[:size], torch.arange(size))
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for step in range(-2, steps):
        for name, one_step in run.items():
            took = clock(lambda one_step=one_step: one_step(batch), device)
            if step >= 0:
                seconds[name].append(took)
    base, more = (statistics.median(values) for values in seconds.values())
    input_seconds = statistics.median(
        clock(lambda: consume(data, size, device), device) for _ in range(3)
    )
    epoch = base * (len(data) // size)
    return {
        "backbone": backbone,
        "batch_size": size,
        "images_per_second": round(size / base),
        "images_per_second_more": round(size / more),
        "more_over_base": round(more / base, 2),
        "input_share_of_epoch": round(input_seconds / (epoch + input_seconds), 4),
        "input_images_per_second": round(len(data) / input_seconds),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "compiled": compiled,
        "torch": torch.__version__,
    }


def trainer(name: str, backbone: str, card: DataCard, device: torch.device, compiled: bool):
    """Return a function that does one training step of the method on a batch."""
    config = ExperimentConfig.resolve(name, {"model": {"backbone": backbone}})
    method = methods.get(name)(config.options, config.model, card).to(device).train()
    form = memory_format(config.training, device)
    method.net.to(memory_format=form)
    if compiled:
        method.net.compile()
    optimizer = torch.optim.SGD(method.parameters(), 0.1, 0.9, fused=device.type == "cuda")

    def one_step(batch: Batch) -> None:
        images = batch.images.contiguous(memory_format=form)
        with autocast(config.training, device):
            terms = method.loss(batch._replace(images=images), 0.5)
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        optimizer.step()

    return one_step


def consume(data: ImageSet, size: int, device: torch.device) -> None:
    """Make all batches of an epoch with the CIFAR recipe's augmentation."""
    generator = torch.Generator(device).manual_seed(0)
    order = torch.randperm(len(data)).to(device)
    for _ in batches(data, order, size, RECIPE, generator):
        continue


def clock(work, device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
