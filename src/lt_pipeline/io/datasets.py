"""Kedro datasets for what Kedro's own do not hold: image sets, weights, folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from kedro.io import AbstractDataset, DatasetError
from kedro.utils import load_obj
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lt_pipeline.io.image_files import mapped_images, write_images
from lt_pipeline.learning.data.images import ImageSet
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.engine.checkpoint import atomic_path
from lt_pipeline.learning.schema import UserError, one_line_errors

# the name under which a file says what it was made of
MADE_OF = "made_of"
# the one entry of a safetensors file's metadata: JSON
ABOUT = "about"
# bytes of the largest file of images that is held in memory
IN_MEMORY = 2**30

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def _save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one entry: safetensors writes several in any order, and equal content must be equal bytes
    metadata = {ABOUT: json.dumps(facts, sort_keys=True)} if facts else {}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=metadata)


def _load(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _facts(path: Path) -> dict[str, Any]:
    """Return what a file says of itself beside its tensors."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if ABOUT in metadata:
        return dict(json.loads(metadata[ABOUT]))
    # of versions before this one
    return {name: json.loads(text) for name, text in metadata.items() if name == "class_names"}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise  # it is said which node makes it
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); run the node that makes it") from error


class _FileDataset(AbstractDataset[_In, _Out], Generic[_In, _Out]):
    """What all of them share: one path on the local disk."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = PurePosixPath(filepath)
        self.metadata = metadata

    def _exists(self) -> bool:
        return Path(self._filepath).exists()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath}


class KeyedDataset(_FileDataset[_In, _Out], Generic[_In, _Out]):
    """A file that says what it was made of, and is loaded for nothing else.

    A run sets ``key``, which stands for the parameters and data that its files are of, and
    ``node``, the one that makes the file. A file without a key, as of earlier versions, is taken.
    """

    key: str | None = None
    node: str | None = None

    def check(self) -> None:
        """Refuse the file, if it is there, where it is of something else than this run.

        Raises:
            UserError: naming the file and the node that makes it.
        """
        if self._exists():
            self._check(self._key_of_file())

    def _key_of_file(self) -> str | None:
        """Return the key that the file says."""
        raise NotImplementedError

    def _made_of(self) -> dict[str, str]:
        return {MADE_OF: self.key} if self.key else {}

    def _check(self, made_of: str | None) -> None:
        if made_of and self.key and made_of != self.key:
            raise UserError(
                f"{self._filepath} is of other parameters or other data than this run: run "
                f"{self.node or 'the node that makes it'} first, or the whole pipeline"
            )


class _TensorsDataset(KeyedDataset[_In, _Out], Generic[_In, _Out]):
    def _key_of_file(self) -> str | None:
        return _facts(Path(self._filepath)).get(MADE_OF)


class StateDictDataset(_TensorsDataset[dict[str, Tensor], dict[str, Tensor]]):
    """A ``state_dict`` in a safetensors file: written whole or not at all, no code inside."""

    def load(self) -> dict[str, Tensor]:
        """Return the tensors by name, on the CPU.

        Raises:
            UserError: if they are of another run.
        """
        self._check(self._key_of_file())
        return _load(Path(self._filepath))

    def save(self, data: dict[str, Tensor]) -> None:
        """Replace the file."""
        _save(Path(self._filepath), data, self._made_of())


class ImageSetDataset(_TensorsDataset[Images, Images]):
    """Images in a safetensors file, class names in its metadata."""

    def load(self) -> Images:
        """Return the images on the CPU; those of a large file are read as they are needed.

        Raises:
            UserError: if they are of other data than this run's, or the file is of something else.
        """
        facts = _facts(Path(self._filepath))
        self._check(facts.get(MADE_OF))
        path = Path(self._filepath)
        try:
            names = tuple(facts["class_names"])
            if path.stat().st_size > IN_MEMORY:
                return mapped_images(path, names)
            tensors = _load(path)
            return ImageSet(tensors["images"], tensors["labels"], names, tensors.get("groups"))
        except KeyError as error:
            raise UserError(
                f"{self._filepath} is no set of images: it has no {error}; run "
                f"{self.node or 'the node that makes it'}"
            ) from None

    def save(self, data: Images) -> None:
        """Replace the file; images that are not in memory are written by batches."""
        facts = {"class_names": data.class_names, **self._made_of()}
        path = Path(self._filepath)
        if isinstance(data, ImageSet):
            groups = {} if data.groups is None else {"groups": data.groups}
            _save(path, {"images": data.images, "labels": data.labels, **groups}, facts)
        else:
            write_images(path, data, {ABOUT: json.dumps(facts, sort_keys=True)})


class TypedDataset(KeyedDataset[Any, Any]):
    """JSON, checked when it is loaded: a pydantic model or a dataclass, unless told a dictionary.

    A dictionary has its key inside; a model says by itself what it is of.
    """

    def __init__(
        self, filepath: str, model: str | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        super().__init__(filepath, metadata)
        self._model = model

    @cached_property
    def _type(self) -> TypeAdapter[Any]:
        return TypeAdapter(load_obj(self._model) if self._model else dict[str, Any])

    def load(self) -> Any:
        """Return the value.

        Raises:
            UserError: if the file holds something else, or is of another run.
        """
        value = self._read()
        if self._model is None:
            self._check(value.pop(MADE_OF, None))
        return value

    def _key_of_file(self) -> str | None:
        return self._read().get(MADE_OF) if self._model is None else None

    def _read(self) -> Any:
        path = Path(self._filepath)
        try:
            with one_line_errors():
                return self._type.validate_python(json.loads(path.read_bytes()))
        except ValueError as error:
            what = (self._model or "block of JSON").rpartition(".")[-1]
            by = self.node or "the node that makes it"
            raise UserError(f"{path} is no {what} ({error}); run {by}") from error

    def save(self, data: Any) -> None:
        """Replace the file."""
        plain = self._model is None
        values = {**data, **self._made_of()} if plain else self._type.dump_python(data, mode="json")
        with atomic_path(Path(self._filepath)) as temporary:
            temporary.write_text(json.dumps(values, indent=2))


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
