"""Cost of augmenting photos: whole batches here, against torchvision's image by image.

Both take uint8 tensors on one thread of the CPU and give uint8 tensors of the same size.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2

from lt_pipeline.learning.transforms.augment import AugmentConfig, augment

COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def arms(size: int) -> dict[str, tuple[dict[str, Any], v2.Transform]]:
    """Return what is compared: our parameters, and the same of torchvision, by name."""
    crop = v2.RandomResizedCrop(size, (0.3, 1.0), antialias=True)
    return {
        "resized crop": ({"crop_scale": (0.3, 1.0)}, crop),
        "colour jitter": (COLOURS, v2.ColorJitter(**COLOURS)),
        "TrivialAugment": ({"trivialaugment": True}, v2.TrivialAugmentWide(fill=128)),
        "crop, flip, TrivialAugment": (
            {"crop_scale": (0.3, 1.0), "flip": 0.5, "trivialaugment": True},
            v2.Compose([crop, v2.RandomHorizontalFlip(), v2.TrivialAugmentWide(fill=128)]),
        ),
    }


def seconds_of(call: Callable[[], object], times: int) -> float:
    """Return the least seconds of the processor that a call takes."""
    taken = []
    for _ in range(times):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return min(taken)


def rows(size: int, count: int, times: int) -> list[list[object]]:
    """Return what, images/s of torchvision and of us, and the ratio."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(0, 200, (count, 3, size // 8, size // 8), generator=generator)
    images = v2.functional.resize(low.to(torch.uint8), [size, size])
    found: list[list[object]] = []
    for name, (values, transform) in arms(size).items():
        config = AugmentConfig(crop_padding=0, **values)
        calls = (
            lambda transform=transform: [transform(image) for image in images],
            lambda config=config: augment(images, config, generator),
        )
        theirs, ours = (count / seconds_of(call, times) for call in calls)
        found.append([f"{name}, {size} pixels", theirs, ours, ours / theirs])
    return found


def main() -> None:
    """Measure and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    table: list[list[object]] = [
        ["what", "torchvision, images/s", "batched, images/s", "ratio"],
        *(
            [name, *(f"{value:.4g}" for value in values)]
            for size in given.sizes
            for name, *values in rows(size, given.images, given.times)
        ),
    ]
    csv.writer(sys.stdout).writerows(table)
    if given.out:
        with given.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main()
