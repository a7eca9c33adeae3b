"""What balanced fine-tuning, merging and post-training do to the worst classes (BTM)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, RECALL, Metric
from lt_pipeline.learning.figures.distribution import NAMED_CLASSES
from lt_pipeline.learning.figures.study import BASELINES
from lt_pipeline.learning.figures.style import (
    GREY,
    LINE_COLOURS,
    legend_above,
    plain,
    titled,
    words,
)
from lt_pipeline.learning.schema import UserError

ACCURACY, HARMONIC, GEOMETRIC = (
    METRICS[f"test/{name}"] for name in ("accuracy", "harmonic_mean", "geometric_mean")
)
PRECISIONS, F1 = METRICS["test/mean_average_precision"], METRICS["test/macro_f1"]
# colour, marker, its size and height; where all three meet, a part of each is seen
LOOKS = {
    HARMONIC: ("#D55E00", "^", 6, 3.2),
    GEOMETRIC: ("#0072B2", "o", 8, 3.1),
    ACCURACY: ("black", "|", 13, 3.0),
    # where images have several labels, in the place of the others
    PRECISIONS: ("black", "D", 6, 3.2),
    F1: ("#0072B2", "o", 8, 3.1),
}
CURVE_MARKERS = "osD^vP"
# the part of its colour that a lighter marker keeps
LIGHTER = 0.45


def interpolation(
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    levels: Mapping[str, Mapping[str, float]],
    title: str,
) -> Figure:
    """Draw both means of the recalls on the way from one network to another (BTM, figures 1, 2).

    ``curves`` are, by what they join, points ``{"share": weight of the second network,
    "harmonic_mean": share, "geometric_mean": share}`` in any order. ``levels`` have both means of
    networks that lie on no path; they are drawn across. Of several labels the mean average
    precision and the macro F1 stand in both means' place.

    Raises:
        UserError: when there is no curve.
    """
    if not curves:
        raise UserError(f"a picture of interpolations needs at least one, but {title!r} has none")
    figure = titled(title, width=9, height=4.1, wspace=0.06)
    of_one = all(HARMONIC.name in point for path in curves.values() for point in path)
    metrics = (HARMONIC, GEOMETRIC) if of_one else (PRECISIONS, F1)
    for axes, metric in zip(figure.subplots(1, 2), metrics, strict=True):
        plain(axes)
        shown = _curves(axes, curves, metric) + _levels(axes, levels, metric)
        axes.set_ylim(*_window(shown))
        axes.set_xlim(0, 1)
        axes.set_xlabel(r"share $\lambda$ of the second network's weights")
        axes.set_ylabel(metric.axis)
    _legend_below(figure, figure.axes[0])
    return figure


def recall_profiles(
    before_after: Mapping[str, Sequence[float]],
    title: str,
    floor: float = 1e-3,
    metric: Metric = RECALL,
) -> Figure:
    """Draw the recalls of all classes from worst to best, a line a network (BTM, figure 3).

    ``before_after`` has the recalls ``[C]`` as fractions of 1, in any order; those that are not a
    number, of classes without a test image, are left out. Every network's classes are sorted on
    their own. The legend has the harmonic means, a recall below ``floor`` counted as ``floor``.
    ``metric`` is what stands in the recalls' place.

    Raises:
        UserError: when there is no recall at all.
    """
    profiles = {
        name: sorted(recall for recall in recalls if not math.isnan(recall))
        for name, recalls in before_after.items()
    }
    classes = max(map(len, profiles.values()), default=0)
    if not classes:
        raise UserError(f"a picture of recalls needs at least one, but {title!r} has none")
    figure = titled(title, width=8, height=4.5, wspace=0.06)
    axes = figure.add_subplot()
    plain(axes)
    for (name, recalls), (colour, marker) in zip(profiles.items(), _looks(), strict=False):
        if recalls:
            mean = HARMONIC.with_unit(_mean(recalls, floor))
            axes.plot(
                range(1, len(recalls) + 1),
                metric.scaled(recalls),
                color=colour,
                marker=marker if classes <= NAMED_CLASSES else None,
                markersize=5,
                linewidth=1.4,
                drawstyle="steps-mid",
                label=f"{words(name)}: {HARMONIC.plain} {mean}",
                # the worst recalls lie on the frame
                clip_on=False,
                zorder=3,
            )
    _rank_axis(axes, classes)
    small = "a recall" if metric is RECALL else "one"
    axes.set_xlabel(
        f"rank of the class by {metric.plain} (1: worst), in every network by itself\n"
        f"{HARMONIC.plain}: {small} below {100 * floor:g} % counts as {100 * floor:g} %"
    )
    axes.set_ylim(0, 100)
    axes.set_ylabel(metric.axis)
    _legend_below(figure, axes)
    return figure


def by_stage(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw both means and the accuracy of every stage, a line a stage (BTM, tables 12 to 16).

    ``rows`` have ``stage`` and the metrics by name, as far as they are known; the first is on top.
    A row whose ``aside`` is true is drawn lighter.

    Raises:
        UserError: when there is no row.
    """
    if not rows:
        raise UserError(f"a picture of stages needs at least one, but {title!r} has none")
    figure = titled(title, width=8, height=1.6 + 0.3 * len(rows), wspace=0.06)
    axes = figure.add_subplot()
    plain(axes, "both")
    best = 0.0
    for metric in LOOKS:
        values = _known(rows, metric)
        best = max(best, *values.values(), 0)
        for aside in (False, True) if values else ():
            own = {row: x for row, x in values.items() if bool(rows[row].get("aside")) == aside}
            axes.plot(list(own.values()), list(own), **_points(metric, aside))
    axes.set_yticks(range(len(rows)), [words(str(row["stage"])) for row in rows])
    for row, tick in zip(rows, axes.get_yticklabels(), strict=True):
        tick.set_color(GREY if row.get("aside") else "black")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, min(max(1.06 * best, 5), 100))
    axes.set_xlabel("accuracy and means of the recalls on the test set, %")
    legend_above(axes)
    return figure


