"""Cost of a training step of methods against the first one's, and of the input pipeline.

    python benchmarks/step_cost.py --methods logit_adjustment more --out FILE.csv
    python benchmarks/step_cost.py --methods balanced_softmax dbm --out FILE.csv

An argument ``label:method:key=value,...`` to --methods is a variant with parameters of its own.
The methods take turns in one run, so that a busy machine slows all of them; a ratio is the median
over the turns. Images are random: the time does not depend on what they show.
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

from lt_pipeline import methods
from lt_pipeline.config import ExperimentConfig, merged
from lt_pipeline.data.augment import AugmentConfig
from lt_pipeline.data.batches import Batch, batches
from lt_pipeline.data.images import ImageSet
from lt_pipeline.data.longtail import LongTail
from lt_pipeline.data.prepare import DataCard, DataConfig
from lt_pipeline.data.profiles import Exponential, profile_counts
from lt_pipeline.engine.device import autocast, choose_device, memory_format
from variants import Variant, parameters

CLASSES = 100
RECIPE = AugmentConfig(crop_padding=4, flip=0.5, autoaugment=True, cutout=16)


def main() -> None:
    arguments = parse()
    device = choose_device(arguments.device)
    variants = [Variant.parse(argument) for argument in arguments.methods]
    table = pd.DataFrame(
        row for size in arguments.batch_sizes for row in measure(variants, size, arguments, device)
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(arguments.out, index=False)
    print(table.T.to_string())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", required=True, help="the first is the base")
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
    variants: list[Variant], size: int, arguments: argparse.Namespace, device: torch.device
) -> list[dict[str, object]]:
    data, card = cifar_like(device)
    run = {
        variant.label: trainer(variant, arguments.backbone, card, device, arguments.compile)
        for variant in variants
    }
    images = data.images[:size]
    batch = Batch(images, data.labels[:size], torch.arange(size), (images, images.flip(3)))
    seconds: dict[str, list[float]] = {label: [] for label in run}
    for step in range(-2, arguments.steps):
        for label, one_step in run.items():
            took = clock(lambda one_step=one_step: one_step(batch), device)
            if step >= 0:
                seconds[label].append(took)
    base = next(iter(seconds.values()))
    input_seconds = statistics.median(
        clock(lambda: consume(data, size, device), device) for _ in range(3)
    )
    epoch = statistics.median(base) * (len(data) // size)
    return [
        {
            "label": label,
            "backbone": arguments.backbone,
            "batch_size": size,
            "images_per_second": round(size / statistics.median(taken)),
            "over_base": round(
                statistics.median(t / b for t, b in zip(taken, base, strict=True)), 3
            ),
            "steps": arguments.steps,
            "input_share_of_base_epoch": round(input_seconds / (epoch + input_seconds), 4),
            "input_images_per_second": round(len(data) / input_seconds),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "compiled": arguments.compile,
            "torch": torch.__version__,
        }
        for label, taken in seconds.items()
    ]


def trainer(
    variant: Variant, backbone: str, card: DataCard, device: torch.device, compiled: bool
) -> Callable[[Batch], None]:
    """Return a function that does one training step of the method on a batch."""
    values = merged(parameters("base", [f"model.backbone={backbone}"]), variant.parameters)
    config = ExperimentConfig.resolve(variant.method, values)
    method = methods.get(variant.method)(config.options, config.model, card).to(device).train()
    form = memory_format(config.training, device)
    method.net.to(memory_format=form)
    if compiled:
        method.net.compile()
    optimizer = torch.optim.SGD(method.parameters(), 0.1, 0.9, fused=device.type == "cuda")

    def one_step(batch: Batch) -> None:
        with autocast(config.training, device):
            terms = method.loss(
                batch._replace(views=batch.views[: method.views]).in_format(form), 0.5
            )
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
