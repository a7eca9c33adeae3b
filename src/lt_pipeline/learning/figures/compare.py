"""How methods compare: recall of every class, and accuracy against what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from lt_pipeline.learning.data.distribution import MANY_CLASSES
from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, RECALL, Metric
from lt_pipeline.learning.figures.distribution import NAMED_CLASSES
from lt_pipeline.learning.figures.style import GREY, LINE_COLOURS, new_figure
from lt_pipeline.learning.schema import UserError

ACCURACY, TIME = METRICS["test/accuracy"], METRICS["cost/training_seconds"]
# where a label may stand about its point: points to the right and upwards, and how it is aligned
PLACES = (
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (0, 8, "center", "bottom"),
    (0, -8, "center", "top"),
    (8, 9, "left", "bottom"),
    (8, -9, "left", "top"),
    (-8, 9, "right", "bottom"),
    (-8, -9, "right", "top"),
)
# round times in seconds, minutes and hours
TICKS = (
    *(factor * unit for unit in (0.01, 0.1) for factor in (1, 2, 5)),
    *(factor * unit for unit in (1, 60) for factor in (1, 2, 5, 10, 20, 30)),
    *(3600 * factor for factor in (1, 2, 5, 10, 20, 50, 100, 200, 500)),
)


def recall_by_class(
    recalls: Mapping[str, pd.DataFrame], title: str, metric: Metric = RECALL
) -> Figure:
    """Draw a row a method and a column a class, the classes from most to fewest training images.

    ``recalls`` have by method a row a class, by its number: ``name``, ``training_images`` and
    ``recall``, or the ``metric`` in its place, NaN where it has no test image.

    Raises:
        UserError: if there is no method.
    """
    if not recalls:
        raise UserError(f"a picture of recalls needs at least one method, but {title!r} has none")
    first = next(iter(recalls.values()))
    classes = first.sort_values("training_images", ascending=False, kind="stable")
    names, counts = classes["name"].tolist(), classes["training_images"].tolist()
    figure, axes = new_figure(title, width=8.6, height=1.9 + 0.34 * len(recalls))
    rows = [metric.scaled(own.loc[classes.index, metric.key]) for own in recalls.values()]
    # of many classes a column of pixels is the mean of neighbours, not one of them
    how = "none" if len(counts) <= MANY_CLASSES else "antialiased"
    image = axes.imshow(rows, aspect="auto", cmap="cividis", vmin=0, vmax=100, interpolation=how)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(len(recalls)), list(recalls))
    axes.tick_params(length=0)
    if len(counts) <= NAMED_CLASSES:
        both = zip(names, counts, strict=True)
        axes.set_xticks(range(len(counts)), [f"{name}\n{count}" for name, count in both])
        axes.set_xlabel("class, and its training images")
    else:
        shown = range(0, len(counts), max(len(counts) // 8, 1))
        axes.set_xticks(list(shown), [str(counts[place]) for place in shown])
        axes.set_xlabel("training images of the class")
    figure.colorbar(image, ax=axes, label=metric.axis, pad=0.02)
    return figure


def sorted_recalls(
    profiles: Mapping[str, Sequence[float]], title: str, metric: Metric = RECALL
) -> Figure:
    """Draw the recalls from the worst class to the best, a line a method.

    ``profiles`` are ascending, as fractions of 1, and as many as there are classes with a test
    image. ``metric`` is what stands in the recalls' place.

    Raises:
        UserError: if there is no recall.
    """
    if not any(profiles.values()):
        raise UserError(f"a picture of recalls needs at least one, but {title!r} has none")
    figure, axes = new_figure(title, width=8.0, height=4.6)
    for (label, recalls), colour in zip(profiles.items(), cycle(LINE_COLOURS), strict=False):
        ranks = range(1, len(recalls) + 1)
        axes.plot(
            ranks,
            metric.scaled(recalls),
            color=colour,
            marker="o" if len(recalls) <= NAMED_CLASSES else None,
            markersize=4,
            linewidth=1.5,
            label=label,
            clip_on=False,
        )
    axes.set_ylim(0, 100)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"rank of the class by {metric.heading} (1: worst), in every run by itself")
    axes.set_ylabel(metric.axis)
    # the lines rise from the lower left
    axes.legend(loc="lower right", frameon=False)
    return figure


def accuracy_against_cost(
    rows: Sequence[Mapping[Any, Any]], title: str, metric: Metric = ACCURACY
) -> Figure:
    """Draw accuracy over training seconds, a point a method; the time is on a logarithmic scale.

    ``rows`` have ``arm``, ``runs``, and both metrics by their keys; the accuracy's deviation, too,
    where there are several runs. ``metric`` is what stands in the accuracy's place.

    Raises:
        UserError: if no row has a time above zero.
    """
    rows = [row for row in rows if row[TIME.key] > 0]
    if not rows:
        raise UserError(f"a picture of cost needs training times, but {title!r} has none")
    figure, axes = new_figure(title, width=8.0, height=5.0, grid="both")
    seconds = [row[TIME.key] for row in rows]
    heights = metric.scaled(row[metric.key] for row in rows)
    spreads = metric.scaled(row[f"{metric.key} sd"] if row["runs"] > 1 else 0 for row in rows)
    for x, y, spread, colour in zip(seconds, heights, spreads, cycle(LINE_COLOURS), strict=False):
        axes.errorbar(
            x,
            y,
            yerr=spread or None,
            color=colour,
            marker="o",
            markersize=7,
            elinewidth=1,
            capsize=3,
        )
    axes.set_xscale("log")
    axes.set_xlim(min(seconds) / 1.7, max(seconds) * 1.7)
    low = min(y - spread for y, spread in zip(heights, spreads, strict=True))
    high = max(y + spread for y, spread in zip(heights, spreads, strict=True))
    room = max(0.14 * (high - low), 1.0)
    axes.set_ylim(low - room, high + room)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _time(value)))
    axes.set_xlabel("training time, all stages (logarithmic)")
    axes.set_ylabel(metric.axis)
    _label(
        figure, axes, [str(row["arm"]) for row in rows], list(zip(seconds, heights, strict=True))
    )
    return figure


def _time(seconds: float) -> str:
    """Return a round time in words, as in ``20 s``, ``5 min`` and ``3 h``."""
    if seconds < 60:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"


def _label(
    figure: Figure, axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]]
) -> None:
    """Write each of ``names`` beside its point, where it covers no other one."""
    figure.draw_without_rendering()
    drawn = map(axes.transData.transform, points)
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in drawn]
    for place, (name, point) in enumerate(zip(names, points, strict=True)):
        best, least = None, math.inf
        for right, up, across, along in PLACES:
            text = axes.annotate(
                name,
                point,
                xytext=(right, up),
                textcoords="offset points",
                ha=across,
                va=along,
                fontsize=9,
                color=GREY,
            )
            box = text.get_window_extent()
            others = [b for other, b in enumerate(taken) if other != place]
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            covered = sum(box.overlaps(b) for b in others) + (0 if inside else 2)
            if covered < least:
                if best:
                    best.remove()
                best, least, kept = text, covered, box
            else:
                text.remove()
            if not covered:
                break
        taken.append(kept)
