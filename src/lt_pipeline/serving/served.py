"""What answers in the serving process. MLflow copies this file beside the exported network."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

# images that go through the network at a time, where they come as files
BATCH = 32
COLUMN = "image"
SMALLEST = 32  # bytes of an image: a short word may be base64 too
# of what came through inputs, which MLflow does not decode, or was encoded twice
ENCODED = (
    "the file is text in base64: send it once encoded, by dataframe_split or dataframe_records, "
    "which decode it"
)


class ImageClassifier(PythonModel):
    """Images -> what the model says of each, by name.

    They are uint8 ``[N, channels, H, W]``, or, where the model was logged with ``decode``, files:
    a table with the column ``image``, bytes. ``class`` ``[N]`` is the name of the most probable
    class, or, where images have several labels, of each that is probable enough, as in ``cat;dog``;
    ``probabilities`` ``[N, C]`` are float32, ``ood_score`` ``[N]`` is the higher the more an image
    looks like the training classes. A model that has more to say, as which expert decided, adds it.
    Of files the answer is a table, with ``probability``, that of the class, and ``error``:
    a file that is no image has that and nothing else.
    """

    def load_context(self, context: Any) -> None:
        """Load the exported network, the class names, and what reads files."""
        self.network = torch.export.load(context.artifacts["network"]).module()
        self.class_names = json.loads(Path(context.artifacts["class_names"]).read_text())
        file = context.artifacts.get("thresholds")
        self.thresholds = json.loads(Path(file).read_text()) if file else None
        reader = context.artifacts.get("decode")
        self.decode = _module(reader) if reader else None
        self.settings = context.model_config

    # MLflow takes type hints of predict for a schema and knows none for arrays: no hints here.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return the answers by name, each with a row an image; of files a table."""
        if self.decode:
            return self._of_files(list(model_input[COLUMN]))
        images = np.ascontiguousarray(model_input, dtype=np.uint8)
        answer = self._answer(images)
        return {"class": np.array(self._names(answer)), **answer}

    def _answer(self, images: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        with torch.no_grad():
            answers = self.network(torch.from_numpy(images))
        return {name: value.numpy() for name, value in answers.items()}

    def _names(self, answer: dict[str, np.ndarray[Any, Any]]) -> list[str]:
        if self.thresholds:
            predicted = answer["probabilities"] >= np.array(self.thresholds)
            return [";".join(np.array(self.class_names)[row]) for row in predicted]
        return [self.class_names[c] for c in answer["probabilities"].argmax(1).tolist()]

    def _of_files(self, files: Sequence[Any]) -> pd.DataFrame:
        read = [self._read(file) for file in files]
        readable = [k for k, image in enumerate(read) if not isinstance(image, str)]
        rows: list[dict[str, Any]] = [
            {**dict.fromkeys(self.settings["columns"]), "error": image} for image in read
        ]
        for start in range(0, len(readable), BATCH):
            part = readable[start : start + BATCH]
            for k, row in zip(part, self._rows(np.stack([read[k] for k in part])), strict=True):
                rows[k] = {**row, "error": None}
        return pd.DataFrame(rows, columns=[*self.settings["columns"], "error"], dtype=object)

    def _rows(self, images: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
        answer = self._answer(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        columns = {
            "class": self._names(answer),
            "probability": answer["probabilities"].max(1).tolist(),
            **{name: value.tolist() for name, value in answer.items()},
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _read(self, file: Any) -> Any:
        """Return the file's pixels ``[size, size, 3]``, or in a line why it has none."""
        if not isinstance(file, bytes):
            return "the file is missing: an image is sent as its bytes"
        most = self.settings["max_bytes"]
        if len(file) > most:
            return f"the file has {len(file):,} bytes, more than {most:,}: make it smaller"
        how = {name: self.settings[name] for name in ("size", "fit", "max_pixels")}
        try:
            return self.decode.read_image(file, **how)  # type: ignore[union-attr]
        except self.decode.UnreadableImageError as error:  # type: ignore[union-attr]
            return ENCODED if _is_text_of_bytes(file) else str(error)


def _is_text_of_bytes(file: bytes) -> bool:
    try:
        return len(base64.b64decode(b"".join(file.split()), validate=True)) >= SMALLEST
    except ValueError:
        return False


def _module(path: str) -> ModuleType:
    """Return the Python file at ``path``, by a name that no other module has."""
    spec = spec_from_file_location("served_decode", path)
    module = module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


set_model(ImageClassifier())
