"""What the trials of a sweep say: which came out best, when, and what it depended on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lt_pipeline.learning.evaluation.metrics import catalog
from lt_pipeline.learning.evaluation.metrics.catalog import Metric
from lt_pipeline.learning.figures.style import (
    ABOVE,
    GREY,
    LINE_COLOURS,
    legend_above,
    new_figure,
    plain,
)

# of images with one label
OBJECTIVE = catalog.METRICS[catalog.OBJECTIVE]
COLOURS = "viridis"
BLUE, ORANGE = LINE_COLOURS[:2]

# number -> value of the objective
Values = Mapping[int, float]
# number -> {parameter: value}
Settings = Mapping[int, Mapping[str, Any]]


def history(
    values: Values, stopped: Sequence[int], title: str, metric: Metric = OBJECTIVE
) -> Figure:
    """Draw every trial's value and the best one so far; ``stopped`` have none."""
    figure, axes = new_figure(f"Trials of a sweep: {title}", pad=ABOVE)
    numbers = sorted(values)
    heights = metric.scaled(values[n] for n in numbers)
    best = [max(heights[: k + 1], key=metric.gain) for k in range(len(heights))]
    axes.plot(numbers, heights, "o", color=BLUE, label="trial")
    axes.step(numbers, best, where="post", color=ORANGE, label="best so far")
    if stopped:
        bottom = [min(heights)] * len(stopped)
        axes.plot(stopped, bottom, "x", color=GREY, label="stopped early")
    return _finished(figure, "trial", metric)


def epochs(
    curves: Mapping[int, Mapping[int, float]],
    best: int,
    stopped: Sequence[int],
    title: str,
    metric: Metric = OBJECTIVE,
) -> Figure:
    """Draw every trial over its epochs; ``best`` and the ends of ``stopped`` are marked."""
    figure, axes = new_figure(f"Trials over their epochs: {title}", pad=ABOVE)
    usual: dict[str, Any] = {"color": BLUE, "alpha": 0.4, "linewidth": 1, "zorder": 2}
    chosen: dict[str, Any] = {"color": ORANGE, "alpha": 1, "linewidth": 2, "zorder": 3}
    for number, curve in curves.items():
        steps = sorted(curve)
        look = {**chosen, "label": f"trial {number}, the best"} if number == best else usual
        axes.plot(steps, metric.scaled(curve[step] for step in steps), **look)
    ends = {n: max(curves[n]) for n in stopped if curves.get(n)}
    if ends:
        heights = metric.scaled(curves[n][step] for n, step in ends.items())
        axes.plot(list(ends.values()), heights, "x", color=GREY, label="stopped", zorder=4)
    return _finished(figure, "epoch", metric)


def _finished(figure: Figure, counted: str, metric: Metric) -> Figure:
    """Return ``figure`` of ``metric`` over what is ``counted``, with its labels."""
    (axes,) = figure.axes
    axes.set_xlabel(counted)
    axes.set_ylabel(metric.axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(axes)
    return figure


def slices(
    values: Values,
    settings: Settings,
    logarithmic: Sequence[str],
    title: str,
    metric: Metric = OBJECTIVE,
) -> Figure:
    """Draw the values over each parameter; later trials are darker."""
    names = _names(settings)
    figure = Figure(figsize=(max(3.2 * len(names), 6.4), 4), layout="constrained")
    figure.suptitle(f"Trials by parameter: {title}", fontsize=11, x=0.02, ha="left")
    drawn = list(figure.subplots(1, len(names), sharey=True, squeeze=False)[0])
    numbers = sorted(values)
    for axes, name in zip(drawn, names, strict=True):
        plain(axes)
        points = axes.scatter(
            [v if _is_number(v := settings[n][name]) else str(v) for n in numbers],
            metric.scaled(values[n] for n in numbers),
            c=numbers,
            cmap=f"{COLOURS}_r",
            edgecolors="white",
            linewidths=0.5,
        )
        if name in logarithmic:
            axes.set_xscale("log")
        axes.set_xlabel(name)
    drawn[0].set_ylabel(metric.axis)
    figure.colorbar(points, ax=drawn, label="trial", ticks=MaxNLocator(integer=True))
    return figure


def parallel(
    values: Values,
    settings: Settings,
    logarithmic: Sequence[str],
    title: str,
    metric: Metric = OBJECTIVE,
) -> Figure:
    """Draw a line a trial through an axis a parameter, coloured by its value."""
    names = _names(settings)
    what = f"Parameters of each trial: {title}"
    figure, axes = new_figure(what, width=max(2.2 * len(names), 6.4), pad=20)
    shown = dict(zip(values, metric.scaled(values.values()), strict=True))
    ends, colours = Normalize(*_ends(list(shown.values()))), colormaps[COLOURS]
    columns = [_Column([s[name] for s in settings.values()], name in logarithmic) for name in names]
    for number in sorted(shown, key=lambda n: shown[n]):
        heights = [c.height(settings[number][n]) for c, n in zip(columns, names, strict=True)]
        axes.plot(range(len(names)), heights, color=colours(ends(shown[number])), alpha=0.8)
    for place, column in enumerate(columns):
        axes.axvline(place, color=GREY, linewidth=0.8)
        for height, text in column.ticks():
            axes.annotate(text, (place, height), (4, 0), textcoords="offset points", fontsize=8)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.15, len(names) - 0.7)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    figure.colorbar(ScalarMappable(ends, colours), ax=axes, label=metric.axis)
    return figure


def importance(importances: Mapping[str, float], title: str) -> Figure:
    """Draw how much of what sets good trials apart is each parameter's; they sum to 1."""
    what = f"What good trials depend on: {title}"
    figure, axes = new_figure(what, height=1.4 + 0.4 * len(importances))
    names = sorted(importances, key=lambda name: importances[name])
    bars = axes.barh(names, [importances[name] for name in names], color=BLUE, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.grid(visible=False)
    axes.set_xlim(0, 1.05)
    axes.set_xlabel("importance (PED-ANOVA)")
    return figure


class _Column:
    """One axis of the parallel coordinates: numbers by size, all else by name."""

    def __init__(self, values: Sequence[Any], logarithmic: bool) -> None:
        self.numbers = all(_is_number(value) for value in values)
        self.logarithmic = logarithmic
        self.names = sorted({str(value) for value in values})
        self.low, self.high = _ends([self._place(value) for value in values])

    def _place(self, value: Any) -> float:
        if not self.numbers:
            return self.names.index(str(value))
        return math.log(value) if self.logarithmic else float(value)

    def height(self, value: Any) -> float:
        """Return where ``value`` is, in [0, 1]."""
        return (self._place(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return heights and what is written there."""
        if not self.numbers:
            return [(self.height(name), name) for name in self.names]
        steps = [self.low + part * (self.high - self.low) for part in (0, 0.25, 0.5, 0.75, 1)]
        shown = [math.exp(step) if self.logarithmic else step for step in steps]
        return [(k / 4, f"{value:.3g}") for k, value in enumerate(shown)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the largest, apart."""
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _names(settings: Settings) -> list[str]:
    return list(next(iter(settings.values())))
