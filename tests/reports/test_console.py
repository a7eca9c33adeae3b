from __future__ import annotations

from dataclasses import replace

import pandas as pd

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.reports.console import print_results, print_study, print_sweep
from toys import toy_card

TEST = {
    "accuracy": 0.5, "many": 0.875, "few": 0.125, "harmonic_mean": 0.01, "geometric_mean": 0.2,
    "lowest_recall": 0.0, "expected_calibration_error": 0.033, "recall_floor": 1e-3,
    "zero_recall_classes": 2.0, "classes": 4.0,
}  # fmt: skip


def test_the_table_and_what_must_be_known_to_read_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    card = toy_card()
    groups = ("many", "many", "few", "few")
    longtail = LongTail((40, 20, 10, 5), card.longtail.class_names, groups, "by hand")
    card = replace(card, longtail=longtail)
    other = {**TEST, "accuracy": 0.75, "zero_recall_classes": 0.0}
    means = {"mean": {"auroc": 0.75, "fpr95": 0.5}}
    strange = {
        "more": {
            "detectors": {"odin": means},
            "averaged_over": ["a", "b"],
            "left_out": {"svhn": "put it"},
        }
    }
    print_results({"ce": {"test": TEST}, "more": {"test": other}}, strange, card, "open it")
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.split()}
    assert rows["ce"] == ["50.0", "87.5", "12.5", "1.0", "20.0", "0.0", "3.3"]
    assert rows["more"][0] == "75.0"
    assert "medium" not in printed.split("Groups:")[0]
    assert "Groups: by hand." in printed
    assert "No class in: medium; left out." in printed
    assert "Means are over 4 of 4 classes and take" in printed
    assert "zero as 0.001; classes with zero recall: ce 2, more 0." in printed
    assert "more: out of distribution, %: odin AUROC 75.0 FPR95 50.0." in printed
    assert "Mean over 2 sets: a, b; not there: svhn." in printed
    assert "ce: out of distribution" not in printed
    assert "in the MLflow UI: open it\n" in printed


def test_the_mean_recall_of_photos_is_first_and_says_how_sure_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    card = replace(toy_card(), settings={"path": "fish", "folds": 5, "fold": 2})
    sure = {"mean_recall": 0.7, "mean_recall_low": 0.61, "mean_recall_high": 0.79, "classes": 3.0}
    held_out = {"mean_recall": 0.65, "classes": 2}

    def printed(**groups):
        metrics = {"test": {**TEST, **sure, **groups}, "validation": held_out}
        print_results({"ce": metrics}, {}, card, "open it")
        return capsys.readouterr().out

    said = printed()
    assert "fish: test set of fold 2 (0 to 4), last epoch, %" in said
    row = next(line for line in said.splitlines() if line.strip().startswith("ce "))
    assert row.split()[1:5] == ["70.0", "[61.0,", "79.0]", "50.0"]
    assert "Means are over 3 of 4 classes" in said
    assert "95 % interval of the mean recall, by drawing images again." in said
    assert "mean recall on the hold-out, to choose by: 65.0 % (mean over 2 classes)." in said
    assert "by drawing 460 groups again" in printed(groups=460.0)
    del sure["mean_recall_low"], sure["mean_recall_high"]
    assert "No interval: 4 groups are tested, and it takes five." in printed(groups=4.0)


def test_a_studys_table_has_papers_below_their_arms(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    rows = [
        {"cells": ["CE", "2", "50.0 ± 1.0"], "of_paper": False},
        {"cells": ["P, table 1", "", "44.0 (+6.0)"], "of_paper": True},
    ]
    notes = ["CE, P, table 1: " + "a long reason " * 12]
    comparison = {"headings": ["arm", "runs", "accuracy %"], "rows": rows, "notes": notes}
    for beside, said in (
        ([{}], "behind a paper's figure: ours minus it, not paired"),
        ([], "over seeds)"),
    ):
        table = {**comparison, "beside_papers": beside}
        print_study("table_x", table, toy_card(), "sqlite:///x.db")
        printed = capsys.readouterr().out
        assert said in printed
        lines = printed.splitlines()
        ours, paper = (next(line for line in lines if value in line) for value in ("50.0", "44.0"))
        assert ours.split() == ["CE", "2", "50.0", "±", "1.0"]
        assert paper.startswith("   P, table 1"), "set in, in italics"
        assert paper.split()[-2:] == ["44.0", "(+6.0)"]
        assert notes[0].strip() in printed


def test_a_sweeps_table_is_of_trials_that_went_to_their_end(capsys):
    recall = "validation/mean_recall"
    trials = pd.DataFrame(
        [
            {"trial": 0, "state": "complete", recall: 0.5, "rank": 0.25},
            {"trial": 1, "state": "pruned", recall: 0.9, "rank": 0.75},
            {"trial": 2, "state": "complete", recall: 0.75, "rank": 0.125},
            {"trial": 3, "state": "fail", recall: None, "rank": 0.375},
        ]
    )
    counts = {"complete": 2, "pruned": 1, "fail": 1}
    best = {"study": "s", "trial": 2, "params": {"rank": 0.125}, "trials": counts, "storage": "f"}
    print_sweep(trials, best, {}, toy_card(), "kedro run x", "sqlite:///x.db")
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert rows == [["2", "75.0", "0.125"], ["0", "50.0", "0.25"]]
    assert "Trials: 2 complete, 1 pruned, 1 fail; in f." in printed
    assert "kedro run x" in printed
