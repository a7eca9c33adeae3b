"""From a source to a long-tailed training set, an optional hold-out and a balanced test set."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pandas as pd
import torch
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator
from torch import Tensor

from lt_pipeline.learning.data.decode import Fit
from lt_pipeline.learning.data.distribution import CountGroups, Groups, LongTail, class_counts
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.layouts import DIFFICULT, LAYOUTS, read_layout
from lt_pipeline.learning.data.listing import TRAIN, VALIDATION, Listing, list_folder, list_table
from lt_pipeline.learning.data.mosaics import Drawn, draw_classes, make_mosaics, mosaic_facts
from lt_pipeline.learning.data.ood import AUXILIARY_SETS, auxiliary_images, check_name
from lt_pipeline.learning.data.photos import (
    as_source,
    in_folds,
    in_parts,
    of_fold,
    say_untested,
    with_long_tail,
)
from lt_pipeline.learning.data.profiles import (
    Cut,
    Exponential,
    Natural,
    Profile,
    largest_that_fits,
    profile_counts,
)
from lt_pipeline.learning.data.protocol import Images, content_hash, in_order
from lt_pipeline.learning.data.sources import FACTS, SOURCES, Facts, Source, load_source
from lt_pipeline.learning.schema import Config, UserError, unknown

PHOTOS = ("folder", "csv", *LAYOUTS)
# what has a hold-out of its own, as an image has several labels
MOSAICS = "mosaics"
KNOWN = (*SOURCES, MOSAICS, *PHOTOS)
CHUNK = 2**20  # pixels of one channel that are counted at a time


class AuxiliaryConfig(Config):
    """Images of no class to train on, for outlier exposure.

    ``name`` is ``gaussian_noise`` (normal, deviation a quarter of the pixel range), an OOD set
    with files, or ``folder:NAME`` for the images in data/01_raw/ood/NAME; at most ``images`` are
    taken.
    """

    name: str = "gaussian_noise"
    images: int = Field(default=10_000, ge=1, le=100_000_000)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        check_name(name, AUXILIARY_SETS)
        return name


class ColumnsConfig(Config):
    """What the columns of a table of images are called; the last two need not be there."""

    path: str = "path"
    label: str = "label"
    group: str = "group"
    split: str = "split"


class DataConfig(Config):
    """What the data are: a source, the long tail cut from it, and how classes are grouped.

    Images in files (docs/own_photos.md) are of the source ``folder``, class folders in ``path``,
    ``csv``, a table ``labels`` with paths relative to ``path``, whose columns ``columns`` names, or
    a published set below ``path`` (docs/multilabel.md), of whose training images ``validation`` is
    a share; Pascal's ``difficult`` objects are ``absent`` or ``present`` as labels, None as the
    set's own code has it.
    ``mosaics`` are images of several labels that are drawn with a long tail, not cut to one.
    ``name`` is what experiment, model and folders are called. Files come ``size`` pixels wide and
    high, ``fit`` as ``read_image`` says; a ``path`` or ``labels`` alone say the source, and the
    profile is ``natural``. ``group``, a column or a pattern in paths, says what must
    not be parted; without a split of their own, images are split by groups: ``validation`` and
    ``test`` are shares. Of a class of one group ``rare`` is ``train``, to learn it without a test,
    or ``drop``, with the images that show nothing else. A file that is ``unreadable`` is a reason
    to ``stop``, or to ``skip`` it. With ``long_tail``, an imbalance ratio, only so many are learned
    that the classes' counts fall by it.

    In place of shares there can be ``folds``, three or more: ``fold`` k tests, k + 1 validates, the
    others train; None is each of them in turn, and k = 0 where one set of data is asked for. A
    ``split`` that is there is used where it is ``given``, and then refuses folds, which leave one
    that is ``made``, as the audit's, aside.

    ``order`` says which classes become rare: by ``label`` the last ones, by ``size`` those of which
    the source has the fewest images. ``max_per_class``, the images of the largest class, defaults
    to the source's smallest class, and in the order of size to the most with which no class is
    asked for more than it has. ``index`` chooses a class's images: ``seeded`` by torch's generator,
    ``published`` as the released codes do (docs/data.md); both by ``seed``. ``validation`` is the
    share of each class of the long-tailed training set that is held out for model selection, at
    least one image of a class that has three; the papers train on all of it, so none is by default.
    ``auxiliary`` are images of no class, for the methods that train on some.
    """

    symbols: ClassVar[Mapping[str, str]] = {"IR": "imbalance_ratio", "n_max": "max_per_class"}

    source: str = "digits"
    name: str | None = None
    path: str | None = None
    labels: str | None = None
    columns: ColumnsConfig = ColumnsConfig()
    group: str | None = None
    size: int = Field(default=128, ge=8, le=2048)
    fit: Fit = "crop"
    test: float = Field(default=0.2, gt=0, lt=1)
    rare: Literal["train", "drop"] = "train"
    folds: NonNegativeInt = 0
    fold: NonNegativeInt | None = None
    split: Literal["given", "made"] = "given"
    unreadable: Literal["stop", "skip"] = "stop"
    difficult: Literal["absent", "present"] | None = None
    long_tail: float | None = Field(default=None, ge=1)
    profile: Profile = Exponential()
    imbalance_ratio: float = Field(default=20.0, ge=1)
    max_per_class: PositiveInt | None = None
    order: Literal["label", "size"] = "label"
    index: Literal["seeded", "published"] = "seeded"
    validation: float = Field(default=0.0, ge=0, lt=1)
    seed: NonNegativeInt = 0
    groups: Groups = CountGroups()
    auxiliary: AuxiliaryConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _files_say_what_they_are(cls, values: Any) -> Any:
        """Take a path or a table for the source, and its classes as they are: nothing is cut."""
        if not isinstance(values, dict) or not (values.get("path") or values.get("labels")):
            return values
        source, labels = values.get("source"), values.get("labels")
        if source not in LAYOUTS:
            source = "csv" if labels else "folder"
        elif labels:
            raise UserError(f"labels is a table, and {source} has lists of its own: leave it out")
        return {**values, "source": source, "profile": {"name": "natural"}}

    @field_validator("source")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in KNOWN:
            raise UserError(unknown("source", name, KNOWN))
        return name

    @model_validator(mode="after")
    def _files_are_whole(self) -> DataConfig:
        natural = isinstance(self.profile, Natural)
        if self.long_tail is not None and self.source not in PHOTOS:
            raise UserError(
                f"long_tail is of images in files; of {self.source} imbalance_ratio is the ratio"
            )
        if self.source not in PHOTOS:
            if natural:
                raise UserError(
                    "profile: natural is for images in files: data.source folder or csv"
                )
            return self
        needed = "labels" if self.source == "csv" else "path"
        if not getattr(self, needed):
            raise UserError(f"{needed} must be given where source is {self.source}")
        if self.validation + self.test >= 1:
            raise UserError("validation and test are shares, and must leave some to train on")
        return self

    @model_validator(mode="after")
    def _difficult_objects(self) -> DataConfig:
        if self.difficult and self.source not in DIFFICULT:
            raise UserError(
                f"difficult is of objects of {' and '.join(DIFFICULT)}, and source is "
                f"{self.source}: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _mosaics_are_drawn(self) -> DataConfig:
        if self.source == MOSAICS and self.index != "seeded":
            raise UserError("index must be seeded: mosaics are drawn, and no code published some")
        return self

    @model_validator(mode="after")
    def _folds_that_can_be(self) -> DataConfig:
        if not self.folds and self.fold is not None:
            raise UserError("fold is one of data.folds, which is 0: set it, as in data.folds=5")
        if self.folds and self.source not in PHOTOS:
            raise UserError(
                f"folds are of images in files (data.source folder or csv), and {self.source} has "
                f"a test set of its own: leave data.folds out"
            )
        if self.folds in (1, 2):
            raise UserError(
                f"folds must be 3 or more, or 0 for none, but is {self.folds}: one is tested on, "
                f"one chosen by, the others are learned"
            )
        if self.fold is not None and self.fold >= self.folds:
            raise UserError(f"fold must be 0 to {self.folds - 1}, but is {self.fold}")
        return self

    @model_validator(mode="after")
    def _in_reach_of_floats(self) -> DataConfig:
        if isinstance(self.profile, Natural):
            return self
        try:
            last = self.profile.fraction(1.0, self.imbalance_ratio) * self.imbalance_ratio
        except OverflowError:
            last = math.inf
        if not math.isclose(last, 1.0, rel_tol=1e-6):
            raise UserError(
                f"profile: {self.profile!r} cannot be computed at an imbalance_ratio of "
                f"{self.imbalance_ratio:g}: choose less extreme ones"
            )
        return self

    @model_validator(mode="after")
    def _auxiliary_of_no_class(self) -> DataConfig:
        if self.auxiliary and self.auxiliary.name == self.source:
            raise UserError(
                f"auxiliary.name is {self.source!r}, the source itself: its images have classes"
            )
        return self

    @property
    def balanced(self) -> bool:
        """Return whether every class has as many test images as any other."""
        return self.source not in PHOTOS

    @property
    def each_fold(self) -> tuple[int, ...]:
        """Return the folds that a run goes through, none where it is of one set of data."""
        return tuple(range(self.folds)) if self.fold is None else ()

    @property
    def holds_out(self) -> bool:
        """Return whether images are held out to choose by: by a share, or the files' own split."""
        if self.validation or self.folds:
            return True
        return self.source in PHOTOS and VALIDATION in set(listed(self).table["split"])

    @property
    def test_set(self) -> str:
        """Return what numbers are of, as in ``balanced test set``."""
        if self.folds:
            return f"test set of fold {self.fold or 0} (0 to {self.folds - 1})"
        return "balanced test set" if self.balanced else "test set"

    @property
    def slug(self) -> str:
        """Return a short name for experiments and models, as in ``digits-lt-ir20``."""
        if self.source in PHOTOS:
            return re.sub(r"[^\w.-]+", "_", self.title)
        shape = "lt" if self.profile.name == "exponential" else self.profile.name
        return f"{self.source}-{shape}-ir{self.imbalance_ratio:g}"

    @property
    def title(self) -> str:
        """Return a name for people, as in ``digits, exponential, IR 20``."""
        if self.source in PHOTOS:
            given = {"folder": self.path, "csv": self.labels}.get(self.source, self.source)
            tail = "" if self.long_tail is None else f", IR {self.long_tail:g}"
            return f"{self.name or Path(given or '').stem}{tail}"
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

    @property
    def natural(self) -> bool:
        """Return whether the mean recall stands for a run: accuracy is mostly the head's."""
        return not (self.config.balanced or self.longtail.several)


