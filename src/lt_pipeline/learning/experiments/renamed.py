"""Parameters that had another name: what was written, run and kept under it still counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lt_pipeline.learning.schema import UserError

# old path in conf/ -> new one, as in {"training.epoch": "training.epochs"}
RENAMED: dict[str, str] = {
    "model.pretrained": "model.weights",
    "training.compile": "training.step",
    "training.contrast": "training.views",
}
# and what its values are called now, where that is something else
VALUES: dict[str, dict[Any, Any]] = {
    "model.pretrained": {False: "none", True: "default"},
    "training.compile": {False: "auto", True: "compiled"},
}


def renamed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parameters``, nested as in conf/, by the names that they have now.

    Raises:
        UserError: if one is there by both names.
    """
    current = dict(parameters)
    for old, new in RENAMED.items():
        value, there = _taken(current, old.split("."))
        if there:
            value = next((now for was, now in VALUES.get(old, {}).items() if was is value), value)
            _put(current, new.split("."), value, f"{old} is called {new} now, and both are given")
    return current


def renamed_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment's configuration as it was saved, by the names that it has now."""
    method = config.get("method")
    if not RENAMED or not isinstance(method, str) or "options" not in config:
        return dict(config)
    rest = {name: value for name, value in config.items() if name != "options"}
    current = renamed({**rest, method: {"options": config["options"]}})
    options = current.pop(method)["options"]
    return {**current, "options": options}


def _taken(block: dict[str, Any], path: list[str]) -> tuple[Any, bool]:
    """Take what is at ``path`` out of ``block``; return it and whether it was there."""
    name, *rest = path
    if name not in block:
        return None, False
    if not rest:
        return block.pop(name), True
    if not isinstance(block[name], Mapping):
        return None, False
    block[name] = dict(block[name])
    return _taken(block[name], rest)


def _put(block: dict[str, Any], path: list[str], value: Any, otherwise: str) -> None:
    *parents, name = path
    for parent in parents:
        block[parent] = dict(block.get(parent, {}))
        block = block[parent]
    if name in block:
        raise UserError(otherwise)
    block[name] = value
