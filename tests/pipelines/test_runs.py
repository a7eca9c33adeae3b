"""Other ways to run, and what happens when something is wrong or breaks off."""

from __future__ import annotations

import json
import signal
import sys
import time

import pytest
import torch
from pipeline_projects import PROJECT, Project, copy_project, own
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def model_of(project: Project, method="more", folder="smoke"):
    return load_file(project.file("06_models", folder, method, "model.safetensors"))


def test_a_run_from_any_folder_follows_the_hold_out_and_the_test_set_when_asked(project):
    """MLflow's file is the project's, wherever the command runs."""
    params = "data.validation=0.2,training.monitor_test=true,training.epochs=3"
    output = project.kedro(
        *("--pipelines=ce", "--env=smoke", f"--params={params},evaluation.ood=false"),
        cwd=project.folder / "src",
    )
    assert len(project.runs) == 1
    assert not (project.folder / "src" / "mlflow.db").exists()
    assert not (project.folder / "src" / "mlruns").exists()
    assert (project.folder / "mlartifacts" / "digits-lt-ir10").is_dir()
    assert "net.head.weight" in model_of(project, "ce", own(params))
    assert "last epoch" in output
    folder = project.file("08_reporting", own(params), "ce")
    history = json.loads((folder / "train_history.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("validation", "test"):
        values = [p["value"] for p in history[f"{name}/accuracy"]]
        assert len(values) == 3
        best = metrics["best_epoch"][name]
        assert best["accuracy"] == max(values)
        assert values[int(best["epoch"]) - 1] == max(values)
    assert metrics["test"]["accuracy"] == pytest.approx(history["test/accuracy"][-1]["value"])


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path, project, empty_database):
    other = tmp_path / "other"
    other.mkdir()
    whole = copy_project(other, empty_database)
    # a state after every epoch makes no folder of its own
    params = "training.epochs=60,training.checkpoint_every=0,evaluation.ood=false"
    arguments = ("--pipeline=more", "--env=smoke", f"--params={params}")
    folder = own("training.epochs=60")
    state = project.file("06_models", folder, "more", "progress", "train.pt")
    process = project.start("kedro", "run", *arguments)
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = torch.load(state, weights_only=True)["state"]["epoch"]
    assert 1 <= saved < 60, "the run was over before it was killed"
    output = project.kedro(*arguments)
    assert f"resumes after epoch {saved}" in output
    states = [run.info.status for run in project.runs]
    assert sorted(states) == ["FINISHED", "KILLED"]
    whole.kedro(*arguments, "--to-nodes=more.finish")
    one, two = (model_of(source, folder=folder) for source in (project, whole))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pipeline=mor"], "Error: unknown pipeline 'mor': did you mean 'more'?"),
        (["--params=data.source=cifar1"], "Error: data.source: unknown source 'cifar1'"),
        (["--params=data.imbalance_ratio=0.5"], "Error: data.imbalance_ratio: "),
        (["--params=more.options.rank=0"], "Error: more.options.rank: "),
        (["--params=more.options.amplitud=1"], "did you mean 'amplitude'"),
        (["--params=trainin.epochs=1"], "did you mean 'training'"),
        (["--params=device=cuda:7"], "Error: device 'cuda:7' cannot be used here"),
        (["--pipelines=ce,more"], "Error: a run is of one method"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(untouched, arguments, message):
    code, output = untouched.run("kedro", "run", "--env=smoke", *arguments)
    assert code != 0
    lines = [line for line in output.splitlines() if message in line]
    assert len(lines) == 1, output
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in output
    assert not untouched.file("03_primary").exists()
    assert untouched.runs == []


def test_a_tail_too_long_for_the_data_is_said_before_anything_runs(untouched):
    code, output = untouched.run("kedro", "run", "--env=smoke", "--params=data.imbalance_ratio=100")
    assert code != 0
    assert output.splitlines()[-1] == (
        "Error: data.imbalance_ratio 100 leaves the rarest class without a training image, because "
        "the largest class has 60: it must be <= 60"
    )
    assert "Traceback" not in output
    assert not untouched.file("03_primary").exists()
    assert untouched.runs == []


def test_missing_files_are_one_line(untouched):
    code, output = untouched.run(
        *("kedro", "run", "--pipelines=more", "--env=cifar100_lt"), http_proxy="http://127.0.0.1:9"
    )
    assert code != 0
    assert "CIFAR100 is missing or damaged in" in output
    assert "put the files of cifar-100-python.tar.gz into" in output
    assert not untouched.file("03_primary").exists()


def test_a_tracking_server_that_is_not_there_is_said_before_training(untouched):
    started = time.monotonic()
    code, output = untouched.run(
        *("kedro", "run", "--pipelines=more", "--env=smoke"),
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )
    assert code != 0
    assert "Error: the MLflow tracking server http://127.0.0.1:9 cannot be reached" in output
    assert "MLFLOW_TRACKING_URI" in output
    assert not untouched.file("03_primary").exists()
    assert time.monotonic() - started < 60


TOY = '''
"""A toy method."""

from lt_pipeline.learning.methods.families.base import Method


class Doubled(Method):
    """Twice the criterion."""

    def loss(self, batch, progress):
        return {name: 2 * value for name, value in super().loss(batch, progress).items()}
'''


def test_a_new_method_is_one_file_and_one_file_of_parameters(project):
    (project.folder / "src/lt_pipeline/learning/methods/doubled.py").write_text(TOY)
    (project.folder / "conf/base/parameters_doubled.yml").write_text("doubled: {}\n")
    output = project.kedro("--pipelines=doubled", "--env=smoke", "--to-nodes=doubled.finish")
    assert "doubled" in output
    assert project.file("06_models", "smoke", "doubled", "model.safetensors").exists()
    contract = PROJECT / "tests" / "learning" / "methods" / "test_contract.py"
    code, output = project.run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "doubled"),
        *(f"--rootdir={project.folder}", str(contract)),
    )
    assert code == 0, output
    assert "passed" in output
