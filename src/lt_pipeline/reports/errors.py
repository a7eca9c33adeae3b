"""Errors in one line: what a person can put right. A bug is none of them and keeps its trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_tb

import mlflow
from kedro.io import DatasetError

from lt_pipeline.learning.data.decode import UnreadableImageError
from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking.client import masked
from lt_pipeline.tracking.store import DATABASE_FULL

# what Linux and SQLite say, by themselves and through MLflow, safetensors and Kedro
DISK_FULL = ("No space left on device", "Disk quota exceeded")


def in_one_line(
    error: BaseException, place: str | None = None, maker: str | None = None
) -> str | None:
    """Return the line that is said of ``error``, None where it is a bug.

    ``place`` is the file, or the node, at which it was raised, and ``maker`` the node that makes
    the file, as far as they are known.
    """
    cause = _beneath_kedro(error)
    if isinstance(cause, UserError | UnreadableImageError):
        return str(cause)
    # the first one knows best where it was
    chain = reversed([*_chain(error)])
    full = next((at for link in chain for at in _is_full(link, place)), None)
    if full:
        return f"no space left on device: {full} cannot be written; make room and run again"
    if not isinstance(error, DatasetError) or cause is error:
        return None
    # Kedro's own words name the file among all that it was configured with
    at = place or " ".join(str(error).split())
    made = f"; node {maker} makes it" if maker else ""
    if isinstance(cause, FileNotFoundError):
        return f"{at} is missing{made}"
    if isinstance(cause, OSError):
        return f"{at} cannot be read or written: {cause.strerror or cause}"
    if isinstance(cause, _damage()):
        return f"{at} is damaged ({' '.join(str(cause).split())}){made}"
    return None


def _beneath_kedro(error: BaseException) -> BaseException:
    """Return what Kedro wrapped into an error of a dataset."""
    while isinstance(error, DatasetError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield ``error`` and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException, place: str | None) -> Iterator[str]:
    """Yield what could not be written where ``error`` says that a disk is full."""
    if DATABASE_FULL in str(error):
        yield masked(mlflow.get_tracking_uri())
    elif any(words in str(error) for words in DISK_FULL):
        named = getattr(error, "filename2", None) or getattr(error, "filename", None)
        yield str(named or _artifacts(error) or place or "a file")


def _artifacts(error: BaseException) -> str | None:
    """Return where MLflow keeps the run's artifacts if it was MLflow that wrote."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    if not any(frame.f_globals.get("__name__", "").startswith("mlflow.") for frame in frames):
        return None
    run = mlflow.last_active_run()
    return str(run.info.artifact_uri) if run else "MLflow's folder of artifacts"


def _damage() -> tuple[type[Exception], ...]:
    """Return what is raised of files that are cut off or another's: no bug, whoever raises it."""
    from pandas.errors import EmptyDataError, ParserError

    return json.JSONDecodeError, UnicodeDecodeError, EmptyDataError, ParserError


def shown(path: Path, project: Path) -> str:
    """Return ``path`` as it is in the project's folder, or whole."""
    inside = path.is_relative_to(project)
    return (path.relative_to(project) if inside else path).as_posix()
