"""Addresses of runs and models in MLflow, and the runs that are there."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking.store import unreachable

# the tag of an evaluation: the run that it is of
EVALUATED = "evaluated_run"
RUN = re.compile(r"(?:runs:/)?(?P<run>[0-9a-f]{32})(?:/model)?")
LOGGED = re.compile(r"models:/(?P<model>m-[0-9a-f]+)")
MODEL = re.compile(r"(?:models:/)?(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[\w.-]+))")


def find(client: MlflowClient, address: str) -> Run | None:
    """Return the run at ``address``, None if that is no address.

    Raises:
        UserError: in one line, if there is none: it names what there is.
    """
    run, logged, model = (form.fullmatch(address) for form in (RUN, LOGGED, MODEL))
    if run:
        return _run(client, run["run"])
    if logged:
        return _run_of_logged(client, logged["model"])
    return run_of_model(client, address, **model.groupdict()) if model else None


def run_of_model(
    client: MlflowClient, what: str, name: str, version: str | None, alias: str | None
) -> Run:
    """Return the run that made the registered model ``name``, which was asked for as ``what``.

    Raises:
        UserError: in one line, if there is none: it names those that there are.
    """
    try:
        registered = (
            client.get_model_version(name, version)
            if version
            else client.get_model_version_by_alias(name, str(alias))
        )
        return client.get_run(str(registered.run_id))
    except MlflowException as error:
        if unreachable(error):
            raise
        where = tracking.masked(client.tracking_uri)
        raise UserError(
            f"there is no model {what} in {where}: {_registered(client, name)}"
        ) from error


def _registered(client: MlflowClient, name: str) -> str:
    """Return in words what the registry has of ``name``, else what it has at all."""
    try:
        model = client.get_registered_model(name)
    except MlflowException:
        known = listed(m.name for m in client.search_registered_models())
        return f"registered are {known}"
    versions = client.search_model_versions(f"name = '{name}'")
    numbers = sorted((str(v.version) for v in versions), key=int)
    aliases = [f"@{alias}" for alias in sorted(model.aliases)]
    return f"{name} has {', '.join([*numbers, *aliases])}"


def listed(names: Iterable[str]) -> str:
    """Return ``names`` in words."""
    return ", ".join(sorted(names)) or "none"


def _run(client: MlflowClient, run_id: str) -> Run:
    where = tracking.masked(client.tracking_uri)
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if unreachable(error):
            raise
        raise UserError(
            f"there is no run {run_id} in {where}: is MLFLOW_TRACKING_URI right? Experiments there "
            f"are {listed(e.name for e in client.search_experiments())}"
        ) from error
    if run.info.lifecycle_stage != "active":
        raise UserError(f"run {run_id} in {where} is deleted: restore it first")
    return run


def _run_of_logged(client: MlflowClient, model: str) -> Run:
    try:
        return _run(client, str(client.get_logged_model(model).source_run_id))
    except MlflowException as error:
        if unreachable(error):
            raise
        where = tracking.masked(client.tracking_uri)
        raise UserError(f"there is no logged model {model} in {where}") from error
