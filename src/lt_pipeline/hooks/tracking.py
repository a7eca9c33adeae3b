"""Kedro hooks round all others: whatever becomes of MLflow's store, it is said in one line."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from mlflow.exceptions import MlflowException

from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking import store
from lt_pipeline.tracking.outbox import FOLDER
from lt_pipeline.tracking.unsent import folder_of

Round = Generator[None, Any, Any]


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Say in one line that the store went away; what others refuse they say themselves."""
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        trouble = store.gone(error)
        if trouble is None:
            raise
        raise click.ClickException(str(trouble)) from error


class TrackingHooks:
    """Ends a run whose store of runs went away, in bounded time and without a traceback."""

    @hook_impl(wrapper=True)
    def after_context_created(self, context: KedroContext) -> Round:
        """Say in one line what MLflow refuses, as a server does that asks for a password."""
        os.environ[FOLDER] = str(folder_of(Path(context.project_path)))
        try:
            return (yield)
        except MlflowException as error:
            raise click.ClickException(f"MLflow: {store.first_line(error)}") from error

    @hook_impl(wrapper=True)
    def before_pipeline_run(self) -> Round:
        """Watch how the run begins."""
        with _in_one_line():
            return (yield)

    @hook_impl(wrapper=True)
    def on_pipeline_error(self, error: Exception) -> Round:
        """Send the epochs that wait, and end the run; nobody waits long for a store that is gone.

        It may also go away while it is told of an error, which is what counts then.
        """
        trouble = store.gone(error)
        tracking.run_ends()
        with store.impatient() if trouble else nullcontext():
            try:
                return (yield)
            except Exception as raised:
                if trouble:
                    raise click.ClickException(str(trouble)) from error
                if isinstance(raised, MlflowException) and store.gone(raised):
                    return None
                raise

    @hook_impl(wrapper=True)
    def after_pipeline_run(self) -> Round:
        """Send the epochs that wait before the run ends."""
        tracking.run_ends()
        with _in_one_line():
            return (yield)
