"""Images of a source as lossless WebP tiles, and the very data sets that are cut from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.prepare import DataCard, DataConfig, make_from
from lt_pipeline.learning.data.protocol import content_hash, take
from lt_pipeline.learning.data.sources import Source
from lt_pipeline.learning.experiments.experiment import Sets
from lt_pipeline.learning.schema import UserError

# images a tile is wide and high: of 16, 1.5 % more bytes; of 4, slower
SIDE = 8
LABELS, NAMES, CONTENT = "labels.npz", "classes.json", "content.txt"


class Prepared(NamedTuple):
    """An experiment's images and what is known of them."""

    sets: Sets
    card: DataCard


def write(source: Source, needed: Tensor, folder: Path) -> None:
    """Write into ``folder`` the test images, all labels, and the training images ``needed``.

    ``needed`` int64 ``[M]`` are positions in the training set. What is there already stays.
    """
    train, test = source.train, source.test
    content = content_hash(train[needed]) + content_hash(test)
    if (folder / CONTENT).is_file() and (folder / CONTENT).read_text() == content:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    np.savez_compressed(
        folder / LABELS, needed=needed, train=train.labels, test=test.labels, shape=train.shape
    )
    (folder / NAMES).write_text(json.dumps(train.class_names))
    for name, images in ("train", take(train, needed)), ("test", take(test, _all(test.labels))):
        for k, part in enumerate(images.split(SIDE * SIDE)):
            how = {"lossless": True, "method": 4, "quality": 75}
            _tile(part).save(folder / f"{name}-{k:04}.webp", **how)
    (folder / CONTENT).write_text(content)


@lru_cache(maxsize=1)
def read(folder: Path) -> Source:
    """Return the source of ``folder``; training images that were not needed are black."""
    with np.load(folder / LABELS) as stored:
        known = {name: torch.from_numpy(stored[name]) for name in stored.files}
    names, shape = tuple(json.loads((folder / NAMES).read_text())), known["shape"].tolist()
    images = torch.zeros(len(known["train"]), *shape, dtype=torch.uint8)
    images[known["needed"]] = _untiled(folder, "train", shape, len(known["needed"]))
    tested = _untiled(folder, "test", shape, len(known["test"]))
    return Source(ImageSet(images, known["train"], names), ImageSet(tested, known["test"], names))


@lru_cache(maxsize=2)
def prepared(pack: Path, settings: str, data_hash: str) -> Prepared:
    """Return the sets that ``settings``, a DataConfig in JSON, are of, made as everywhere.

    Raises:
        UserError: if they are not those of ``data_hash``.
    """
    config = DataConfig.model_validate_json(settings)
    made = make_from(read(pack / config.source), config, pack)
    if made.card.data_hash != data_hash:
        raise UserError(f"{pack} lacks images of {config.title}, seed {config.seed}: pack it anew")
    return Prepared(Sets(made.train, made.validation, made.test, made.auxiliary), made.card)


def _all(labels: Tensor) -> Tensor:
    return torch.arange(len(labels))


def _tile(images: Tensor) -> Image.Image:
    """Return up to SIDE^2 ``images`` as one picture; what is left of it is black."""
    count, _, height, width = images.shape
    whole = torch.zeros(SIDE * SIDE, 3, height, width, dtype=torch.uint8)
    whole[:count] = images  # grey is in all channels
    rows = whole.unflatten(0, (SIDE, SIDE)).permute(0, 3, 1, 4, 2)
    return Image.fromarray(rows.reshape(SIDE * height, SIDE * width, 3).numpy())


def _untiled(folder: Path, name: str, shape: Sequence[int], count: int) -> Tensor:
    """Return the ``count`` images of the tiles that are called ``name``."""
    channels, height, width = shape
    if not count:
        return torch.empty(0, *shape, dtype=torch.uint8)
    tiles = [
        tile.unflatten(0, (SIDE, height)).unflatten(2, (SIDE, width)).permute(0, 2, 4, 1, 3)
        for tile in _pictures(folder, name)
    ]
    return torch.stack(tiles).flatten(0, 2)[:count, :channels].contiguous()


def _pictures(folder: Path, name: str) -> Iterator[Tensor]:
    for path in sorted(folder.glob(f"{name}-*.webp")):
        with Image.open(path) as picture:
            yield torch.from_numpy(np.array(picture.convert("RGB")))
