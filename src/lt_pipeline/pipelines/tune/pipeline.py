"""The DAG of a sweep: search -> test_best. Only the second sees the test set."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from lt_pipeline.pipelines.names import NAMESPACE
from lt_pipeline.pipelines.tune.nodes import search, test_best

SETS = ("train_set", "validation_set", "test_set", "auxiliary_set")


def create_pipeline(method: str) -> Pipeline:
    """Return the pipeline that tunes ``method``, in a namespace of its own."""
    return Pipeline(
        [
            Node(
                search,
                inputs=[
                    "parameters",
                    "data_card",
                    "train_set",
                    "validation_set",
                    "auxiliary_set",
                    "folder",
                ],
                outputs=["trials", "best", "figures"],
                name="search",
            ),
            Node(
                test_best,
                inputs=["parameters", "data_card", "best", *SETS, "raw_folder", "folder"],
                outputs="tested",
                name="test_best",
            ),
        ],
        namespace=f"{NAMESPACE}{method}",
        inputs={*SETS, "data_card", "raw_folder"},
        parameters={"parameters"},
    )
