"""Kedro hooks of sweeps: check everything first, hold images out, print what came out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from lt_pipeline.hooks.errors import one_line
from lt_pipeline.learning.experiments.config import SHARED, search_of, updated
from lt_pipeline.learning.schema import nested
from lt_pipeline.pipelines.names import NAMESPACE, tuned_method
from lt_pipeline.reports.command_line import kedro_run
from lt_pipeline.reports.console import print_sweep
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking import views
from lt_pipeline.tuning.config import STORAGE_VARIABLE, Sweep, with_holdout

# what a repeated run is not told again
OWN = ("method", "tune", "together")


class TuneHooks:
    """What this project adds to a Kedro run that tunes a method."""

    def __init__(self) -> None:
        self.storage = ExitStack()

    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check the sweep and its storage, and hold images out where the data have no hold-out."""
        # that of an earlier session, which may have ended in any way
        self.storage.close()
        if not tuned_method(pipeline):
            return
        with one_line():
            parameters = with_holdout(catalog.load("parameters"))
            sweep = Sweep(parameters)
            sweep.base.check_device()
            sweep.base.check_data(sweep.data)
            sweep.base.evaluation.check_files(sweep.data, catalog.load("raw_folder"))
            _reach_storage(sweep)
            _reach_cluster(sweep)
        if sweep.config.storage is not None:
            self.storage.enter_context(_in_the_environment(sweep.config.storage))
        space = search_of(sweep.method)
        read = (*SHARED, "data", *OWN, space, sweep.method, *sweep.base.options.built_on)
        kept = {name: parameters[name] for name in read if name in parameters}
        catalog["parameters"].save({**kept, "tune": _logged(sweep, own_space=space in kept)})
        if "params:data" in catalog:
            catalog["params:data"].save(parameters["data"])

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log what the best trial reached on the hold-out, and its metrics once it is tested."""
        if not dataset_name.startswith(NAMESPACE):
            return
        if dataset_name.endswith(".best"):
            tracking.log_metrics({f"best/{data['metric']}": data["value"]})
            view = views.of_sweep(data["study"], _searched(data), data["metric"])
            views.keep(data["study"], view)
        if dataset_name.endswith(".tested"):
            from lt_pipeline.tuning.runs import publish_tested

            tracking.log_metrics(data)
            publish_tested(data)

    @hook_impl(tryfirst=True)
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Print the best trials and the command that repeats the first.

        It goes first, as kedro-mlflow ends the run.
        """
        self.storage.close()
        method = tuned_method(pipeline)
        if not method or f"{NAMESPACE}{method}.tested" not in pipeline.all_outputs():
            return
        best = catalog.load(f"{NAMESPACE}{method}.best")
        again = command(best, run_params)
        tracking.set_tags({"best_command": again})
        print_sweep(
            catalog.load(f"{NAMESPACE}{method}.trials"),
            best,
            catalog.load(f"{NAMESPACE}{method}.tested"),
            catalog.load("data_card"),
            again,
            views.where(best["study"]),
        )

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Forget the storage that the nodes were told."""
        self.storage.close()


def _searched(best: dict[str, Any]) -> list[str]:
    """Return what the sweep searched, by the names that its trials' parameters have in MLflow."""
    own = f"{best['method']}."
    return [f"{own if path.startswith('options.') else ''}{path}" for path in best["params"]]


def command(best: dict[str, Any], run_params: dict[str, Any]) -> str:
    """Return the command that trains the best trial as the method's own pipeline does."""
    method, given = best["method"], run_params.get("runtime_params") or {}
    searched = (*OWN, search_of(method))
    kept = {name: value for name, value in given.items() if name not in searched}
    settings = {"data": {"validation": best["validation"]}, method: nested(best["params"], ".")}
    again = {"pipeline_names": [method], "runtime_params": updated(kept, settings)}
    return kedro_run({**again, "env": run_params.get("env")})


@contextmanager
def _in_the_environment(storage: str) -> Iterator[None]:
    """Tell nodes and workers the storage without a parameter, which would be logged."""
    before = os.environ.get(STORAGE_VARIABLE)
    os.environ[STORAGE_VARIABLE] = storage
    try:
        yield
    finally:
        os.environ.pop(STORAGE_VARIABLE, None)
        if before is not None:
            os.environ[STORAGE_VARIABLE] = before


def _logged(sweep: Sweep, own_space: bool) -> dict[str, Any]:
    """Return the block ``tune`` without what this sweep does not read, and without a password."""
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
