"""What Kedro's session was asked to run: hooks are told late, and of the runner nearly nothing.

The session's own frame has all of it while the session is at work, from Python or a command.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

import click
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner

from lt_pipeline.io.one_session import runs
from lt_pipeline.learning.schema import UserError, unknown

SEQUENTIAL = (
    "runs take the SequentialRunner without --async: threads would share random numbers and one "
    "MLflow run. Leave {given} out; what is to run side by side is started as processes of its own"
)


def pipeline_names() -> list[str]:
    """Return the pipelines asked for, by a session or by another command, as kedro viz."""
    command = click.get_current_context(silent=True)
    given = command.params if command else {}
    names = [*(given.get("pipelines") or []), given.get("pipeline")]
    return [name for name in _asked().get("pipeline_names") or names if name]


def is_to_run(pipeline: str) -> bool:
    """Return whether a session is about to run ``pipeline``; others only look at it."""
    return bool(_asked()) and pipeline in pipeline_names()


def check_narrowed(nodes: Collection[Node]) -> None:
    """Refuse tags and nodes that the pipelines asked for do not have.

    Raises:
        UserError: with the nearest one.
    """
    tags, names = {tag for node in nodes for tag in node.tags}, {node.name for node in nodes}
    asked = _asked()
    for kind, valid in {
        "tags": tags,
        "node_names": names,
        "from_nodes": names,
        "to_nodes": names,
    }.items():
        for given in asked.get(kind) or ():
            if given not in valid:
                raise UserError(unknown("tag" if kind == "tags" else "node", given, valid))


def check_runner() -> None:
    """Refuse every runner but the sequential one, and that asynchronous.

    Raises:
        UserError: naming it.
    """
    runner = _asked().get("runner")
    if runner is None:
        return
    if type(runner) is not SequentialRunner:
        raise UserError(SEQUENTIAL.format(given=getattr(runner, "__name__", type(runner).__name__)))
    if runner._is_async:
        raise UserError(SEQUENTIAL.format(given="is_async"))


def _asked() -> dict[str, Any]:
    """Return the arguments of the session's ``run``, none where a context is only looked at."""
    return next((run.f_locals for run in runs(sys._getframe())), {})
