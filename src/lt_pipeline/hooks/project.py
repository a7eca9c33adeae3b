"""Kedro hooks: check everything first, tell MLflow what made a run, print what came out."""

from __future__ import annotations

import logging
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog, DatasetError
from kedro.pipeline import Pipeline

from lt_pipeline.hooks.parameters import (
    arms,
    check_environment,
    check_left_out,
    check_saved,
    forget_finished,
    keep_to_the_study,
    put_into_effect,
    studies,
)
from lt_pipeline.learning import methods
from lt_pipeline.learning.engine.device import choose_device
from lt_pipeline.learning.experiments.config import (
    ExperimentConfig,
    check_parameters,
    data_config,
    method_options,
)
from lt_pipeline.learning.schema import UserError, flatten, unknown
from lt_pipeline.learning.studies.comparison import CompareConfig
from lt_pipeline.learning.studies.config import StudyConfig
from lt_pipeline.learning.studies.published import read_papers
from lt_pipeline.pipeline_registry import method_pipeline, tune_pipeline
from lt_pipeline.pipelines.method.ood import headline
from lt_pipeline.pipelines.method.stages import stage_numbers
from lt_pipeline.pipelines.study import STUDIES
from lt_pipeline.pipelines.tune import tuned_method
from lt_pipeline.reports.comparison import print_comparison
from lt_pipeline.reports.console import print_results, print_stages, print_study
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tuning.config import method_name, tune_config

