"""Which files of this package a module rests on: what it imports, read without running it."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parents[2]
PACKAGE = Path(__file__).parents[1].name


def rests_on(
    modules: Collection[str], leaves: Collection[str] = (), without: Collection[str] = ()
) -> set[str]:
    """Return the files, relative to the sources, of ``modules`` and all that they import.

    Args:
        modules: dotted names of modules of this package.
        leaves: modules that count, but whose own imports do not.
        without: modules that do not count at all.
    """
    found: set[str] = set()
    left = [*modules]
    while left:
        name = left.pop()
        if name in found or name in without:
            continue
        found.add(name)
        left += _packages(name)
        left += [] if name in leaves else _imports(name)
    files = (_file(name) for name in found)
    return {file.relative_to(SOURCES).as_posix() for file in files if _says_something(file)}


def module_of(file: str) -> str:
    """Return the dotted name of a file given relative to the sources."""
    return ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")


def _packages(name: str) -> list[str]:
    """Return the packages around ``name``, whose ``__init__`` runs before it."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


@cache
def _imports(name: str) -> tuple[str, ...]:
    """Return the modules of this package that ``name`` imports anywhere, or names as a file."""
    file = _file(name)
    named = {n for node in ast.walk(_tree(file)) for n in _named(node, file)}
    return tuple(sorted(n for n in named if n.split(".")[0] == PACKAGE and _is_module(n)))


def _named(node: ast.AST, file: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Constant) and str(node.value).endswith(".py"):
        # one that is copied, as into a served model, is named by its file
        beside = file.with_name(Path(str(node.value)).name)
        if beside.is_file():
            yield module_of(beside.relative_to(SOURCES).as_posix())


def _says_something(file: Path) -> bool:
    """Return whether there is more in a file than a docstring and a version."""
    return any(
        isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)
        for node in _tree(file).body
        if not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
    )


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _is_module(name: str) -> bool:
    base = SOURCES.joinpath(*name.split("."))
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()


def _file(name: str) -> Path:
    base = SOURCES.joinpath(*name.split("."))
    return base / "__init__.py" if (base / "__init__.py").is_file() else base.with_suffix(".py")
