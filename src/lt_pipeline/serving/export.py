"""Export the merged network and hand it to MLflow as a model that answers for images."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import PIL.Image
import torch
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array
from torch import Tensor, nn

from lt_pipeline.learning.data import decode
from lt_pipeline.learning.data.prepare import DataConfig
from lt_pipeline.learning.data.protocol import Images, take
from lt_pipeline.learning.evaluation.metrics.catalog import HEADLINES, of_task
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.serving.config import IMAGE, ServeConfig
from lt_pipeline.tracking.config import TrackingConfig

# Runs in the serving process, where lt_pipeline need not be installed.
SERVED_CODE = Path(__file__).with_name("served.py")
EXAMPLES = 2
# the alias of the version that was registered last
LATEST = "newest"
COLUMN_TYPES: dict[type, DataType | Array] = {
    str: DataType.string,
    float: DataType.double,
    list: Array(DataType.double),
}

Values = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]


class Answer(nn.Module):
    """uint8 images ``[B, channels, H, W]`` -> what the method answers, by name."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return ``probabilities`` ``[B, C]``, ``ood_score`` ``[B]`` and what the method adds."""
        answer = self.method.predictions(images)
        if type(self.method).ood_score is Method.ood_score:
            # the same number, without another pass through the network
            known = answer["probabilities"].float().amax(1)
        else:
            known = self.method.ood_score(images)
        return {"probabilities": answer.pop("probabilities"), "ood_score": known, **answer}


def export(method: Method, example: Tensor) -> torch.export.ExportedProgram:
    """Return the finished ``method`` as a program for any number of images like ``example``."""
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(
        Answer(method.cpu()).eval(), (example,), dynamic_shapes=({0: batch},)
    )


def deploy(
    experiment: Experiment,
    model: StateDict,
    test: Images,
    metrics: Values,
    tracked: Values,
    serve: Values,
) -> Values:
    """Log the exported model in the active MLflow run, register it if asked; return where it is.

    ``tracked`` and ``serve`` are the blocks of those names; a model that is not registered has
    neither name nor version there.
    """
    method, data = experiment.finished(model, whole=True), experiment.card
    example = take(test, torch.arange(len(test))[:EXAMPLES])
    program = export(method, example)
    with torch.no_grad():
        answer = {name: value.numpy() for name, value in program.module()(example).items()}
    registers = TrackingConfig.read(tracked).register
    registered = f"{experiment.config.method}-{data.config.slug}" if registers else None
    served = ServeConfig.read(serve)
    if served.takes(data.config) == IMAGE:
        taken = _takes_files(served, data.config, example, answer)
    else:
        taken = _takes_tensors(example, answer, data.longtail.class_names)
    reached = of_task(HEADLINES, [f"test/{name}" for name in metrics["test"]]).name
    with TemporaryDirectory() as folder:
        network, classes = Path(folder, "network.pt2"), Path(folder, "class_names.json")
        torch.export.save(program, network)
        classes.write_text(json.dumps(data.longtail.class_names))
        taken["artifacts"] |= {"network": str(network), "class_names": str(classes)}
        if "thresholds" in metrics:
            path = Path(folder, "thresholds.json")
            path.write_text(json.dumps(metrics["thresholds"]))
            taken["artifacts"]["thresholds"] = str(path)
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SERVED_CODE),
            registered_model_name=registered,
            metadata={reached: metrics["test"][reached]},
            **taken,
        )
    if registered:
        version = str(logged.registered_model_version)
        mlflow.MlflowClient().set_registered_model_alias(registered, LATEST, version)
    return {
        "model_uri": logged.model_uri,
        "run_id": logged.run_id,
        "registered_model": registered,
        "version": logged.registered_model_version,
    }


def _takes_tensors(example: Tensor, answer: Arrays, class_names: Sequence[str]) -> Values:
    """Return what MLflow is told of a model that takes pixels."""
    names = np.array(class_names[:EXAMPLES])
    return {
        "artifacts": {},
        "signature": infer_signature(example.numpy(), {"class": names, **answer}),
        "input_example": example.numpy(),
        "pip_requirements": _requirements(mlflow, torch),
    }


def _takes_files(served: ServeConfig, data: DataConfig, example: Tensor, answer: Arrays) -> Values:
    """Return what MLflow is told of a model that takes files; ``answer`` is of the example."""
    floats = {name: float if value.ndim == 1 else list for name, value in answer.items()}
    kinds = {"class": str, "probability": float, **floats}
    outputs = [ColSpec(COLUMN_TYPES[kind], name, required=False) for name, kind in kinds.items()]
    outputs.append(ColSpec(DataType.string, "error", required=False))
    return {
        "artifacts": {"decode": decode.__file__},
        "signature": ModelSignature(
            Schema([ColSpec(DataType.binary, "image")]), Schema([*outputs])
        ),
        "input_example": pd.DataFrame({"image": [_png(image) for image in example]}),
        "pip_requirements": _requirements(mlflow, torch, np, PIL),
        "model_config": {
            **{"size": data.size, "fit": data.fit},
            **{"max_bytes": served.max_bytes, "max_pixels": served.max_pixels},
            "columns": [*kinds],
        },
    }


def _png(image: Tensor) -> bytes:
    """Return ``image``, uint8 ``[3, H, W]``, as a file that loses nothing."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def _requirements(*packages: ModuleType) -> list[str]:
    """Return what the server needs: named, because inferring it takes ten seconds.

    A build's suffix (2.15.0+cu130) is left out: PyPI does not know it.
    """
    names = {"PIL": "pillow"}
    return [
        f"{names.get(package.__name__, package.__name__)}=={str(package.__version__).split('+')[0]}"
        for package in packages
    ]
