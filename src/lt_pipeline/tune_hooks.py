"""Kedro hooks of sweeps: check everything first, hold images out, print what came out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import mlflow
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from lt_pipeline import tracking
from lt_pipeline.config import SHARED, search_of
from lt_pipeline.engine.device import choose_device
from lt_pipeline.reporting import print_sweep
from lt_pipeline.tuning.config import STORAGE_VARIABLE, Sweep, with_holdout

SPACE = "tune."
# what a repeated run is not told again
OWN = ("method", "tune")


class TuneHooks:
    """What this project adds to a Kedro run that tunes a method."""

    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check the sweep and its storage, and hold images out where the data have no hold-out."""
        if not tuned_method(pipeline):
            return
        try:
            parameters = with_holdout(catalog.load("parameters"))
            sweep = Sweep(parameters)
            choose_device(sweep.base.device)
            sweep.base.check_data(sweep.data)
            _reach_storage(sweep)
            _reach_cluster(sweep)
        except (ValueError, ConnectionError) as error:
            raise click.ClickException(str(error)) from error
        space = search_of(sweep.method)
        read = (*SHARED, "data", *OWN, space, sweep.method, *sweep.base.options.built_on)
        kept = {name: parameters[name] for name in read if name in parameters}
        catalog["parameters"].save({**kept, "tune": _logged(sweep, own_space=space in kept)})
        if "params:data" in catalog:
            catalog["params:data"].save(parameters["data"])

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log what the best trial reached on the hold-out, and its metrics once it is judged."""
        if not dataset_name.startswith(SPACE):
            return
        if dataset_name.endswith(".best"):
            tracking.log_metrics({"best/validation/mean_recall": data["value"]})
        if dataset_name.endswith(".judged"):
            tracking.log_metrics(data)

    @hook_impl(tryfirst=True)
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Print the best trials and the command that repeats the first.

        It goes first, as kedro-mlflow ends the run.
        """
        method = tuned_method(pipeline)
        if not method or f"{SPACE}{method}.judged" not in pipeline.all_outputs():
            return
        best = catalog.load(f"{SPACE}{method}.best")
        again = command(best, run_params)
        tracking.set_tags({"best_command": again})
        print_sweep(
            catalog.load(f"{SPACE}{method}.trials"),
            best,
            catalog.load(f"{SPACE}{method}.judged"),
            catalog.load("data_card"),
            again,
            mlflow.get_tracking_uri(),
        )


def tuned_method(pipeline: Pipeline) -> str | None:
    """Return the method that ``pipeline`` tunes, if it does."""
    spaces = {node.namespace or "" for node in pipeline.nodes}
    found = (space.removeprefix(SPACE) for space in spaces if space.startswith(SPACE))
    return next(found, None)


def command(best: dict[str, Any], run_params: dict[str, Any]) -> str:
    """Return the command that trains the best trial as the method's own pipeline does."""
    given = dict(tracking.flatten(run_params.get("runtime_params") or {}, "."))
    searched = (*OWN, search_of(best["method"]))
    told = {name: value for name, value in given.items() if name.split(".")[0] not in searched}
    told["data.validation"] = best["validation"]
    told |= {f"{best['method']}.{path}": value for path, value in best["params"].items()}
    environment = f" --env={run_params['env']}" if run_params.get("env") else ""
    values = ",".join(f"{name}={value}" for name, value in told.items())
    return f"kedro run --pipelines={best['method']}{environment} --params={values}"


def _logged(sweep: Sweep, own_space: bool) -> dict[str, Any]:
    """Return the block ``tune`` without what this sweep does not read, and without a password."""
    if sweep.config.storage is not None:
        os.environ[STORAGE_VARIABLE] = sweep.config.storage
    changes: dict[str, Any] = {"storage": None, **({"search": {}} if own_space else {})}
    return sweep.config.model_copy(update=changes).model_dump(mode="json")


def _reach_storage(sweep: Sweep) -> None:
    """Refuse a database that does not answer before anything is computed."""
    if sweep.config.storage is not None:
        from lt_pipeline.tuning.storage import open_storage

        open_storage(sweep.config, Path())


def _reach_cluster(sweep: Sweep) -> None:
    """Refuse a Ray cluster that does not answer, or Ray itself where it is missing."""
    if sweep.config.engine == "ray":
        from lt_pipeline.tuning.ray_workers import check_cluster

        check_cluster(sweep.config)
