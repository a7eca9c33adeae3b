"""The DAG of data preparation: make_sets -> describe."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from lt_pipeline.pipelines.data_prep.nodes import describe, make_sets


def create_pipeline() -> Pipeline:
    """Return the pipeline; it needs the folder of raw files and the parameters ``data``."""
    return Pipeline(
        [
            Node(
                make_sets,
                inputs=["raw_folder", "params:data"],
                outputs=[
                    "train_set",
                    "validation_set",
                    "test_set",
                    "auxiliary_set",
                    "data_card",
                    "manifest",
                ],
                name="make_sets",
            ),
            Node(
                describe,
                inputs="data_card",
                outputs=["class_counts", "imbalance_statistics", "class_distribution"],
                name="describe_data",
            ),
        ]
    )
