from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from lt_pipeline.learning import methods
from lt_pipeline.versioning.imports import SOURCES, module_of, rests_on

NODES = "lt_pipeline.pipelines.method.nodes"
# the package around all of the science, which offers its names
AROUND = "lt_pipeline/learning/__init__.py"


def test_a_module_rests_on_what_it_imports_and_on_what_that_imports():
    assert rests_on(["lt_pipeline.learning.schema"]) == {AROUND, "lt_pipeline/learning/schema.py"}
    found = rests_on(["lt_pipeline.learning.data.prepare"])
    assert {
        "lt_pipeline/learning/data/prepare.py",
        "lt_pipeline/learning/data/longtail.py",
    } <= found
    assert not any(
        name.startswith(("lt_pipeline/learning/methods", "lt_pipeline/learning/losses"))
        for name in found
    )


def test_the_code_around_a_module_counts_if_it_says_something():
    found = rests_on([NODES])
    assert "lt_pipeline/learning/methods/__init__.py" in found
    assert "lt_pipeline/learning/losses/__init__.py" not in found
    assert "lt_pipeline/__init__.py" not in found


def test_another_methods_file_does_not_count_and_those_below_do():
    found = rests_on(
        [NODES, "lt_pipeline.learning.methods.ce"],
        leaves=["lt_pipeline.learning.experiments.config"],
    )
    others = {f"lt_pipeline/learning/methods/{name}.py" for name in methods.available()}
    assert found & others == {"lt_pipeline/learning/methods/ce.py"}
    found = rests_on(["lt_pipeline.learning.methods.gml"])
    assert "lt_pipeline/learning/methods/_decoupled.py" in found


def test_leaves_count_without_what_they_import_and_others_not_at_all():
    assert rests_on(
        ["lt_pipeline.learning.experiments.config"],
        leaves=["lt_pipeline.learning.experiments.config"],
    ) == {AROUND, "lt_pipeline/learning/experiments/config.py"}
    assert "lt_pipeline/tracking/client.py" in rests_on([NODES])
    assert "lt_pipeline/tracking/client.py" not in rests_on(
        [NODES], without=["lt_pipeline.tracking.client"]
    )


def test_a_file_that_is_copied_into_a_served_model_counts():
    found = rests_on(["lt_pipeline.serving.export"])
    assert "lt_pipeline/serving/_served.py" in found


@pytest.mark.parametrize(
    "module", ["lt_pipeline.learning.methods.btm", "lt_pipeline.learning.evaluation.detectors"]
)
def test_nothing_that_python_really_imports_is_missing(module):
    program = f"import sys, {module}; print(*(m for m in sys.modules if 'lt_pipeline' in m))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    found = rests_on([module])
    for name in done.stdout.split():
        path = SOURCES.joinpath(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        body = ast.parse(file.read_text()).body
        if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in body):
            assert file.relative_to(SOURCES).as_posix() in found


def test_a_file_has_the_name_that_python_imports_it_by():
    assert module_of("lt_pipeline/learning/methods/__init__.py") == "lt_pipeline.learning.methods"
    assert module_of("lt_pipeline/learning/methods/ce.py") == "lt_pipeline.learning.methods.ce"
