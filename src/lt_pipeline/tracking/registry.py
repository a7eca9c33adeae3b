"""The model that is the best so far, by the hold-out, and where the registry has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lt_pipeline.learning.evaluation.metrics.catalog import OBJECTIVES, Metric, of_task

ALIAS = "champion"
# runs that the registry is asked for in one address
AT_ONCE = 50

Values = dict[str, Any]


def promote(runs: pd.DataFrame, slug: str) -> Values:
    """Make the model of the run with the highest recall on the hold-out the champion.

    Of several labels it is the mean average precision. ``runs`` are all on the same images, so that
    they share the hold-out.

    It becomes the newest version of the registered model ``slug``, so that what is deployed has one
    address whichever method it is of; versions below are the champions before. Without a hold-out
    nothing is changed, as the test set must choose nothing. Returns ``model_uri``, None where there
    is no champion, and ``sentence``, which says what was done and why.
    """
    metric = of_task(OBJECTIVES, runs)
    held_out = runs.dropna(subset=[metric.key]) if metric.key in runs else runs[:0]
    if held_out.empty:
        return _none(
            "no run has a hold-out to choose by, and the test set must not choose; train with "
            "data.validation=0.1"
        )
    best_first = metric.best_first(held_out).to_dict("records")
    for start in range(0, len(best_first), AT_ONCE):
        some = best_first[start : start + AT_ONCE]
        versions = _versions([run["run_id"] for run in some], slug)
        for run in some:
            if run["run_id"] in versions:
                return _set(versions[run["run_id"]], run, slug, metric)
    return _none("no run with a hold-out has a registered model; train with tracking.register=true")


def _none(why: str) -> Values:
    return {"model_uri": None, "sentence": f"No champion is set: {why}."}


def _versions(run_ids: Iterable[str], slug: str) -> dict[str, ModelVersion]:
    """Return the latest model version that each of the runs itself registered, by run."""
    listed = ", ".join(f"'{run_id}'" for run_id in run_ids)
    versions = mlflow.MlflowClient().search_model_versions(f"run_id IN ({listed})")
    own = sorted((v for v in versions if v.name != slug), key=lambda version: int(version.version))
    return {str(version.run_id): version for version in own}


def _set(version: ModelVersion, run: Mapping[Any, Any], slug: str, metric: Metric) -> Values:
    uri, origin = f"models:/{slug}@{ALIAS}", f"{version.name}/{version.version}"
    what = (
        f"{origin}, of {run['label']} with seed {run['seed']}, whose {metric.words} is "
        f"{metric.with_unit(run[metric.key])}."
    )
    before = _champion(slug)
    copy = _copied(version, slug, before, f"Copy of {what}")
    replaced = ""
    if before is not None and _data_hash(before) != run["data_hash"]:
        replaced = f" The one before, version {before.version}, was judged by other images."
    return {
        "model_uri": uri,
        "version": int(copy.version),
        "copy_of": f"models:/{version.name}/{version.version}",
        "run_id": run["run_id"],
        "metric": metric.key,
        "value": float(run[metric.key]),
        "sentence": f"The champion is {uri}: {what}{replaced}",
    }


def _champion(slug: str) -> ModelVersion | None:
    try:
        return mlflow.MlflowClient().get_model_version_by_alias(slug, ALIAS)
    except MlflowException:
        return None


def _data_hash(version: ModelVersion) -> str | None:
    try:
        run = mlflow.MlflowClient().get_run(str(version.run_id))
    except MlflowException:
        return None
    return run.data.tags.get("data_hash")


def _copied(
    version: ModelVersion, slug: str, now: ModelVersion | None, description: str
) -> ModelVersion:
    """Return ``version`` as a version of the model ``slug``, with the alias that ``now`` has."""
    client, origin = mlflow.MlflowClient(), f"models:/{version.name}/{version.version}"
    if now is None or now.source != origin:
        # MLflow says on stderr what it registers, in the middle of the run's own lines
        with redirect_stderr(StringIO()):
            now = client.copy_model_version(origin, slug)
        client.update_model_version(slug, now.version, description)
        client.set_registered_model_alias(slug, ALIAS, now.version)
    return now
