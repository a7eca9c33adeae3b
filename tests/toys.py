"""Small data that tests share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lt_pipeline.learning.data.distribution import CountGroups, LongTail
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.prepare import DataCard, DataConfig
from lt_pipeline.learning.transforms.augment import AugmentConfig, Drawn, apply

PROJECT = Path(__file__).parents[1]
COUNTS = (40, 20, 10, 5)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator of the CPU."""
    return torch.Generator().manual_seed(seed)


def scenes(count: int, channels: int, height: int, width: int) -> Tensor:
    """Gradients under noise in a range of their own: photographs more than white noise is."""
    generator = seeded(7)
    low = torch.randint(0, 90, (count, channels, 1, 1), generator=generator)
    slope = torch.linspace(0, 100, height)[:, None] + torch.linspace(0, 40, width)
    grain = torch.randint(0, 25, (count, channels, height, width), generator=generator)
    return (low + slope + grain).to(torch.uint8)


def operated(images: Tensor, draws, fill: int) -> Tensor:
    """Return ``images`` after the operations that they have drawn of a policy."""
    drawn = Drawn(None, None, *draws.operations(*images.shape[2:]))
    return apply(images, drawn, AugmentConfig(autoaugment_fill=fill))


def toy_images(counts=COUNTS, *, channels=1, size=8, seed=0, noise=40.0) -> ImageSet:
    """One blurred pattern a class plus noise: separable, but not at once."""
    generator = torch.Generator().manual_seed(1234)
    patterns = torch.rand(len(counts), channels, size, size, generator=generator) * 255
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    generator.manual_seed(seed)
    noisy = patterns[labels] + noise * torch.randn(
        len(labels), channels, size, size, generator=generator
    )
    images = noisy.clamp(0, 255).round().to(torch.uint8)
    return ImageSet(images, labels, tuple(f"class {c}" for c in range(len(counts))))


@dataclass(frozen=True)
class FromAfar:
    """Images that cannot be had all together: more than ``at_once`` are refused."""

    kept: ImageSet
    at_once: int = 512

    @property
    def labels(self):
        return self.kept.labels

    @property
    def class_names(self):
        return self.kept.class_names

    @property
    def groups(self):
        return self.kept.groups

    @property
    def shape(self):
        return self.kept.shape

    def __len__(self):
        return len(self.kept)

    def __getitem__(self, index):
        return replace(self, kept=self.kept[index])

    def to(self, device):
        return replace(self, kept=self.kept.to(device))

    def fetch(self, order, sizes):
        for part in order.split(sizes):
            if len(part) > self.at_once:
                raise MemoryError(f"{len(part)} images were asked for at once")
            yield self.kept.images[part]


def toy_card(counts=COUNTS, channels=1) -> DataCard:
    groups = CountGroups(many_above=15, few_below=8)
    return DataCard(
        longtail=LongTail.from_counts(counts, [f"class {c}" for c in range(len(counts))], groups),
        channels=channels,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        settings=DataConfig().model_dump(mode="json"),
        data_hash="0" * 64,
    )


def toy_labels(images=120, classes=4, *, size=8, seed=0) -> ImageSet:
    """Images of several labels: the sum of one blurred pattern for each that an image has."""
    generator = torch.Generator().manual_seed(1234)
    patterns = torch.rand(classes, 1, size, size, generator=generator) * 120
    generator.manual_seed(seed)
    shares = torch.linspace(0.8, 0.15, classes)
    has = torch.rand(images, classes, generator=generator) < shares
    noise = 10 * torch.randn(images, 1, size, size, generator=generator)
    pixels = torch.einsum("nc,chwx->nhwx", has.float(), patterns) + noise
    names = tuple(f"class {c}" for c in range(classes))
    return ImageSet(pixels.clamp(0, 255).round().to(torch.uint8), has.to(torch.uint8), names)
