"""A finished model as ONNX: ``python -m lt_pipeline.serving.onnx_export <method> --env <name>``.

A run with ``--params`` has a folder of its own, which the same ``--params`` find.

The file answers what the deployed model answers, for any number of images, and is written only if
ONNX Runtime gives what PyTorch gives. It needs the extra ``onnx``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import torch
from click import ClickException
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import CatalogProtocol
from torch import Tensor

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.protocol import Images, take
from lt_pipeline.learning.engine.checkpoint import atomic_path
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.schema import UserError
from lt_pipeline.reports.command_line import read, split
from lt_pipeline.reports.errors import in_one_line
from lt_pipeline.serving.export import Answer

# of every answer: probabilities and scores are of order 1
TOLERANCE = 1e-4
# numbers of images that the check is made with
BATCHES = (1, 3, 32)
EXTRA = "ONNX needs packages that are not installed: pip install -c constraints.txt -e '.[onnx]'"


class Exported(NamedTuple):
    """The bytes of an ONNX model and how far its answers lie from PyTorch's, at most."""

    content: bytes
    difference: float


def to_onnx(method: Method, images: Tensor, thresholds: Sequence[float] | None = None) -> Exported:
    """Return the finished ``method`` in ONNX, checked with uint8 ``images``.

    The input is ``images``, uint8 ``[N, channels, H, W]``, N free; outputs have the answers' names.
    Class names are in the model's metadata, and where images have several labels the probabilities
    ``thresholds`` ``[C]`` from which on they are said.

    Raises:
        UserError: if ONNX Runtime answers otherwise, or the extra is not installed.
    """
    answer = Answer(method.cpu()).eval()
    try:
        metadata: dict[str, list[Any]] = {"class_names": list(method.card.longtail.class_names)}
        metadata |= {} if thresholds is None else {"thresholds": list(thresholds)}
        content = _convert(answer, images[: max(BATCHES)], metadata)
        difference = largest_difference(content, answer, images)
    except ImportError as error:
        raise UserError(f"{EXTRA} ({error})") from None
    if not difference <= TOLERANCE:
        raise UserError(
            f"the ONNX model's answers are {difference:.2g} from PyTorch's, and {TOLERANCE:g} is "
            f"allowed: it is not written"
        )
    return Exported(content, difference)


def _convert(answer: Answer, example: Tensor, metadata: Mapping[str, list[Any]]) -> bytes:
    with torch.no_grad():
        names = list(answer(example))
    program = torch.onnx.export(
        answer,
        (example,),
        input_names=["images"],
        output_names=names,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise UserError("PyTorch's exporter gave no ONNX model")
    program.model.metadata_props.update({name: json.dumps(own) for name, own in metadata.items()})
    return bytes(program.model_proto.SerializeToString())


def largest_difference(content: bytes, answer: Answer, images: Tensor) -> float:
    """Return the largest absolute difference of any answer, over several numbers of images.

    It is nan where an answer is.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names, differences = [output.name for output in session.get_outputs()], list[Tensor]()
    for count in BATCHES:
        batch = images[:count]
        with torch.no_grad():
            wanted = answer(batch)
        given = dict(zip(names, session.run(None, {"images": batch.numpy()}), strict=True))
        differences += [
            (torch.from_numpy(given[name]).double() - value.double()).abs().max()
            for name, value in wanted.items()
        ]
    return float(torch.stack(differences).max())


def export(catalog: CatalogProtocol[Any, Any], method: str) -> str:
    """Write ``method``'s finished model beside its weights and to its MLflow run; say so.

    Raises:
        UserError: if there is none, or its ONNX answers otherwise.
    """
    if not catalog.exists(f"{method}.model"):
        raise UserError(
            f"there is no finished model of {method}: kedro run --pipelines={method} makes it"
        )
    experiment = Experiment(catalog.load(f"{method}.config"), catalog.load("data_card"))
    built = experiment.finished(catalog.load(f"{method}.model"), whole=True)
    test: Images = catalog.load("test_set")
    some = take(test, torch.arange(len(test))[: max(BATCHES)])
    exported = to_onnx(built, some, _thresholds(catalog, method, experiment))
    path: Path = catalog.load(f"{method}.onnx")
    with atomic_path(path) as temporary:
        temporary.write_bytes(exported.content)
    data = experiment.card.config.title
    return (
        f"{method} on {data}: {path} ({len(exported.content) / 2**20:.1f} MiB), at most "
        f"{exported.difference:.1g} from PyTorch's answers; {_log(catalog, method, path)}"
    )


def _thresholds(
    catalog: CatalogProtocol[Any, Any], method: str, experiment: Experiment
) -> list[float] | None:
    """Return what the evaluation chose, where images have several labels.

    Raises:
        UserError: if the model was not evaluated.
    """
    if not experiment.card.longtail.several:
        return None
    if not catalog.exists(f"{method}.metrics"):
        raise UserError(
            f"labels are said from thresholds on, and {method} has none yet: kedro run "
            f"--pipelines={method} evaluates it"
        )
    thresholds: list[float] = catalog.load(f"{method}.metrics")["thresholds"]
    return thresholds


def _log(catalog: CatalogProtocol[Any, Any], method: str, path: Path) -> str:
    """Add the file to the run that logged the model, and say where it is."""
    if not catalog.exists(f"{method}.deployed"):
        return "not in MLflow, as the model was not deployed"
    deployed: dict[str, Any] = catalog.load(f"{method}.deployed")
    client = mlflow.MlflowClient()
    run = deployed.get("run_id")
    if run is None:  # of earlier versions
        name, version = deployed["registered_model"], str(deployed["version"])
        run = client.get_model_version(name, version).run_id
    client.log_artifact(run, str(path), "onnx")
    return f"artifact onnx/ of MLflow run {run}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command in the project's folder."""
    parser = argparse.ArgumentParser(
        prog="python -m lt_pipeline.serving.onnx_export", description=__doc__
    )
    parser.add_argument("method", help="as in kedro run --pipelines=<method>")
    parser.add_argument("--env", default=None, help="the folder of conf/ that it was trained with")
    parser.add_argument("--params", default="", help="those it was trained with, as in kedro run")
    given = parser.parse_args(arguments)
    try:
        methods.get(given.method)
        project = Path.cwd()
        bootstrap_project(project)
        parameters = read(split(given.params)) if given.params else {}
        session = KedroSession.create(project, env=given.env, runtime_params=parameters)
        with session:
            message = export(session.load_context().catalog, given.method)
    except Exception as error:
        line = str(error) if isinstance(error, ClickException) else in_one_line(error)
        if line is None:
            raise
        raise SystemExit(f"Error: {line}") from None
    sys.stdout.write(message + "\n")


if __name__ == "__main__":
    main()
