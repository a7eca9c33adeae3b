"""Kedro datasets for what Kedro's own do not hold: image sets, weights, folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from kedro.io import AbstractDataset, DatasetError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.engine.checkpoint import atomic_path

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=metadata)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}); run the node that makes it"
        ) from error


class _FileDataset(AbstractDataset[_In, _Out], Generic[_In, _Out]):
    """What all of them share: one path on the local disk."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = PurePosixPath(filepath)
        self.metadata = metadata

    def _exists(self) -> bool:
        return Path(self._filepath).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath}


class StateDictDataset(_FileDataset[dict[str, Tensor], dict[str, Tensor]]):
    """A ``state_dict`` in a safetensors file: written whole or not at all, no code inside."""

    def load(self) -> dict[str, Tensor]:
        """Return the tensors by name, on the CPU."""
        return _load(Path(self._filepath))[0]

    def save(self, data: dict[str, Tensor]) -> None:
        """Replace the file."""
        _save(Path(self._filepath), data, {})


class ImageSetDataset(_FileDataset[ImageSet, ImageSet]):
    """An ``ImageSet`` in a safetensors file, class names in its metadata."""

    def load(self) -> ImageSet:
        """Return the images on the CPU."""
        tensors, metadata = _load(Path(self._filepath))
        names = tuple(json.loads(metadata["class_names"]))
        return ImageSet(tensors["images"], tensors["labels"], names)

    def save(self, data: ImageSet) -> None:
        """Replace the file."""
        tensors = {"images": data.images, "labels": data.labels}
        _save(Path(self._filepath), tensors, {"class_names": json.dumps(data.class_names)})


class FolderDataset(_FileDataset[None, Path]):
    """A folder whose files a node reads or keeps by itself: it loads as the path."""

    def load(self) -> Path:
        """Return the path; the folder need not exist."""
        return Path(self._filepath)

    def save(self, data: None) -> None:
        """Refuse: nothing is saved as a folder."""
        raise DatasetError(f"{self._filepath} is a folder to read from, not an output")

    def _exists(self) -> bool:
        return True
