"""No value is taken for what it is not: bad ones, by kind, for every parameter there is.

The parameters are those of all configuration classes, read from their own fields: a new one is
covered without a change here.
"""

from __future__ import annotations

import math
from decimal import Decimal
from importlib import import_module
from pkgutil import walk_packages
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import numpy as np
import pytest

import lt_pipeline
from confs import parameters
from lt_pipeline.learning import methods
from lt_pipeline.learning.experiments.config import ExperimentConfig, data_config, updated
from lt_pipeline.learning.schema import Config, one_line_errors, places

POOL = (
    *(None, True, False, 0, 1, 3, -1, 0.5, -0.5, 2**32, 10**12, -(2**32), 1e12),
    *(1e39, -1e300, 10**400, b"1", Decimal(1), np.bool_(True), np.array(1)),
    *(math.inf, -math.inf, math.nan, "", "1:50", "010", "0.1", "inf", "no such name", "true"),
    *([], [None], [True], ["010"], [math.inf], [[1]], [{}], {"no such name": 1}, {0: 1}),
)
# texts that are free, and what tests and hooks judge: a new text is one of names unless it is here
FREE = {
    "EvaluateConfig.model",
    *("ExperimentConfig.device", "TuneConfig.study", "TuneConfig.address", "TuneConfig.storage"),
    *("Choices.choices", "StudyConfig.title", "StudyConfig.against", "StudyConfig.env"),
    *("CriterionBase.name", "BinaryConfig.name"),
    *(f"ColumnsConfig.{name}" for name in ("path", "label", "group", "split")),
    *(f"DataConfig.{name}" for name in ("name", "path", "labels", "group")),
    *("ModelConfig.weights", "TrainingConfig.freeze", "_Figures.method", "_Figures.reason"),
    *(
        "Figures.method",
        "Figures.reason",
        "PaperTable.paper",
        "PaperTable.table",
        "PaperTable.figure",
    ),
    "PaperTable.study",
}


def configurations():
    """Return every configuration class of the package."""
    for module in walk_packages(lt_pipeline.__path__, f"{lt_pipeline.__name__}."):
        if not module.name.endswith(("__main__", "ray_workers", "ray_trials", "kernel", "_triton")):
            import_module(module.name)
    classes, new = set(), {Config}
    while new:
        classes |= new
        new = {kind for one in new for kind in one.__subclasses__()} - classes
    ours = (kind for kind in classes - {Config} if kind.__module__.startswith("lt_pipeline."))
    return sorted(ours, key=lambda kind: kind.__name__)


def admits(annotation: Any, value: Any) -> bool:  # noqa: C901
    """Return whether ``value`` is of the kind of ``annotation``, whatever its bounds."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return admits(inner[0], value)
    if origin in (Union, UnionType):
        return any(admits(part, value) for part in inner)
    if origin is Literal:
        return any(type(value) is type(name) and value == name for name in inner)
    if origin is tuple:
        many = inner[-1] is ...
        if not isinstance(value, list):
            return many and not isinstance(value, dict) and admits(inner[0], value)
        items = [inner[0]] * len(value) if many else inner
        return len(items) == len(value) and all(map(admits, items, value))
    if isinstance(value, float) and not math.isfinite(value):
        return annotation is Any
    if annotation is int:
        whole = type(value) in (int, float) and value == int(value)
        return whole and -(2**32) < value < 2**32
    if annotation is float:
        return type(value) in (int, float) and abs(value) < 3.4e38
    if annotation is Any:
        return True
    known = {dict: dict, NoneType: NoneType, bool: bool, str: str}
    return type(value) is known.get(origin or annotation)


def beyond(metadata: Any) -> list[Any]:
    """Return the values just out of the bounds among ``metadata``."""
    values = []
    for bound in metadata:
        for name, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            if (limit := getattr(bound, name, None)) is not None:
                values.append(limit + step)
        if isinstance(bound, annotated_types.MinLen) and bound.min_length > 0:
            values.append([])
        values += beyond(getattr(bound, "metadata", ()))
    return values


def out_of_bounds(annotation: Any, metadata: Any = ()) -> list[Any]:
    """Return values of the right kind that are out of bounds, inside of lists, too."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return out_of_bounds(inner[0], (*metadata, *inner[1:]))
    values = beyond(metadata)
    if origin in (Union, UnionType):
        values += [value for part in inner for value in out_of_bounds(part)]
    if origin is tuple:
        items = [part for part in inner if part is not ...]
        values += [[value] * len(items) for value in out_of_bounds(items[0])]
    return values


