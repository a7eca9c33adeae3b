"""What the engine's own text must not have: a second step, and a method."""

from __future__ import annotations

import ast
from pathlib import Path

from lt_pipeline.learning import engine

FILES = sorted(Path(engine.__file__).parent.glob("*.py"))


def nodes(kind):
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, kind):
                yield file.name, node


def test_one_function_computes_gradients():
    called = [
        (name, node.func.attr)
        for name, node in nodes(ast.Call)
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("backward", "grad")
    ]
    assert called == [("steps.py", "backward")]


def test_no_method_is_imported_not_even_for_its_type():
    named = [node.module or "" for _, node in nodes(ast.ImportFrom)]
    named += [f"{n.module}.{a.name}" for _, n in nodes(ast.ImportFrom) for a in n.names]
    named += [alias.name for _, node in nodes(ast.Import) for alias in node.names]
    assert "lt_pipeline.learning.engine.protocol.Learner" in named
    assert not [name for name in named if "methods" in name.split(".")]
