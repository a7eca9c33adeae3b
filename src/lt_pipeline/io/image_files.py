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


def write_images(path: Path, data: Images, metadata: Mapping[str, str]) -> None:
    """Write ``images`` and ``labels`` as safetensors does, with no more than a batch in memory."""
    labels, shape = data.labels.cpu().numpy(), [len(data), *data.shape]
    ends = np.cumsum([0, labels.nbytes, int(np.prod(shape))]).tolist()
    header = {
        "__metadata__": dict(metadata),
        "labels": {"dtype": "I64", "shape": shape[:1], "data_offsets": ends[:2]},
        "images": {"dtype": "U8", "shape": shape, "data_offsets": ends[1:]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % LENGTH)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(LENGTH, "little") + text + labels.tobytes())
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

    def part(name: str, dtype: type[Any]) -> Any:
        about = header[name]
        offset = LENGTH + length + about["data_offsets"][0]
        return np.memmap(path, dtype, "r", offset, tuple(about["shape"]))

    labels = torch.from_numpy(np.array(part("labels", np.int64)))
    return PackedImages(part("images", np.uint8), torch.arange(len(labels)), labels, class_names)
