"""What answers in the serving process. MLflow copies this file beside the exported network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class ImageClassifier(PythonModel):
    """uint8 images ``[N, channels, H, W]`` -> what the model says of each, by name.

    ``class`` ``[N]`` is the name of the most probable class, ``probabilities`` ``[N, C]`` are
    float32, ``ood_score`` ``[N]`` is the higher the more an image looks like the training classes.
    A model that has more to say, as which expert decided, adds it.
    """

    def load_context(self, context: Any) -> None:
        """Load the exported network and the class names."""
        self.network = torch.export.load(context.artifacts["network"]).module()
        self.class_names = json.loads(Path(context.artifacts["class_names"]).read_text())

    # MLflow takes type hints of predict for a schema and knows none for arrays: no hints here.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        """Return the answers by name, each with a row an image."""
        images = torch.from_numpy(np.ascontiguousarray(model_input, dtype=np.uint8))
        with torch.no_grad():
            answer = {name: value.numpy() for name, value in self.network(images).items()}
        best = answer["probabilities"].argmax(1)
        return {"class": np.array([self.class_names[c] for c in best.tolist()]), **answer}


set_model(ImageClassifier())
