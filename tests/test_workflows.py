"""The GPU workflows' own scripts, run here."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from lt_pipeline.learning import methods
from lt_pipeline.tuning import summary
from lt_pipeline.tuning.space import Space
from lt_pipeline.tuning.study import trials_table
from lt_pipeline.tuning.summary import main, markdown
from toys import PROJECT

WORKFLOWS = PROJECT / ".github/workflows"


def script(workflow: str, job: str, step: str) -> str:
    steps = yaml.safe_load((WORKFLOWS / workflow).read_text())["jobs"][job]["steps"]
    (lines,) = [s["run"] for s in steps if s.get("name") == step]
    return lines


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


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A folder whose kedro writes down what it was called with."""
    program(
        tmp_path / ".venv/bin/kedro",
        'printf "%s\\n" "$@" > called\n'
        'echo "${OPTUNA_STORAGE-unset} ${MLFLOW_TRACKING_URI-unset}" > secrets',
    )
    return tmp_path


BOTH = "method=dbm,tune.trials=7,tune.timeout=79200"


@pytest.mark.parametrize(
    ("worker", "more", "wanted"),
    [
        ("1", "", BOTH),
        ("2", "", f"{BOTH},tune.test_best=false"),
        ("1", "training.epochs=5,seed=1", f"{BOTH},training.epochs=5,seed=1"),
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


def test_no_trial_starts_so_late_that_github_would_end_it():
    job = yaml.safe_load((WORKFLOWS / "gpu-sweep.yml").read_text())["jobs"]["sweep"]
    (limit,) = re.findall(r"tune\.timeout=(\d+)", script("gpu-sweep.yml", "sweep", "Sweep"))
    assert 60 * job["timeout-minutes"] - int(limit) >= 7200


@pytest.mark.parametrize(
    ("workflow", "job"), [("gpu-sweep.yml", "sweep"), ("gpu-tests.yml", "test")]
)
def test_a_second_job_finds_what_the_first_one_kept(tmp_path, workflow, job):
    first, second, *_ = yaml.safe_load((WORKFLOWS / workflow).read_text())["jobs"][job]["steps"]
    assert first["uses"].startswith("actions/checkout@")
    assert first["with"]["clean"] is False, "or it deletes all that git ignores"
    assert second["name"] == "Clean"
    kept = [
        ".venv/bin/python",
        "data/01_raw/cifar/x.bin",
        "data/06_models/digits/tune/more/journal.log",
        "data/06_models/digits/tune/more/trials/abc/train.pt",
        "mlflow.db",
        "mlartifacts/digits/a.json",
    ]
    reports = ["data/08_reporting/old/tune/more/trials.csv", "data/08_reporting/old/more/m.json"]
    for name in (*kept, *reports, "gpu-reports/old.csv", "src/gone/module.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(PROJECT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", ".gitignore"], cwd=tmp_path, check=True)
    done = bash(script(workflow, job, "Clean"), tmp_path)
    assert done.returncode == 0, done.stderr
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    left = {name for name in left if not name.startswith(".git")}
    # the summary of a sweep is of that one only
    assert left == {*kept, *(reports[1:] if job == "sweep" else reports)}


VALUES = (0.5, 0.25, 0.75, None, 0.875)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """What a sweep leaves of trials that ended, one that broke and one that was stopped."""
    study = optuna.create_study(direction="maximize")
    states = [TrialState.COMPLETE] * 3 + [TrialState.FAIL, TrialState.PRUNED]
    for value, state in zip(VALUES, states, strict=True):
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value,
                params={"options.rank": 0.1},
                distributions={"options.rank": FloatDistribution(0.1, 0.4)},
            )
        )
    space = Space.read({"options": {"rank": {"low": 0.1, "high": 0.4}}}, "more_search")
    folder = tmp_path / "data/08_reporting/digits/tune/more"
    folder.mkdir(parents=True)
    trials_table(study, space).to_csv(folder / "trials.csv", index=False)
    judged = {"test/accuracy": 0.75, "validation/mean_recall": 0.5, "cost/seconds": 1.0}
    (folder / "tested.json").write_text(json.dumps(judged))
    return folder


def test_the_summary_has_the_best_trials_first_and_the_test_set_last(sweep):
    lines = markdown(sweep).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines if "| 0.1 |" in line]
    assert lines[0] == "5 trials, 3 of them to the end; the best 3:"
    assert lines[2].startswith("| trial | validation/mean_recall | ")
    assert rows == [["2", "0.75"], ["0", "0.5"], ["1", "0.25"]]
    assert lines[-1] == "| test/accuracy | 0.75 |"
    assert "cost" not in "".join(lines)


def test_the_summary_has_the_best_few_of_many_trials(sweep, monkeypatch):
    monkeypatch.setattr(summary, "SHOWN", 2)
    assert "3 of them to the end; the best 2:" in markdown(sweep)
    assert "| 1 | 0.25 |" not in markdown(sweep)


