"""How the arms of an ablation or sweep compare: mean and standard deviation over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lt_pipeline.learning.figures.style import GROUP_COLOURS, legend_above, new_figure

COLOURS = {"all": "black", **GROUP_COLOURS}
# of a sweep's baselines, which are lines across
BASELINES: tuple[Literal["--", ":", "-."], ...] = ("--", ":", "-.")
MARKERS = {"all": "D", "many": "o", "medium": "s", "few": "^"}


def by_arm(
    rows: Sequence[Mapping[Any, Any]],
    columns: Mapping[str, str],
    label: str,
    title: str,
    factor: float = 1.0,
) -> Figure:
    """Draw a line of points for each arm: one for all classes and one for each group.

    ``rows`` have ``arm``, ``runs``, and for each of ``columns`` (by what they show) the mean and,
    under ``<column> sd``, the standard deviation; a column that is not there is left out.
    ``factor`` scales both.
    """
    figure, axes = new_figure(title, width=8, height=1.6 + 0.36 * len(rows), pad=26)
    places = [len(rows) - 1 - place for place in range(len(rows))]
    for name, column in _there(rows, columns).items():
        axes.errorbar(
            [factor * row[column] for row in rows],
            places,
            xerr=[factor * _spread(row, column) for row in rows],
            **_points(name),
        )
    axes.set_yticks(places, [str(row["arm"]) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_xlabel(f"{label}\n({_seeds(rows)})")
    legend_above(axes)
    return figure


def over_values(
    rows: Sequence[Mapping[Any, Any]],
    values: Mapping[str, float],
    columns: Mapping[str, str],
    axis: str,
    label: str,
    title: str,
    factor: float = 1.0,
) -> Figure:
    """Draw all classes and each group over the swept parameter, named ``axis``.

    ``values`` are the parameter's by arm; arms without one are baselines, drawn across. The rest
    is as in ``by_arm``.
    """
    figure, axes = new_figure(title, width=7.4, height=4.8, pad=26)
    swept = sorted((r for r in rows if r["arm"] in values), key=lambda r: values[r["arm"]])
    baselines = [row for row in rows if row["arm"] not in values]
    for name, column in _there(rows, columns).items():
        axes.errorbar(
            [values[row["arm"]] for row in swept],
            [factor * row[column] for row in swept],
            yerr=[factor * _spread(row, column) for row in swept],
            **{**_points(name), "linestyle": "-"},
        )
        for row, style in zip(baselines, BASELINES, strict=False):
            axes.axhline(factor * row[column], color=COLOURS[name], linestyle=style, linewidth=1)
    axes.set_xticks([values[row["arm"]] for row in swept])
    axes.set_xlabel(f"{axis} ({_seeds(rows)})")
    axes.set_ylabel(label)
    _legend(axes, [str(row["arm"]) for row in baselines])
    return figure


def _legend(axes: Axes, baselines: Sequence[str]) -> None:
    legend_above(axes)
    if baselines:
        lines = [
            Line2D([], [], color="black", linestyle=style, linewidth=1)
            for _, style in zip(baselines, BASELINES, strict=False)
        ]
        handles, names = axes.get_legend_handles_labels()
        axes.legend(
            [*handles, *lines],
            [*names, *baselines],
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=6,
            frameon=False,
            borderaxespad=0.3,
        )


def _there(rows: Sequence[Mapping[Any, Any]], columns: Mapping[str, str]) -> dict[str, str]:
    return {name: column for name, column in columns.items() if all(column in r for r in rows)}


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


def _spread(row: Mapping[Any, Any], column: str) -> float:
    """Return the standard deviation; one seed has none."""
    return float(row[f"{column} sd"]) if row["runs"] > 1 else 0.0


def _seeds(rows: Sequence[Mapping[Any, Any]]) -> str:
    fewest, most = min(int(row["runs"]) for row in rows), max(int(row["runs"]) for row in rows)
    if most == 1:
        return "one seed"
    over = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"bars: one standard deviation over {over} seeds"