@dataclass(frozen=True)
class PreparedData:
    """The sets made from a source; ``*_index`` are positions in the source's training set.

    ``auxiliary`` are images of no class, none where they were not asked for.
    """

    train: Images
    validation: Images
    test: Images
    auxiliary: Images
    train_index: Tensor
    validation_index: Tensor
    card: DataCard

    listed: pd.DataFrame | None = None

    def manifest(self) -> pd.DataFrame:
        """Return a row for every image taken from the source's training set, in stored order.

        Of images in files there is one for each of the test set, too.
        """
        if self.listed is not None:
            return self.listed
        names = self.train.class_names
        return pd.DataFrame(
            [
                {"split": split, "source_index": at, "label": label, "class": names[label]}
                for split, part, index in (
                    ("train", self.train, self.train_index),
                    ("validation", self.validation, self.validation_index),
                )
                for at, label in zip(index.tolist(), part.labels.tolist(), strict=True)
            ]
        )


def prepare(source: Source, config: DataConfig, auxiliary: Tensor | None = None) -> PreparedData:
    """Cut the long tail of ``config`` from ``source``; equal seeds choose equal images.

    ``auxiliary`` uint8 ``[M, channels, H, W]`` are images of no class.

    Raises:
        UserError: if a class would be left without a training image, or the source has fewer
            images of a class than the profile asks for.
    """
    if source.validation is not None:
        return _as_split(source, source.validation, config, auxiliary)
    available = class_counts(source.train.labels, len(source.train.class_names))
    counts, held = cut(available.tolist(), source.train.class_names, config)
    by_class = INDEX[config.index](source.train.labels, len(counts), config.seed)
    validation_index = torch.cat([index[:h] for index, h in zip(by_class, held, strict=True)])
    train_index = torch.cat(
        [index[h:n] for index, h, n in zip(by_class, held, counts, strict=True)]
    )
    train, validation = source.train[train_index], source.train[validation_index]
    longtail = _longtail(counts, held, train.class_names, config)
    outliers = _auxiliary(auxiliary, train)
    sets = (train, validation, source.test, outliers)
    card = _card(longtail, sets, config)
    return PreparedData(*sets, train_index, validation_index, card)


