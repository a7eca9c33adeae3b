"""What a run's parameters mean: what is asked for at all, the blocks in effect, files that fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.config import AbstractConfigLoader
from kedro.framework.context import KedroContext
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.learning.experiments.config import SHARED, ExperimentConfig
from lt_pipeline.learning.schema import UserError, block_of, flatten, unknown
from lt_pipeline.learning.studies.config import StudyConfig
from lt_pipeline.pipelines.study import STUDIES

# blocks whose names conf/ is free to choose, so that null for a wrong one would mean nothing
_OPEN = re.compile(r"studies\.[^.]+\.arms\.|[^.]+_search\.|tune\.search\.")


def check_environment(context: KedroContext) -> None:
    """Refuse an environment that is not in conf/.

    Raises:
        UserError: with the nearest name.
    """
    conf, name = Path(context.project_path) / "conf", context.env
    if name and not (conf / name).is_dir():
        known = sorted(path.parent.name for path in conf.glob("*/globals.yml"))
        raise UserError(unknown("environment", name, known))


def check_left_out(loader: AbstractConfigLoader) -> None:
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


def studies(parameters: dict[str, Any]) -> dict[str, StudyConfig]:
    """Return every study in conf/, checked: one that is not run may be the one that was meant.

    Raises:
        UserError: in one line, naming what is wrong and what would be right.
    """
    blocks = block_of(parameters, "studies")
    for name in blocks:
        if name not in STUDIES:
            raise UserError(f"studies: {unknown('study', name, STUDIES)}")
    return {name: StudyConfig.read(name, block) for name, block in blocks.items()}


def arms(
    name: str, known: dict[str, StudyConfig], parameters: dict[str, Any]
) -> list[ExperimentConfig]:
    """Return the experiments of the study ``name``.

    Raises:
        UserError: in one line, if conf/ does not have it or something is wrong with an arm.
    """
    if name not in known:
        raise UserError(f"studies.{name} is missing in conf/: its arms are not known")
    try:
        return list(known[name].experiments(parameters).values())
    except ValueError as error:
        raise UserError(f"studies.{name}: {error}") from None


def put_into_effect(catalog: DataCatalog, experiment: ExperimentConfig) -> None:
    """Let the shared blocks be what the method makes of them: MLflow logs what nodes are given."""
    resolved = experiment.model_dump(mode="json")
    for name in ("model", "training", "evaluation"):
        catalog[f"params:{name}"].save(resolved[name])


def keep_to_the_study(catalog: DataCatalog, study: str, arms: list[ExperimentConfig]) -> None:
    """Leave the parameters that no arm reads out of what the study's nodes, and MLflow, get."""
    parameters = catalog.load("parameters")
    kept = {name: parameters[name] for name in SHARED if name in parameters}
    read = {name for arm in arms for name in (arm.method, *arm.options.built_on)}
    kept |= {name: parameters[name] for name in read if name in parameters}
    catalog["parameters"].save({**kept, "studies": {study: parameters["studies"][study]}})


def forget_finished(catalog: DataCatalog, name: str, pipeline: Pipeline) -> None:
    """Let stages that are run again by themselves train again; one that was killed resumes."""
    if f"{name}.config" in pipeline.all_outputs():
        return
    for node in pipeline.nodes:
        if all(catalog.exists(output) for output in node.outputs):
            (catalog.load(f"{name}.progress") / f"{node.short_name}.pt").unlink(missing_ok=True)


def check_saved(
    catalog: DataCatalog, experiment: ExperimentConfig, pipeline: Pipeline, only_missing: bool
) -> None:
    """Refuse to go on with files that were made with other parameters.

    Raises:
        UserError: naming the first parameter that differs.
    """
    name = f"{experiment.method}.config"
    if name in pipeline.all_outputs() and not only_missing:
        return
    if not catalog.exists(name):
        return
    saved = dict(flatten(catalog.load(name), "."))
    wanted = dict(flatten(experiment.model_dump(mode="json"), "."))
    for key in [*wanted, *saved]:
        if saved.get(key) != wanted.get(key):
            raise UserError(
                f"{experiment.method} was run with {key} = {saved.get(key)!r} and this partial "
                f"run says {wanted.get(key)!r}: run the whole pipeline, or say what was run"
            )
