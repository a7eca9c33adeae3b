"""The DAG of an audit: look -> report, write_environment."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from lt_pipeline.pipelines.audit.nodes import look, report, write_environment

LOOKED = ("facts", "pairs", "classes", "notes")


def create_pipeline() -> Pipeline:
    """Return the pipeline; it needs ``data``, ``model`` and the folder of environments."""
    return Pipeline(
        [
            Node(look, ["params:data", "params:model"], list(LOOKED), name="look"),
            Node(report, ["params:data", *LOOKED], "page", name="report"),
            Node(
                write_environment,
                ["params:data", "params:model", "facts", "environments"],
                "environment",
                name="write_environment",
            ),
        ],
        namespace="audit",
        parameters={"params:data", "params:model"},
        inputs="environments",
        tags="audit",
    )
