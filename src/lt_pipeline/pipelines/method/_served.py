"""What answers in the serving process. MLflow copies this file beside the exported network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from numpy.typing import NDArray


class ImageClassifier(mlflow.pyfunc.PythonModel):
    """uint8 images ``[N, channels, H, W]`` -> class probabilities float32 ``[N, C]``."""

    def load_context(self, context: Any) -> None:
        """Load the exported network and the class names."""
        self.network = torch.export.load(context.artifacts["network"]).module()
        self.class_names = json.loads(Path(context.artifacts["class_names"]).read_text())

    def predict(
        self, context: Any, model_input: NDArray[np.uint8], params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Return the probabilities of every image's classes, in the order of ``class_names``."""
        images = torch.from_numpy(np.ascontiguousarray(model_input, dtype=np.uint8))
        with torch.no_grad():
            probabilities: NDArray[np.float32] = self.network(images).numpy()
        return probabilities


mlflow.models.set_model(ImageClassifier())
