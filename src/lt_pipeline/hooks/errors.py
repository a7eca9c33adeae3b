"""Kedro hooks that say in one line what a person can put right; a bug keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline.node import Node

from lt_pipeline.reports.errors import in_one_line, shown


@contextmanager
def one_line() -> Iterator[None]:
    """Turn what a person can put right into one line and exit code 1, without a traceback."""
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        line = in_one_line(error)
        if line is None:
            raise
        raise click.ClickException(line) from error


class ErrorHooks:
    """Knows which file a run is at, which most errors do not name."""

    def __init__(self) -> None:
        self.dataset: str | None = None
        self.node: Node | None = None

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self) -> None:
        """Forget an earlier run."""
        self.dataset = self.node = None

    @hook_impl(tryfirst=True)
    def before_dataset_loaded(self, dataset_name: str) -> None:
        """Remember what is read."""
        self.dataset = dataset_name

    @hook_impl(tryfirst=True)
    def after_dataset_loaded(self) -> None:
        """Forget it: it was read."""
        self.dataset = None

    @hook_impl(tryfirst=True)
    def before_node_run(self, node: Node) -> None:
        """Remember what runs."""
        self.node = node

    @hook_impl(tryfirst=True)
    def before_dataset_saved(self, dataset_name: str) -> None:
        """Remember what is written."""
        self.dataset = dataset_name

    @hook_impl(tryfirst=True)
    def after_dataset_saved(self) -> None:
        """Forget it: it was written."""
        self.dataset = None

    @hook_impl(trylast=True)
    def on_pipeline_error(
        self, error: Exception, run_params: dict[str, Any], catalog: DataCatalog
    ) -> None:
        """Say in one line what a person can put right."""
        file = self._file(catalog, Path(run_params["project_path"]))
        place = file or (f"a file of node {self.node.name}" if self.node else None)
        line = in_one_line(error, place, self._maker(run_params))
        if line is not None:
            raise click.ClickException(line) from error

    def _file(self, catalog: DataCatalog, project: Path) -> str | None:
        """Return the file that was read or written."""
        path = getattr(catalog.get(self.dataset), "_filepath", None) if self.dataset else None
        return None if path is None else shown(Path(path), project)

    def _maker(self, run_params: dict[str, Any]) -> str | None:
        """Return the node that makes what was read, in the whole of the pipelines asked for."""
        names = run_params["pipeline_names"] or ["__default__"]
        nodes = (node for name in names for node in pipelines[name].nodes)
        return next((node.name for node in nodes if self.dataset in node.outputs), None)
