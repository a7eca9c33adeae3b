"""How class weights went over training, and which expert decides on which images (DQRoute)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.figures.distribution import by_count
from lt_pipeline.learning.figures.style import (
    ABOVE,
    GREY,
    LINE_COLOURS,
    legend_above,
    new_figure,
    over_training,
    percent,
)

ROUTING = "routing_"


def draw(report: Mapping[str, Any], longtail: LongTail, title: str) -> dict[str, Figure]:
    """Return the pictures of weights and difficulty over training, and of routing by group."""
    diagnostics, series = report["diagnostics"], report["series"]
    weights = {n.removeprefix(ROUTING): v for n, v in diagnostics.items() if n.startswith(ROUTING)}
    (effective,), (correlation,) = series["effective_classes"], series["size_correlation"]
    return {
        "class_weights": class_weights(series["class_weight"], longtail, title),
        "effective_classes": effective_classes(effective, longtail.classes, title),
        "size_correlation": size_correlation(correlation, title),
        "routing": routing_by_group(weights, title),
    }


def class_weights(history: Sequence[Sequence[float]], longtail: LongTail, title: str) -> Figure:
    """Draw the weight of every class over the run, classes from most to fewest training images.

    ``history`` ``[S, C]`` holds positive weights of mean 1 at S equally spaced points of the run.
    """
    figure, axes = new_figure(f"Class weights: {title}", width=8, height=4.8)
    rows = [[weights[c] for weights in history] for c in by_count(longtail)]
    least = min(min(row) for row in rows)
    most = max(max(row) for row in rows)
    reach = max(most, 1 / max(least, 1e-6), 1.01)
    image = axes.imshow(
        rows,
        aspect="auto",
        cmap="RdBu_r",
        norm=LogNorm(1 / reach, reach),
        extent=(0, 100, longtail.classes - 0.5, -0.5),
        interpolation="nearest",
    )
    bar = figure.colorbar(image, ax=axes, label="weight (mean over the classes: 1)")
    bar.ax.minorticks_off()
    bar.set_ticks([1 / reach, 1, reach], labels=[f"{1 / reach:.2g}", "1", f"{reach:.2g}"])
    axes.grid(False)
    over_training(axes, len(history))
    axes.set_ylabel("rank of the class by\ntraining images (0 has most)")
    return figure


def effective_classes(history: Sequence[float], classes: int, title: str) -> Figure:
    """Draw how many of the ``classes`` share the difficulty weight over the run (equation 2).

    ``history`` ``[S]`` holds their effective number, exp of the weights' entropy, at S >= 2 equally
    spaced points of the run.
    """
    figure, axes = new_figure(f"Effective classes: {title}", width=6.4, height=4.0)
    axes.plot(over_training(axes, len(history)), history, color=LINE_COLOURS[0])
    axes.axhline(classes, color=GREY, linewidth=1, linestyle="--")
    axes.annotate(
        "all alike", (100, classes), (0, 3), textcoords="offset points", ha="right", va="bottom",
        color=GREY,
    )  # fmt: skip
    axes.set_ylim(0, 1.12 * classes)
    axes.set_ylabel("classes that share the difficulty weight")
    return figure


def size_correlation(history: Sequence[float], title: str) -> Figure:
    """Draw the rank correlation of class difficulty and class size over the run.

    ``history`` ``[S]`` holds it, in [-1, 1], at S >= 2 equally spaced points of the run.
    """
    figure, axes = new_figure(f"Difficulty and class size: {title}", width=6.4, height=4.0)
    axes.plot(over_training(axes, len(history)), history, color=LINE_COLOURS[0])
    axes.axhline(0, color=GREY, linewidth=1, linestyle="--")
    for height, name in ((-0.95, "rarer classes are harder"), (0.9, "rarer classes are easier")):
        axes.annotate(name, (99, height), ha="right", va="center", color=GREY)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("rank correlation of difficulty\nand training images")
    return figure


def routing_by_group(routing: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Draw the mean routing weight of every expert by the group of the true class, stacked.

    ``routing`` is {expert: {group: weight}}.
    """
    figure, axes = new_figure(f"Routing: {title}", width=6.4, height=4.4, pad=ABOVE)
    groups = list(next(iter(routing.values())))
    below = [0.0] * len(groups)
    for colour, (expert, weights) in zip(LINE_COLOURS, routing.items(), strict=False):
        heights = percent(weights[group] for group in groups)
        bars = axes.bar(groups, heights, 0.6, bottom=below, color=colour, label=expert)
        # a number does not fit into a thin slice
        written = [f"{h:.0f}" if h >= 4 else "" for h in heights]
        axes.bar_label(bars, written, label_type="center", color="white")
        below = [b + h for b, h in zip(below, heights, strict=True)]
    axes.set_ylim(0, 100)
    axes.set_xlabel("group of the true class")
    axes.set_ylabel("mean routing weight, %")
    legend_above(axes)
    return figure
