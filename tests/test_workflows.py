"""The GPU workflows' own scripts, run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lt_pipeline.tuning.summary import main, markdown
from toys import PROJECT

WORKFLOWS = PROJECT / ".github/workflows"


def script(workflow: str, job: str, step: str) -> str:
    steps = yaml.safe_load((WORKFLOWS / workflow).read_text())["jobs"][job]["steps"]
    (found,) = [s["run"] for s in steps if s.get("name") == step]
    return found


def bash(text: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a step as GitHub does."""
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("workers", "storage", "wanted"),
    [("1", "", [1]), ("3", "postgresql://host/sweeps", [1, 2, 3]), ("12", "x", [*range(1, 13)])],
)
def test_a_sweep_has_a_job_for_each_worker(tmp_path, workers, storage, wanted):
    output = tmp_path / "output"
    names = {"WORKERS": workers, "STORAGE": storage, "GITHUB_OUTPUT": str(output)}
    done = bash(script("gpu-sweep.yml", "plan", "Workers"), tmp_path, **names)
    assert done.returncode == 0, done.stderr
    name, value = output.read_text().strip().split("=")
    assert name == "workers"
    assert json.loads(value) == wanted


@pytest.mark.parametrize(
    ("workers", "storage", "message"),
    [
        ("2", "", "2 workers need one storage: set the secret OPTUNA_STORAGE"),
        ("0", "x", "workers must be a number from 1 to 99, but is '0'"),
        ("two", "x", "but is 'two'"),
    ],
)
def test_workers_that_cannot_work_together_stop_the_sweep(tmp_path, workers, storage, message):
    names = {"WORKERS": workers, "STORAGE": storage, "GITHUB_OUTPUT": str(tmp_path / "output")}
    done = bash(script("gpu-sweep.yml", "plan", "Workers"), tmp_path, **names)
    assert done.returncode == 1
    assert message in done.stdout
    assert not (tmp_path / "output").exists()


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder whose kedro writes down what it was called with."""
    binary = tmp_path / ".venv/bin/kedro"
    binary.parent.mkdir(parents=True)
    binary.write_text(
        '#!/bin/bash\nprintf "%s\\n" "$@" > called\n'
        'echo "${OPTUNA_STORAGE-unset} ${MLFLOW_TRACKING_URI-unset}" > secrets\n'
    )
    binary.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("worker", "more", "wanted"),
    [
        ("1", "", "method=dbm,tune.trials=7"),
        ("2", "", "method=dbm,tune.trials=7,tune.judge=false"),
        ("1", "training.epochs=5,seed=1", "method=dbm,tune.trials=7,training.epochs=5,seed=1"),
    ],
)
def test_every_worker_joins_the_study_and_one_judges(stand_in, worker, more, wanted):
    names = {"METHOD": "dbm", "ENVIRONMENT": "cifar100_lt", "TRIALS": "7", "MORE": more}
    secrets = {"OPTUNA_STORAGE": "", "MLFLOW_TRACKING_URI": "http://host:5000"}
    text = script("gpu-sweep.yml", "sweep", "Sweep")
    done = bash(text, stand_in, WORKER=worker, **names, **secrets)
    assert done.returncode == 0, done.stderr
    called = (stand_in / "called").read_text().split()
    assert called == ["run", "--pipelines=tune", "--env=cifar100_lt", f"--params={wanted}"]
    assert (stand_in / "secrets").read_text() == "unset http://host:5000\n"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "data/08_reporting/digits/tune/more"
    folder.mkdir(parents=True)
    trials = {"trial": range(12), "value": [t / 20 for t in range(12)], "rank": [0.1] * 12}
    pd.DataFrame(trials).to_csv(folder / "trials.csv", index=False)
    (folder / "judged.json").write_text(json.dumps({"test": {"accuracy": 0.75}, "cost": {"s": 1}}))
    return folder


def test_the_summary_has_the_best_trials_first_and_the_test_set_last(sweep):
    lines = markdown(sweep).splitlines()
    rows = [line for line in lines if line.startswith("| 1")]
    assert lines[0] == "12 trials; the best 10:"
    assert rows[0].split("|")[1:3] == [" 11 ", " 0.55 "]
    assert lines[-1] == "| test/accuracy | 0.75 |"
    assert "cost" not in "".join(lines)


def test_a_sweep_that_never_ended_is_said_in_a_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{tmp_path} has no trials.csv: no sweep has ended there\n"


def test_the_summary_step_writes_a_table(sweep, tmp_path):
    binary = tmp_path / ".venv/bin/python"
    binary.parent.mkdir(parents=True)
    binary.write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    binary.chmod(0o755)
    page = tmp_path / "summary.md"
    names = {"METHOD": "more", "ENVIRONMENT": "base", "WORKER": "1"}
    paths = {"GITHUB_STEP_SUMMARY": str(page), "PYTHONPATH": str(PROJECT / "src")}
    done = bash(script("gpu-sweep.yml", "sweep", "Summary"), tmp_path, **names, **paths)
    assert done.returncode == 0, done.stderr
    assert page.read_text().startswith("## more on base, worker 1\n12 trials")
    assert "| test/accuracy | 0.75 |" in page.read_text()
