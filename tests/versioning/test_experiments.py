"""The table of DVC's experiments, from what ``dvc exp show --json`` gives."""

from __future__ import annotations

import json
import subprocess

import pytest
from click.testing import CliRunner
from rich.console import Console

from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, placed
from lt_pipeline.versioning import experiments

# all that a run with a hold-out has, of images with one label
FIRST = [m.name for m in placed("first") if m.from_recalls] + ["hold_out"]


def state(rev, name=None, metrics=None, params=None, queued=()):
    """One entry of DVC's: metrics by run and method, parameters by file."""
    files = {f"data/08_reporting/{where}/first.json": m for where, m in (metrics or {}).items()}
    data = {
        "metrics": {
            **{file: {"data": values} for file, values in files.items()},
            "data/08_reporting/digits/lws/first.json": {"error": {"type": "FileNotFoundError"}},
        },
        "params": {f"conf/{file}": {"data": values} for file, values in (params or {}).items()},
    }
    above = [{"revs": [one], "executor": None, "name": None} for one in queued]
    return {"rev": rev, "name": name, "data": data, "experiments": above}


def focal(gamma, method="focal"):
    block = {method: {"options": {"criterion": {"gamma": gamma, "name": "focal"}}}}
    return {f"base/parameters_{method}.yml": block}


def shown(*baselines, width=120):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(*experiments.tables(baselines, console))
    return [line.rstrip() for line in capture.get().splitlines() if line.strip()]


def test_columns_are_what_differs_headed_by_the_method():
    before = {"digits/focal": {"accuracy": 0.5, "few": 0.25}, "digits/ce": {"accuracy": 0.5}}
    after = {**before, "digits/focal": {"accuracy": 0.625, "few": 0.25}}
    steep = state("1" * 40, "steep", after, focal(4.0))
    lines = shown(state("0" * 40, "main", before, focal(2.0), [steep]))
    assert [line.split() for line in lines] == [
        ["focal"],
        ["options"],
        ["focal", "criterion"],
        ["experiment", "accuracy", "gamma"],
        ["─" * len(lines[4].strip())],
        ["main", "50.0", "%", "2.0"],
        ["steep", "62.5", "%", "4.0"],
    ]


def test_all_that_a_method_has_fits_120_columns_and_more_stands_below():
    def at(value, methods):
        metrics = {f"cifar100_lt/{method}": dict.fromkeys(FIRST, value) for method in methods}
        params = [focal(value, method) for method in methods]
        return {"metrics": metrics, "params": {k: v for block in params for k, v in block.items()}}

    assert len(FIRST) > 5
    for methods, tables in ((["focal"], 1), (["focal", "cb_focal"], 2)):
        other = state("1" * 40, "a-name-that-dvc-made", **at(0.75, methods))
        lines = shown(state("0" * 40, "main", **at(1.0, methods), queued=[other]))
        assert max(map(len, lines)) <= 120
        assert sum("experiment" in line for line in lines) == tables
        words = [w for line in lines if "a-name-that-dvc-made" in line for w in line.split()]
        assert words.count("75.0") == len(FIRST) * len(methods)
        assert words.count("0.75") == len(methods)


def test_what_was_not_run_yet_makes_no_metric_differ():
    before = {"digits/focal": {"accuracy": 0.5}}
    later = state("2" * 40, "later", None, focal(8.0))
    failed = {"rev": "3" * 40, "name": None, "data": None, "experiments": None, "error": {}}
    lines = shown(state("0" * 40, "main", before, focal(2.0), [later]), failed)
    assert "accuracy" not in " ".join(lines)
    assert lines[-2].split() == ["later", "8.0"]
    assert lines[-1].split() == ["3" * 9, "-"]


def test_the_same_of_two_environments_is_told_apart():
    def at(value):
        metrics = {f"{run}/ce": {"lowest_recall": value} for run in ("digits", "smoke")}
        return {"metrics": metrics, "params": focal(value)}

    lines = shown(state("a", "main", **at(0.5)), state("b", "other", **at(0.25)))
    words = [line.split() for line in lines]
    assert words[0] == ["digits", "smoke", "focal"]
    assert "base" not in " ".join(lines)
    assert words[-1] == ["other", "25.0", "%", "25.0", "%", "0.25"]


def test_lists_and_brackets_are_shown_as_they_are():
    def at(value):
        return {"base/parameters.yml": {"evaluation": {"detectors": value}}}

    lines = shown(state("a", "x", params=at(["msp"])), state("b", "y", params=at("[red]knn")))
    assert [line.split()[-1] for line in lines[-2:]] == ["['msp']", "[red]knn"]


def test_alike_experiments_are_listed():
    lines = shown(state("a", "x", {"digits/ce": {"few": 0.5}}), state("b", "y"))
    assert lines[-1].split() == ["y"]


def test_every_metric_of_a_run_has_its_own_heading():
    metrics = {"digits/ce": dict.fromkeys(FIRST, 0.5)}
    changed = {"digits/ce": dict.fromkeys(FIRST, 0.25)}
    lines = shown(state("a", "x", metrics), state("b", "y", changed), width=300)
    words = " ".join(lines)
    for name in FIRST[:-1]:
        assert METRICS[f"test/{name}"].heading.split()[-1] in words
    assert "hold-out" in words


@pytest.mark.parametrize("code", [0, 255])
def test_options_go_to_dvc_and_its_failure_is_ours(monkeypatch, code):
    calls = []

    def run(command, **_):
        calls.append(command)
        states = [state("a", "main"), state("b", "steep")]
        return subprocess.CompletedProcess(command, code, stdout=json.dumps(states))

    monkeypatch.setattr(subprocess, "run", run)
    done = CliRunner().invoke(experiments.main, ["-n", "3", "--sort-by", "few"])
    assert done.exit_code == code
    assert ("steep" in done.output) == (code == 0)
    (command,) = calls
    assert command[1:] == ["-m", "dvc", "exp", "show", "--json", "-n", "3", "--sort-by", "few"]
