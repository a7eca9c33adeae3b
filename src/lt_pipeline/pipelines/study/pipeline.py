"""The DAG of a study: plan -> a node a run -> summarise -> draw, and put papers beside them.

On folds they are pooled in place of papers' figures, which are of other test sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kedro.pipeline import Node, Pipeline

from lt_pipeline.pipelines.study.folds import pool, tabulate_folds
from lt_pipeline.pipelines.study.nodes import plan_runs, train_on_fold, train_runs
from lt_pipeline.reports.studies import draw, summarise, tabulate

SETS = ("train_set", "validation_set", "test_set", "auxiliary_set")


def create_pipeline(study: str, runs: Iterable[Sequence[str]], *, folded: bool = False) -> Pipeline:
    """Return the pipeline of ``study``, in a namespace of its name; ``runs`` name its runs' nodes.

    They follow from its block in conf/: ``StudyConfig.at_once``; several names are of one node,
    which does these runs at once. Where it is ``folded`` they are on folds, and what is tested once
    in all of them is pooled.
    """
    nodes, images = list(runs), ["raw_folder", "packed_folder"]
    names = [name for members in nodes for name in members]
    beside = ["plan", "data_card", "runs", "summary", "papers"]
    doing = train_on_fold if folded else train_runs
    given = ["finished_arms", *images] if folded else [*SETS, "raw_folder", "finished_arms"]
    return Pipeline(
        [
            Node(
                plan_runs(study),
                inputs=["parameters", "data_card", "finished_arms", *(images if folded else ())],
                outputs="plan",
                name="plan",
                tags="training",
            ),
            *(
                Node(
                    doing(members),
                    inputs=["plan", "data_card", *given],
                    outputs=[f"{name}_run" for name in members],
                    name="_to_".join(dict.fromkeys((members[0], members[-1]))),
                    tags="training",
                )
                for members in nodes
            ),
            Node(
                summarise,
                inputs=["plan", *(f"{name}_run" for name in names)],
                outputs=["runs", "summary", "arms"],
                name="summarise",
                tags="reporting",
            ),
            *(_pooled() if folded else [_tabulated(tabulate, beside)]),
            Node(
                draw,
                inputs=["plan", "data_card", "summary"],
                outputs="figures",
                name="draw",
                tags="reporting",
            ),
        ],
        namespace=study,
        inputs={"data_card", *given, *([] if folded else ["papers"])},
        parameters={"parameters"},
    )


def _tabulated(function: Callable[..., Any], inputs: list[str]) -> Node:
    return Node(
        function, inputs, outputs=["comparison", "markdown"], name="tabulate", tags="reporting"
    )


def _pooled() -> list[Node]:
    return [
        Node(
            pool,
            inputs=["plan", "data_card", "runs", "finished_arms"],
            outputs=["pooled", "pooled_classes"],
            name="pool",
            tags="reporting",
        ),
        _tabulated(tabulate_folds, ["plan", "runs", "summary", "pooled"]),
    ]