def _points(metric: Metric, aside: bool) -> dict[str, Any]:
    colour, marker, size, height = LOOKS[metric]
    return {
        "color": tuple(1 - LIGHTER * (1 - part) for part in to_rgb(colour)) if aside else colour,
        "marker": marker,
        "markersize": size,
        # a line has nothing but its edge
        "markeredgewidth": 2 if marker == "|" else 0,
        "linestyle": "",
        "label": None if aside else metric.plain,
        "clip_on": False,
        "zorder": height,
    }


def _curves(
    axes: Axes, curves: Mapping[str, Sequence[Mapping[str, float]]], metric: Metric
) -> list[float]:
    """Draw ``metric`` of all curves and return the values that are in the picture, in per cent."""
    shown = []
    for (name, points), (colour, marker) in zip(curves.items(), _looks(), strict=False):
        path = sorted(points, key=lambda point: point["share"])
        heights = metric.scaled(point[metric.name] for point in path)
        axes.plot(
            [point["share"] for point in path],
            heights,
            color=colour,
            marker=marker,
            markersize=5,
            label=words(name),
            clip_on=False,
            zorder=3,
        )
        shown += heights
    return shown


def _levels(axes: Axes, levels: Mapping[str, Mapping[str, float]], metric: Metric) -> list[float]:
    looks = zip(cycle(("black", GREY)), cycle(BASELINES), strict=False)
    heights = metric.scaled(level[metric.name] for level in levels.values())
    for name, height, (colour, style) in zip(levels, heights, looks, strict=False):
        axes.axhline(height, color=colour, linestyle=style, linewidth=1.4, label=words(name))
    return heights


def _looks() -> Iterable[tuple[str, str]]:
    """Return endless pairs of colour and marker."""
    return zip(cycle(LINE_COLOURS), cycle(CURVE_MARKERS), strict=False)


def _window(percents: Sequence[float]) -> tuple[float, float]:
    """Return limits about ``percents``, within 0 and 100, that do not blow up noise.

    At least one point of room is left on each side, lest a difference of a few images look large.
    """
    low, high = min(percents, default=0), max(percents, default=100)
    room = max(0.08 * (high - low), 1)
    return max(low - room, 0), min(high + room, 100)


def _mean(recalls: Sequence[float], floor: float) -> float:
    """Return the harmonic mean."""
    return len(recalls) / sum(1 / max(recall, floor) for recall in recalls)


def _rank_axis(axes: Axes, classes: int) -> None:
    axes.set_xlim(0.5, classes + 0.5)
    if classes <= NAMED_CLASSES:
        axes.set_xticks(range(1, classes + 1))
    else:
        inside = [int(tick) for tick in axes.get_xticks() if 0 <= tick <= classes]
        axes.set_xticks([max(tick, 1) for tick in inside])


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Write the legend of ``axes`` below all, in as many columns as the figure is wide for.

    The figure grows by its lines, so that the panels keep their size.
    """
    handles, names = axes.get_legend_handles_labels()
    # inches: a letter is at most 0.09 wide on average, a column's line and gaps take 0.7
    column = 0.7 + 0.09 * max(map(len, names))
    columns = max(int(figure.get_figwidth() / column), 1)
    figure.set_figheight(figure.get_figheight() + 0.22 * math.ceil(len(names) / columns))
    figure.legend(handles, names, loc="outside lower left", ncols=columns, frameon=False)


def _known(rows: Sequence[Mapping[str, Any]], metric: Metric) -> dict[int, float]:
    """Return ``metric`` as it is drawn by place of the row, where it is a number."""
    values = {place: row.get(metric.name) for place, row in enumerate(rows)}
    known = {place: v for place, v in values.items() if v is not None and not math.isnan(v)}
    return dict(zip(known, metric.scaled(known.values()), strict=True))
