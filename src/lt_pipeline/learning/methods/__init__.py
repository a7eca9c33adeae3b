"""The methods there are: every module of this folder is one."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from lt_pipeline.learning.methods.families.base import Method
from lt_pipeline.learning.schema import UserError, unknown


@cache
def available() -> tuple[str, ...]:
    """Return the names of all methods, sorted: the file name is the name."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if not m.ispkg))


def get(name: str) -> type[Method]:
    """Return the method class defined in ``methods/<name>.py``.

    Raises:
        UserError: if there is no such file, or it does not define one method.
    """
    if name not in available():
        raise UserError(unknown("method", name, available()))
    module = import_module(f"{__name__}.{name}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise UserError(f"methods/{name}.py must define one Method, but defines {len(classes)}")
    return classes[0]