def make(config: DataConfig, raw_folder: Path, packed_folder: Path) -> PreparedData:
    """Return the data that ``config`` describes, from files in ``raw_folder`` or where it says.

    Images in files are decoded into ``packed_folder`` unless they are there.

    Raises:
        UserError: as ``prepare`` does, or if files are missing or unreadable.
    """
    if config.source == MOSAICS:
        source = make_mosaics(_drawn(config), config.seed)
    elif config.source in PHOTOS:
        source = load_photos(config, packed_folder)
    else:
        source = load_source(config.source, raw_folder)
    return make_from(source, config, raw_folder)


def make_from(source: Source, config: DataConfig, raw_folder: Path) -> PreparedData:
    """Return the data that ``config`` describes of a ``source``; arguments are as in ``make``.

    Raises:
        UserError: as ``prepare`` does, or if files of the auxiliary set are missing.
    """
    auxiliary = None
    if config.auxiliary:
        chosen, shape = config.auxiliary, source.train.shape
        auxiliary = auxiliary_images(chosen.name, raw_folder, shape, chosen.images, config.seed)
    return prepare(source, config, auxiliary)


def _as_split(
    source: Source, validation: Images, config: DataConfig, auxiliary: Tensor | None
) -> PreparedData:
    """Return the sets as the source has them."""
    train, names = source.train, source.train.class_names
    counts = class_counts(train.labels, len(names)).tolist()
    images = len(train) if train.labels.ndim == 2 else None
    longtail = _longtail(counts, [0] * len(counts), names, config, images)
    sets = (train, validation, source.test, _auxiliary(auxiliary, train))
    index = torch.arange(len(train)), torch.arange(len(validation))
    return PreparedData(*sets, *index, _card(longtail, sets, config), source.listed)


