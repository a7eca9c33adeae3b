from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lt_pipeline.learning.evaluation.metrics.catalog import Metric
from lt_pipeline.learning.figures.study import by_arm, over_values

METRIC = Metric("accuracy", "accuracy", by_group="{group}")
PLAIN = replace(METRIC, unit="")


def row(arm, accuracy, few, runs=3):
    return {"arm": arm, "runs": runs, "accuracy": accuracy, "accuracy sd": 0.02, "few": few} | {
        "few sd": float("nan") if runs == 1 else 0.05
    }


def errorbars(axes):
    """Label -> points and ends of its bars."""
    spreads = {}
    for container in axes.containers:
        line, _, (bars,) = container
        spreads[container.get_label()] = (line.get_xydata().tolist(), bars.get_segments())
    return spreads


def test_every_arm_has_a_line_with_its_groups_and_their_spread():
    figure = by_arm([row("CE", 0.3, 0.1), row("DBM", 0.4, 0.2)], METRIC, "T")
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "T"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["CE", "DBM"]
    spreads = errorbars(axes)
    assert set(spreads) == {"all", "few"}, "a column that is not there is left out"
    points, bars = spreads["few"]
    assert points == [[10, 1], [20, 0]]
    assert [segment[:, 0].tolist() for segment in bars] == [[5, 15], [15, 25]]
    assert "one standard deviation over 3 seeds" in axes.get_xlabel()
    FigureCanvasAgg(figure).draw()


def test_one_seed_has_no_bar_and_is_said():
    figure = by_arm([row("CE", 0.3, 0.1, runs=1)], PLAIN, "T")
    points, bars = errorbars(figure.axes[0])["few"]
    assert points == [[pytest.approx(0.1), 0]]
    assert [segment[:, 0].tolist() for segment in bars] == [[0.1, 0.1]]
    assert "(one seed)" in figure.axes[0].get_xlabel()


def test_a_sweep_is_drawn_over_its_values_with_the_baseline_across():
    rows = [row("BS", 0.5, 0.3), row("K = 0.3", 0.6, 0.4), row("K = 0.1", 0.7, 0.2)]
    rows.insert(1, row("CE", 0.25, 0.125))
    values = {"K = 0.1": 0.1, "K = 0.3": 0.3}
    axes = over_values(rows, values, METRIC, "K", "T").axes[0]
    assert errorbars(axes)["all"][0] == [[0.1, 70], [0.3, 60]]
    across = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert sorted(line.get_ydata()[0] for line in across) == [30, 50]
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert sorted(line.get_ydata()[0] for line in dotted) == [12.5, 25]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["all", "few", "BS", "CE"]
    assert axes.get_xlabel().startswith("K ")
