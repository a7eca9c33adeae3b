from __future__ import annotations

import pytest

from lt_pipeline.data.longtail import LongTail
from lt_pipeline.reporting import print_results
from toys import toy_card

TEST = {
    "accuracy": 0.5, "many": 0.875, "few": 0.125, "harmonic_mean": 0.01, "geometric_mean": 0.2,
    "lowest_recall": 0.0, "expected_calibration_error": 0.033, "recall_floor": 1e-3,
    "zero_recall_classes": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("uri", "words"),
    [("sqlite:////p/mlflow.db", "make ui"), ("http://server:5000", "open http://server:5000")],
)
def test_the_table_and_what_must_be_known_to_read_it(capsys, monkeypatch, uri, words):
    monkeypatch.setenv("COLUMNS", "160")
    card = toy_card()
    groups = ("many", "many", "few", "few")
    longtail = LongTail((40, 20, 10, 5), card.longtail.class_names, groups, "by hand")
    values = {**card.to_json(), "longtail": vars(longtail)}
    other = {**TEST, "accuracy": 0.75, "zero_recall_classes": 0.0}
    means = {"mean": {"auroc": 0.75, "fpr95": 0.5}}
    strange = {
        "more": {
            "detectors": {"odin": means},
            "averaged_over": ["a", "b"],
            "left_out": {"svhn": "put it"},
        }
    }
    print_results({"ce": {"test": TEST}, "more": {"test": other}}, strange, values, uri)
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.split()}
    assert rows["ce"] == ["50.0", "87.5", "12.5", "1.0", "20.0", "0.0", "3.3"]
    assert rows["more"][0] == "75.0"
    assert "medium" not in printed.split("Groups:")[0]
    assert "Groups: by hand." in printed
    assert "No class in: medium; left out." in printed
    assert "zero as 0.001; classes with zero recall: ce 2, more 0." in printed
    assert "more: out of distribution, %: odin AUROC 75.0 FPR95 50.0." in printed
    assert "Mean over 2 sets: a, b; not there: svhn." in printed
    assert "ce: out of distribution" not in printed
    assert words in printed
