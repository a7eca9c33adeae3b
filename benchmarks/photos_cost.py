"""Cost of images in files: an epoch of batches, here and with torchvision's ImageFolder.

Both read the same class folders, reduce each image to one size and give batches of 64. Ours decodes
the files once, into a packed file that every epoch maps; a DataLoader decodes them every epoch, in
its workers. `--generated N` makes N small JPEGs and says how much memory an epoch over them needs.

    python benchmarks/photos_cost.py data/01_raw/fish4knowledge_lt/images --out photos_cost.csv
    python benchmarks/photos_cost.py --generated 100000
"""

from __future__ import annotations

import argparse
import csv
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from lt_pipeline.learning.data.batches import batches
from lt_pipeline.learning.data.packed import PackedImages, mapped, pack
from lt_pipeline.learning.transforms.augment import AugmentConfig

BATCH, WORKERS = 64, (0, 1, 2)
PLAIN = AugmentConfig(crop_padding=0)


def seconds_of(epoch: Callable[[], Iterable[object]]) -> float:
    """Return how long a pass takes."""
    started = time.perf_counter()
    for _ in epoch():
        pass
    return time.perf_counter() - started


def theirs(folder: Path, size: int, workers: int) -> float:
    """Return the seconds of an epoch of torchvision's."""
    transform = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    loader = DataLoader(ImageFolder(folder, transform), BATCH, shuffle=True, num_workers=workers)
    return seconds_of(lambda: loader)


def ours(images: PackedImages) -> float:
    """Return the seconds of an epoch of ours."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    return seconds_of(lambda: batches(images, order, BATCH, PLAIN, generator, remainder=True))


def packed(folder: Path, size: int, file: Path, threads: int = 2) -> tuple[PackedImages, float]:
    """Return the images below ``folder``, decoded into ``file``, and how long that took."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    started = time.perf_counter()
    wrong = pack(files, file, size, threads=threads)
    seconds = time.perf_counter() - started
    if wrong:
        raise SystemExit(f"{len(wrong)} files cannot be read: {next(iter(wrong.values()))}")
    labels = torch.zeros(len(files), dtype=torch.int64)
    return PackedImages(mapped(file), torch.arange(len(files)), labels, ("any",)), seconds


def compared(folder: Path, size: int) -> list[list[object]]:
    """Return what, images/s, and the ratio to torchvision with as many workers as there are."""
    with TemporaryDirectory() as cache:
        images, first = packed(folder, size, Path(cache) / "images.npy")
        ours(images)  # so that both have the files in the system's cache
        times = {f"ImageFolder, {w} workers": theirs(folder, size, w) for w in WORKERS}
        best = min(times.values())
        times |= {"ours, decoding once": first, "ours, an epoch": ours(images)}
    return [
        [what, size, f"{len(images) / seconds:.0f}", f"{best / seconds:.2f}"]
        for what, seconds in times.items()
    ]


def generate(folder: Path, count: int, side: int = 48) -> None:
    """Write ``count`` JPEGs of noise, a thousand a folder."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (257, side, side, 3), np.uint8)
    for k in range(count):
        path = folder / f"{k // 1000:04}" / f"{k:07}.jpg"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(np.roll(noise[k % 257], k // 257, 1)).save(path, quality=80)


def anonymous_mib() -> int:
    """Return the memory that is the process's own, without mapped files, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("RssAnon"))
    return int(line.split()[1]) // 1024


def memory(count: int, size: int) -> list[list[object]]:
    """Return the memory before and after decoding and an epoch over that many files."""
    with TemporaryDirectory() as folder:
        generate(Path(folder) / "images", count)
        before = anonymous_mib()
        images, seconds = packed(Path(folder) / "images", size, Path(folder) / "images.npy")
        after = anonymous_mib()
        epoch = ours(images)
        file = (Path(folder) / "images.npy").stat().st_size // 2**20
        return [
            ["images", count],
            ["MiB of the packed file", file],
            ["MiB before", before],
            ["MiB after decoding", after],
            ["MiB after an epoch", anonymous_mib()],
            [
                "largest MiB, mapped pages included",
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            ],
            ["decoding, images/s", round(count / seconds)],
            ["an epoch, images/s", round(count / epoch)],
        ]


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--generated", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if (given.folder is None) == (given.generated is None):
        parser.error("give a folder, or --generated N")
    if given.generated:
        table = [["what", "value"], *memory(given.generated, given.size)]
    else:
        table = [["what", "pixels", "images/s", "ratio"], *compared(given.folder, given.size)]
    with given.out.open("w", newline="") if given.out else sys.stdout as file:
        csv.writer(file).writerows(table)


if __name__ == "__main__":
    main()
