"""Cost of augmenting photos: whole batches here, against torchvision's image by image.

Both take uint8 tensors on one thread of the CPU and give uint8 tensors of the same size. With
``--device cuda`` it is small images there: by PyTorch's kernels, and by one of Triton's.

    python benchmarks/augment_cost.py --device cuda --sizes 32 64 --images 8192 --times 20
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torchvision.transforms import v2

from lt_pipeline.learning.transforms import augment as module
from lt_pipeline.learning.transforms.augment import AugmentConfig, augment
from lt_pipeline.learning.transforms.views import ViewConfig, random_view

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
    table: list[list[object]] = []
    for name, (values, transform) in arms(size).items():
        config = AugmentConfig(crop_padding=0, **values)
        calls = (
            lambda transform=transform: [transform(image) for image in images],
            lambda config=config: augment(images, config, generator),
        )
        theirs, ours = (count / seconds_of(call, times) for call in calls)
        table.append([f"{name}, {size} pixels", theirs, ours, ours / theirs])
    return table


def kernel_rows(size: int, count: int, times: int, device: str) -> list[list[object]]:
    """Return what, images/s of PyTorch's kernels and of one of Triton's, and the ratio."""
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8, device=device)
    generator = torch.Generator(device).manual_seed(0)
    plain = {"crop_padding": 4, "flip": 0.5}
    work: dict[str, Callable[[], object]] = {
        name: partial(augment, images, AugmentConfig(**plain, **values), generator)
        for name, values in {
            "crop, flip": {},
            "crop, flip, AutoAugment, Cutout": {"autoaugment": True, "cutout": size // 2},
            "crop, flip, TrivialAugment": {"trivialaugment": True},
            "crop, flip, colour jitter": COLOURS,
        }.items()
    }
    work["contrastive view"] = partial(random_view, images, ViewConfig(flip=0.5), generator)
    table: list[list[object]] = []
    for name, call in work.items():
        with patch.object(module, "has_triton", lambda device: False):
            before = count / seconds_there(call, times, device)
        after = count / seconds_there(call, times, device)
        table.append([f"{name}, {size} pixels", before, after, after / before])
    return table


def seconds_there(call: Callable[[], object], times: int, device: str) -> float:
    """Return the median seconds of a call, what the device does of it included."""
    taken = []
    for _ in range(times + 3):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return median(taken[3:])


def main() -> None:
    """Measure and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    measured, compared = rows, ("torchvision", "batched")
    if given.device == "cuda":
        measured, compared = partial(kernel_rows, device="cuda"), ("PyTorch", "one kernel")
    table: list[list[object]] = [
        ["what", *(f"{name}, images/s" for name in compared), "ratio"],
        *(
            [name, *(f"{value:.4g}" for value in values)]
            for size in given.sizes
            for name, *values in measured(size, given.images, given.times)
        ),
    ]
    csv.writer(sys.stdout).writerows(table)
    if given.out:
        with given.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main()
