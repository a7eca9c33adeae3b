"""Cost of preparing data, as ratios: pixel statistics' memory, sorting images by class.

The baselines are what prepare.py did before: statistics of float64 copies, and a scan of all labels
for each class. Memory is the peak of a process of its own above what the images take.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path

import torch

STATISTICS = """
import resource, sys, time, torch
from lt_pipeline.learning.data.prepare import pixel_statistics

def in_float64(images):
    pixels = images.double() / 255
    return pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3), correction=0)

torch.set_num_threads(1)
images = torch.randint(0, 256, ({images}, 3, 32, 32), dtype=torch.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.monotonic()
{call}(images)
taken = time.monotonic() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(peak * 1024 / images.numel(), taken)
"""


def statistics_cost(call: str, images: int) -> tuple[float, float]:
    """Return peak memory in bytes a byte of image, and seconds, of ``images`` of 3 x 32 x 32."""
    code = STATISTICS.format(images=images, call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    memory, seconds = done.stdout.split()
    return float(memory), float(seconds)


def scan(labels: torch.Tensor, classes: int, seed: int) -> list[torch.Tensor]:
    """Return shuffled positions by class, by a scan of all labels for each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return [order[labels[order] == c] for c in range(classes)]


def seconds_of(call, *arguments) -> float:
    """Return the seconds that a call takes."""
    started = time.monotonic()
    call(*arguments)
    return time.monotonic() - started


def rows(images: int, labelled: int, classes: int) -> list[list[object]]:
    """Return a row for each thing that is measured."""
    from lt_pipeline.learning.data.prepare import INDEX

    torch.set_num_threads(1)
    before, after = (statistics_cost(call, images) for call in ("in_float64", "pixel_statistics"))
    labels = torch.randint(classes, (labelled,))
    sort = min(seconds_of(INDEX["seeded"], labels, classes, 0) for _ in range(3))
    scanned = seconds_of(scan, labels, classes, 0)
    what = f"statistics of {images} images of 3 x 32 x 32"
    return [
        [f"{what}, peak bytes a byte of image", before[0], after[0], before[0] / after[0]],
        [f"{what}, seconds", before[1], after[1], before[1] / after[1]],
        [f"{labelled} images by {classes} classes, seconds", scanned, sort, scanned / sort],
    ]


def main() -> None:
    """Measure and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--labelled", type=int, default=437_513)
    parser.add_argument("--classes", type=int, default=8_142)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    table = [
        ["what", "before", "after", "ratio"],
        *(
            [name, *(f"{value:.4g}" for value in values)]
            for name, *values in rows(arguments.images, arguments.labelled, arguments.classes)
        ),
    ]
    csv.writer(sys.stdout).writerows(table)
    if arguments.out:
        with arguments.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)


if __name__ == "__main__":
    main()
