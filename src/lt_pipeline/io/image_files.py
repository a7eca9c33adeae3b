"""Images too many for memory in a safetensors file: written by batches, mapped when read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lt_pipeline.learning.data.packed import PackedImages
from lt_pipeline.learning.data.protocol import Images, in_order
from lt_pipeline.learning.engine.checkpoint import atomic_path

# the format's: a length of 8 bytes, a header of JSON as long, the tensors as it says
LENGTH = 8
BATCH = 256
# what the format calls the types that there are
NAMES = {"int64": "I64", "uint8": "U8"}


def write_images(path: Path, data: Images, metadata: Mapping[str, str]) -> None:
    """Write a set's tensors as safetensors does, with no more than a batch of images in memory."""
    shape = [len(data), *data.shape]
    held = {"labels": data.labels, **({} if data.groups is None else {"groups": data.groups})}
    small = {name: tensor.cpu().contiguous().numpy() for name, tensor in held.items()}
    sizes = [array.nbytes for array in small.values()]
    ends = np.cumsum([0, *sizes, int(np.prod(shape))]).tolist()
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for place, (name, array) in enumerate(small.items()):
        about = {"dtype": NAMES[array.dtype.name], "shape": list(array.shape)}
        header[name] = {**about, "data_offsets": ends[place : place + 2]}
    header["images"] = {"dtype": "U8", "shape": shape, "data_offsets": ends[-2:]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % LENGTH)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH, "little") + text)
        for array in small.values():
            file.write(array.tobytes())
        for batch in in_order(data, BATCH):
            file.write(batch.cpu().contiguous().numpy().data)


def mapped_images(path: Path, class_names: tuple[str, ...]) -> PackedImages:
    """Return the images of a file, of which none is in memory before it is asked for.

    Raises:
        KeyError: if it has no images or labels.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        header = json.loads(file.read(length))

    def part(name: str) -> Any:
        about = header[name]
        dtype = next(known for known, called in NAMES.items() if called == about["dtype"])
        offset = LENGTH + length + about["data_offsets"][0]
        return np.memmap(path, dtype, "r", offset, tuple(about["shape"]))

    labels = torch.from_numpy(np.array(part("labels")))
    groups = torch.from_numpy(np.array(part("groups"))) if "groups" in header else None
    positions = torch.arange(len(labels))
    return PackedImages(part("images"), positions, labels, class_names, groups)
