"""How the arms of an ablation or sweep compare: mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lt_pipeline.learning.evaluation.metrics.catalog import Metric
from lt_pipeline.learning.figures.style import ABOVE, GROUP_COLOURS, legend_above, new_figure

COLOURS = {"all": "black", **GROUP_COLOURS}
# of a sweep's baselines, which are lines across
BASELINES: tuple[Literal["--", ":", "-."], ...] = ("--", ":", "-.")
MARKERS = {"all": "D", "many": "o", "medium": "s", "few": "^"}

# of arms: ``arm``, ``runs``, and by the keys of a metric and of its groups the mean and, under
# ``<key> sd``, the standard deviation; a key that is not there is left out
# ``over`` is what they are over, seeds unless told
Rows = Sequence[Mapping[Any, Any]]


def by_arm(rows: Rows, metric: Metric, title: str) -> Figure:
    """Draw ``metric`` as a line of points for each arm: one for all classes and each group."""
    height = 1.6 + 0.36 * len(rows)
    figure, axes = new_figure(title, width=8, height=height, pad=ABOVE, grid="both")
    places = [len(rows) - 1 - place for place in range(len(rows))]
    for name, (means, spreads) in _series(rows, metric).items():
        axes.errorbar(means, places, xerr=spreads, **_points(name))
    axes.set_yticks(places, [str(row["arm"]) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"{metric.axis}\n({_seeds(rows)})")
    legend_above(axes)
    return figure


def over_values(
    rows: Rows, values: Mapping[str, float], metric: Metric, axis: str, title: str
) -> Figure:
    """Draw ``metric`` of all classes and each group over the swept parameter, named ``axis``.

    ``values`` are the parameter's by arm; arms without one are baselines, drawn across.
    """
    figure, axes = new_figure(title, width=7.4, height=4.8, pad=ABOVE)
    swept = sorted((r for r in rows if r["arm"] in values), key=lambda r: values[r["arm"]])
    baselines = [row for row in rows if row["arm"] not in values]
    places = [values[row["arm"]] for row in swept]
    levels = _series(baselines, metric)
    for name, (means, spreads) in _series(swept, metric).items():
        axes.errorbar(places, means, yerr=spreads, **{**_points(name), "linestyle": "-"})
        for level, style in zip(levels[name][0], BASELINES, strict=False):
            axes.axhline(level, color=COLOURS[name], linestyle=style, linewidth=1)
    axes.set_xticks(places)
    axes.set_xlabel(f"{axis} ({_seeds(rows)})")
    axes.set_ylabel(metric.axis)
    lines = [
        Line2D([], [], color="black", linestyle=style, linewidth=1, label=str(row["arm"]))
        for row, style in zip(baselines, BASELINES, strict=False)
    ]
    legend_above(axes, lines)
    return figure


def _series(rows: Rows, metric: Metric) -> dict[str, tuple[list[float], list[float]]]:
    """Return means and deviations, in the metric's unit, by "all" and the groups' names.

    One seed has no deviation.
    """
    keys = metric.keys_by_group().items()
    return {
        name: (
            metric.scaled(row[key] for row in rows),
            metric.scaled(row[f"{key} sd"] if row["runs"] > 1 else 0.0 for row in rows),
        )
        for name, key in keys
        if all(key in row for row in rows)
    }


def _points(name: str) -> dict[str, Any]:
    return {
        "color": COLOURS[name],
        "marker": MARKERS[name],
        "markersize": 5,
        "linestyle": "",
        "linewidth": 1.2,
        "elinewidth": 1,
        "capsize": 2,
        "label": name,
    }


def _seeds(rows: Rows) -> str:
    fewest, most = min(int(row["runs"]) for row in rows), max(int(row["runs"]) for row in rows)
    if most == 1:
        return "one seed"
    over = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"bars: one standard deviation over {over} {rows[0].get('over', 'seeds')}"
