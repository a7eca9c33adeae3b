"""A metric that is a function and a row is everywhere: no other file has to know of it."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from arms import smoke
from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, Metric, placed
from lt_pipeline.learning.evaluation.metrics.classification import report
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.evaluate import first_of_all
from lt_pipeline.learning.experiments.stages import stage_numbers
from lt_pipeline.learning.studies.comparison import CompareConfig, choose
from lt_pipeline.learning.studies.plan import Plan
from lt_pipeline.pipelines.compare import nodes
from lt_pipeline.reports import studies
from lt_pipeline.reports.console import print_comparison, print_results, print_stages, print_study
from toys import toy_card

CARD = toy_card()
# of class 0 half is found, of the others all
CONFUSION = torch.tensor([[2, 2, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 4]])


@pytest.fixture
def toy(monkeypatch):
    places = frozenset({"first", "run", "stages", "comparison", "screen", "study"})
    metric = Metric(
        "test/toy_spread", "toy spread", places,
        words="spread of the toys", better="lower", by_group="test/toy_{group}", picture="toys",
        from_recalls=lambda recalls: float(recalls.known.max() - recalls.known.min()),
    )  # fmt: skip
    monkeypatch.setitem(METRICS, metric.key, metric)
    monkeypatch.setenv("COLUMNS", "300")
    return metric


def measured(value):
    test = report(CONFUSION, CARD.longtail)
    groups = {f"toy_{g}": value for g in ("many", "medium", "few")}
    return {f"test/{n}": v for n, v in {**test, "toy_spread": value, **groups}.items()}


def test_it_is_measured_and_in_what_a_run_ends_with(toy, capsys):
    test = report(CONFUSION, CARD.longtail)
    assert test["toy_spread"] == 0.5
    print_results({"ce": {"test": test}}, {}, CARD, "sqlite:///x")
    row = {"stage": "train", "role": "line", **test}
    print_stages("ce", pd.DataFrame([row]))
    printed = capsys.readouterr().out.splitlines()
    heads = [line for line in printed if "toy spread" in line]
    assert len(heads) == 2
    assert [line.split()[-1] for line in printed if line.split()[:1] in (["ce"], ["train"])] == [
        "50.0", "50.0",
    ]  # fmt: skip
    assert stage_numbers(pd.DataFrame([row]))["stages/train/toy_spread"] == 0.5
    assert first_of_all({"test": test})["toy_spread"] == 0.5


def test_it_is_in_a_comparison_that_can_be_in_its_order(toy, capsys):
    rows = []
    for method, value in (("ce", 0.5), ("more", 0.25)):
        config = ExperimentConfig.resolve(method, {}).model_dump(mode="json")
        for seed in (0, 1):
            own = {"run_id": f"{method}{seed}", "method": method, "title": method, "seed": seed}
            own |= {"data_hash": "d", "experiment": "", "started": seed, "commit": "c"}
            own |= {"command": "", "config": json.dumps(config), "cost/training_seconds": 1.0}
            rows.append({**own, **measured(value)})
    runs, _ = choose(pd.DataFrame(rows), CompareConfig(), "d")
    table = {"class": range(4), "name": "n", "group": "many", "training_images": 9}
    table |= {"test_images": 5, "recall": 0.5}
    recalls = pd.concat(
        pd.DataFrame(table).assign(run_id=r["run_id"], label=r["title"]) for r in rows
    )
    options = {"sort_by": "toy_spread"}
    summary, comparison = nodes.tabulate(options, CARD, runs, recalls, [])
    assert summary["label"].tolist() == ["more", "ce"], "lower is better"
    assert comparison["summary_sentence"].startswith("more minus ce: -25.00 points of toy spread")
    texts = nodes.write(summary, comparison, CARD)
    assert all("25.0 ± 0.0" in text.replace(r"$\pm$", "±") for text in texts[:2])
    assert all("toy spread" in text for text in texts)
    _, pictures = nodes.draw(summary, recalls, CARD)
    page = nodes.report(CARD, runs, summary, comparison, [], pictures, {"sentence": ""})
    assert "toy spread % minus more" in page
    print_comparison(summary, comparison, [], {"sentence": ""}, CARD)
    assert "toy spread" in capsys.readouterr().out


def test_it_is_in_a_studys_table_and_has_a_picture(toy, capsys):
    plan = Plan.of("s", smoke({"seeds": 2, "arms": {n: {"method": n} for n in ("ce", "more")}}))
    rows = [
        {"arm": run.label, "seed": run.config.seed, **measured(0.25)} for run in plan.runs.values()
    ]
    runs, summary, arms = studies.summarise(plan, *rows)
    assert arms["ce"]["test/toy_spread"] == {"mean": 0.25, "sd": 0.0}
    assert (summary["test/toy_spread difference pairs"].dropna() == 2).all()
    comparison, text = studies.tabulate(plan, CARD, runs, summary, [])
    assert comparison["headings"][-1] == "toy spread %"
    assert "25.0 ± 0.0" in text
    print_study("s", comparison, CARD, "sqlite:///x")
    assert "toy spread" in " ".join(capsys.readouterr().out.split())
    (axes,) = studies.draw(plan, CARD, summary)["toys.png"].axes
    assert axes.get_xlabel().startswith("spread of the toys, %\n")
    assert axes.lines[0].get_xdata().tolist() == [25, 25]


def test_without_a_place_it_is_measured_and_shown_nowhere():
    assert "mean_recall" in report(CONFUSION, CARD.longtail)
    assert "test/mean_recall" not in {m.key for m in placed("comparison") + placed("run")}
