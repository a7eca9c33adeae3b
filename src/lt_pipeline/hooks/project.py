"""Kedro hooks: check everything first, tell MLflow what made a run, print what came out."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from lt_pipeline.hooks.errors import one_line
from lt_pipeline.hooks.evaluation import EVALUATE, parent_tags, to_evaluate
from lt_pipeline.hooks.keys import check_card, check_config, seal
from lt_pipeline.hooks.parameters import (
    apply_resolved,
    check_environment,
    check_null_overrides,
    plan,
    reset_finished_stages,
    restrict_to_study,
    say_without_effect,
    studies,
    take_saved,
)
from lt_pipeline.hooks.session import (
    check_narrowed,
    check_runner,
    is_to_run,
    pipeline_names,
)
from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.io.own_folders import differences, in_words
from lt_pipeline.learning import methods
from lt_pipeline.learning.data.prepare import DataConfig, expected
from lt_pipeline.learning.engine.device import choose_device
from lt_pipeline.learning.experiments.config import (
    ExperimentConfig,
    check_parameters,
    data_config,
)
from lt_pipeline.learning.experiments.store import data_key, run_key
from lt_pipeline.learning.schema import UserError, block_of, flatten, numbers, unknown
from lt_pipeline.learning.studies.comparison import CompareConfig
from lt_pipeline.learning.studies.config import StudyConfig
from lt_pipeline.learning.studies.published import read_papers
from lt_pipeline.pipeline_registry import DEFAULT, REGISTRY, with_seeds
from lt_pipeline.pipelines.names import NAMESPACE, tuned_method
from lt_pipeline.reports.audit import summary
from lt_pipeline.reports.console import (
    print_comparison,
    print_results,
    print_stages,
    print_study,
)
from lt_pipeline.reports.screen import console
from lt_pipeline.serving.config import BLOCK as SERVE
from lt_pipeline.serving.config import ServeConfig
from lt_pipeline.tracking import client as tracking
from lt_pipeline.tracking import store, views
from lt_pipeline.tracking.config import BLOCK, TrackingConfig, in_effect
from lt_pipeline.tracking.models import EvaluateConfig, Trained
from lt_pipeline.tracking.runs import keep_recalls
from lt_pipeline.tuning.config import method_name, tune_config

LOGGER = logging.getLogger(__name__)
COMPARE = "compare"
# what is of the data alone, and of no method
OF_DATA = ("data_prep", "audit")


class ProjectHooks:
    """What this project adds to a Kedro run."""

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Check names, parameters and the tracking server before kedro-mlflow opens anything."""
        self.project = Path(context.project_path)
        with one_line():
            check_runner()
            check_environment(context)
            names = pipeline_names() or [DEFAULT]
            # not the context's: Kedro would make every pipeline there is to look at its types
            parameters = with_seeds(context.config_loader["parameters"], names)
            _check_names(names, parameters)
            check_parameters(parameters, _method(names))
            ServeConfig.read(block_of(parameters, SERVE)).takes(data_config(parameters))
            check_null_overrides(context.config_loader)
            say_without_effect(context.config_loader, names, parameters)
            _check_values(names, parameters)
            self.differs = _what_differs(context, parameters)
            # Kedro would read all files once more for its catalog
            context.config_loader["parameters"] = in_effect(parameters, self.project)
            _make_pipelines(names)
            self._prepare_tracking(context, context.config_loader["parameters"])

    def _prepare_tracking(self, context: KedroContext, parameters: dict[str, Any]) -> None:
        """Decide where MLflow keeps the run, and see whether it can be reached."""
        conf = context.config_loader["mlflow"]
        server, tracked = conf.setdefault("server", {}), conf.setdefault("tracking", {})
        uri = _tracking_uri(server.get("mlflow_tracking_uri"))
        server["mlflow_tracking_uri"] = tracking.absolute_uri(uri, self.project)
        experiment = tracked.setdefault("experiment", {})
        experiment["name"] = experiment.get("name") or data_config(parameters).slug
        self.evaluated: Trained | None = None
        if is_to_run(EVALUATE):
            where = server["mlflow_tracking_uri"], experiment["name"]
            self.evaluated = to_evaluate(context.config_loader, *where)
            experiment["name"] = self.evaluated.experiment
        if server["mlflow_tracking_uri"].startswith("sqlite"):
            # MLflow's own default is a folder of wherever the command runs
            created = experiment.setdefault("create_experiment_kwargs", {})
            folder = tracking.home(self.project) / "mlartifacts" / experiment["name"]
            created["artifact_location"] = created.get("artifact_location") or str(folder)
        context.config_loader["mlflow"] = conf
        store.prepare(conf, self.project)
        if TrackingConfig.read(parameters.get(BLOCK, {})).system_metrics:
            mlflow.enable_system_metrics_logging()
        else:
            mlflow.disable_system_metrics_logging()

    @hook_impl(tryfirst=True, specname="before_pipeline_run")
    def check_experiments(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Resolve every method's configuration, so that a wrong one stops the run here."""
        parameters, names = catalog.load("parameters"), _subjects(pipeline)
        with one_line():
            if len(names) > 1:
                raise UserError(
                    f"a run is of one method, study or comparison, or MLflow would mix them: run "
                    f"{' and '.join(names)} one after the other"
                )
            known = _what_others_read(parameters)
            if "papers" in pipeline.inputs():
                read_papers(catalog.load("papers"))
            self.plans = {name: plan(name, parameters) for name in names if name in known}
            self.experiments = [
                ExperimentConfig.resolve(name, parameters)
                for name in names
                if name not in (*known, COMPARE, EVALUATE)
            ]
            if self.evaluated:
                settings = parameters["evaluation"], parameters["device"]
                self.experiments = [self.evaluated.config.evaluated_as(*settings)]
            used = [*self.experiments, *(e for p in self.plans.values() for e in p.arms)]
            _check_fit(used, parameters)
            _check_order(pipeline, parameters)
            if "raw_folder" in pipeline.inputs():
                _check_files(used, parameters, catalog.load("raw_folder"))
            for experiment in self.experiments:
                partial = bool(run_params.get("only_missing_outputs"))
                if not self.evaluated:
                    _take_up(catalog, experiment, pipeline, partial)
                apply_resolved(catalog, experiment)
            for name, planned in self.plans.items():
                restrict_to_study(catalog, name, planned.arms)

    @hook_impl(trylast=True, specname="before_pipeline_run")
    def describe_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Tag the MLflow run with what made it and log the parameters that conf/ leaves out."""
        parameters, active = catalog.load("parameters"), mlflow.active_run()
        self.run = active.info.run_id if active else None
        self.logged_data = set[str]()  # by hash, what MLflow has been told of
        data = data_config(parameters)
        several = bool(self.experiments or self.plans) and expected(data).longtail.several
        views.keep(views.RESULTS, views.results(several=several, balanced=data.balanced))
        self.where = views.where(views.RESULTS)
        swept = [name for name in [tuned_method(pipeline)] if name]
        names = _subjects(pipeline) or [f"tune {method}" for method in swept]
        methods_run = [e.method for e in self.experiments] or swept
        device = str(choose_device(parameters.get("device", "auto")))
        seed = parameters.get("seed", 0)
        tracking.set_tags(
            {
                **tracking.provenance(self.project, seed, device),
                "mlflow.runName": self._run_name(names),
                "data": data.slug,
                "mlflow.note.content": self._described(names, data),
                **({"method": "+".join(methods_run)} if methods_run else {}),
                **(parent_tags(self.evaluated) if self.evaluated else {}),
            }
        )
        # what nodes are not given: of an evaluation, nothing of the training
        written = {} if self.evaluated else dict(flatten(parameters, "."))
        for experiment in self.experiments:
            if "params:data" not in pipeline.inputs():
                # what the images are that were found prepared: an evaluation makes them anew
                prepared = flatten({"data": _data_in_effect(parameters)}, ".")
                tracking.log_params(dict(prepared))
            resolved = experiment.model_dump(mode="json", exclude={"method", "seed", "device"})
            options = {experiment.method: {"options": resolved.pop("options")}}
            settings = flatten({**resolved, **options}, ".")
            tracking.log_params({name: v for name, v in settings if name not in written})

    def _run_name(self, names: list[str]) -> str:
        if self.evaluated:
            return f"evaluate {self.evaluated.run.info.run_name}"
        return " · ".join([_title(names, self.experiments), *self.differs])

    def _described(self, names: list[str], data: DataConfig) -> str:
        """Return what MLflow shows above a run."""
        training = [
            f"{e.training.epochs} epochs of {e.model.backbone}, batches of {e.training.batch_size}"
            for e in self.experiments
        ]
        parts = [f"{_title(names, self.experiments)} on {data.title}", *training, *self.differs]
        of = [f"Evaluation of run {self.evaluated.id}"] if self.evaluated else []
        return ". ".join([*of, *parts]) + "."

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Log a method's metrics, how it meets OOD images and what its feature space looks like."""
        # with the nodes: they draw, and a wrong parameter would wait for matplotlib
        from lt_pipeline.learning.experiments.evaluate import first_of_all
        from lt_pipeline.learning.experiments.ood import summary_metrics
        from lt_pipeline.learning.experiments.stages import stage_numbers

        if dataset_name.endswith(".metrics"):
            tracking.log_metrics(numbers({**data, views.SUMMARY: first_of_all(data)}))
        if dataset_name.endswith(".class_table"):
            keep_recalls(data)
        if dataset_name.endswith(".ood"):
            tracking.log_metrics(
                numbers({"ood": summary_metrics(data), views.SUMMARY: _auroc(data)})
            )
        if dataset_name.endswith(".stages"):
            tracking.log_metrics(stage_numbers(data))
        if dataset_name.endswith((".geometry", ".arms")):
            kind = dataset_name.split(".")[-1]
            tracking.log_metrics(numbers({kind: data}))

    @hook_impl(trylast=True, specname="before_pipeline_run")
    def seal_files(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Tell the files what they are of, once every hook has had its say on the parameters."""
        parameters = catalog.load("parameters")
        self.data = data_config(parameters)
        if "params:data" in pipeline.inputs():
            catalog["params:data"].save(_data_in_effect(parameters))
        keys = {e.method: run_key(e, self.data) for e in self.experiments}
        keys |= {name: planned.key(self.data) for name, planned in self.plans.items()}
        keys |= {EVALUATE: self.evaluated.id} if self.evaluated else {}
        with one_line():
            seal(catalog, pipeline, data_key(self.data), keys)
            for experiment in self.experiments:
                name = f"{EVALUATE if self.evaluated else experiment.method}.config"
                if name in pipeline.inputs() and catalog.exists(name):
                    # trained as it says there, and judged as this run says
                    catalog.save(name, experiment)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Tag the run with the hash of its data; refuse what was put in the place of its files."""
        if dataset_name == "data_card":
            check_card(data, self.data)
            if data.data_hash not in self.logged_data:
                tracking.set_tags({"data_hash": data.data_hash})
                tracking.log_data(data.config.slug, data.data_hash)
                self.logged_data.add(data.data_hash)
        for experiment in self.experiments:
            if dataset_name == f"{experiment.method}.config":
                check_config(data, experiment)
        for name, planned in self.plans.items():
            if dataset_name == f"{name}.plan" and data != planned:
                raise UserError(f"{name} was planned with other parameters: run {name}.plan first")

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Print the results and clear the states that only a killed run resumes from."""
        made = pipeline.all_outputs()
        for name in _subjects(pipeline):
            # what a killed run left is of no use only where its training ran to its end
            if f"{name}.config" in made:
                shutil.rmtree(catalog.load(f"{name}.progress"), ignore_errors=True)
            if name != COMPARE and f"{name}.comparison" in made:
                comparison = catalog.load(f"{name}.comparison")
                print_study(name, comparison, catalog.load("data_card"), self.where)
            if f"{name}.stages" in made:
                print_stages(name, catalog.load(f"{name}.stages"))
            if f"{name}.metrics" in made:
                title = _title([name], self.experiments)
                if self.evaluated:
                    title = f"{title} of run {self.evaluated.id[:8]}"
                finished = {title: catalog.load(f"{name}.metrics")}
                ood = {title: catalog.load(f"{name}.ood")} if f"{name}.ood" in made else {}
                print_results(finished, ood, catalog.load("data_card"), self.where)

    @hook_impl(trylast=True, specname="after_pipeline_run")
    def end_failed_study(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Let a study of which a run failed end as failed, once all else is shown and logged."""
        from lt_pipeline.reports.studies import FAILED  # which draws, as above

        made = pipeline.all_outputs()
        runs = {
            f"{name}.{node}_run": run
            for name, plan in self.plans.items()
            for node, run in plan.runs.items()
        }
        rows = {name: catalog.load(name) for name in runs if name in made}
        failed = [f"{runs[n].title}: {row[FAILED]}" for n, row in rows.items() if FAILED in row]
        if failed:
            tracking.end_as_failed(self.run)
            raise UserError(f"{len(failed)} of {len(rows)} runs failed: {'; '.join(failed)}")

    @hook_impl(specname="after_pipeline_run")
    def show_audit(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Print what was found in a person's images."""
        if "audit.environment" in pipeline.all_outputs():
            text = summary(catalog.load("audit.notes")["notes"], catalog.load("audit.environment"))
            console().print(text, highlight=False, markup=False)

    @hook_impl(specname="after_pipeline_run")
    def show_comparison(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Print how the methods compare."""
        if f"{COMPARE}.report" in pipeline.all_outputs():
            print_comparison(
                catalog.load(f"{COMPARE}.summary"),
                catalog.load(f"{COMPARE}.comparison"),
                catalog.load(f"{COMPARE}.notes"),
                catalog.load(f"{COMPARE}.champion"),
                catalog.load("data_card"),
            )


def _what_others_read(parameters: dict[str, Any]) -> dict[str, StudyConfig]:
    """Check the blocks of sweeps, comparisons and studies, and return the studies.

    A value that this run does not read may be the one that was meant.
    """
    CompareConfig.read(parameters.get(COMPARE, {}))
    EvaluateConfig.read(parameters.get(EVALUATE, {}))
    method_name(parameters)
    tune_config(parameters)
    return studies(parameters)


def _check_fit(used: list[ExperimentConfig], parameters: dict[str, Any]) -> None:
    """Refuse what this machine or the data cannot do, and say how schedules are read."""
    data = data_config(parameters)
    for experiment in used:
        experiment.check_device()
        experiment.check_data(data)
    for line in dict.fromkeys(experiment.training.reading for experiment in used):
        LOGGER.info(line)


def _check_order(pipeline: Pipeline, parameters: dict[str, Any]) -> None:
    """Refuse a comparison in the order of what its images do not have."""
    if COMPARE in _subjects(pipeline):
        several = expected(data_config(parameters)).longtail.several
        CompareConfig.read(parameters.get(COMPARE, {})).order(several=several)


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
    take_saved(catalog, experiment, pipeline, only_missing)
    if not only_missing:
        reset_finished_stages(catalog, experiment.method, pipeline)


def _tracking_uri(written: str | None) -> str:
    """Return the address to use: the environment's, else what conf/ says."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or written
    if not uri:
        raise UserError("server.mlflow_tracking_uri is missing in conf/base/mlflow.yml")
    return uri


def _method(names: list[str]) -> str | None:
    """Return the first method among the pipelines ``names``."""
    return next((name for name in names if name in methods.available()), None)


def _check_names(names: list[str], parameters: dict[str, Any]) -> None:
    """Refuse pipelines that the run's parameters do not make.

    Raises:
        UserError: with the nearest name, before anything is opened.
    """
    len(pipelines)  # Kedro reads them once, as conf/base has them
    REGISTRY.shape(parameters)
    for name in names:
        if name not in pipelines:
            raise UserError(unknown("pipeline", name, set(pipelines.keys())))


def _check_values(names: list[str], parameters: dict[str, Any]) -> None:
    """Refuse wrong values of the methods that are to run, in the first seconds.

    Raises:
        UserError: in one line, before a pipeline is made or MLflow's store is opened.
    """
    for name in {*names} & {*methods.available()} if not parameters.get("seeds") else ():
        ExperimentConfig.resolve(name, parameters)


def _data_in_effect(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the block ``data`` as MLflow is to log it: images in files say their own profile."""
    data, given = data_config(parameters), dict(block_of(parameters, "data"))
    if data.balanced:
        return given
    return {**given, "source": data.source, "profile": data.profile.model_dump(mode="json")}


def _make_pipelines(names: list[str]) -> None:
    """Make the pipelines asked for here, where what is wrong with them is said in one line."""
    check_narrowed([node for name in names for node in pipelines[name].nodes])


def _subjects(pipeline: Pipeline) -> list[str]:
    """Return the methods and studies that ``pipeline`` is of, and whether it compares."""
    spaces = {node.namespace or "" for node in pipeline.nodes}
    return sorted(s for s in spaces if s and s not in OF_DATA and not s.startswith(NAMESPACE))


def _auroc(report: dict[str, Any]) -> dict[str, float]:
    """Return the mean AUROC of the detector that tables show, if there was a set to see."""
    first = next(iter(report.get("detectors", {}).values()), None)
    return {"ood_auroc": first["mean"]["auroc"]} if first else {}


def _what_differs(context: KedroContext, parameters: dict[str, Any]) -> list[str]:
    """Return what tells a run from others of the same on the same data, in words."""
    loader, env = context.config_loader, context.env
    if not isinstance(loader, ConfLoader):
        return []
    environment = [env] if env and env not in (loader.base_env, loader.default_run_env) else []
    changed = differences(parameters, loader.as_written()) if loader.runtime_params else {}
    return [*environment, *([in_words(changed)] if changed else [])]


def _title(names: list[str], experiments: list[ExperimentConfig]) -> str:
    return "+".join([e.title for e in experiments] or names) or "data_prep"