def bad_values(config: type[Config], name: str) -> list[Any]:
    """Return values that the parameter ``name`` of ``config`` must not be."""
    field = config.model_fields[name]
    values = [value for value in POOL if not admits(field.annotation, value)]
    values += out_of_bounds(field.annotation, field.metadata)
    if admits(field.annotation, "x") and f"{config.__name__}.{name}" not in FREE:
        values += [value for value in POOL if isinstance(value, str)]
    return values


PARAMETERS = [(kind, name) for kind in configurations() for name in kind.model_fields]


def refusal(check, *given):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check(*given)
    text = str(error.value)
    assert "\n" not in text
    return text


def parts(config, name, value):
    def check():
        with one_line_errors():
            config.model_validate({name: value})

    return refusal(check).split("; ")


@pytest.mark.parametrize(
    ("config", "name"), PARAMETERS, ids=[f"{kind.__name__}.{name}" for kind, name in PARAMETERS]
)
def test_every_parameter_refuses_what_it_is_not(config, name):
    bad = bad_values(config, name)
    assert len(bad) > 3
    for value in bad:
        # an unknown criterion is named with the kind that its name was to choose
        named = (f"{name}:", f"{name}.", f"{name} ")
        assert any(part.startswith(named) for part in parts(config, name, value)), value


@pytest.mark.parametrize("config", configurations(), ids=lambda kind: kind.__name__)
def test_every_block_refuses_names_it_does_not_know(config):
    for name in ("no_such_name", "", 0):
        assert "unknown parameter" in parts(config, name, 1)[0]


BASE = parameters()


def nested(path, value):
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def leaves(config: Config, path: str = ""):
    """Yield the path of every parameter of ``config``, with the class that has it."""
    for name in type(config).model_fields:
        yield f"{path}{name}", type(config), name
        inner = getattr(config, name)
        if isinstance(inner, Config):
            yield from leaves(inner, f"{path}{name}.")


def asked(parameters, method):
    given = updated(BASE, parameters)
    data_config(given)
    ExperimentConfig.resolve(method, given)


@pytest.mark.parametrize("method", methods.available())
def test_the_line_has_the_full_name_as_it_is_given(method):
    """A third of the values for each parameter, others for the next: all of a class are above."""
    default = methods.get(method).Options()
    for place, (path, config, name) in enumerate(leaves(default, f"{method}.options.")):
        for value in bad_values(config, name)[place % 3 :: 3]:
            text = refusal(asked, nested(path, value), method)
            assert text.startswith(f"{method}.options"), (path, value)
            assert name in text or path.split(".")[-2] in text, (path, value)


SHARED = [
    (path, kind, name)
    for path, kind, name in leaves(ExperimentConfig(method="ce"))
    if path != "method" and not path.startswith("options")
]


@pytest.mark.parametrize(("path", "config", "name"), SHARED, ids=[path for path, *_ in SHARED])
def test_shared_parameters_are_named_in_full(path, config, name):
    for value in bad_values(config, name):
        assert refusal(asked, nested(path, value), "ce").startswith(path), value


def test_symbols_stand_for_parameters_that_there_are():
    for method in methods.available():
        symbols = places(methods.get(method).Options())
        paths = {path for path, *_ in leaves(methods.get(method).Options())}
        assert {place for _, place in symbols} <= paths


def test_merged_blocks_are_still_checked():
    given = updated({"training": {"epochs": 3}}, {"training": {"epochs": "3"}})
    assert refusal(asked, given, "ce") == "training.epochs: must be a whole number, but got '3'"
