"""A run from Python, or from another folder, is a run; threads are none."""

from __future__ import annotations

import sys

import pytest
from pipeline_projects import copy_project

pytestmark = pytest.mark.slow

START = """
import threading, time
from pathlib import Path
from kedro.framework.session import KedroServiceSession, KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.runner import SequentialRunner, ThreadRunner

PROJECT = Path({folder!r})
bootstrap_project(PROJECT)

def run(parameters=None, **asked):
    with KedroSession.create(PROJECT, env="smoke", runtime_params=parameters) as session:
        return session.run(**asked)

def refused(**asked):
    try:
        run(**asked)
    except Exception as error:
        print("REFUSED", error)

"""


@pytest.fixture(scope="module")
def untouched(tmp_path_factory, empty_database):
    """A project in which not even a folder for data is made."""
    return copy_project(tmp_path_factory.mktemp("untouched"), empty_database)


def python(project, script, **environment):
    code = START.format(folder=str(project.folder)) + script
    return project.run(sys.executable, "-c", code, **environment)


def nothing_was_written(project):
    made = {path.name for path in project.folder.iterdir()} & {"data", "mlartifacts", "mlruns"}
    return not made and project.runs == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("--runner=ThreadRunner", "--runner=ThreadRunner"),
        ("--runner=ParallelRunner", "--runner=ParallelRunner"),
        ("--runner=kedro.runner.ThreadRunner", "--runner=kedro.runner.ThreadRunner"),
        ("--runner=Nonexistent", "--runner=Nonexistent"),
        ("--async", "--async"),
        ("--runner-params=is_async=True", "is_async"),
    ],
)
def test_other_runners_are_refused_from_the_command_line(untouched, given, named):
    code, output = untouched.run("kedro", "run", "--pipelines=ce", "--env=smoke", given)
    assert code == 1
    (line,) = output.strip().splitlines()
    assert line.startswith("Error: runs take the SequentialRunner without --async: ")
    assert f"Leave {named} out" in line
    assert "processes" in line
    assert nothing_was_written(untouched)


def test_what_is_wrong_is_refused_from_python_too(untouched):
    code, output = python(
        untouched,
        'refused(pipeline_names=["ce"], runner=ThreadRunner())\n'
        'refused(pipeline_names=["ce"], runner=SequentialRunner(is_async=True))\n'
        'refused(pipeline_names=["bmt"])\n'
        'refused(pipeline_name="bmt")\n',
    )
    assert code == 0, output
    lines = [line for line in output.splitlines() if line.startswith("REFUSED")]
    assert [line.partition("valid: ")[0] for line in lines[2:]] == [
        "REFUSED unknown pipeline 'bmt': did you mean 'dbm'? "
    ] * 2
    assert "Leave ThreadRunner out" in lines[0]
    assert "Leave is_async out" in lines[1]
    assert nothing_was_written(untouched)


def test_runs_from_python_have_the_stages_of_their_parameters(project):
    """One after the other in one process, each as many branches as it asks for."""
    code, output = python(
        project,
        "short = {'training': {'epochs': 1}}\n"
        "for sets in (None, 2):\n"
        "    more = {'btm': {'options': {'branches': {'sets': sets}}}} if sets else {}\n"
        "    run({**short, **more}, pipeline_names=['btm'], to_nodes=['btm.merge'])\n"
        "    made = list(PROJECT.glob('data/08_reporting/**/btm/branch_*_history.json'))\n"
        "    print('BRANCHES', len(made))\n"
        "    for path in made: path.unlink()\n",
    )
    assert code == 0, output
    assert [line for line in output.splitlines() if line.startswith("BRANCHES")] == [
        "BRANCHES 3",
        "BRANCHES 2",
    ]
    assert [run.info.status for run in project.runs] == ["FINISHED"] * 2


def test_of_two_sessions_in_threads_one_is_refused(project):
    code, output = python(
        project,
        "session = KedroServiceSession.create(\n"
        "    project_path=PROJECT, env='smoke', serving_mode=True)\n"
        "def go(name):\n"
        "    try:\n"
        "        session.run(pipeline_names=[name], to_nodes=[f'{name}.finish'])\n"
        "        print('DONE', name)\n"
        "    except Exception as error:\n"
        "        print('REFUSED', error)\n"
        "threads = [threading.Thread(target=go, args=(name,)) for name in ('ce', 'cb')]\n"
        "for thread in threads: thread.start(); time.sleep(1)\n"
        "for thread in threads: thread.join()\n"
        "go('cb')\n",
    )
    assert code == 0, output
    told = [line for line in output.splitlines() if line.startswith(("DONE", "REFUSED"))]
    assert told[0].startswith("REFUSED another session of this process is at work in another")
    assert "process of its own" in told[0]
    assert [line.partition(" ")[0] for line in told] == ["REFUSED", "DONE", "DONE"]
    assert [run.info.status for run in project.runs] == ["FINISHED"] * 2


def test_a_run_from_a_folder_of_the_project_logs_as_the_project_says(project):
    """But for one line of Kedro's own, before it knows of the project."""
    nodes = ("--nodes=data_prep.make_sets", "--env=smoke", "--pipelines=data_prep")
    for cwd in (project.folder, project.folder / "src"):
        code, output = project.run("kedro", "run", *nodes, cwd=cwd)
        assert code == 0, output
        assert project.file("03_primary", "smoke", "data_card.json").exists()
        assert "Kedro project lt_pipeline" not in output, "conf/logging.yml was not read"
        assert "No typed parameter requirements" not in output


@pytest.mark.parametrize("given", [("--env=smoke",), ()])
def test_a_folder_that_is_no_project_is_said(untouched, tmp_path, given):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code, output = untouched.run(sys.executable, "-m", "lt_pipeline", *given, cwd=elsewhere)
    assert code == 1
    assert output.strip().splitlines()[-1] == (
        f"Error: there is no {elsewhere / 'conf'}: run it in the project's folder, or name one "
        f"with --conf-source"
    )
    assert "Traceback" not in output
    assert list(elsewhere.iterdir()) == []