def _held_out(fraction: float, images: int) -> int:
    """Return how many of a class's images are held out: never the last, and one of three."""
    least = int(fraction > 0 and images >= 3)
    return min(max(round(fraction * images), least), images - 1)


def cut(
    available: Sequence[int], names: Sequence[str], config: DataConfig
) -> tuple[list[int], list[int]]:
    """Return how many of the ``available`` images each class keeps, and how many are held out.

    Raises:
        UserError: if a class would keep none, or has fewer than the profile asks for.
    """
    if isinstance(config.profile, Natural):
        return list(available), [0] * len(available)
    counts = _wanted(available, names, config, config.profile)
    return counts, [_held_out(config.validation, n) for n in counts]


def expected(config: DataConfig) -> DataCard:
    """Return the card that the data will have, known without their files but for their pixels.

    Raises:
        UserError: if the source cannot give such data, or the groups do not fit its classes.
    """
    shape, available, images = facts(config)
    names = [str(c) for c in range(len(available))]
    counts, held = list(available), [0] * len(available)
    if images is None:
        counts, held = cut(available, names, config)
    return DataCard(
        longtail=_longtail(counts, held, names, config, images),
        channels=shape[0],
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
        settings=config.model_dump(mode="json"),
        data_hash="",
    )


def facts(config: DataConfig) -> Facts:
    """Return what is known of the data without a look at their pixels.

    Raises:
        UserError: if they are files, and these are not what the configuration says.
    """
    if config.source == MOSAICS:
        return mosaic_facts(_drawn(config))
    if config.source not in PHOTOS:
        return FACTS[config.source]
    listing = listed(config)
    of_label = listing.by_label
    labels = of_label["label"][of_label["split"] == TRAIN]
    counts = np.bincount(labels, minlength=len(listing.class_names)).tolist()
    images = int((listing.table["split"] == TRAIN).sum()) if listing.several else None
    return Facts((3, config.size, config.size), tuple(counts), images)


