"""What benchmarks share: methods with parameters of their own, from one argument each."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.learning.experiments.config import updated
from lt_pipeline.reports.command_line import read
from lt_pipeline.settings import CONFIG_LOADER_ARGS

PROJECT = Path(__file__).parents[1]


class Variant(NamedTuple):
    """A method under a label, and the parameters that it changes."""

    label: str
    method: str
    parameters: dict[str, Any]

    @classmethod
    def parse(cls, argument: str) -> Variant:
        """Read ``method`` or ``label:method:key=value,...``."""
        label, method, params = argument.split(":") if ":" in argument else (argument, argument, "")
        return cls(label, method, dotted(params.split(",")))


def parameters(environment: str, changes: list[str]) -> dict[str, Any]:
    """Return the parameters of ``conf/<environment>`` with ``changes`` such as ``a.b=1``."""
    loader = ConfLoader(conf_source=str(PROJECT / "conf"), env=environment, **CONFIG_LOADER_ARGS)
    return updated(loader["parameters"], dotted(changes))


def dotted(pairs: list[str]) -> dict[str, Any]:
    """Return ``["a.b=1"]`` as ``{"a": {"b": 1}}``."""
    return read(pair for pair in pairs if pair)
