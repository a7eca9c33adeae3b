"""The DAG of the comparison: collect -> tabulate -> write, draw, promote -> report."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from lt_pipeline.pipelines.compare.nodes import collect, draw, promote, report, tabulate, write


def create_pipeline() -> Pipeline:
    """Return the pipeline, in the namespace ``compare``."""
    return Pipeline(
        [
            Node(
                collect,
                inputs=["params:compare", "data_card"],
                outputs=["runs", "recalls", "notes", "candidates"],
                name="collect",
            ),
            Node(
                tabulate,
                inputs=["params:compare", "data_card", "runs", "recalls", "papers"],
                outputs=["summary", "comparison"],
                name="tabulate",
            ),
            Node(promote, inputs=["data_card", "candidates"], outputs="champion", name="promote"),
            Node(
                write,
                inputs=["summary", "comparison", "data_card"],
                outputs=["markdown", "latex", "html"],
                name="write",
            ),
            Node(
                draw,
                inputs=["summary", "recalls", "data_card"],
                outputs=["figures", "pictures"],
                name="draw",
            ),
            Node(
                report,
                inputs=[
                    *("data_card", "runs", "summary", "comparison"),
                    *("notes", "pictures", "champion"),
                ],
                outputs="report",
                name="report",
            ),
        ],
        namespace="compare",
        inputs={"data_card", "papers"},
        parameters={"params:compare"},
    )
