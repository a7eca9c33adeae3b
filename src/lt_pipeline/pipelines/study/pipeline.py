"""The DAG of a study: plan -> a node a run -> summarise -> draw, and put papers beside them."""

from __future__ import annotations

from collections.abc import Iterable

from kedro.pipeline import Node, Pipeline

from lt_pipeline.pipelines.study.nodes import plan_runs, train_run
from lt_pipeline.pipelines.study.results import draw, summarise, tabulate

SETS = ("train_set", "validation_set", "test_set", "auxiliary_set")


def create_pipeline(study: str, runs: Iterable[str]) -> Pipeline:
    """Return the pipeline of ``study``, in a namespace of its name; ``runs`` name its runs' nodes.

    They follow from its block in conf/: ``StudyConfig.run_names``.
    """
    names = list(runs)
    return Pipeline(
        [
            Node(
                plan_runs(study),
                inputs=["parameters", "data_card", "finished_arms"],
                outputs="plan",
                name="plan",
                tags="training",
            ),
            *(
                Node(
                    train_run(name),
                    inputs=["plan", "data_card", *SETS, "raw_folder", "finished_arms"],
                    outputs=f"{name}_run",
                    name=name,
                    tags="training",
                )
                for name in names
            ),
            Node(
                summarise,
                inputs=["plan", *(f"{name}_run" for name in names)],
                outputs=["runs", "summary", "arms"],
                name="summarise",
                tags="reporting",
            ),
            Node(
                tabulate,
                inputs=["plan", "data_card", "runs", "summary", "papers"],
                outputs=["standing", "markdown"],
                name="tabulate",
                tags="reporting",
            ),
            Node(
                draw,
                inputs=["plan", "data_card", "summary"],
                outputs="figures",
                name="draw",
                tags="reporting",
            ),
        ],
        namespace=study,
        inputs={*SETS, "data_card", "raw_folder", "finished_arms", "papers"},
        parameters={"parameters"},
    )
