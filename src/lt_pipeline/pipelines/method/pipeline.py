"""The DAG of a method: configure -> a node a stage -> finish -> evaluate -> draw, deploy.

Beside the evaluation, ``stages`` compares what several stages led to, ``geometry`` looks at the
finished model's feature space, and ``ood`` at how it tells images of no class from the test set.
"""

from __future__ import annotations

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from lt_pipeline.learning import methods
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.experiments.config import SHARED
from lt_pipeline.learning.experiments.run import groups
from lt_pipeline.learning.methods.families.options import MethodOptions
from lt_pipeline.pipelines.evaluating import detect, geometry
from lt_pipeline.pipelines.method.nodes import (
    configure,
    deploy,
    draw,
    draw_subsets,
    evaluate,
    evaluate_stages,
    finish,
    take_step,
    train_group,
)

# what --tags may say: kedro run --pipelines=more --tags=evaluation
TRAINING, EVALUATION, REPORTING, SERVING = "training", "evaluation", "reporting", "serving"
SETS = ("train_set", "validation_set", "test_set")
PARAMETERS = tuple(f"params:{name}" for name in SHARED)
SERVED = ("params:tracking", "params:serve")


def create_pipeline(method: str, options: MethodOptions | None = None) -> Pipeline:
    """Return the pipeline of ``method``, in a namespace of its name.

    Its stages follow from ``options``; the default ones unless told.
    """
    kind = methods.get(method)
    options = options or kind.Options()
    stages = kind.stages(options)
    histories = [f"{stage.name}_history" for stage in stages if stage.trains]
    own = [f"params:{name}" for name in (method, *options.built_on)]
    known = ["config", "data_card"]
    nodes = [
        Node(
            configure(method, options.built_on),
            inputs=[*PARAMETERS, *own],
            outputs="config",
            name="configure",
            tags=TRAINING,
        ),
        *_training(stages),
        Node(
            finish,
            inputs=[*known, *SETS, f"{stages[-1].name}_checkpoint"],
            outputs=["model", "finish_report"],
            name="finish",
            tags=TRAINING,
        ),
        Node(
            evaluate,
            inputs=[*known, "model", *SETS, "finish_report", *histories],
            outputs=["metrics", "first", "class_table", "confusion", "reliability"],
            name="evaluate",
            tags=EVALUATION,
        ),
        Node(
            geometry,
            inputs=[*known, "model", "test_set"],
            outputs=["geometry", "geometry_figures"],
            name="geometry",
            tags=EVALUATION,
        ),
        Node(
            detect,
            inputs=[*known, "model", "train_set", "test_set", "raw_folder"],
            outputs=["ood", "ood_figures"],
            name="ood",
            tags=EVALUATION,
        ),
        Node(
            draw,
            inputs=[*known, "class_table", "confusion", "reliability", "finish_report", *histories],
            outputs="figures",
            name="draw",
            tags=REPORTING,
        ),
        Node(
            deploy,
            inputs=[*known, "model", "test_set", "metrics", *SERVED],
            outputs="deployed",
            name="deploy",
            tags=SERVING,
        ),
    ]
    return Pipeline(
        nodes,
        namespace=method,
        inputs={*SETS, *(["auxiliary_set"] if histories else []), "data_card", "raw_folder"},
        parameters={*PARAMETERS, *SERVED, *own},
    )


def _training(stages: Sequence[Stage]) -> list[Node]:
    """Return the nodes of the stages; one for each group, and what several stages call for."""
    nodes = []
    if any(stage.subset for stage in stages):
        inputs = ["config", "data_card", "train_set"]
        nodes.append(
            Node(draw_subsets, inputs=inputs, outputs="subsets", name="subsets", tags=TRAINING)
        )
    nodes += [_stage_node(members) for members in groups(stages)]
    if len(stages) > 1:
        checkpoints = [f"{stage.name}_checkpoint" for stage in stages]
        nodes.append(
            Node(
                evaluate_stages,
                inputs=["config", "data_card", "validation_set", "test_set", *checkpoints],
                outputs=["stages", "between", "stage_figures"],
                name="stages",
                tags=EVALUATION,
            )
        )
    return nodes


def _stage_node(members: list[Stage]) -> Node:
    first = members[0]
    earlier = [f"{name}_checkpoint" for name in first.start]
    given = [*(["subsets"] if first.subset else []), *earlier]
    if not first.trains:
        return Node(
            take_step(first),
            inputs=["config", "data_card", "train_set", *given],
            outputs=[f"{first.name}_checkpoint", f"{first.name}_report"],
            name=first.name,
            tags=TRAINING,
        )
    return Node(
        train_group(members),
        inputs=["config", "data_card", *SETS, "auxiliary_set", "progress", *given],
        outputs=[f"{s.name}_{part}" for s in members for part in ("checkpoint", "history")],
        name=first.group or first.name,
        tags=TRAINING,
    )
