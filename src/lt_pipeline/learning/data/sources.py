"""Where images come from: every source gives a training and a balanced test set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.schema import MissingFileError, UserError, unknown

DIGITS_TEST_PER_CLASS = 50
# The held-out digits are the same whatever the seed of a run, as with any published test set.
DIGITS_SPLIT_SEED = 20261121


class Source(NamedTuple):
    """A source's own split: ``train`` is what a long tail is cut from, ``test`` stays as it is.

    A source of files has a hold-out, too, and ``listed``: a row an image.
    """

    train: Images
    test: Images
    validation: Images | None = None
    listed: pd.DataFrame | None = None


class Facts(NamedTuple):
    """What is known of a source without its files.

    ``shape`` is (channels, height, width), ``per_class`` the training images by class; ``images``
    is how many there are where one may have several labels, else None.
    """

    shape: tuple[int, int, int]
    per_class: tuple[int, ...]
    images: int | None = None


FACTS = {
    "digits": Facts((1, 8, 8), (128, 132, 127, 133, 131, 132, 131, 129, 124, 130)),
    "cifar10": Facts((3, 32, 32), (5000,) * 10),
    "cifar100": Facts((3, 32, 32), (500,) * 100),
    "fashion_mnist": Facts((1, 28, 28), (6000,) * 10),
}


class _TorchvisionSet(Protocol):
    data: Tensor | np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    targets: list[int] | Tensor
    classes: list[str]


def load_source(name: str, folder: Path) -> Source:
    """Load the source called ``name``; those with files have them under ``folder``.

    Raises:
        UserError: if there is no such source.
        MissingFileError: if its files are not there, are damaged, or cannot be downloaded.
    """
    if name not in SOURCES:
        raise UserError(unknown("data.source", name, SOURCES))
    return SOURCES[name](folder)


def digits_source(folder: Path | None = None) -> Source:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8, grey; it ships with the library."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # Grey levels are 0..16.
    images = torch.from_numpy(bunch.images * 255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    digits = ImageSet(images, labels, tuple(str(name) for name in bunch.target_names))
    shuffled = torch.randperm(
        len(digits), generator=torch.Generator().manual_seed(DIGITS_SPLIT_SEED)
    )
    is_test = torch.zeros(len(digits), dtype=torch.bool)
    for c in range(len(digits.class_names)):
        is_test[shuffled[labels[shuffled] == c][:DIGITS_TEST_PER_CLASS]] = True
    return Source(digits[~is_test], digits[is_test])


def _torchvision(dataset: str, put: str) -> Callable[[Path], Source]:
    """Return the loader of torchvision's ``dataset``; ``put`` says what belongs where."""

    def load(folder: Path) -> Source:
        return Source(
            _read_torchvision(dataset, folder, put, train=True),
            _read_torchvision(dataset, folder, put, train=False),
        )

    return load


def _read_torchvision(dataset: str, folder: Path, put: str, *, train: bool) -> ImageSet:
    from torchvision import datasets

    kind = getattr(datasets, dataset)
    try:
        read: _TorchvisionSet = kind(folder, train=train, download=False)
    except RuntimeError:
        try:
            read = kind(folder, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise MissingFileError(
                f"{dataset} is missing or damaged in {folder} and cannot be downloaded "
                f"({error}); put {put.format(folder=folder)}"
            ) from error
    images = torch.as_tensor(read.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return ImageSet(images.contiguous(), torch.as_tensor(read.targets).long(), tuple(read.classes))


SOURCES: dict[str, Callable[[Path], Source]] = {
    "digits": digits_source,
    "cifar10": _torchvision(
        "CIFAR10",
        "the files of cifar-10-python.tar.gz into {folder}/cifar-10-batches-py",
    ),
    "cifar100": _torchvision(
        "CIFAR100",
        "the files of cifar-100-python.tar.gz into {folder}/cifar-100-python",
    ),
    "fashion_mnist": _torchvision(
        "FashionMNIST",
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
        "t10k-labels-idx1-ubyte into {folder}/FashionMNIST/raw",
    ),
}
