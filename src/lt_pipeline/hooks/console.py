"""Kedro hooks that say what runs, in words, and keep it in a file."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path

import mlflow
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from lt_pipeline.learning.schema import UnwritableError
from lt_pipeline.reports.screen import fit_logs

LOGGER = logging.getLogger(__name__)
DATA = "data_prep"
FORMAT = "%(asctime)s %(levelname)s %(message)s"
# a study says of each of its runs what it is, and how many there are
SAYS_ITSELF = re.compile(r"s\d+_")


class _RunLog(logging.FileHandler):
    """A file whose own troubles, as a full disk, are no more than a gap in it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Leave the record out."""

    def close(self) -> None:
        """Close the file, whatever of it is still to be written."""
        with suppress(OSError):
            super().close()


class ConsoleHooks:
    """A line a node, and a file a run."""

    def __init__(self) -> None:
        self.file: _RunLog | None = None
        fit_logs()

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Begin the file, beside what else the run reports."""
        self._close()
        spaces = sorted({(node.namespace or DATA) for node in pipeline.nodes} - {DATA})
        path: Path = catalog.load(f"{(spaces or [DATA])[0]}.log")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = _RunLog(path, "w", encoding="utf-8")
        except OSError as error:
            raise UnwritableError(f"cannot write {path}: {error.strerror or error}") from error
        self.file.setFormatter(logging.Formatter(FORMAT))
        logging.getLogger().addHandler(self.file)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Say what runs now."""
        if not SAYS_ITSELF.match(node.short_name):
            LOGGER.info("%s · %s", node.namespace, node.short_name.replace("_", " "))

    @hook_impl(tryfirst=True)
    def after_pipeline_run(self) -> None:
        """Log the file, before the run in MLflow is ended."""
        path = self._close()
        if path and mlflow.active_run():
            mlflow.log_artifact(str(path))

    @hook_impl(tryfirst=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """Say in the file what went wrong."""
        if self.file:
            what = (type(error), error, error.__traceback__)
            self.file.handle(LOGGER.makeRecord("", logging.ERROR, "", 0, "the end:", (), what))
        self._close()

    def _close(self) -> Path | None:
        """End the file, if there is one, and return where it is."""
        file, self.file = self.file, None
        if file is None:
            return None
        logging.getLogger().removeHandler(file)
        file.close()
        return Path(file.baseFilename)