def listed_raw(config: DataConfig) -> Listing:
    """Return the images in files that ``config`` describes, without parts unless they have some.

    Raises:
        UserError: if they are not images in files, or naming what is wrong with them.
    """
    if config.source not in PHOTOS:
        raise UserError("data.path or data.labels must be given: where the images are")
    root = Path(config.path) if config.path else None
    if config.source in LAYOUTS:
        counted = None if config.difficult is None else config.difficult == "present"
        skip = config.unreadable == "skip"
        return read_layout(config.source, root or Path(), counted, skip)
    if config.source == "folder":
        return list_folder(root or Path(), config.group)
    return list_table(Path(config.labels or ""), config.columns.model_dump(), root, config.group)


def listed(config: DataConfig) -> Listing:
    """Return the images in files that ``config`` describes, each with its part.

    Raises:
        UserError: naming the file or class that is wrong, and what would be right.
    """
    return _listed(config.model_dump_json())


@lru_cache(maxsize=8)
def _listed(settings: str) -> Listing:
    config = DataConfig.model_validate_json(settings)
    if config.folds:
        folded = _in_folds(config.model_copy(update={"fold": None}).model_dump_json())
        return _tailed(of_fold(folded, config.folds, config.fold or 0), config)
    fractions = config.validation, config.test
    parted = in_parts(listed_raw(config), *fractions, config.seed, config.rare)
    say_untested(parted)
    return _tailed(parted, config)


def _tailed(listing: Listing, config: DataConfig) -> Listing:
    if config.long_tail is None:
        return listing
    return with_long_tail(listing, config.long_tail, config.seed)


@lru_cache(maxsize=8)
def _in_folds(settings: str) -> Listing:
    config = DataConfig.model_validate_json(settings)
    made = config.split == "made"
    return in_folds(listed_raw(config), config.folds, config.seed, config.rare, made)


def load_photos(config: DataConfig, cache: Path) -> Source:
    """Return images in files, decoded once into the folder ``cache``.

    Raises:
        UserError: if one is unreadable, unless those are to be skipped.
    """
    return as_source(listed(config), cache, config.size, config.fit, config.unreadable == "skip")


def _drawn(config: DataConfig) -> Drawn:
    """Return what mosaics show; their profile is a cut's, as ``DataConfig`` has seen to."""
    settings = config.imbalance_ratio, config.max_per_class, config.validation, config.seed
    return draw_classes(cast("Cut", config.profile), *settings)


def _longtail(
    counts: Sequence[int],
    held: Sequence[int],
    names: Sequence[str],
    config: DataConfig,
    images: int | None = None,
) -> LongTail:
    return LongTail(
        class_counts=tuple(n - h for n, h in zip(counts, held, strict=True)),
        class_names=tuple(names),
        # By the counts before the hold-out, so that a class keeps its group when tuning.
        class_groups=tuple(config.groups.assign(counts)),
        group_rule=config.groups.describe(),
        images=images,
    )


