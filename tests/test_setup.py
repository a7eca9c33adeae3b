"""What a fresh clone stands on: Makefile, pinned versions, CI, licence."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from toys import PROJECT

PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))


def check_schema(schema: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Validate against a schema that check-jsonschema ships; no network."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def check_workflow(path: Path) -> subprocess.CompletedProcess[str]:
    return check_schema("vendor.github-workflows", path)


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


@pytest.mark.slow
def test_settings_leave_the_garbage_collector_on():
    code = "import gc, lt_pipeline.settings; print(gc.isenabled(), gc.get_freeze_count() > 100_000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_a_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # what is installed is not the question here
        given = [f"BIN={Path(sys.executable).parent}", "-o", ".venv/.core", f"PORT={port}"]
        done = subprocess.run(["make", "ui", *given], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == f"port {port} is in use: choose another one with PORT=..."


def test_ci_covers_the_supported_pythons_and_runs_what_ci_runs_here():
    jobs = yaml.safe_load((PROJECT / ".github/workflows/ci.yml").read_text())["jobs"]
    asked = SpecifierSet(PYPROJECT["project"]["requires-python"])
    supported = [f"3.{minor}" for minor in range(8, 14) if asked.contains(f"3.{minor}")]
    assert jobs["test"]["strategy"]["matrix"]["python"] == supported
    assert "bash .ci/run" in [step.get("run") for step in jobs["test"]["steps"]]
    assert "make run" in [step.get("run") for step in jobs["run"]["steps"]]


def commands(markdown: str) -> list[str]:
    """Return the lines of a page's shell blocks."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", markdown, flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def test_ci_calls_the_readmes_own_test_command_with_the_slow_tests(clone):
    readme = commands((PROJECT / "README.md").read_text())
    assert {"make run", "make test-all"} <= set(readme)
    assert "make test-all" in (PROJECT / ".ci/run").read_text().splitlines()
    quick, whole = (dry(clone, target).splitlines()[-1] for target in ("test", "test-all"))
    assert quick == f'{whole} -m "not slow"'
    assert (PROJECT / ".ci/run").stat().st_mode & 0o111


DOCS = PROJECT / "docs"
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
ENVIRONMENTS = {path.parent.name for path in (PROJECT / "conf").glob("*/globals.yml")} - {"base"}


