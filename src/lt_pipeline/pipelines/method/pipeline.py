"""The DAG of a method: configure -> a node a phase -> finish -> evaluate -> draw, deploy.

Beside the evaluation, ``geometry`` looks at the finished model's feature space, and ``ood`` at how
it tells images of no class from the test set.
"""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from lt_pipeline import methods
from lt_pipeline.config import SHARED
from lt_pipeline.pipelines.method.deploy import deploy
from lt_pipeline.pipelines.method.geometry import geometry
from lt_pipeline.pipelines.method.nodes import configure, draw, evaluate, finish, train_phase
from lt_pipeline.pipelines.method.ood import judge

SETS = ("train_set", "validation_set", "test_set")
PARAMETERS = tuple(f"params:{name}" for name in SHARED)


def create_pipeline(method: str) -> Pipeline:
    """Return the pipeline of ``method``, in a namespace of its name."""
    phases = methods.get(method).phase_names
    checkpoints = [f"{phase}_checkpoint" for phase in phases]
    histories = [f"{phase}_history" for phase in phases]
    known = ["config", "data_card"]
    nodes = [
        Node(
            configure(method),
            inputs=[*PARAMETERS, "params:method"],
            outputs="config",
            name="configure",
        ),
        *(
            Node(
                train_phase(phase),
                inputs=[*known, *SETS, "auxiliary_set", "progress", *checkpoints[:position]],
                outputs=[checkpoints[position], histories[position]],
                name=phase,
            )
            for position, phase in enumerate(phases)
        ),
        Node(
            finish,
            inputs=[*known, "train_set", "test_set", *checkpoints],
            outputs=["model", "finish_report"],
            name="finish",
        ),
        Node(
            evaluate,
            inputs=[*known, "model", "validation_set", "test_set", "finish_report", *histories],
            outputs=["metrics", "class_table", "confusion", "reliability"],
            name="evaluate",
        ),
        Node(
            geometry,
            inputs=[*known, "model", "test_set"],
            outputs=["geometry", "geometry_figures"],
            name="geometry",
        ),
        Node(
            judge,
            inputs=[*known, "model", "train_set", "test_set", "raw_folder"],
            outputs=["ood", "ood_figures"],
            name="ood",
        ),
        Node(
            draw,
            inputs=[*known, "class_table", "confusion", "reliability", "finish_report", *histories],
            outputs="figures",
            name="draw",
        ),
        Node(
            deploy,
            inputs=[*known, "model", "test_set", "metrics"],
            outputs="deployed",
            name="deploy",
        ),
    ]
    return Pipeline(
        nodes,
        namespace=method,
        inputs={*SETS, "auxiliary_set", "data_card", "raw_folder"},
        parameters={**{name: name for name in PARAMETERS}, "params:method": f"params:{method}"},
    )
