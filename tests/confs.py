"""What conf/ says, read once a process: reading it takes half a second."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from toys import PROJECT


@cache
def _read(environment: str, kind: str) -> dict[str, Any]:
    # a new one each time: the loader that was made last answers ${globals:...}
    loader = ConfLoader(str(PROJECT / "conf"), environment, **CONFIG_LOADER_ARGS)
    conf: dict[str, Any] = loader[kind]
    return conf


def parameters(environment: str = "base") -> dict[str, Any]:
    """Return the parameters of an environment, the caller's own."""
    return deepcopy(_read(environment, "parameters"))


def catalog(environment: str = "base") -> dict[str, Any]:
    """Return the catalog of an environment, the caller's own."""
    return deepcopy(_read(environment, "catalog"))