def _auxiliary(images: Tensor | None, train: Images) -> Images:
    """Return images of no class as a set with one."""
    pixels = torch.empty(0, *train.shape, dtype=torch.uint8) if images is None else images
    return ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64), ("of no class",))


def _wanted(
    available: Sequence[int], names: Sequence[str], config: DataConfig, profile: Cut
) -> list[int]:
    """Return how many of the ``available`` images each class keeps, in label order."""
    by_size = config.order == "size"
    # of equals the first stays in front
    ranked = sorted(range(len(available)), key=lambda c: -available[c] if by_size else c)
    has = [available[c] for c in ranked]
    fits = largest_that_fits(profile, has, config.imbalance_ratio)
    counts = profile_counts(
        profile,
        classes=len(has),
        max_per_class=config.max_per_class or (fits if by_size else min(has)),
        imbalance_ratio=config.imbalance_ratio,
    )
    for c, wanted, there in zip(ranked, counts, has, strict=True):
        if wanted > there:
            raise UserError(
                f"data.max_per_class asks for {wanted} images of class {c} ({names[c]!r}), but "
                f"the source has {there}: in the order of {config.order} it must be <= {fits}"
            )
    kept = dict(zip(ranked, counts, strict=True))
    return [kept[c] for c in range(len(available))]


def _by_class(labels: Tensor, classes: int, order: Tensor) -> Sequence[Tensor]:
    """Return, class by class, those of the positions ``order`` ``[N]`` that are of it, in order."""
    sizes = class_counts(labels, classes).tolist()
    parts: Sequence[Tensor] = order[labels[order].argsort(stable=True)].split(sizes)
    return parts


def _seeded(labels: Tensor, classes: int, seed: int) -> Sequence[Tensor]:
    """Return the positions of every class, in an order by torch's generator."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return _by_class(labels, classes, order)


def _published(labels: Tensor, classes: int, seed: int) -> Sequence[Tensor]:
    """Return the positions of every class as the released codes shuffle them (LDAM-DRW's first).

    One shuffle a class, in label order, by numpy's legacy generator.
    """
    random = np.random.RandomState(seed)
    parts = _by_class(labels, classes, torch.arange(len(labels)))
    return [torch.from_numpy(random.permutation(part.numpy())) for part in parts]


INDEX: dict[str, Callable[[Tensor, int, int], Sequence[Tensor]]] = {
    "seeded": _seeded,
    "published": _published,
}


def pixel_statistics(data: Images | Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation by channel of a set or uint8 ``[N, C, H, W]``.

    They are fractions of 1. From counts of the 256 levels, so that all sums are exact: only the
    results are rounded, and nothing larger than a part of the images is copied.
    """
    channels, height, width = data.shape[-3:]
    levels, counts = torch.arange(256), torch.zeros(channels, 256, dtype=torch.int64)
    for part in in_order(data, max(1, CHUNK // (height * width))):
        for count, channel in zip(counts, part.unbind(1), strict=True):
            count += torch.bincount(channel.flatten(), minlength=256)
    moments = [[int((count * levels**power).sum()) for power in range(3)] for count in counts]
    mean = tuple(total / (255 * n) for n, total, _ in moments)
    std = tuple(
        math.sqrt((n * squares - total**2) / (255 * n) ** 2) for n, total, squares in moments
    )
    return mean, std


def _card(longtail: LongTail, sets: Sequence[Images], config: DataConfig) -> DataCard:
    """Return the card of the training set, which is the first of ``sets``."""
    train = sets[0]
    mean, std = pixel_statistics(train)
    hashes = "".join(content_hash(part) for part in sets)
    return DataCard(
        longtail=longtail,
        channels=train.shape[0],
        mean=mean,
        std=std,
        settings=config.model_dump(mode="json"),
        data_hash=sha256(hashes.encode()).hexdigest(),
    )
