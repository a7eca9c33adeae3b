"""The model that is the best so far, by the hold-out, and its alias in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

ALIAS = "champion"
METRIC = "validation/mean_recall"

Values = dict[str, Any]


def crown(runs: pd.DataFrame, slug: str) -> Values:
    """Give the alias to the model of the run with the highest recall on the hold-out.

    The alias is taken from every other model of this data set, named ``<method>-<slug>``. Without
    a hold-out nothing is changed, as the test set must choose nothing. Returns ``model_uri``, None
    where there is no champion, and ``sentence``, which says what was done and why.
    """
    judged = runs.dropna(subset=[METRIC]) if METRIC in runs else runs[:0]
    if judged.empty:
        return _none(
            "no run has a hold-out to choose by, and the test set must not choose; train with "
            "data.validation=0.1"
        )
    for run in judged.sort_values(METRIC, ascending=False, kind="stable").to_dict("records"):
        version = _version(run["run_id"])
        if version is not None:
            return _set(version, run, slug)
    return _none("no run with a hold-out has a registered model; run its deploy node")


def _none(why: str) -> Values:
    return {"model_uri": None, "sentence": f"No champion is set: {why}."}


def _version(run_id: str) -> ModelVersion | None:
    """Return the latest model version that the run registered."""
    found = mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    return max(found, key=lambda version: int(version.version), default=None)


def _set(version: ModelVersion, run: Mapping[Any, Any], slug: str) -> Values:
    client = mlflow.MlflowClient()
    for model in client.search_registered_models(max_results=1000):
        if model.name.endswith(f"-{slug}") and model.name != version.name:
            _take(client, model.name)
    client.set_registered_model_alias(version.name, ALIAS, version.version)
    uri = f"models:/{version.name}@{ALIAS}"
    return {
        "model_uri": uri,
        "registered_model": version.name,
        "version": int(version.version),
        "run_id": run["run_id"],
        "metric": METRIC,
        "value": float(run[METRIC]),
        "sentence": (
            f"The champion is {uri}: version {version.version}, of {run['label']} with seed "
            f"{run['seed']}, whose mean recall on the hold-out is {100 * run[METRIC]:.1f} %."
        ),
    }


def _take(client: mlflow.MlflowClient, name: str) -> None:
    try:
        client.get_model_version_by_alias(name, ALIAS)
    except MlflowException:
        return
    client.delete_registered_model_alias(name, ALIAS)
