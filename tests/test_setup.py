"""What a fresh clone stands on: Makefile, pinned versions, CI, licence."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from toys import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))


def check_workflow(path: Path) -> subprocess.CompletedProcess[str]:
    """Validate against the schema that check-jsonschema ships; no network."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema"),
            *("--builtin-schema", "vendor.github-workflows", str(path)),
        ],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_valid(path):
    done = check_workflow(path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_broken_workflow_is_not_valid(tmp_path):
    workflow = yaml.safe_load(WORKFLOWS[0].read_text())
    del next(iter(workflow["jobs"].values()))["runs-on"]
    broken = tmp_path / "broken.yml"
    broken.write_text(yaml.safe_dump(workflow))
    assert check_workflow(broken).returncode != 0


def test_ci_covers_the_supported_pythons_and_runs_what_ci_runs_here():
    jobs = yaml.safe_load((PROJECT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"
    assert "bash .ci/run" in [step.get("run") for step in jobs["test"]["steps"]]
    assert "make run" in [step.get("run") for step in jobs["run"]["steps"]]


def commands(markdown: str) -> list[str]:
    """Return the lines of a page's shell blocks."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", markdown, flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_ci_calls_the_readmes_own_test_command():
    readme = commands((PROJECT / "README.md").read_text())
    assert {"make run", "make test"} <= set(readme)
    assert "make test" in (PROJECT / ".ci/run").read_text().splitlines()
    assert (PROJECT / ".ci/run").stat().st_mode & 0o111


def test_every_environment_of_the_readme_is_there():
    text = (PROJECT / "README.md").read_text()
    named = set(re.findall(r"--env[= ](\w+)", text))
    assert named
    assert all((PROJECT / "conf" / name).is_dir() for name in named)


def test_links_between_pages_lead_somewhere():
    for page in [PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def pins() -> dict[str, str]:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    found = [re.fullmatch(r"([a-z0-9.-]+)==([0-9][0-9a-z.]*)", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {match[1]: match[2] for match in found if match}


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    return [Requirement(r) for r in [*project["dependencies"], *extras["dev"]]]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_what_is_asked_for(requirement):
    pinned = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)
    assert version(requirement.name).split("+")[0] == pinned


def test_nothing_committed_names_a_machine_or_a_registry():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    # written in pieces, so that this file does not find itself
    marks = ["/" + "root/", "/" + "work/", "pypi" + ".org/simple", "files.python" + "hosted"]
    for name in listed.stdout.splitlines():
        path = PROJECT / name
        if path.suffix in {".png", ".lock"} or not path.is_file():
            continue
        text = path.read_text()
        assert not [mark for mark in marks if mark in text], name


def test_the_licence_is_apache_2():
    text = (PROJECT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert PYPROJECT["project"]["license"] == "Apache-2.0"


@pytest.fixture
def clone(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    return tmp_path


def dry(folder: Path, target: str) -> str:
    done = subprocess.run(["make", "-n", target], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_call_installs_and_the_second_does_not(clone):
    for target, words in (("run", "kedro run --pipeline=more"), ("test", "pytest")):
        assert "pip install" in dry(clone, target)
        assert words in dry(clone, target)
    (clone / ".venv").mkdir()
    for stamp in (".python", ".core", ".dev"):
        (clone / ".venv" / stamp).touch()
    for target in ("run", "test"):
        assert "pip install" not in dry(clone, target)
        assert "venv --clear" not in dry(clone, target)
    (clone / ".venv" / ".core").unlink()
    assert "pip install" in dry(clone, "run")


def test_an_old_python_is_refused_by_make(clone):
    old = clone / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = "-c" ] && exit 1\necho Python 3.9.1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", ".venv/.python", f"PYTHON={old}"], cwd=clone, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Python >= 3.11 is needed" in done.stderr
    assert "Python 3.9.1" in done.stderr
