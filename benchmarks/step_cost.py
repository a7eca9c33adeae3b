"""Cost of a training step of methods against the first one's, of scoring, and of the input.

    python benchmarks/step_cost.py --methods logit_adjustment more --out FILE.csv
    python benchmarks/step_cost.py --methods ce sade ride dqroute --inference --out FILE.csv

An argument ``label:method:key=value,...`` to --methods is a variant with parameters of its own.
A batch brings what methods may ask for: two views, a pair, as many outliers as images.

The methods take turns in one run, so that a busy machine slows all of them; a ratio is the median
over the turns. Images are random: the time does not depend on what they show. With --inference,
what is deployed of the same methods then takes turns in scoring the same batch.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.batches import Batch, batches, mixed_with_itself
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.longtail import LongTail
from lt_pipeline.learning.data.prepare import DataCard, DataConfig
from lt_pipeline.learning.data.profiles import Exponential, profile_counts
from lt_pipeline.learning.engine.device import autocast, choose_device, memory_format
from lt_pipeline.learning.engine.predict import predict
from lt_pipeline.learning.experiments.config import ExperimentConfig, merged
from lt_pipeline.learning.methods._base import Method
from lt_pipeline.learning.transforms.augment import AugmentConfig
from lt_pipeline.learning.transforms.mix import MixConfig
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
    parser.add_argument("--inference", action="store_true", help="measure scoring, too")
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
    found = {v.label: build(v, arguments.backbone, card) for v in variants}
    images = data.images[:size]
    pair = Batch(images.flip(0), data.labels[:size].flip(0), torch.arange(size).flip(0))
    views = (images, images.flip(3))
    batch = Batch(images, data.labels[:size], torch.arange(size), views, pair, images.flip(2))
    batch = mixed_with_itself(batch, MixConfig(cutmix=False), torch.Generator().manual_seed(0))
    work = {
        label: trainer(method, config, device, arguments.compile)
        for label, (method, config) in found.items()
    }
    seconds = take_turns(
        {label: partial(one_step, batch) for label, one_step in work.items()},
        arguments.steps,
        device,
    )
    base = next(iter(seconds.values()))
    inference: dict[str, dict[str, object]] = {label: {} for label in seconds}
    if arguments.inference:
        scoring = take_turns(
            {label: scorer(method, images, device) for label, (method, _) in found.items()},
            arguments.steps,
            device,
        )
        inference = {
            label: {f"inference_{name}": value for name, value in costs.items()}
            for label, costs in against_first(scoring, size).items()
        }
    input_seconds = statistics.median(
        clock(lambda: consume(data, size, device), device) for _ in range(3)
    )
    epoch = statistics.median(base) * (len(data) // size)
    return [
        {
            "label": label,
            "backbone": arguments.backbone,
            "batch_size": size,
            **costs,
            **inference[label],
            "steps": arguments.steps,
            "input_share_of_base_epoch": round(input_seconds / (epoch + input_seconds), 4),
            "input_images_per_second": round(len(data) / input_seconds),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "compiled": arguments.compile,
            "torch": torch.__version__,
        }
        for label, costs in against_first(seconds, size).items()
    ]


def take_turns(
    work: Mapping[str, Callable[[], object]], steps: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of every piece of work, step by step, after two that do not count."""
    seconds: dict[str, list[float]] = {label: [] for label in work}
    for step in range(-2, steps):
        for label, piece in work.items():
            took = clock(piece, device)
            if step >= 0:
                seconds[label].append(took)
    return seconds


def against_first(seconds: Mapping[str, list[float]], size: int) -> dict[str, dict[str, float]]:
    """Return images a second and the median ratio to the first one's time, turn by turn."""
    base = next(iter(seconds.values()))
    return {
        label: {
            "images_per_second": round(size / statistics.median(taken)),
            "over_base": round(
                statistics.median(t / b for t, b in zip(taken, base, strict=True)), 3
            ),
        }
        for label, taken in seconds.items()
    }


def build(variant: Variant, backbone: str, card: DataCard) -> tuple[Method, ExperimentConfig]:
    """Return a new method of 100 classes, and what it is told."""
    values = merged(parameters("base", [f"model.backbone={backbone}"]), variant.parameters)
    config = ExperimentConfig.resolve(variant.method, values)
    return methods.get(variant.method)(config.options, config.model, card), config


def trainer(
    method: Method, config: ExperimentConfig, device: torch.device, compiled: bool
) -> Callable[[Batch], None]:
    """Return a function that does one training step of the method on a batch."""
    method.to(device).train()
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


def scorer(method: Method, images: Tensor, device: torch.device) -> Callable[[], object]:
    """Fold the trained method and return a function that scores ``images``, as evaluation does."""
    method.net.to(memory_format=torch.contiguous_format)
    method.fold()
    return partial(predict, method, method.score, images, device=device, batch_size=len(images))


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
