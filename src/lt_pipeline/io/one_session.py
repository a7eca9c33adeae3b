"""One session at work in a process: of several in threads, the first.

Kedro's pipelines, OmegaConf's resolvers, random numbers and the MLflow run are of the process.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType

from kedro.framework.session import KedroServiceSession, KedroSession

from lt_pipeline.learning.schema import UserError

RUNS = (KedroSession.run.__code__, KedroServiceSession.run.__code__)
_LOCK = threading.Lock()
_first: int | None = None  # the thread that came last while no other was at work


def check_alone() -> None:
    """Refuse to read conf/ beside a session that runs in another thread.

    Raises:
        UserError: saying what to do.
    """
    global _first
    own = threading.get_ident()
    with _LOCK:
        frame = sys._current_frames().get(_first) if _first and _first != own else None
        if any(runs(frame)):
            raise UserError(
                "another session of this process is at work in another thread, and both would "
                "share pipelines, random numbers and one MLflow run: run one after the other, or "
                "each in a process of its own"
            )
        _first = own


def runs(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the sessions' runs among ``frame`` and those that called it."""
    while frame is not None:
        if frame.f_code in RUNS:
            yield frame
        frame = frame.f_back
