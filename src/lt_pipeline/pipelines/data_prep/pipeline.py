"""The DAG of data preparation: make_sets -> describe_data."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from lt_pipeline.pipelines.data_prep.nodes import describe, make_sets
from lt_pipeline.pipelines.names import DESCRIBED, MADE


def create_pipeline() -> Pipeline:
    """Return the pipeline; it needs the folder of raw files and the parameters ``data``.

    Its nodes are in a namespace, its datasets are not: every other pipeline reads them.
    """
    return Pipeline(
        [
            Node(
                make_sets,
                inputs=["raw_folder", "packed_folder", "params:data"],
                outputs=list(MADE),
                name="make_sets",
            ),
            Node(
                describe,
                inputs="data_card",
                outputs=list(DESCRIBED),
                name="describe_data",
            ),
        ],
        namespace="data_prep",
        tags="data",
        inputs={"raw_folder", "packed_folder"},
        outputs={*MADE, *DESCRIBED},
        parameters="params:data",
    )