def test_a_machine_that_only_helped_has_no_empty_table(sweep):
    (sweep / "tested.json").write_text("{}")
    lines = markdown(sweep).splitlines()
    assert lines[-1].startswith("The test set is not read yet")
    assert not [line for line in lines if "test set |" in line]


def test_a_sweep_that_never_ended_is_said_in_a_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{tmp_path} has no trials.csv: no sweep has ended there\n"


@pytest.mark.slow
def test_the_summary_step_writes_a_table(sweep, tmp_path):
    program(tmp_path / ".venv/bin/python", f'exec {sys.executable} "$@"')
    page = tmp_path / "summary.md"
    names = {"METHOD": "more", "ENVIRONMENT": "base", "WORKER": "1"}
    paths = {"GITHUB_STEP_SUMMARY": str(page), "PYTHONPATH": str(PROJECT / "src")}
    done = bash(script("gpu-sweep.yml", "sweep", "Summary"), tmp_path, **names, **paths)
    assert done.returncode == 0, done.stderr
    assert page.read_text().startswith("## more on base, worker 1\n5 trials, 3 of")
    assert "| test/accuracy | 0.75 |" in page.read_text()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A clone with an environment that is up to date, and whose Python writes down its calls.

    CUDA is there if the file ``cuda`` is.
    """
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    program(
        tmp_path / ".venv/bin/python",
        'echo "$*" >> calls\n'
        '[ "$1" != -c ] || [ -e cuda ] || { echo "no CUDA device" >&2; exit 1; }',
    )
    for name in (".python", ".core", ".dev"):
        (tmp_path / ".venv" / name).touch()
    return tmp_path


def test_the_install_step_brings_the_driver_of_the_storage(installed):
    done = bash(script("gpu-sweep.yml", "sweep", "Install"), installed)
    assert done.returncode == 0, done.stderr
    (call,) = (installed / "calls").read_text().splitlines()
    assert call.startswith("-m pip install")
    assert call.endswith("-e .[postgres]")


def test_the_gpu_is_shown_before_it_is_tested(tmp_path):
    program(tmp_path / "bin/nvidia-smi", 'echo "$*" > called')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    text = script("gpu-tests.yml", "test", "The GPU")
    assert bash(text, tmp_path, PATH=path).returncode == 0
    assert "--query-gpu=name" in (tmp_path / "called").read_text()
    program(tmp_path / "bin/nvidia-smi", "exit 9")
    assert bash(text, tmp_path, PATH=path).returncode == 9


def test_gpu_tests_are_run_where_cuda_is_and_fail_elsewhere(installed):
    text = script("gpu-tests.yml", "test", "Tests on the GPU")
    done = bash(text, installed)
    assert done.returncode != 0
    assert "no CUDA device" in done.stderr
    assert "pytest" not in (installed / "calls").read_text()
    (installed / "cuda").touch()
    assert bash(text, installed).returncode == 0
    assert (installed / "calls").read_text().splitlines()[-1] == "-m pytest -m gpu"


def test_the_cost_step_writes_the_tables_of_both_benchmarks_to_the_page(tmp_path, monkeypatch):
    """The benchmarks themselves take their arguments, but measure nothing."""
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    monkeypatch.syspath_prepend(PROJECT)
    text = """
        echo "$*" >> calls
        for out; do :; done
        case "$out" in gpu-reports) out=gpu-reports/throughput.csv ;; build/*) exit ;; esac
        echo "table of $1 $2" > "$out"
    """
    program(tmp_path / ".venv/bin/python", text)
    page = tmp_path / "summary.md"
    done = bash(
        script("gpu-tests.yml", "test", "Cost of a step"), tmp_path, GITHUB_STEP_SUMMARY=str(page)
    )
    assert done.returncode == 0, done.stderr
    assert page.read_text().splitlines() == [
        "table of -m benchmarks.gpu",
        "table of benchmarks/together_cost.py --methods",
    ]
    packed, measured, together = map(str.split, (tmp_path / "calls").read_text().splitlines())
    asked = [told(words[2], words[3:]) for words in (packed, measured)]
    assert asked[0].out == asked[1].pack, "what is packed is measured"
    assert {*asked[0].methods} <= {*methods.available()}
    monkeypatch.setattr(sys, "argv", together)
    assert importlib.import_module("together_cost").parse().out.parent == asked[1].out


def told(command: str, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"benchmarks.gpu.{command}").add_arguments(parser)
    return parser.parse_args(words)


def test_every_script_of_the_gpu_workflows_is_run_here():
    told = Path(__file__).read_text()
    for workflow in ("gpu-sweep.yml", "gpu-tests.yml"):
        for job in yaml.safe_load((WORKFLOWS / workflow).read_text())["jobs"].values():
            for step in job["steps"]:
                assert "run" not in step or f'"{step["name"]}")' in told, step
