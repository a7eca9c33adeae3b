"""A Kedro run as the line that one would type for it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lt_pipeline.io.yaml_text import check_yaml
from lt_pipeline.learning.schema import UserError
from lt_pipeline.tracking.client import masked

# run_params of Kedro: what narrows a run down, and its option
NARROWED = {
    "pipeline_names": "--pipelines",
    "namespaces": "--namespaces",
    "tags": "--tags",
    "node_names": "--nodes",
    "from_nodes": "--from-nodes",
    "to_nodes": "--to-nodes",
    "from_inputs": "--from-inputs",
    "to_outputs": "--to-outputs",
}
# of these nothing has a meaning of its own to Kedro or OmegaConf
PLAIN = re.compile(r"[\w-]+")


def kedro_run(run_params: Mapping[str, Any]) -> str:
    """Return the line for a shell that starts a run with Kedro's ``run_params``.

    A parameter that no line can give, such as an object of Python's, is named in a comment behind.
    Passwords are left out.
    """
    words = ["kedro", "run"]
    for name, option in NARROWED.items():
        if run_params.get(name):
            words.append(f"{option}={','.join(run_params[name])}")
    if run_params.get("env"):
        words.append(f"--env={run_params['env']}")
    given, left_out = to_params_option(run_params.get("runtime_params") or {})
    if given:
        words.append(f"--params={given}")
    if run_params.get("only_missing_outputs"):
        words.append("--only-missing-outputs")
    line = shlex.join(map(masked, words))
    return f"{line}  # cannot be told: {', '.join(left_out)}" if left_out else line


def to_params_option(parameters: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return ``parameters`` as ``--params`` takes them, and the paths of those it cannot take.

    ``read`` gives back what went in.
    """
    items, left_out = [], []
    for path, value in _leaves(_in_plain_types(parameters)):
        item = next((i for i in _items(path, value) if _is_read_as(i, path, value)), None)
        if item is None:
            left_out.append(".".join(map(str, path)))
        else:
            items.append(item)
    return ",".join(items), left_out


def split(text: str) -> list[str]:
    """Return the items of ``--params``: cut at commas outside of brackets and quotation marks.

    Raises:
        UserError: where a bracket or a quotation mark is not closed, or opened.
    """
    items, depth, quote = [""], 0, ""
    for letter in text:
        before = items[-1]
        if quote:
            escaped = quote == '"' and (len(before) - len(before.rstrip("\\"))) % 2
            quote = "" if letter == quote and not escaped else quote
        elif letter in "'\"" and before[-1:] in ("=", "[", "{", ",", ":", " ", letter):
            quote = letter  # one in the middle of a word is an apostrophe
        depth += 0 if quote else (letter in "[{") - (letter in "]}")
        if depth < 0:
            raise UserError(f"{items[-1].strip()}{letter}: {letter} closes what is not open")
        if letter == "," and not depth and not quote:
            items.append("")
        else:
            items[-1] += letter
    if depth or quote:
        raise UserError(f"{items[-1].strip()}: {quote or 'a bracket'} is not closed")
    return [item.strip() for item in items]


def read(items: Iterable[str]) -> dict[str, Any]:
    """Return the parameters that ``items`` such as ``a.b=1`` or ``c=[1,2]`` give.

    Raises:
        UserError: in one line, naming the parameter whose value is no YAML or would be misread.
    """
    given = list(items)
    for item in given:
        check_item(item)
    parameters: dict[str, Any] = OmegaConf.to_container(OmegaConf.from_dotlist(given))  # type: ignore[assignment]
    return parameters


def check_item(item: str) -> None:
    """Refuse a value, as in ``a.b=1``, that is no YAML or would be misread.

    Raises:
        UserError: in one line, naming the parameter.
    """
    name, equals, value = item.partition("=")
    if not equals or not name.strip():
        raise UserError(f"{item!r} must be a parameter and its value, as in seed=1")
    check_yaml(value, name.strip())
    try:
        OmegaConf.from_dotlist([item])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{name.strip()}: cannot be read: {' '.join(str(error).split())}") from None


def _in_plain_types(value: Any) -> Any:
    """Return ``value`` with Python's own types for those made from them: tuples, NumPy's floats."""
    if isinstance(value, Mapping):
        return {name: _in_plain_types(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_in_plain_types(inner) for inner in value]
    return float(value) if isinstance(value, float) else value


def _leaves(values: Mapping[Any, Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """Yield values with their paths; a mapping whose names could not stand in one is a value."""
    for name, value in values.items():
        here = (*path, name)
        if isinstance(value, dict) and value and _is_plain(value):
            yield from _leaves(value, here)
        else:
            yield here, value


def _is_plain(names: Any) -> bool:
    return all(isinstance(name, str) and PLAIN.fullmatch(name) for name in names)


def _items(path: tuple[Any, ...], value: Any) -> Iterator[str]:
    """Yield ways to write a parameter, the plainest first."""
    if not _is_plain(path):
        return
    name = ".".join(path)
    if not isinstance(value, list | dict):
        yield f"{name}={value}"
    for style in ({}, {"default_style": '"'}):
        yield f"{name}={_as_yaml(value, default_flow_style=True, **style)}"


def _as_yaml(value: Any, **style: Any) -> str:
    try:
        text: str = yaml.safe_dump(value, width=math.inf, sort_keys=False, **style)
    except yaml.YAMLError:
        return ""
    return text.removesuffix("...\n").strip()


def _is_read_as(item: str, path: tuple[str, ...], value: Any) -> bool:
    """Return whether ``value``, of the same type, is read from one item of ``--params``."""
    for name in reversed(path):
        value = {name: value}
    try:
        parsed = read(split(item)) if split(item) == [item] else None
    except UserError:
        return False
    return repr(parsed) == repr(value)
