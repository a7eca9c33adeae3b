"""Sweeps through Kedro: what is printed, what MLflow has, and that they go on."""

from __future__ import annotations

import json
import re
import shlex

import pandas as pd
import pytest
from pipeline_projects import own

LIMITS = "dbm_search.options.criterion.margin.K.high=0.3"


@pytest.mark.slow
def test_a_sweep_through_kedro(project):
    arguments = ("--pipelines=tune", "--env=smoke")
    params = "method=dbm,training.epochs=1,tune.workers=2,tune.trials=4"
    output = project.kedro(*arguments, f"--params={params}")
    assert "dbm-digits-lt-ir10 on digits, exponential, IR 10: mean recall on the hold-out" in output
    assert "4/4  trial " in output
    assert "Trials: 4 complete" in output
    assert "WARNING" not in output
    folder = project.file("08_reporting", own("training.epochs=1"), "tune", "dbm")
    trials = pd.read_csv(folder / "trials.csv")
    best = json.loads((folder / "best.json").read_text())
    judged = json.loads((folder / "tested.json").read_text())
    assert trials["trial"].tolist() == [0, 1, 2, 3]
    assert best["value"] == trials["validation/mean_recall"].max()
    assert judged["validation/mean_recall"] == best["value"]
    for name in ("history", "epochs", "slice", "parallel_coordinates"):
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    runs = {run.info.run_id: run for run in project.runs}
    (parent,) = [r for r in runs.values() if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs.values() if r is not parent]
    assert parent.info.run_name == "tune dbm · smoke · epochs 1"
    assert {r.info.run_id for r in children} == set(trials["mlflow_run"])
    for child in children:
        row = trials.set_index("mlflow_run").loc[child.info.run_id]
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["trial_state"] == "complete"
        assert child.data.tags["data_hash"] == parent.data.tags["data_hash"]
        k = float(child.data.params["dbm.options.criterion.margin.K"])
        assert k == pytest.approx(row["options.criterion.margin.K"])
        value = child.data.metrics["finished/validation/mean_recall"]
        assert value == pytest.approx(row["validation/mean_recall"])
        assert not [name for name in child.data.metrics if name.startswith("test/")]
    assert parent.data.metrics["test/accuracy"] == pytest.approx(judged["test/accuracy"])
    names = {a.path for a in project.client.list_artifacts(parent.info.run_id)}
    assert {"trials.csv", "best.json", "tested.json", "figures"} <= names
    # the view that the sweep's address opens has what was searched, by the names that trials have
    tags = project.client.get_experiment(parent.info.experiment_id).tags
    columns = json.loads(tags["mlflow.sharedViewState.dbm-digits-lt-ir10"])["selectedColumns"]
    searched = {name[len("params.`") : -1] for name in columns[1:]}
    assert len(searched) == len(best["params"])
    assert all(searched <= child.data.params.keys() for child in children)
    assert "viewStateShareKey=dbm-digits-lt-ir10" in output

    # all of it is kept: a second run trains what is new, two at once, and that stands below the
    # first, too
    again = project.kedro(*arguments, f"--params={params},tune.trials=6,tune.workers=1,together=2")
    assert "4 trials of dbm-digits-lt-ir10 are there from before" in again
    more = pd.read_csv(folder / "trials.csv")
    pd.testing.assert_frame_equal(more[:4], trials, check_dtype=False)
    assert more["state"].tolist() == ["complete"] * 6
    new = {r.info.run_id: r for r in project.runs if r.info.run_id not in runs}
    assert len(new) == 3
    assert set(more["mlflow_run"][4:]) < new.keys()
    for run in new.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id

    # the command it ends with gives the same
    (command,) = re.findall(r"^ +(kedro run .*)$", output, flags=re.MULTILINE)
    assert parent.data.tags["best_command"] == command
    assert "search" not in command
    code, text = project.run(*shlex.split(command), "--to-nodes=dbm.evaluate")
    assert code == 0, text
    given = command.partition("--params=")[2]
    path = project.file("08_reporting", own(given), "dbm", "metrics.json")
    metrics = json.loads(path.read_text())
    assert metrics["validation"]["mean_recall"] == best["value"]
    assert metrics["test"]["accuracy"] == judged["test/accuracy"]

    # another space under the same name
    code, text = project.run("kedro", "run", *arguments, f"--params={params},{LIMITS}")
    assert code == 1
    assert "has another search space: options.criterion.margin.K was low 0.02, high 0.5" in text
    assert "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("method=mroe", "Error: method: unknown method 'mroe': did you mean 'more'"),
        (
            "method=ce,ce_search.options.rank.low=1,ce_search.options.rank.high=2",
            "Error: ce_search: ce.options: unknown parameter 'rank'",
        ),
        ("method=more,more_search.options=null", "Error: more_search is empty"),
        (
            "method=more,tune.storage=postgresql://a:b@127.0.0.1:1/c",
            "Error: tune.storage postgresql://a:***@127.0.0.1:1/c cannot be reached",
        ),
    ],
)
def test_what_is_wrong_with_a_sweep_is_one_line_before_anything_runs(untouched, params, message):
    code, output = untouched.run(
        "kedro", "run", "--pipelines=tune", "--env=smoke", f"--params={params}"
    )
    assert code == 1
    assert message in output
    assert "Traceback" not in output
    assert not untouched.file("03_primary").exists()


# one step, after which the weights are large, and finite
ONE_STEP = "training.epochs=1,training.warmup_epochs=0,training.batch_size=150"


@pytest.mark.slow
def test_a_training_that_diverges_in_its_last_step_is_one_line(project):
    code, output = project.run(
        *("kedro", "run", "--pipelines=ce", "--env=smoke"),
        f"--params={ONE_STEP},training.learning_rate=1e37",
    )
    assert code == 1
    assert "images are nan or infinite: the training diverged; lower training.learning" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_training_that_diverges_in_its_last_step_is_no_trial_of_a_sweep(project):
    path = project.folder / "conf" / "base" / "parameters_tune.yml"
    rates = "ce_search: {training: {learning_rate: {choices: [0.05, 1.0e+37]}}}"
    path.write_text(f"{path.read_text()}\n{rates}\n")
    tune = "method=ce,tune.trials=4,tune.sampler=random,tune.test_best=false"
    output = project.kedro("--pipelines=tune", "--env=smoke", f"--params={ONE_STEP},{tune}")
    trials = pd.read_csv(project.file("08_reporting", own(ONE_STEP), "tune", "ce", "trials.csv"))
    diverged = trials["training.learning_rate"] > 1
    assert set(trials["state"][diverged]) == {"pruned"}
    assert set(trials["state"][~diverged]) == {"complete"}
    assert trials["reason"][diverged].str.contains("scores must be finite").all()
    assert re.search(r"learning_rate 1e\+37: scores must be finite", output)
