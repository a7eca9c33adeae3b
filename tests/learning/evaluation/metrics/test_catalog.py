"""The table of metrics: what it says of each, and that nothing else in the house does."""

from __future__ import annotations

import ast
import re

import pandas as pd
import pytest

from lt_pipeline.learning.evaluation.metrics import catalog
from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, Metric, first_detector, placed
from toys import PROJECT

SRC = PROJECT / "src/lt_pipeline"
OWN = SRC / "learning/evaluation/metrics"
# what prints metrics
ROOMS = ("reports", "pipelines", "tracking", "tuning", "hooks", "learning/studies")


def test_a_value_is_written_in_its_unit():
    share = Metric("test/x", "x")
    seconds = Metric("cost/x", "x", unit="s", digits=0)
    assert (share.column, share.axis, share.with_unit(0.1234)) == ("x %", "x, %", "12.3 %")
    assert (share.change(0.1234), share.change(-0.1234, 1)) == ("+12.3", "-12.34")
    assert (seconds.column, seconds.with_unit(12345.6)) == ("x s", "12,346 s")
    assert share.scaled([0.5]) == [50]
    assert seconds.scaled([0.5]) == [0.5]


@pytest.mark.parametrize(("better", "order"), [("higher", [2, 3, 1]), ("lower", [1, 2, 3])])
def test_rows_stand_by_what_is_better_and_equal_ones_as_they_are(better, order):
    rows = pd.DataFrame({"x": [0.1, 0.5, 0.5]}, index=[1, 2, 3])
    metric = Metric("x", "x", better=better)
    assert metric.best_first(rows).index.tolist() == order
    assert max(rows["x"], key=metric.gain) == rows["x"].loc[order[0]]


def test_the_first_detector_is_that_of_the_first_mean():
    columns = ["test/accuracy", "ood/msp/svhn/auroc", "ood/knn/mean/auroc", "ood/odin/mean/auroc"]
    assert first_detector(columns) == "knn"
    assert first_detector(["test/accuracy", "ood/msp/svhn/auroc"]) is None


def test_the_first_detector_is_among_the_columns():
    columns = ["ood/odin/mean/auroc", "ood/odin/mean/fpr95", "test/accuracy", "x"]
    metrics = catalog.shown("comparison", columns)
    assert list(metrics) == ["test/accuracy", "ood/odin/mean/auroc", "ood/odin/mean/fpr95"]
    assert [m.column for m in metrics.values()][1:] == ["AUROC odin %", "FPR95 odin %"]


def test_a_study_shows_what_it_has_and_the_columns_that_it_chooses():
    names = [
        "test/few", "test/accuracy", "test/lowest_recall", "geometry/separability/few",
        "ood/knn/mean/auroc", "ood/knn/of_7/fpr95", "cost/training_seconds", "train/loss",
    ]  # fmt: skip
    usual = ["accuracy %", "few %", "AUROC knn %", "FPR95 knn, 7 sets %", "training s"]
    assert [m.column for m in catalog.shown_by_study(names, ()).values()] == usual
    chosen = catalog.shown_by_study(names, ("separability", "lowest_recall"))
    assert [m.column for m in chosen.values()][2:4] == ["S few", "lowest recall %"]
    assert len(chosen) == 7


def test_every_row_is_complete():
    for metric in METRICS.values():
        assert metric.axis, metric.key
        if metric.picture:
            assert "{group}" in metric.by_group, metric.key
        assert metric.key.count("{detector}") == ("ood" in metric.key), metric.key
        ways = (metric.from_recalls, metric.from_scores, metric.from_detection)
        assert sum(way is not None for way in ways) <= 1, metric.key
    headings = [metric.column for metric in placed("comparison")]
    assert len(headings) == len(set(headings)), "a table's columns are told apart"


def written(path):
    """The strings of a file that are no docstring."""
    tree = ast.parse(path.read_text())
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
        if isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node not in docstrings
    ]


def test_no_other_file_names_a_metric_for_people():
    # those that are no words of every day
    names = {metric.short for metric in METRICS.values()} | {m.words for m in METRICS.values()}
    told = sorted(name for name in names if re.search(r"[A-Z. -]", name))
    assert {"ECE", "AUROC", "harm. mean", "hold-out mean recall"} <= set(told)
    files = [
        f"{path.relative_to(SRC)}: {text!r}"
        for path in SRC.rglob("*.py")
        # a method may remark on its own ones in words
        if not path.is_relative_to(OWN) and not path.is_relative_to(SRC / "learning/methods")
        for text in written(path)
        if any(re.search(rf"\b{re.escape(name)}\b", text) for name in told)
    ]
    assert not files, "ask catalog.METRICS for it"


def test_no_other_file_writes_fractions_as_per_cent():
    files = [
        f"{path.relative_to(SRC)}:{node.lineno}"
        for room in ROOMS
        for path in (SRC / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
        if any(isinstance(s, ast.Constant) and s.value == 100 for s in (node.left, node.right))
    ]
    assert not files, "Metric.with_unit, number, change and scaled do it"
