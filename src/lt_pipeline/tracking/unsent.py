"""Bring epochs into MLflow that a run could not send: ``python -m lt_pipeline.tracking.unsent``.

A run whose server went away keeps them in data/09_unsent, a file a run. They go to the server that
conf/base/mlflow.yml or MLFLOW_TRACKING_URI names; a file is deleted once its values are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking.lineage import PROJECT, tracking_uri
from lt_pipeline.tracking.outbox import MAX_METRICS
from lt_pipeline.tracking.store import open_store


def folder_of(project: Path) -> Path:
    """Return where runs of ``project`` keep what they could not send."""
    return tracking.home(project) / "data" / "09_unsent"


def bring_in(folder: Path, uri: str) -> Iterator[str]:
    """Send the values in all files of ``folder`` to the store at ``uri``; yield a line a file.

    What MLflow has already it does not take twice.

    Raises:
        UserError: if the store is not there, or has no such run; what is not sent stays.
    """
    open_store(uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    for path in sorted(folder.glob("*.jsonl")):
        metrics = [_metric(line) for line in path.read_text().splitlines()]
        try:
            for start in range(0, len(metrics), MAX_METRICS):
                client.log_batch(path.stem, metrics=metrics[start : start + MAX_METRICS])
        except MlflowException as error:
            why = tracking.masked(str(error).partition("\n")[0])
            raise UserError(f"{tracking.masked(uri)} does not take {path}: {why}") from error
        path.unlink()
        yield f"{len(metrics)} values are in MLflow's run {path.stem}"


def _metric(line: str) -> Metric:
    return Metric(**json.loads(line))


@click.command(help=__doc__)
def main() -> None:
    """Bring in what there is."""
    try:
        lines = list(bring_in(folder_of(PROJECT), tracking_uri(PROJECT)))
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n".join(lines) or f"there is nothing in {folder_of(PROJECT)}")


if __name__ == "__main__":
    main()
