"""From a source to a long-tailed training set, an optional hold-out and a balanced test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator
from torch import Tensor

from lt_pipeline.data.images import ImageSet
from lt_pipeline.data.longtail import CountGroups, Groups, LongTail, class_counts
from lt_pipeline.data.ood import AUXILIARY_SETS, check_name
from lt_pipeline.data.profiles import Exponential, Profile, profile_counts
from lt_pipeline.data.sources import SOURCES, Source
from lt_pipeline.schema import Config, unknown


class AuxiliaryConfig(Config):
    """Images of no class to train on, for outlier exposure.

    ``name`` is ``gaussian_noise`` (normal, deviation a quarter of the pixel range), an OOD set
    with files, or ``folder:NAME`` for the images in data/01_raw/ood/NAME; at most ``images`` are
    taken.
    """

    name: str = "gaussian_noise"
    images: PositiveInt = 10_000

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        check_name(name, AUXILIARY_SETS)
        return name


class DataConfig(Config):
    """What the data are: a source, the long tail cut from it, and how classes are grouped.

    ``max_per_class`` defaults to the source's smallest class. ``validation`` is the share of each
    class of the long-tailed training set that is held out for model selection, at least one image
    of a class that has three; the papers train on all of it, so none is by default. ``auxiliary``
    are images of no class, for the methods that train on some.
    """

    source: str = "digits"
    profile: Profile = Exponential()
    imbalance_ratio: float = Field(default=100.0, ge=1, allow_inf_nan=False)
    max_per_class: PositiveInt | None = None
    validation: float = Field(default=0.0, ge=0, lt=1)
    seed: NonNegativeInt = 0
    groups: Groups = CountGroups()
    auxiliary: AuxiliaryConfig | None = None

    @field_validator("source")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SOURCES:
            raise ValueError(unknown("source", name, SOURCES))
        return name

    @model_validator(mode="after")
    def _auxiliary_of_no_class(self) -> DataConfig:
        if self.auxiliary and self.auxiliary.name == self.source:
            raise ValueError(
                f"auxiliary.name is {self.source!r}, the source itself: its images have classes"
            )
        return self

    @property
    def slug(self) -> str:
        """Return a short name for experiments and models, as in ``digits-lt-ir20``."""
        shape = "lt" if self.profile.name == "exponential" else self.profile.name
        return f"{self.source}-{shape}-ir{self.imbalance_ratio:g}"

    @property
    def title(self) -> str:
        """Return a name for people, as in ``digits, exponential, IR 20``."""
        return f"{self.source}, {self.profile.name}, IR {self.imbalance_ratio:g}"


@dataclass(frozen=True)
class DataCard:
    """What a network and its training must know of the data.

    ``longtail`` is the class distribution of the training set; ``channels``, ``mean`` and ``std``
    describe its pixels (fractions of 1, by channel); ``settings`` are the DataConfig's values, and
    ``data_hash`` is the SHA-256 of all images and labels.
    """

    longtail: LongTail
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settings: dict[str, Any]
    data_hash: str

    @property
    def config(self) -> DataConfig:
        """Return the settings as they were checked."""
        return DataConfig.model_validate(self.settings)

    def to_json(self) -> dict[str, Any]:
        """Return plain types that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DataCard:
        """Return the card that ``to_json`` described."""
        return cls(
            **{
                **values,
                "longtail": LongTail.from_json(values["longtail"]),
                "mean": tuple(values["mean"]),
                "std": tuple(values["std"]),
            }
        )


@dataclass(frozen=True)
class PreparedData:
    """The sets made from a source; ``*_index`` are positions in the source's training set.

    ``auxiliary`` are images of no class, none where they were not asked for.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    auxiliary: ImageSet
    train_index: Tensor
    validation_index: Tensor
    card: DataCard

    def manifest(self) -> list[dict[str, int | str]]:
        """Return a row for every image taken from the source's training set, in stored order."""
        names = self.train.class_names
        return [
            {"split": split, "source_index": at, "label": label, "class": names[label]}
            for split, part, index in (
                ("train", self.train, self.train_index),
                ("validation", self.validation, self.validation_index),
            )
            for at, label in zip(index.tolist(), part.labels.tolist(), strict=True)
        ]


def prepare(source: Source, config: DataConfig, auxiliary: Tensor | None = None) -> PreparedData:
    """Cut the long tail of ``config`` from ``source``; equal seeds choose equal images.

    ``auxiliary`` uint8 ``[M, channels, H, W]`` are images of no class.

    Raises:
        ValueError: if a class would be left without a training image, or the source has fewer
            images of a class than the profile asks for.
    """
    available = class_counts(source.train.labels, len(source.train.class_names))
    counts = profile_counts(
        config.profile,
        classes=len(available),
        max_per_class=config.max_per_class or int(available.min()),
        imbalance_ratio=config.imbalance_ratio,
    )
    by_class = _shuffled_by_class(source.train.labels, len(counts), config.seed)
    _check_enough(counts, by_class, source.train.class_names)
    held = [_held_out(config.validation, n) for n in counts]
    validation_index = torch.cat([index[:h] for index, h in zip(by_class, held, strict=True)])
    train_index = torch.cat(
        [index[h:n] for index, h, n in zip(by_class, held, counts, strict=True)]
    )
    train, validation = source.train[train_index], source.train[validation_index]
    longtail = LongTail(
        class_counts=tuple(n - h for n, h in zip(counts, held, strict=True)),
        class_names=train.class_names,
        # By the counts before the hold-out, so that a class keeps its group when tuning.
        class_groups=tuple(config.groups.assign(counts)),
        group_rule=config.groups.describe(),
    )
    outside = _auxiliary(auxiliary, train)
    sets = (train, validation, source.test, outside)
    card = _card(longtail, sets, config)
    return PreparedData(*sets, train_index, validation_index, card)


def _held_out(share: float, images: int) -> int:
    """Return how many of a class's images are held out: never the last, and one of three."""
    least = int(share > 0 and images >= 3)
    return min(max(round(share * images), least), images - 1)


def _auxiliary(images: Tensor | None, train: ImageSet) -> ImageSet:
    """Return images of no class as a set with one."""
    found = train.images[:0] if images is None else images
    return ImageSet(found, torch.zeros(len(found), dtype=torch.int64), ("of no class",))


def _shuffled_by_class(labels: Tensor, classes: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    return [order[labels[order] == c] for c in range(classes)]


def _check_enough(counts: list[int], by_class: list[Tensor], names: tuple[str, ...]) -> None:
    for c, (wanted, index) in enumerate(zip(counts, by_class, strict=True)):
        if wanted > len(index):
            raise ValueError(
                f"data.max_per_class asks for {wanted} images of class {c} ({names[c]!r}), "
                f"but the source has {len(index)}"
            )


def _card(longtail: LongTail, sets: Sequence[ImageSet], config: DataConfig) -> DataCard:
    """Return the card of the training set, which is the first of ``sets``."""
    train = sets[0]
    pixels = train.images.double() / 255
    hashes = "".join(part.content_hash() for part in sets)
    return DataCard(
        longtail=longtail,
        channels=train.shape[0],
        mean=tuple(pixels.mean(dim=(0, 2, 3)).tolist()),
        std=tuple(pixels.std(dim=(0, 2, 3), correction=0).tolist()),
        settings=config.model_dump(mode="json"),
        data_hash=sha256(hashes.encode()).hexdigest(),
    )
