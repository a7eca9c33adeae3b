"""The deployed model as others use it: over HTTP, and as ONNX."""

from __future__ import annotations

import json
import shutil
import sys
import urllib.error
import urllib.request

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from pipeline_projects import Project, experiment_of
from safetensors.torch import load_file

from addresses import free_port, wait_for
from lt_pipeline.io.datasets import ImageSetDataset
from lt_pipeline.learning.evaluation.metrics.catalog import OBJECTIVE
from lt_pipeline.tracking import registry as champion


def held_images(project):
    return ImageSetDataset(str(project.file("03_primary/smoke/test.safetensors"))).load()


def finished_method(project):
    weights = load_file(project.file("06_models/smoke/more/model.safetensors"))
    return experiment_of(project, "more").finished(weights)


@pytest.fixture
def promoted(finished, tmp_path):
    """A copy of the project, its model the champion of its data set."""
    trained, _ = finished
    project = Project(shutil.copytree(trained.folder, tmp_path / "promoted"))
    mlflow.set_tracking_uri(project.tracking_uri)
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("more-digits-lt-ir10", "newest")
    run = {"run_id": version.run_id, "label": "more", "seed": 0, OBJECTIVE: 0.9}
    promotion = champion.promote(pd.DataFrame([run]), "digits-lt-ir10")
    assert promotion["model_uri"] == "models:/digits-lt-ir10@champion"
    return project


@pytest.fixture
def served(promoted):
    """The address of `mlflow models serve` with the champion."""
    project = promoted
    address = f"http://127.0.0.1:{(port := free_port())}"
    server = project.start(
        *(sys.executable, "-m", "mlflow", "models", "serve"),
        *("-m", "models:/digits-lt-ir10@champion"),
        *("-h", "127.0.0.1", "-p", str(port), "--env-manager", "local", "--workers", "1"),
        MLFLOW_TRACKING_URI=project.tracking_uri,
    )
    try:
        wait_for(f"{address}/ping", server)
        yield project, address
    finally:
        server.terminate()
        server.communicate(timeout=30)


def ask(address, body):
    request = urllib.request.Request(
        f"{address}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.slow
def test_the_server_answers_images_with_class_probabilities_and_ood_score(served):
    project, address = served
    test = held_images(project)
    noise = torch.randint(0, 256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = torch.cat([test.images[:4], noise.to(torch.uint8)])
    answer = ask(address, {"inputs": images.tolist()})
    assert set(answer) == {"class", "probabilities", "ood_score"}
    method = finished_method(project)
    with torch.no_grad():
        scores, known = method.score(images), method.ood_score(images)
    np.testing.assert_allclose(answer["probabilities"], scores.softmax(1).numpy(), atol=1e-5)
    np.testing.assert_allclose(answer["ood_score"], known.numpy(), atol=1e-5)
    assert answer["class"] == [test.class_names[c] for c in scores.argmax(1).tolist()]
    # one image, as a client would send
    assert len(ask(address, {"inputs": images[:1].tolist()})["class"]) == 1
    with pytest.raises(urllib.error.HTTPError) as wrong:
        ask(address, {"inputs": [[1, 2, 3]]})
    assert wrong.value.code == 400


def test_the_version_registered_last_has_an_alias(finished):
    project, _ = finished
    client = mlflow.MlflowClient(tracking_uri=project.tracking_uri)
    version = client.get_model_version_by_alias("more-digits-lt-ir10", "newest")
    deployed = json.loads(project.file("06_models/smoke/more/deployed.json").read_text())
    assert int(version.version) == deployed["version"]


@pytest.mark.slow
def test_onnx_is_written_beside_the_weights_and_to_the_run(finished, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    trained, _ = finished
    project = Project(shutil.copytree(trained.folder, tmp_path / "project"))
    command = (sys.executable, "-m", "lt_pipeline.serving.onnx_export")
    code, output = project.run(*command, "more", "--env", "smoke")
    assert code == 0, output
    path = project.file("06_models", "smoke", "more", "model.onnx")
    assert "more on digits, exponential, IR 10: " in output
    assert "from PyTorch's answers; artifact onnx/ of MLflow run " in output
    images = held_images(project).images[:11]
    session = onnxruntime.InferenceSession(str(path))
    probabilities, known = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        wanted = finished_method(project).score(images).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, wanted, atol=1e-4)
    np.testing.assert_allclose(known, wanted.max(1), atol=1e-4)
    (run,), client = project.runs, project.client
    assert [a.path for a in client.list_artifacts(run.info.run_id, "onnx")] == ["onnx/model.onnx"]
    code, output = project.run(*command, "dbm", "--env", "smoke")
    assert code == 1
    assert "Error: there is no finished model of dbm: kedro run --pipelines=dbm" in output
    assert "Traceback" not in output