def ids(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(page: Path) -> set[str]:
    """Return what the first cells of a page's tables name in code."""
    cells = re.findall(r"^\|([^|]*)\|", page.read_text(), flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_between_pages_lead_somewhere(page):
    for link, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", prose(page)):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_environment_and_pipeline_of_a_page_is_there(page, pipeline_names):
    text = page.read_text()
    written = {"photos"}  # by the audit that the page begins with
    assert set(re.findall(r"--env=(\w+)", text)) <= ENVIRONMENTS | written
    named = re.findall(r"--pipelines?=(\w+)(?:,(\w+))?", text)
    assert {name for names in named for name in names if name} <= pipeline_names


@pytest.fixture(scope="module")
def pipeline_names():
    from lt_pipeline.pipeline_registry import makers

    names = {}
    for path in (PROJECT / "conf/base").glob("parameters*.yml"):
        names |= yaml.safe_load(path.read_text())
    return set(makers(names))


def test_the_readme_is_short_and_has_an_environment_to_choose():
    text = (PROJECT / "README.md").read_text()
    assert len(text.split()) <= 750
    assert re.findall(r"--env=(\w+)", text)


def test_every_method_and_environment_has_a_row():
    from lt_pipeline.learning import methods

    assert set(methods.available()) <= rows(DOCS / "methods/README.md")
    assert rows(DOCS / "data.md") >= ENVIRONMENTS


def test_every_page_is_in_the_index():
    index = DOCS / "README.md"
    linked = re.findall(r"\]\(([^)#:]+)\)", index.read_text())
    named = {(DOCS / link).resolve() for link in linked}
    assert {page.resolve() for page in PAGES} - {index} <= named


def test_every_page_that_code_and_conf_send_a_reader_to_is_there():
    files = [PROJECT / "Makefile", *PROJECT.glob("conf/**/*.yml"), *PROJECT.glob("src/**/*.py")]
    named = {page for file in files for page in re.findall(r"\bdocs/[\w/]+\.md", file.read_text())}
    assert named
    assert not [page for page in named if not (PROJECT / page).exists()]


def test_the_readmes_dag_is_the_pipelines():
    from lt_pipeline.pipelines import data_prep, method

    nodes = (data_prep.create_pipeline() + method.create_pipeline("more")).node_dependencies
    rests_on = {node.name: {other.name for other in inputs} for node, inputs in nodes.items()}
    wanted = {
        (before, name)
        for name, inputs in rests_on.items()
        for before in inputs - {far for near in inputs for far in rests_on[near]}
    }
    drawn = re.findall(r"^  (\S+) --> (\S+)$", (PROJECT / "README.md").read_text(), flags=re.M)
    assert sorted(drawn) == sorted(wanted)


def test_the_citation_is_valid_and_has_the_papers_of_all_figures():
    path = PROJECT / "CITATION.cff"
    done = check_schema("vendor.citation-file-format", path)
    assert done.returncode == 0, done.stdout + done.stderr
    citation = yaml.safe_load(path.read_text())
    assert citation["license"] == PYPROJECT["project"]["license"]
    papers = yaml.safe_load((PROJECT / "conf/base/papers.yml").read_text())
    told = [reference["notes"].split(":")[0] for reference in citation["references"]]
    assert sorted(told) == sorted({table["paper"] for table in papers})


def pins(lines: list[str]) -> dict[str, str]:
    """Return version by name; ValueError for a line that is not `name==version[; marker]`."""
    versions = {}
    for line in lines:
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)(; .+)?", line)
        if not match or Requirement(line).url or match[1] != canonicalize_name(match[1]):
            raise ValueError(line)
        versions[match[1]] = match[2]
    return versions


CONSTRAINTS = (PROJECT / "constraints.txt").read_text().splitlines()


@pytest.mark.parametrize(
    "line",
    [
        "-e .",
        "torch>=2.11",
        "Flask==3.1.3",
        "ruamel.yaml==0.19.1",
        "torch @ https://example.org/torch.whl",
        "torch==2.15.0 # of this machine",
        "torch==2.15.0+cpu",
        "",
    ],
)
def test_a_constraint_that_is_no_plain_pin_is_refused(line):
    with pytest.raises(ValueError, match="^" + re.escape(line)):
        pins(["numpy==2.4.6", line])


def test_constraints_are_sorted_plain_pins_each_named_once():
    assert sorted(CONSTRAINTS) == CONSTRAINTS
    assert len(pins(CONSTRAINTS)) == len(CONSTRAINTS)
    assert not {"lt-pipeline", "pip", "setuptools"} & set(pins(CONSTRAINTS))


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    return [Requirement(r) for r in [*project["dependencies"], *extras["dev"]]]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_what_is_asked_for(requirement):
    pinned = pins(CONSTRAINTS)[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)
    assert version(requirement.name).split("+")[0] == pinned


def test_every_extra_is_pinned_within_what_is_asked_for():
    pinned = pins(CONSTRAINTS)
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    for requirement in [Requirement(line) for extra in extras for line in extra]:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


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
        if path.suffix in {".png", ".lock", ".xz", ".npz"} or not path.is_file():
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


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call make as a person would, though `make test` may be what runs this test."""
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON", "PORT", "ARGS"}
    env = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True)


def dry(folder: Path, *arguments: str) -> str:
    done = make(folder, "-n", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_call_installs_and_the_second_does_not(clone):
    called = {
        "run": "kedro run --pipeline=more",
        "test": "pytest",
        "viz": "kedro viz run",
        "pictures": "docs/pictures.py",
    }
    for target, words in called.items():
        assert "pip install" in dry(clone, target)
        assert words in dry(clone, target)
        assert "venv --clear" in dry(clone, target)
    (clone / ".venv").mkdir()
    for stamp in (".python", ".core", ".dev", ".viz", ".pictures"):
        (clone / ".venv" / stamp).touch()
    for target in called:
        assert "pip install" not in dry(clone, target)
        assert "venv --clear" not in dry(clone, target)
    later = (clone / ".venv" / ".dev").stat().st_mtime + 60
    for changed in ("pyproject.toml", "constraints.txt"):
        before = (clone / changed).stat().st_mtime
        os.utime(clone / changed, (later, later))
        assert "pip install" in dry(clone, "run")
        os.utime(clone / changed, (before, before))
    (clone / ".venv" / ".core").unlink()
    assert "pip install" in dry(clone, "run")


# Stands for Python: `-m venv` copies it into .venv, and `-m pip` fails as long as `cut` exists.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"-m pip"*) echo installed >> pip.log; [ ! -e cut ] ;;
esac
"""


def test_an_install_that_was_cut_off_is_done_again_and_only_then(clone):
    fake = clone / "fake-python"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    (clone / "cut").touch()
    assert make(clone, "install", f"PYTHON={fake}").returncode != 0
    (clone / "cut").unlink()
    for _ in range(2):
        assert make(clone, "install", f"PYTHON={fake}").returncode == 0
    assert (clone / "pip.log").read_text().splitlines() == ["installed"] * 2


def test_arguments_reach_kedro_and_every_target_is_in_the_help(clone):
    assert "kedro run --pipeline=more --params=seed=1" in dry(clone, "run", "ARGS=--params=seed=1")
    shown = make(clone).stdout
    declared = re.search(r"^\.PHONY: (.+)$", (clone / "Makefile").read_text(), flags=re.MULTILINE)
    assert declared
    assert [line.split()[0] for line in shown.splitlines()] == declared[1].split()


def test_clean_runs_deletes_what_runs_made_and_keeps_downloads(clone):
    kept = ["data/01_raw/cifar/batch", "data/01_raw/.gitkeep", "data/06_models/.gitkeep"]
    made = ["data/06_models/digits/more/model.safetensors", "mlflow.db", "mlruns/1/meta"]
    for name in kept + made:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    assert make(clone, "clean-runs").returncode == 0
    assert all((clone / name).exists() for name in kept)
    assert not any((clone / name).exists() for name in made)
    assert not (clone / "data/06_models/digits").exists()


def test_the_commit_hooks_are_local_and_check_what_make_lint_checks():
    repos = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = repos[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy", "lint-imports"]


# It would make a .venv if it were asked to, so only the check can stop it.
OLD_PYTHON = """#!/bin/sh
case "$*" in
  *"-m venv"*) mkdir .venv ;;
  *--version*) echo Python 3.9.1 ;;
  -c*) exit 1 ;;
esac
"""


def test_an_old_python_is_refused_by_make(clone):
    old = clone / "old-python"
    old.write_text(OLD_PYTHON)
    old.chmod(0o755)
    done = make(clone, ".venv/.python", f"PYTHON={old}")
    assert done.returncode != 0
    assert "Python >= 3.11 is needed" in done.stderr
    assert "Python 3.9.1" in done.stderr
    assert not (clone / ".venv").exists()
