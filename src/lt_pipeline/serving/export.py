"""Export the merged network and hand it to MLflow as a model that answers for images."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.models import infer_signature
from torch import Tensor, nn

from lt_pipeline.learning.data.protocol import Images, take
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.methods._base import Method
from lt_pipeline.learning.models.merging import StateDict
from lt_pipeline.tracking.config import TrackingConfig

# Runs in the serving process, where lt_pipeline need not be installed.
SERVED_CODE = Path(__file__).with_name("_served.py")
EXAMPLES = 2
# the alias of the version that was registered last
LATEST = "newest"


class Answer(nn.Module):
    """uint8 images ``[B, channels, H, W]`` -> what the method answers, by name."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return ``probabilities`` ``[B, C]``, ``ood_score`` ``[B]`` and what the method adds."""
        answer = self.method.answer(images)
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


def _release(package: ModuleType) -> str:
    """Return the version without the build's suffix (2.15.0+cu130), which PyPI does not know."""
    return str(package.__version__).split("+")[0]


def deploy(
    experiment: Experiment,
    model: StateDict,
    test: Images,
    metrics: dict[str, Any],
    tracked: dict[str, Any],
) -> dict[str, Any]:
    """Log the exported model in the active MLflow run, register it if asked; return where it is.

    ``tracked`` is the block ``tracking``; a model that is not registered has neither name nor
    version there.
    """
    method, data = experiment.finished(model, whole=True), experiment.card
    example = take(test, torch.arange(len(test))[:EXAMPLES])
    program = export(method, example)
    with torch.no_grad():
        answer = {name: value.numpy() for name, value in program.module()(example).items()}
    names = np.array(data.longtail.class_names[:EXAMPLES])
    registers = TrackingConfig.read(tracked).register
    registered = f"{experiment.config.method}-{data.config.slug}" if registers else None
    with TemporaryDirectory() as folder:
        network, classes = Path(folder, "network.pt2"), Path(folder, "class_names.json")
        torch.export.save(program, network)
        classes.write_text(json.dumps(data.longtail.class_names))
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SERVED_CODE),
            artifacts={"network": str(network), "class_names": str(classes)},
            signature=infer_signature(example.numpy(), {"class": names, **answer}),
            input_example=example.numpy(),
            registered_model_name=registered,
            # named, because inferring them takes ten seconds
            pip_requirements=[f"mlflow=={mlflow.__version__}", f"torch=={_release(torch)}"],
            metadata={"accuracy": metrics["test"]["accuracy"]},
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
