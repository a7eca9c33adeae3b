"""An epoch of this engine against a plain loop, by memory format and threads, on a CPU.

    python benchmarks/epoch_cost.py --out FILE.csv

The plain loop is what one would write for an experiment: images in memory, shuffled, cropped and
flipped a batch at a time, forward, backward, a step of SGD. All take turns in one run, so that a
busy machine slows all of them; a ratio is the median over the turns. Images are random: the time
does not depend on what they show. Wall and CPU seconds; the latter are those of all threads.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional as F

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.prepare import DataCard, DataConfig
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.transforms.augment import AugmentConfig

CPU = torch.device("cpu")
# backbone, channels, pixels wide and high, images a batch, batches an epoch
CASES = {
    "digits, ResNet-8": ("resnet8", 1, 8, 64, 6),
    "CIFAR, ResNet-8": ("resnet8", 3, 32, 64, 6),
    "CIFAR, ResNet-32": ("resnet32", 3, 32, 128, 2),
}
PADDING = {8: 1, 32: 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [row for case in arguments.cases for row in measured(case, arguments.turns)]
    table = pd.DataFrame(rows)
    table["turns"], table["cores"] = arguments.turns, os.cpu_count()
    table["torch"], table["machine"] = torch.__version__, platform.processor() or platform.machine()
    table.to_csv(arguments.out, index=False)
    print(table.iloc[:, :5].to_string())


def measured(case: str, turns: int) -> list[dict[str, object]]:
    """Return a row a way, each with its ratio to the plain loop."""
    backbone, channels, size, batch, steps = CASES[case]
    count = batch * steps
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)
    labels = torch.arange(count) % 10
    data = ImageSet(images, labels, tuple(map(str, range(10))))
    counts = torch.bincount(labels).tolist()
    mean, std = (0.5,) * channels, (0.25,) * channels
    card = DataCard(
        LongTail.from_counts(counts), channels, mean, std, DataConfig().model_dump(), ""
    )
    padding, flip = PADDING[size], 0.5

    def made():
        torch.manual_seed(0)
        kind = methods.get("ce")
        return kind(kind.Options(), ModelConfig(backbone=backbone), card)

    def ours(channels_last):
        config = TrainingConfig(
            epochs=1,
            batch_size=batch,
            warmup_epochs=0,
            channels_last=channels_last,
            augment=AugmentConfig(crop_padding=padding, flip=flip),
        )
        method = made()
        (stage,) = method.stages(method.options)
        return lambda: fit(method, stage, data, config, seed=0, device=CPU)

    ways = {
        "plain loop": plain(made().net, images, labels, batch, padding, flip),
        "here, contiguous": ours(False),
        "here": ours("auto"),
    }
    if torch.get_num_threads() > 1:
        ways["plain loop, one thread"] = on_one_thread(ways["plain loop"])
    taken = {name: [] for name in ways}
    for turn in range(-1, turns):
        for name, way in ways.items():
            before = time.monotonic(), time.process_time()
            way()
            after = time.monotonic(), time.process_time()
            if turn >= 0:
                taken[name].append([b - a for a, b in zip(before, after, strict=True)])
    base = taken["plain loop"]
    return [
        {
            "case": case,
            "way": name,
            "images_per_second": round(count / statistics.median(wall for wall, _ in values)),
            **{
                f"{what}_over_plain_loop": round(
                    statistics.median(
                        one[k] / two[k] for one, two in zip(values, base, strict=True)
                    ),
                    3,
                )
                for k, what in enumerate(("wall", "cpu"))
            },
        }
        for name, values in taken.items()
    ]


def on_one_thread(way):
    def alone():
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        way()
        torch.set_num_threads(before)

    return alone


def plain(net, images, labels, size, padding, flip):
    """Return an epoch as one would write it."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=2e-4)

    def epoch():
        net.train()
        width = images.shape[-1]
        for index in torch.randperm(len(images)).split(size):
            batch = F.pad(images[index], [padding] * 4)
            top, left = torch.randint(2 * padding + 1, (2,)).tolist()
            batch = batch[:, :, top : top + width, left : left + width]
            batch = torch.where(
                (torch.rand(len(index)) < flip)[:, None, None, None], batch.flip(3), batch
            )
            optimizer.zero_grad()
            F.cross_entropy(net(batch), labels[index]).backward()
            optimizer.step()

    return epoch


if __name__ == "__main__":
    main()