LOGGER = logging.getLogger(__name__)
COMPARE = "compare"


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn what a user can put right into one line and exit code 1, without a traceback."""
    try:
        yield
    except (ValueError, ConnectionError, DatasetError) as error:
        raise click.ClickException(str(error)) from error


class ProjectHooks:
    """What this project adds to a Kedro run."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Check names, parameters and the tracking server before kedro-mlflow opens anything."""
        self.project = Path(context.project_path)
        with _one_line():
            check_environment(context)
            names = _pipeline_names()
            check_parameters(context.params, _method(names))
            check_left_out(context.config_loader)
            # Kedro would read all files once more for its catalog
            context.config_loader["parameters"] = context.params
            _shape_pipelines(names, context.params)
            conf = context.config_loader["mlflow"]
            server, tracked = conf.setdefault("server", {}), conf.setdefault("tracking", {})
            uri = _tracking_uri(server.get("mlflow_tracking_uri"))
            server["mlflow_tracking_uri"] = tracking.absolute_uri(uri, self.project)
            experiment = tracked.setdefault("experiment", {})
            experiment["name"] = experiment.get("name") or data_config(context.params).slug
            if server["mlflow_tracking_uri"].startswith("sqlite"):
                # MLflow's own default is a folder of wherever the command runs
                created = experiment.setdefault("create_experiment_kwargs", {})
                folder = tracking.home(self.project) / "mlartifacts" / experiment["name"]
                created["artifact_location"] = created.get("artifact_location") or str(folder)
            context.config_loader["mlflow"] = conf
            tracking.check_server(server["mlflow_tracking_uri"])

    @hook_impl(tryfirst=True, specname="before_pipeline_run")
    def check_experiments(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Resolve every method's configuration, so that a wrong one stops the run here."""
        parameters, names = catalog.load("parameters"), _subjects(pipeline)
        with _one_line():
            if len(names) > 1:
                raise UserError(
                    f"a run is of one method, study or comparison, or MLflow would mix them: run "
                    f"{' and '.join(names)} one after the other"
                )
            known = _what_others_read(parameters)
            if "papers" in pipeline.inputs():
                read_papers(catalog.load("papers"))
            used = _experiments(names, known, parameters)
            _check_fit(used, parameters)
            if "raw_folder" in pipeline.inputs():
                _check_files(used, parameters, catalog.load("raw_folder"))
            self.experiments = [e for e in used if e.method in names]
            for experiment in self.experiments:
                partial = bool(run_params.get("only_missing_outputs"))
                _take_up(catalog, experiment, pipeline, partial)
            for study in {*names} & {*STUDIES}:
                keep_to_the_study(catalog, study, used)

    @hook_impl(trylast=True, specname="before_pipeline_run")
    def describe_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Tag the MLflow run with what made it and log the parameters that conf/ leaves out."""
        parameters = catalog.load("parameters")
        data = data_config(parameters)
        swept = [name for name in [tuned_method(pipeline)] if name]
        names = _subjects(pipeline) or [f"tune {method}" for method in swept]
        methods_run = [e.method for e in self.experiments] or swept
        device = str(choose_device(parameters.get("device", "auto")))
        seed = parameters.get("seed", 0)
        tracking.set_tags(
            {
                **tracking.provenance(self.project, seed, device),
                "mlflow.runName": _title(names, self.experiments)
                + f" · {data.slug}{f' · seed {seed}' if seed else ''}",
                "data": data.slug,
                **({"method": "+".join(methods_run)} if methods_run else {}),
            }
        )
        written = dict(flatten(parameters, "."))
        for experiment in self.experiments:
            resolved = experiment.model_dump(mode="json", exclude={"method", "seed", "device"})
            options = {experiment.method: {"options": resolved.pop("options")}}
            found = flatten({**resolved, **options}, ".")
            tracking.log_params({name: v for name, v in found if name not in written})

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log a method's metrics, how it meets OOD images and what its feature space looks like."""
        if dataset_name.endswith(".metrics"):
            tracking.log_metrics(tracking.numbers(data))
        if dataset_name.endswith(".ood"):
            tracking.log_metrics(tracking.numbers({"ood": headline(data)}))
        if dataset_name.endswith(".stages"):
            tracking.log_metrics(stage_numbers(data))
        if dataset_name.endswith((".geometry", ".arms")):
            kind = dataset_name.split(".")[-1]
            tracking.log_metrics(tracking.numbers({kind: data}))

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Tag the run with the hash of its data, made now or by an earlier run."""
        if dataset_name == "data_card":
            tracking.set_tags({"data_hash": data["data_hash"]})

    @hook_impl(trylast=True)
    def on_pipeline_error(self, error: Exception) -> None:
        """Say in one line what this project's own code refused; a bug keeps its traceback."""
        ours = isinstance(error, ValueError | OSError) and _is_raised_by_us(error)
        if ours or isinstance(error, DatasetError):
            raise click.ClickException(str(error)) from error

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Print the results and clear the states that only a killed run resumes from."""
        made, uri = pipeline.all_outputs(), mlflow.get_tracking_uri()
        for name in _trained(pipeline):
            # what a killed run left is of no use only where its training ran to its end
            if f"{name}.config" in made:
                shutil.rmtree(catalog.load(f"{name}.progress"), ignore_errors=True)
            if f"{name}.standing" in made:
                print_study(name, catalog.load(f"{name}.standing"), catalog.load("data_card"), uri)
            if f"{name}.stages" in made:
                print_stages(name, catalog.load(f"{name}.stages"))
            if f"{name}.metrics" in made:
                title = _title([name], self.experiments)
                finished = {title: catalog.load(f"{name}.metrics")}
                strange = {title: catalog.load(f"{name}.ood")} if f"{name}.ood" in made else {}
                print_results(finished, strange, catalog.load("data_card"), uri)

    @hook_impl(specname="after_pipeline_run")
    def show_comparison(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Print how the methods compare."""
        if f"{COMPARE}.report" in pipeline.all_outputs():
            print_comparison(
                catalog.load(f"{COMPARE}.summary"),
                catalog.load(f"{COMPARE}.standing"),
                catalog.load(f"{COMPARE}.notes"),
                catalog.load(f"{COMPARE}.champion"),
                catalog.load("data_card"),
            )


def _what_others_read(parameters: dict[str, Any]) -> dict[str, StudyConfig]:
    """Check the blocks of sweeps, comparisons and studies, and return the studies.

    A value that this run does not read may be the one that was meant.
    """
    CompareConfig.read(parameters.get(COMPARE, {}))
    method_name(parameters)
    tune_config(parameters)
    return studies(parameters)


def _experiments(
    names: list[str], known: dict[str, StudyConfig], parameters: dict[str, Any]
) -> list[ExperimentConfig]:
    """Return what the method or study of ``names`` runs, nothing of a comparison."""
    found = list[ExperimentConfig]()
    for name in names:
        if name in STUDIES:
            found += arms(name, known, parameters)
        elif name != COMPARE:
            found.append(ExperimentConfig.resolve(name, parameters))
    return found


def _check_fit(used: list[ExperimentConfig], parameters: dict[str, Any]) -> None:
    """Refuse what this machine or the data cannot do, and say how schedules are read."""
    data = data_config(parameters)
    for experiment in used:
        choose_device(experiment.device)
        experiment.check_data(data)
    for line in dict.fromkeys(experiment.training.reading for experiment in used):
        LOGGER.info(line)


def _check_files(
    used: list[ExperimentConfig], parameters: dict[str, Any], raw_folder: Path
) -> None:
    """Refuse OOD sets that are missing or damaged, each once."""
    data = data_config(parameters)
    for evaluation in {experiment.evaluation for experiment in used}:
        evaluation.check_files(data, raw_folder)


def _take_up(
    catalog: DataCatalog, experiment: ExperimentConfig, pipeline: Pipeline, only_missing: bool
) -> None:
    """Let ``pipeline`` run ``experiment``, on files of earlier runs where it is partial."""
    check_saved(catalog, experiment, pipeline, only_missing)
    if not only_missing:
        forget_finished(catalog, experiment.method, pipeline)
    put_into_effect(catalog, experiment)


def _tracking_uri(written: str | None) -> str:
    """Return the address to use: the environment's, else what conf/ says."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or written
    if not uri:
        raise UserError("server.mlflow_tracking_uri is missing in conf/base/mlflow.yml")
    return uri


def _method(names: list[str]) -> str | None:
    """Return the first method among the pipelines ``names``."""
    return next((name for name in names if name in methods.available()), None)


def _pipeline_names() -> list[str]:
    """Return the pipelines asked for.

    Raises:
        UserError: with the nearest name for one there is not, before anything is opened.
    """
    command = click.get_current_context(silent=True)
    given = command.params if command else {}
    names = [n for n in [*(given.get("pipelines") or []), given.get("pipeline")] if n]
    for name in names:
        if name not in pipelines:
            raise UserError(unknown("pipeline", name, set(pipelines.keys())))
    return names


def _shape_pipelines(names: list[str], parameters: dict[str, Any]) -> None:
    """Give the methods among ``names`` the stages that the run's parameters ask for."""
    for name in set(names) & set(methods.available()):
        _, options = method_options(name, parameters)
        pipelines[name] = method_pipeline(name, options)
    if "tune" in names:
        pipelines["tune"] = tune_pipeline(method_name(parameters))


def _is_raised_by_us(error: Exception) -> bool:
    """Return whether a line of this package raised ``error``, and not a library below it."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])


def _subjects(pipeline: Pipeline) -> list[str]:
    """Return the methods and studies that ``pipeline`` is of, and whether it compares."""
    compares = any(node.namespace == COMPARE for node in pipeline.nodes)
    return [*_trained(pipeline), *[COMPARE] * compares]


def _trained(pipeline: Pipeline) -> list[str]:
    """Return the methods and studies that ``pipeline`` is of."""
    spaces = {node.namespace for node in pipeline.nodes}
    return [name for name in (*methods.available(), *STUDIES) if name in spaces]


def _title(names: list[str], experiments: list[ExperimentConfig]) -> str:
    return "+".join([e.title for e in experiments] or names) or "data_prep"
