"""What kedro viz shows: a layer for every dataset, a namespace for every node, nothing made."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import PurePosixPath

import pytest
from kedro.io import CatalogConfigResolver

import confs
from lt_pipeline.pipeline_registry import register_pipelines

# from top to bottom
LAYERS = ("raw", "primary", "models", "reporting", "serving")
OF_FOLDER = {
    "01_raw": "raw",
    "03_primary": "primary",
    "05_model_input": "models",
    "06_models": "models",
    "08_reporting": "reporting",
}
# rests on reports, and is a file beside the models all the same
SERVED = ("deployed", "onnx")


@pytest.fixture(scope="module")
def pipelines():
    return register_pipelines()


@pytest.fixture(scope="module")
def layers(pipelines):
    """Return the layer of every dataset of any pipeline, None for those without."""
    memory = {"{name}": {"type": "kedro.io.MemoryDataset"}}
    catalog = CatalogConfigResolver(confs.catalog(), default_runtime_patterns=memory)
    names = {name for pipeline in pipelines.values() for name in pipeline.datasets()}
    by_name = {}
    for name in names:
        config = catalog.resolve_pattern(name)
        layer = config.get("metadata", {}).get("kedro-viz", {}).get("layer")
        by_name[name] = layer, config.get("dataset", config).get("filepath"), config["type"]
    return by_name


def test_every_file_is_in_the_layer_of_its_folder(layers):
    for name, (layer, path, kind) in layers.items():
        if kind.endswith(("FolderDataset", "MemoryDataset")) and name != "raw_folder":
            # in memory, or what a node keeps for itself
            assert layer is None, name
        elif name.split(".")[-1] in SERVED:
            assert layer == "serving", name
        elif path.startswith("conf/"):
            assert layer == "raw", name
        else:
            assert layer == OF_FOLDER[PurePosixPath(path).parts[1]], name


def test_no_node_leads_back_to_a_layer_above(pipelines, layers):
    """One that did would take all layers out of the picture."""
    rank = {name: LAYERS.index(layer) for name, (layer, _, _) in layers.items() if layer}
    for node in {node for pipeline in pipelines.values() for node in pipeline.nodes}:
        above = [rank[name] for name in node.inputs if name in rank]
        below = [rank[name] for name in node.outputs if name in rank]
        assert max(above, default=0) <= min(below, default=len(LAYERS)), node.name


def test_a_pipeline_is_its_data_and_one_box_more(pipelines):
    for name, pipeline in pipelines.items():
        boxes = {(node.namespace or "").split(".")[0] for node in pipeline.nodes}
        # an audit is of photos before there are any sets
        alone = name if name in ("data_prep", "audit") else ""
        assert (alone or "data_prep") in boxes, name
        assert "" not in boxes, name
        assert len(boxes) == (1 if alone else 2), name


@pytest.mark.slow
@pytest.mark.skipif(find_spec("kedro_viz") is None, reason="needs the extra viz")
def test_kedro_viz_shows_every_pipeline_and_makes_no_run(project, pipelines):
    (project.folder / "mlflow.db").unlink()
    code, output = project.run("kedro", "viz", "build", HTTPS_PROXY="http://127.0.0.1:9")
    assert code == 0, output
    shown = project.folder / "build" / "api" / "pipelines"
    assert {path.name for path in shown.iterdir()} == set(pipelines)
    more = json.loads((shown / "more").read_text())
    assert more["layers"] == list(LAYERS)
    assert set(more["modular_pipelines"]) == {"__root__", "data_prep", "more"}
    layers = {node["name"]: node.get("layer") for node in more["nodes"]}
    assert (layers["train_set"], layers["more.metrics"]) == ("primary", "reporting")
    tune = json.loads((shown / "tune").read_text())
    assert set(tune["modular_pipelines"]) == {"__root__", "data_prep", "tune", "tune.more"}
    made = {path.name for path in project.folder.iterdir()} & {"mlflow.db", "mlruns", "mlartifacts"}
    assert not made, "looking is no run"
