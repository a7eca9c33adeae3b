"""A study of which a run fails: through Kedro, whole and in part, and its nodes alone."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
from pipeline_projects import copy_project

from arms import run_study, sets, smoke
from lt_pipeline.learning.experiments import run as module
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.studies.plan import Plan
from lt_pipeline.reports.studies import summarise, tabulate
from toys import toy_card

PAIR = """
  pair:
    title: Two arms
    tables: [table_x_1]
    seeds: 1
    arms:
      a.good: {method: ce}
      b bad: {method: ce, training: {learning_rate: 1.0e+30}}
      c good: {method: balanced_softmax}
"""
REASON = "the loss term 'cross_entropy' is nan in epoch 1 of stage 'train': lower training.learning"
ENDED = f"1 of 3 runs failed: b bad · seed 0: {REASON}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory, empty_database):
    """A project whose conf/ has a study more, one arm of which diverges, and what its run said."""
    project = copy_project(tmp_path_factory.mktemp("pair"), empty_database)
    path = project.folder / "conf" / "base" / "parameters_studies.yml"
    path.write_text(path.read_text().rstrip() + PAIR)
    code, output = project.run("kedro", "run", "--pipelines=table_x_1", "--env=smoke")
    assert code == 1, output
    return project, output


def ran(output):
    """The arms that ran, in their order."""
    return re.findall(r"INFO +\d/\d +(.+?) · seed 0", output)


@pytest.mark.slow
def test_a_run_that_fails_is_a_row_with_its_reason_and_the_others_go_on(pair):
    pair, output = pair
    said = " ".join(output.split())
    assert f"Error: {ENDED}" in said
    assert "Traceback" not in output
    assert f"b bad · seed 0 failed: {REASON}" in said.partition("2/3")[2]
    assert ran(output) == ["a.good", "b bad", "c good"]
    nodes = ["s0_a-good", "s0_b-bad", "s0_c-good"]
    # the table is there, of those that finished, and says what is missing
    folder = pair.file("08_reporting", "smoke", "pair")
    table = pd.read_csv(folder / "runs.csv").set_index("arm")
    assert list(table.index) == ["a.good", "b bad", "c good"]
    assert table["test/accuracy"].isna().tolist() == [False, True, False]
    assert table["failed"].notna().tolist() == [False, True, False]
    assert table.loc["b bad", "failed"].startswith(REASON)
    assert pd.read_csv(folder / "summary.csv")["arm"].tolist() == ["a.good", "c good"]
    comparison = json.loads((folder / "comparison.json").read_text())
    assert [note for note in comparison["notes"] if "b bad · seed 0 failed" in note]
    assert f"- b bad · seed 0 failed: {REASON}" in (folder / "table.md").read_text()
    assert {path.name for path in (folder / "runs").iterdir()} == {f"{node}.json" for node in nodes}
    # MLflow has it as failed, and what finished as finished
    statuses = {run.info.run_name: run.info.status for run in pair.runs}
    assert statuses == {
        "pair · smoke": "FAILED", "a.good · seed 0": "FINISHED",
        "b bad · seed 0": "FAILED", "c good · seed 0": "FINISHED",
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_that_failed_is_not_kept_and_tried_again_and_the_others_are_not(pair):
    pair, _ = pair
    code, output = pair.run("kedro", "run", "--pipelines=pair", "--env=smoke")
    assert code == 1
    assert "3 runs, 2 of them there; 1 to train" in " ".join(output.split())
    assert "1/3 a.good · seed 0, kept from before" in " ".join(output.split())
    assert "2/3 b bad · seed 0, kept" not in " ".join(output.split())


@pytest.mark.slow
def test_a_run_of_a_study_is_run_alone_by_its_node(pair):
    pair, _ = pair
    output = pair.kedro("--pipelines=pair", "--env=smoke", "--nodes=pair.s0_a-good")
    assert ran(output) == ["a.good"]
    code, output = pair.run(
        *("kedro", "run", "--pipelines=pair", "--env=smoke", "--nodes=pair.s0_b-bad")
    )
    assert code == 1
    assert f"Error: 1 of 1 runs failed: b bad · seed 0: {REASON}" in " ".join(output.split())
    assert pair.runs[1].info.status == "FAILED"


def parameters(**arms):
    return smoke({"seeds": 1, "arms": arms or {"CE": {"method": "ce"}, "DBM": {"method": "dbm"}}})


class Bug(RuntimeError):
    """No ValueError: an error of ours."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("a parameter is wrong"), "a parameter is wrong"),
        (Bug("first line\nsecond line"), "first line"),
        (Bug(), "Bug"),
        (MemoryError(), "MemoryError"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
    ],
)
def test_whatever_a_run_ends_with_the_others_go_on(tmp_path, monkeypatch, caplog, error, reason):
    once = module.finish

    def finish(experiment, *rest):
        if experiment.config.method == "ce":
            raise error
        return once(experiment, *rest)

    monkeypatch.setattr(module, "finish", finish)
    table = run_study("s", parameters(), toy_card(), sets(), tmp_path, tmp_path)
    rows = table.set_index("arm")
    assert rows.loc["CE", "failed"] == reason
    assert rows.loc["DBM", "test/accuracy"] > 0
    # a bug shows where it is, what a person can put right does not
    (record,) = [r for r in caplog.records if "failed" in r.getMessage()]
    assert bool(record.exc_info) is not isinstance(error, UserError)
    experiment = Experiment(Plan.of("s", parameters()).experiments["CE"], toy_card())
    assert Store(tmp_path).metrics(experiment) is None
    monkeypatch.undo()
    again = run_study("s", parameters(), toy_card(), sets(), tmp_path, tmp_path).set_index("arm")
    assert "failed" not in again
    assert again.loc["DBM"].tolist() == rows.loc["DBM"].drop("failed").tolist()


def test_a_study_of_which_every_run_failed_says_the_first_reason():
    plan = Plan.of("s", parameters())
    rows = [{"arm": arm, "seed": 0, "failed": f"{arm} is wrong"} for arm in ("CE", "DBM")]
    with pytest.raises(ValueError, match="^every run of s failed; the first one: CE is wrong$"):
        summarise(plan, *rows)


def test_differences_are_left_out_where_the_arm_they_are_from_failed():
    plan = Plan.of("s", parameters())
    finished = {"test/accuracy": 0.5, "test/recall_floor": 1e-3}
    rows = [
        {"arm": "CE", "seed": 0, "failed": "it is wrong"}, {"arm": "DBM", "seed": 0, **finished},
    ]  # fmt: skip
    runs, summary, arms = summarise(plan, *rows)
    assert runs["failed"].fillna("").tolist() == ["it is wrong", ""]
    assert summary["arm"].tolist() == ["DBM"]
    assert not [name for name in summary if "difference" in name]
    assert arms == {"DBM": {"test/accuracy": {"mean": 0.5}}}
    comparison, text = tabulate(plan, toy_card(), runs, summary, [])
    assert comparison["failed"] == ["CE · seed 0 failed: it is wrong"]
    assert "- CE · seed 0 failed: it is wrong" in text
