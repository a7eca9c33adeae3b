"""Weights that a backbone starts from: a file's, an installed package's, or its library's own."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lt_pipeline.learning.schema import MissingFileError, UserError

NONE, DEFAULT = "none", "default"
SUFFIXES = (".safetensors", ".pth", ".pt")
# what reading a file that is no such file raises: a pickle can be wrong in many ways
DAMAGED = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, struct.error),
    *(UnpicklingError, SafetensorError),
)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Pixels(NamedTuple):
    """How weights want images: mean and standard deviation by channel, fractions of 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_own(weights: str) -> bool:
    """Return whether ``weights`` name a file or a package, not a library's."""
    return weights not in (NONE, DEFAULT)


def version_of(weights: str) -> str:
    """Return what tells these weights from others of the same name.

    Raises:
        MissingFileError: if they are not there.
    """
    if is_own(weights):
        return sha256(weights_file(weights).read_bytes()).hexdigest()
    libraries = [name for name in ("timm", "torchvision") if find_spec(name)]
    return " ".join([weights, *(f"{name} {version(name)}" for name in libraries)])


def load_weights(net: nn.Module, weights: str) -> None:
    """Load the file or the installed package called ``weights`` into ``net``, all of it.

    By name, or, where another library gave other names to the same network, in order: each tensor
    must have the shape of the one at its place. What follows (a classifier) is left.

    Raises:
        MissingFileError: if there is no such file or package.
        UserError: if it is damaged, or does not fit: with how many names and shapes do.
    """
    file = weights_file(weights)
    read, own = _read(file), net.state_dict()
    named = {name: read[name] for name, tensor in own.items() if _same(read.get(name), tensor)}
    placed = dict(zip(own, read.values(), strict=False))
    at_place = sum(_same(placed.get(name), tensor) for name, tensor in own.items())
    if len(named) == len(own):
        net.load_state_dict(named)
    elif at_place == len(own):
        net.load_state_dict(placed)
    else:
        raise UserError(
            f"model.weights: {file.name} does not fit model.backbone: of its {len(own)} tensors "
            f"{len(named)} are there by name and shape, {at_place} in order; name the backbone "
            f"that they are of, or set model.weights to none"
        )


def _same(given: Tensor | None, wanted: Tensor) -> bool:
    return given is not None and given.shape == wanted.shape


def weights_file(weights: str) -> Path:
    """Return the file that ``weights`` name."""
    path = Path(weights)
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise MissingFileError(f"model.weights: there is no file {weights}")
        return path
    try:
        package = find_spec(weights.replace("-", "_"))
    except (ImportError, ValueError):
        package = None
    if package is None or not package.submodule_search_locations:
        raise MissingFileError(
            f"model.weights: {weights} is neither none nor default, nor a file that ends in "
            f"{' or '.join(SUFFIXES)}, nor an installed package"
        )
    where = Path(next(iter(package.submodule_search_locations)))
    files = sorted(f for f in where.rglob("*") if f.suffix in SUFFIXES)
    if len(files) != 1:
        raise UserError(
            f"model.weights: the package {weights} has {len(files)} files of weights: name one"
        )
    return files[0]


def _read(file: Path) -> Mapping[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        read: Any = torch.load(file, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise UserError(f"model.weights: {file} cannot be read: {error}") from error
    inner = read.get("state_dict", read) if isinstance(read, Mapping) else {}
    tensors = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"model.weights: {file} holds no tensors by name")
    return tensors
