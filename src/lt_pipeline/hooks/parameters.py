"""What a run's parameters mean: what is asked for at all, the blocks in effect, files that fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from kedro.config import AbstractConfigLoader
from kedro.framework.context import KedroContext
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from lt_pipeline.hooks.keys import check_config
from lt_pipeline.io.conf_loader import ConfLoader, environments
from lt_pipeline.learning import methods
from lt_pipeline.learning.experiments.config import SHARED, ExperimentConfig, method_options
from lt_pipeline.learning.schema import UserError, block_of, flatten, named, shown, unknown
from lt_pipeline.learning.studies.config import StudyConfig
from lt_pipeline.learning.studies.plan import Plan
from lt_pipeline.pipeline_registry import repeated

LOGGER = logging.getLogger(__name__)
# blocks that no method reads
OF_OTHERS = {"studies", "compare", "evaluate", "tune", "method"}
# blocks whose names conf/ is free to choose, so that null for a wrong one would mean nothing
_OPEN = re.compile(r"studies\.[^.]+\.arms\.|[^.]+_search\.|tune\.search\.")


def check_environment(context: KedroContext) -> None:
    """Refuse an environment that is not in conf/, and a folder without conf/.

    Raises:
        UserError: with the nearest name.
    """
    conf, name = Path(context.config_loader.conf_source), context.env
    if not conf.exists():
        raise UserError(
            f"there is no {conf}: run it in the project's folder, or name one with --conf-source"
        )
    if name and not (conf / name).is_dir():
        raise UserError(unknown("environment", name, environments(conf)))


def check_null_overrides(loader: AbstractConfigLoader) -> None:
    """Refuse to take out, by null on the command line, what is not in conf/.

    Arms of studies and what sweeps search have names of their own; all others are checked where
    they are read.

    Raises:
        UserError: with the nearest name.
    """
    given = flatten(loader.runtime_params or {}, ".")
    taken = [name for name, value in given if value is None and _OPEN.match(name)]
    if not taken or not isinstance(loader, ConfLoader):
        return
    written = loader.as_written()
    for name in taken:
        block: Any = written
        *parents, last = name.split(".")
        for parent in parents:
            block = block.get(parent) if isinstance(block, Mapping) else None
        if not isinstance(block, Mapping) or last not in block:
            valid = list(block) if isinstance(block, Mapping) else []
            raise UserError(f"{'.'.join(parents)}: {unknown('name', last, valid)}")


def say_without_effect(
    loader: AbstractConfigLoader, names: Collection[str], parameters: Mapping[str, Any]
) -> None:
    """Say which parameters of the command line the pipelines ``names`` do not read.

    They may be of another method than is run, or be overruled by its own block.
    """
    if {*names} <= {*methods.available()}:
        # studies, comparisons and sweeps read what their own blocks say
        for line in _without_effect(loader.runtime_params or {}, names, parameters):
            LOGGER.warning(line)


def _without_effect(
    runtime: Mapping[str, Any], names: Collection[str], parameters: Mapping[str, Any]
) -> Iterator[str]:
    read = {*names}
    for name in names:
        read |= {*method_options(name, parameters)[1].built_on}
    for name in runtime:
        if name in {*methods.available()} - read or name in OF_OTHERS:
            yield f"{name}.* has no effect: {' and '.join(sorted(names))} does not read it"
    if "together" in runtime and all(repeated(name, parameters) == name for name in names):
        yield "together has no effect: it is one run; give seeds=[0,1,2], a study or a sweep"
    given = dict(flatten(runtime, "."))
    for name in names:
        for path, value in flatten(block_of(parameters, name), "."):
            if given.get(path, value) != value and f"{name}.{path}" not in given:
                own = f"{name}.{path} is {shown(value)}"
                yield f"{path} has no effect: {own}, set that one"


def studies(parameters: dict[str, Any]) -> dict[str, StudyConfig]:
    """Return every study in conf/, checked: one that is not run may be the one that was meant.

    Raises:
        UserError: in one line, naming what is wrong and what would be right.
    """
    blocks = block_of(parameters, "studies")
    for name, block in blocks.items():
        # one that only the command line knows is a slip of the pen
        if isinstance(block, Mapping) and "title" not in block:
            others = [other for other in blocks if other != name]
            raise UserError(f"studies: {unknown('study', name, others)}")
    return {name: StudyConfig.read(block, f"studies.{name}") for name, block in blocks.items()}


def plan(name: str, parameters: dict[str, Any]) -> Plan:
    """Return the study ``name`` with its arms resolved.

    Raises:
        UserError: in one line, if something is wrong with an arm.
    """
    with named(f"studies.{name}: "):
        return Plan.of(name, parameters)


def apply_resolved(catalog: DataCatalog, experiment: ExperimentConfig) -> None:
    """Let the shared blocks be what the method makes of them: MLflow logs what nodes are given."""
    resolved = experiment.model_dump(mode="json")
    for name in ("model", "training", "evaluation"):
        catalog[f"params:{name}"].save(resolved[name])


def restrict_to_study(catalog: DataCatalog, study: str, arms: list[ExperimentConfig]) -> None:
    """Leave the parameters that no arm reads out of what the study's nodes, and MLflow, get."""
    parameters = catalog.load("parameters")
    kept = {name: parameters[name] for name in ("data", *SHARED) if name in parameters}
    read = {name for arm in arms for name in (arm.method, *arm.options.built_on)}
    kept |= {name: parameters[name] for name in read if name in parameters}
    catalog["parameters"].save({**kept, "studies": {study: parameters["studies"][study]}})


def reset_finished_stages(catalog: DataCatalog, name: str, pipeline: Pipeline) -> None:
    """Let stages that are run again by themselves train again; one that was killed resumes."""
    if f"{name}.config" in pipeline.all_outputs():
        return
    for node in pipeline.nodes:
        if all(catalog.exists(output) for output in node.outputs):
            for state in catalog.load(f"{name}.progress").glob(f"{node.short_name}.*"):
                state.unlink()


def take_saved(
    catalog: DataCatalog, experiment: ExperimentConfig, pipeline: Pipeline, only_missing: bool
) -> None:
    """Let a partial run go on with what was trained before; how it is judged may differ.

    Raises:
        UserError: naming the first parameter of the training that differs.
    """
    name = f"{experiment.method}.config"
    if (name in pipeline.all_outputs() and not only_missing) or not catalog.exists(name):
        return
    check_config(catalog.load(name), experiment)
