"""Runs on images of several labels side by side, without a run of Kedro."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest

from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.studies.comparison import CompareConfig, choose
from lt_pipeline.pipelines.compare import nodes
from lt_pipeline.reports.console import print_comparison
from lt_pipeline.tracking.registry import promote
from toys import toy_card

ONE = toy_card()
CARD = replace(ONE, longtail=replace(ONE.longtail, images=60))


def row(method, seed, **metrics):
    config = ExperimentConfig.resolve(method, {}).model_dump(mode="json")
    own = {"run_id": f"{method}{seed}", "method": method, "title": method, "seed": seed}
    own |= {"data_hash": "d", "experiment": "", "started": seed, "commit": "c", "command": ""}
    return {**own, "config": json.dumps(config), "cost/training_seconds": 1.0, **metrics}


def precision(value):
    groups = {f"test/mAP_{g}": value - 0.1 for g in ("many", "medium", "few")}
    return {"test/mean_average_precision": value, "test/macro_f1": value / 2, **groups}


# two seeds of one method, one of another, and a run of when the same table had one label an image
RUNS = pd.DataFrame(
    [
        *(row("bce", seed, **precision(0.6 + seed / 10)) for seed in (0, 1)),
        row("more", 0, **precision(0.5)),
        row("ce", 0, **{"test/accuracy": 0.9, "test/mean_recall": 0.8}),
    ]
)


def recalls_of(runs):
    classes = {"class": range(4), "name": list("wxyz"), "group": "many"}
    classes |= {"training_images": (9, 5, 3, 1), "test_images": (5, 5, 5, 0), "recall": 0.25}
    classes["average_precision"] = (0.8, 0.6, 0.7, None)
    rows = [
        pd.DataFrame(classes).assign(run_id=run, label=label)
        for run, label in zip(runs["run_id"], runs["label"], strict=True)
    ]
    return pd.concat(rows, ignore_index=True)


def test_runs_of_one_label_and_of_several_are_in_no_table_together():
    runs, notes = choose(RUNS, CompareConfig(), "d", several=True)
    assert set(runs["method"]) == {"bce", "more"}
    assert "test/accuracy" not in runs
    assert notes == ["1 run on images with one label left out: no table has both"]
    runs, notes = choose(RUNS, CompareConfig(), "d")
    assert set(runs["method"]) == {"ce"}
    assert "test/mean_average_precision" not in runs
    assert notes == ["3 runs on images with several labels left out: no table has both"]


def test_methods_stand_by_mean_average_precision_and_so_do_pictures(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    runs, _ = choose(RUNS, CompareConfig(), "d", several=True)
    recalls = recalls_of(runs)
    summary, comparison = nodes.tabulate({}, CARD, runs, recalls, [])
    assert summary["label"].tolist() == ["bce", "more"]
    assert summary["test/mean_average_precision"].tolist() == pytest.approx([0.65, 0.5])
    ahead = "bce minus more: +10.00 points of mean average precision on the one seed"
    assert comparison["summary_sentence"].startswith(ahead)
    for text in nodes.write(summary, comparison, CARD)[:2]:
        assert "65.0" in text
        assert "mAP few" in text
        assert "accuracy" not in text
    assert not [name for name in summary if name.endswith((" low", " high")) and "diff" not in name]
    drawn, pictures = nodes.draw(summary, recalls, CARD)
    assert sorted(drawn) == [
        "average_precision_by_class.png",
        "mean_average_precision_against_cost.png",
        "mean_average_precision_by_group.png",
        "sorted_average_precisions.png",
    ]
    (axes, bar) = drawn["average_precision_by_class.png"].axes
    assert axes.images[0].get_array()[0].tolist()[:3] == pytest.approx([80, 60, 70])
    assert "average precision" in bar.get_ylabel()
    page = nodes.report(CARD, runs, summary, comparison, [], pictures, {"sentence": ""})
    assert "Average precisions from the worst class to the best" in page
    assert "bootstrap" not in page
    print_comparison(summary, comparison, [], {"sentence": ""}, CARD)
    printed = capsys.readouterr().out
    assert "mAP medium" in printed
    assert "bootstrap" not in printed


@pytest.mark.parametrize(
    ("several", "name", "usual"),
    [
        (True, "harmonic_mean", "mean_average_precision"),
        (True, "accuracy", "mean_average_precision"),
        (False, "mAP_few", "accuracy"),
        (False, "ranking_loss", "accuracy"),
    ],
)
def test_an_order_that_the_images_do_not_have_is_refused_in_a_line(several, name, usual):
    with pytest.raises(UserError, match=f"compare.sort_by is {name}, .* leave it out.*{usual}"):
        CompareConfig(sort_by=name).order(several=several)


def test_each_task_has_its_own_order():
    assert CompareConfig().order(several=True) == "mean_average_precision"
    assert CompareConfig().order(several=False) == "accuracy"
    assert CompareConfig(sort_by="macro_f1").order(several=True) == "macro_f1"
    both = CompareConfig(sort_by="expected_calibration_error")
    assert both.order(several=True) == both.order(several=False)


def test_the_champion_is_chosen_by_the_hold_outs_mean_average_precision(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "lt_pipeline.tracking.registry._versions", lambda runs, slug: asked.extend(runs) or {}
    )
    held = [0.3, 0.5, 0.4]
    runs = RUNS[:3].assign(**{"validation/mean_average_precision": held})
    assert promote(runs, "s")["model_uri"] is None
    assert asked == ["bce1", "more0", "bce0"]
