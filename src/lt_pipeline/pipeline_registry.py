"""The pipelines there are: data preparation, methods, evaluation, studies, comparison, sweeps.

What a method's or a study's pipeline looks like follows from parameters: those of conf/base, until
a run says its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from kedro.pipeline import Pipeline
from kedro.utils import find_kedro_project

from lt_pipeline.io.imports import for_good
from lt_pipeline.io.own_folders import OVER_FOLDS, OVER_SEEDS
from lt_pipeline.learning import methods
from lt_pipeline.learning.experiments.config import ExperimentConfig, data_config, method_options
from lt_pipeline.learning.schema import UserError, block_of, one_line_errors
from lt_pipeline.learning.studies.config import AtOnceConfig, StudyConfig
from lt_pipeline.tuning.config import method_name

DEFAULT = "more"
# the folder of conf/ that every environment stands on
BASE = "conf/base"

Maker = Callable[[], Pipeline]


class Registry(MutableMapping[str, Pipeline]):
    """Pipelines by name, each made when it is asked for: a run needs one of a hundred."""

    def __init__(self) -> None:
        self._makers: dict[str, Maker] = {}
        self._made: dict[str, Pipeline] = {}

    def shape(self, parameters: Mapping[str, Any]) -> None:
        """Let the pipelines be what ``parameters`` make of them."""
        self._makers, self._made = makers(parameters), {}

    def __getitem__(self, name: str) -> Pipeline:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __setitem__(self, name: str, pipeline: Pipeline) -> None:
        self._made[name] = pipeline
        self._makers[name] = lambda: pipeline

    def __delitem__(self, name: str) -> None:
        del self._makers[name]
        self._made.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


REGISTRY = Registry()


def register_pipelines() -> Registry:
    """Return every pipeline by name; each runs alone from raw images."""
    if not REGISTRY:
        REGISTRY.shape(_written())
    return REGISTRY


def makers(parameters: Mapping[str, Any]) -> dict[str, Maker]:
    """Return what makes each pipeline, by name.

    Raises:
        UserError: if a study in conf/ has the name of something else.
    """
    known: dict[str, Maker] = {
        "__default__": partial(_method, DEFAULT, parameters),
        "audit": partial(_made, "audit"),
        "data_prep": partial(_made, "data_prep"),
        "compare": partial(_from_raw, "compare"),
        "evaluate": partial(_from_raw, "evaluate"),
        "tune": partial(_tune, parameters),
        **{name: partial(_method, name, parameters) for name in methods.available()},
    }
    for name, block in block_of(parameters, "studies").items():
        for pipeline in (name, *_tables(block)):
            if pipeline in known:
                raise UserError(f"studies.{name}: {pipeline} is the name of another pipeline")
            known[pipeline] = partial(_study, name, parameters)
    for name in methods.available():
        if (several := repeated(name, parameters)) in known:
            known[name] = known[several]
    return {**known, "__default__": known[DEFAULT]}


def env_of(names: Iterable[str | None]) -> str | None:
    """Return the environment that the studies among ``names`` run in unless told; mostly none."""
    blocks = block_of(_written(), "studies") if {*names} - {*methods.available(), None} else {}
    matching = (block for name, block in blocks.items() if {name, *_tables(block)} & {*names})
    return next((block["env"] for block in matching if block.get("env")), None)


def repeated(method: str, parameters: Mapping[str, Any]) -> str:
    """Return the study that runs ``method`` on each fold, or with each of the ``seeds``.

    It is ``method`` itself where neither is asked for.
    """
    data = parameters.get("data")
    if isinstance(data, Mapping) and data.get("folds") and data.get("fold") is None:
        return f"{method}{OVER_FOLDS}"
    return method if parameters.get("seeds") in (None, []) else f"{method}{OVER_SEEDS}"


def with_seeds(parameters: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return ``parameters`` with a study of one arm for each method of ``names``, if asked for.

    ``seeds`` ask for it, and folds of which none is named.

    Raises:
        UserError: if ``seeds`` are none.
    """
    seeds, studies = parameters.get("seeds"), dict(block_of(parameters, "studies"))
    for name in {*names} & {*methods.available()}:
        several = repeated(name, parameters)
        if several == name:
            continue
        asked = {"seeds": 1} if seeds is None else {"these_seeds": seeds}
        own = {"title": several.replace("_", " "), **asked, "arms": {name: {"method": name}}}
        try:
            StudyConfig.read(own, f"studies.{several}")
        except UserError as error:
            where = f"studies.{several}.these_seeds"
            raise UserError(str(error).replace(where, "seeds")) from None
        studies[several] = own
    return {**parameters, "studies": studies} if studies else dict(parameters)


def _tables(block: Any) -> list[str]:
    """Return the other names of a study; what is wrong with its block is said where it is read."""
    tables = block.get("tables") if isinstance(block, Mapping) else None
    listed = tables if isinstance(tables, list) else [tables]
    return [name for name in listed if isinstance(name, str)]


def _made(room: str, *of: Any, **how: Any) -> Pipeline:
    """Return what a room of ``pipelines`` creates; nodes are imported when they are asked for.

    They draw, and matplotlib takes a quarter of a second, which a wrong parameter would wait for.
    """
    with for_good(room):
        entered = import_module(f"lt_pipeline.pipelines.{room}")
    created: Pipeline = entered.create_pipeline(*of, **how)
    return created


def _from_raw(room: str, *of: Any, **how: Any) -> Pipeline:
    return _made("data_prep") + _made(room, *of, **how)


def _method(name: str, parameters: Mapping[str, Any]) -> Pipeline:
    """Return the pipeline of a method, with the stages that ``parameters`` ask for."""
    _, options = method_options(name, parameters)
    return _from_raw("method", name, options)


def _study(name: str, parameters: Mapping[str, Any]) -> Pipeline:
    """Return the pipeline of a study, with a node for each run that ``parameters`` ask for."""
    config = StudyConfig.read(parameters["studies"][name], f"studies.{name}")
    with one_line_errors():
        seed = ExperimentConfig(method=DEFAULT, seed=parameters.get("seed", 0)).seed
    folds = data_config(parameters).each_fold
    runs = config.at_once(seed, folds, AtOnceConfig.of(parameters).together)
    return _from_raw("study", name, runs, folded=bool(folds))


def _tune(parameters: Mapping[str, Any]) -> Pipeline:
    """Return the pipeline that searches the parameters of ``tune.method``."""
    return _from_raw("tune", method_name(parameters))


def _written() -> dict[str, Any]:
    """Return the parameters of conf/base: without a run, all that is known."""
    project = find_kedro_project(Path.cwd())
    values: dict[str, Any] = {}
    for file in sorted((project / BASE).glob("parameters*.yml")) if project else ():
        values |= yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return values
