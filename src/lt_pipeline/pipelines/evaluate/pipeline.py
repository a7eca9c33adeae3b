"""The DAG of an evaluation: take -> evaluate -> draw, and beside them geometry and ood.

It follows data_prep, whose parameters are in effect those that the model was trained with.
"""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from lt_pipeline.pipelines.evaluate.nodes import draw, evaluate, take
from lt_pipeline.pipelines.evaluating import detect, geometry

SETS = ("train_set", "validation_set", "test_set")
PARAMETERS = ("params:evaluate", "params:evaluation", "params:device")


def create_pipeline() -> Pipeline:
    """Return the pipeline, in the namespace ``evaluate``."""
    known = ["config", "data_card"]
    return Pipeline(
        [
            Node(
                take,
                inputs=[*PARAMETERS, "data_card"],
                outputs=["config", "weights"],
                name="take",
            ),
            Node(
                evaluate,
                inputs=[*known, "weights", *SETS],
                outputs=["metrics", "class_table", "confusion", "reliability"],
                name="evaluate",
            ),
            Node(
                geometry,
                inputs=[*known, "weights", "test_set"],
                outputs=["geometry", "geometry_figures"],
                name="geometry",
            ),
            Node(
                detect,
                inputs=[*known, "weights", "train_set", "test_set", "raw_folder"],
                outputs=["ood", "ood_figures"],
                name="ood",
            ),
            Node(
                draw,
                inputs=[*known, "class_table", "confusion", "reliability"],
                outputs="figures",
                name="draw",
            ),
        ],
        namespace="evaluate",
        inputs={*SETS, "data_card", "raw_folder"},
        parameters={*PARAMETERS},
    )
