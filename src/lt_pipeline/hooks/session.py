"""What Kedro's session was asked to run: hooks are told late, and of the runner nearly nothing.

The session's own frame has all of it while the session is at work, from Python or a command.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator
from types import FrameType
from typing import Any

import click
from kedro.framework.session import KedroServiceSession, KedroSession
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner

from lt_pipeline.learning.schema import UserError, unknown

RUNS = (KedroSession.run.__code__, KedroServiceSession.run.__code__)
SEQUENTIAL = (
    "runs take the SequentialRunner without --async: threads would share random numbers and one "
    "MLflow run. Leave {given} out; what is to run side by side is started as processes of its own"
)


def pipeline_names() -> list[str]:
    """Return the pipelines asked for, by a session or by another command, as kedro viz."""
    command = click.get_current_context(silent=True)
    given = command.params if command else {}
    found = [*(given.get("pipelines") or []), given.get("pipeline")]
    return [name for name in _asked().get("pipeline_names") or found if name]


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


def check_alone() -> None:
    """Refuse to run beside a session in another thread: they would share Kedro's pipelines.

    Raises:
        UserError: saying what to do.
    """
    own = threading.get_ident()
    others = [frame for thread, frame in sys._current_frames().items() if thread != own]
    if any(True for frame in others for _ in _arguments(frame)):
        raise UserError(
            "another session of this process is at work in another thread, and both would share "
            "pipelines, random numbers and one MLflow run: run one after the other, or each in a "
            "process of its own"
        )


def _asked() -> dict[str, Any]:
    """Return the arguments of the session's ``run``, none where a context is only looked at."""
    return next(_arguments(sys._getframe()), {})


def _arguments(frame: FrameType | None) -> Iterator[dict[str, Any]]:
    """Yield the arguments of the runs among ``frame`` and those that called it."""
    while frame is not None:
        if frame.f_code in RUNS:
            yield frame.f_locals
        frame = frame.f_back
