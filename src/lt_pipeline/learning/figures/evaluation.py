"""What a trained method gets right, by class, by group, by confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lt_pipeline.learning.data.distribution import GROUP_NAMES, MANY_CLASSES, LongTail
from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, RECALL, Metric
from lt_pipeline.learning.evaluation.metrics.recalls import true_images
from lt_pipeline.learning.figures.distribution import (
    NAMED_CLASSES,
    by_count,
    group_bars,
    neighbours,
    of_neighbours,
)
from lt_pipeline.learning.figures.style import (
    ABOVE,
    GREY,
    GROUP_COLOURS,
    legend_above,
    new_figure,
    percent,
    plain,
    titled,
)

ECE = METRICS["test/expected_calibration_error"]
# of many classes: the confusions that are drawn, and how much of a name
LARGEST, LETTERS = 20, 24
# a strip of a group's colour, above the frame
EDGE: dict[str, Any] = {"linewidth": 5, "clip_on": False, "zorder": 3}


def recall_by_class(
    table: Sequence[Mapping[Any, Any]], longtail: LongTail, title: str, metric: Metric = RECALL
) -> Figure:
    """Draw the recall of every class, from most to fewest training images, groups shaded.

    ``table`` has the rows of ``metrics.classification.class_table``; ``metric`` is another column
    of it.
    """
    named = metric.plain.capitalize()
    figure, axes = new_figure(f"{named} by class: {title}", width=9, pad=ABOVE)
    rows = [row for row in table if row["test_images"]]
    recall = metric.scaled(row[metric.key] for row in rows)
    by_class = dict(zip((row["class"] for row in rows), recall, strict=True))
    group_bars(axes, by_class, longtail, lambda mean: f"{mean:.{metric.digits}f} {metric.unit}")
    axes.set_ylim(0, 100)
    axes.set_ylabel(f"{metric.axis}\n(line: mean of the group)")
    return figure


def recall_by_count(
    table: Sequence[Mapping[Any, Any]], longtail: LongTail, title: str, metric: Metric = RECALL
) -> Figure:
    """Draw the recall of every class over its training images (DQRoute, figure 1).

    ``table`` has the rows of ``metrics.classification.class_table``; ``metric`` is another column
    of it. The rank correlation says how far the counts explain the values.
    """
    named = metric.plain.capitalize()
    figure, axes = new_figure(f"{named} and training images: {title}", pad=ABOVE)
    rows = [row for row in table if row["test_images"]]
    for name, classes in longtail.groups.items():
        own = [row for row in rows if row["class"] in classes]
        counts = [row["training_images"] for row in own]
        recalls = metric.scaled(row[metric.key] for row in own)
        if longtail.classes > MANY_CLASSES and own:
            parts = [part.mean(1) for part in neighbours(counts, recalls, longtail)]
            counts, recalls = np.stack(parts, 1).tolist()
        axes.scatter(
            counts,
            recalls,
            s=24,
            color=GROUP_COLOURS[name],
            label=name,
            clip_on=False,
            zorder=3,
        )
    counts, recalls = ([row[key] for row in rows] for key in ("training_images", metric.key))
    rank = pd.Series(counts).corr(pd.Series(recalls), method="spearman")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 100)
    known = "" if math.isnan(rank) else f"; Spearman's rank correlation {rank:.2f}"
    several = of_neighbours(longtail, "point")
    axes.set_xlabel(f"training images of the class (log scale){known}{several}")
    axes.set_ylabel(metric.axis)
    legend_above(axes)
    return figure


def confusion(
    matrix: Tensor, longtail: LongTail, title: str, images: Tensor | None = None
) -> Figure:
    """Draw the confusion matrix ``[C, C]``, every row as shares of its true class's images.

    Those are the row's sum, or ``images`` ``[C]``, where one may have several labels. Classes stand
    from most to fewest training images, with lines between the groups, whose colours are at the
    edge. Of more than ``MANY_CLASSES`` classes, whose matrix is sparse, it draws what each group is
    taken for, and the largest confusions.
    """
    if matrix.is_sparse:
        return _largest_confusions(matrix, longtail, title)
    order = by_count(longtail)
    matrix, names = matrix[order][:, order], [longtail.class_names[c] for c in order]
    total = matrix.sum(1) if images is None else images[order]
    figure, axes = new_figure(f"Confusion: {title}", width=7.2, height=6.4, pad=ABOVE)
    percents = 100 * matrix.double() / total.clamp(min=1)[:, None]
    image = axes.imshow(percents.numpy(), cmap="viridis", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="share of the true class's images, %", shrink=0.85)
    axes.grid(False)
    by_size = "from most to fewest training images"
    axes.set_xlabel(f"predicted class, {by_size}")
    axes.set_ylabel(f"true class, {by_size}")
    if len(names) <= NAMED_CLASSES:
        places = range(len(names))
        axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(places, names)
    _group_borders(axes, longtail, order)
    if len(names) <= 12:
        for row in range(len(names)):
            for column in range(len(names)):
                value = float(percents[row, column])
                colour = "black" if value > 60 else "white"
                axes.text(
                    column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8
                )
    return figure


def _largest_confusions(matrix: Tensor, longtail: LongTail, title: str) -> Figure:
    (true, predicted), images = matrix.indices().numpy(), matrix.values().numpy()
    figure = titled(f"Confusion: {title}", width=13, height=5.4, wspace=0.04)
    groups, pairs = figure.subplots(1, 2)
    places = longtail.group_places.numpy()
    _taken_for(groups, true, predicted, images, places)
    wrong = np.flatnonzero(true != predicted)
    fraction = images / true_images(matrix).numpy()[true]
    wrong = wrong[np.lexsort((-fraction[wrong], -images[wrong]))][:LARGEST]
    plain(pairs, "x")
    pairs.barh(
        range(len(wrong)),
        images[wrong],
        color=[GROUP_COLOURS[GROUP_NAMES[place]] for place in places[true[wrong]]],
    )
    for row, (count, part) in enumerate(zip(images[wrong], fraction[wrong], strict=True)):
        pairs.annotate(f" {100 * part:.0f} %", (count, row), va="center", fontsize=8)
    names = [_shortened(name) for name in longtail.class_names]
    both = zip(true[wrong], predicted[wrong], strict=True)
    labels = [f"{names[a]} → {names[b]}" for a, b in both]
    pairs.set_yticks(range(len(wrong)), labels, fontsize=8)
    pairs.invert_yaxis()
    pairs.margins(x=0.15)
    pairs.xaxis.get_major_locator().set_params(integer=True)
    pairs.set_xlabel("test images of the largest confusions (%: of the true class's)")
    pairs.set_ylabel("true class → predicted class")
    return figure


def _taken_for(axes: Axes, true: Any, predicted: Any, images: Any, places: Any) -> None:
    """Draw a line a group: how much of it is right, and for which group's classes it is taken."""
    plain(axes, "x")
    wrong = np.where(true == predicted, 0, places[predicted] + 1)
    counts = np.zeros((len(GROUP_NAMES), len(GROUP_NAMES) + 1))
    np.add.at(counts, (places[true], wrong), images)
    known = np.flatnonzero(counts.sum(1))
    percents = 100 * counts[known] / counts[known].sum(1, keepdims=True)
    names = [GROUP_NAMES[place] for place in known]
    left = np.zeros(len(known))
    looks = {"right": "#999999", **{f"→ {name}": GROUP_COLOURS[name] for name in GROUP_NAMES}}
    for part, (label, colour) in zip(percents.T, looks.items(), strict=True):
        if part.any():
            drawn = axes.barh(names, part, left=left, color=colour, label=label, height=0.6)
            written = [f"{value:.0f}" if value >= 4 else "" for value in part]
            axes.bar_label(drawn, written, label_type="center", color="white", fontsize=9)
        left += part
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the group's test images, %: right, or group of the predicted class")
    axes.set_ylabel("group of the true class")
    legend_above(axes)


def _shortened(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def _group_borders(axes: Axes, longtail: LongTail, order: list[int]) -> None:
    """Draw lines between the groups of the classes in ``order``, and their colours at the edge."""
    for name, classes in longtail.groups.items():
        places = [order.index(c) for c in classes]
        first, last, colour = min(places) - 0.5, max(places) + 0.5, GROUP_COLOURS[name]
        axes.hlines(-0.5, first, last, colour, label=name, **EDGE)
        axes.vlines(-0.5, first, last, colour, **EDGE)
        if last < len(order) - 0.5:
            axes.axhline(last, color="white", linewidth=0.8)
            axes.axvline(last, color="white", linewidth=0.8)
    legend_above(axes)


def reliability_diagram(
    bins: Mapping[str, Sequence[float]], title: str, several: bool = False
) -> Figure:
    """Draw accuracy over confidence; ``bins`` is what ``metrics.calibration.reliability`` gave.

    Of ``several`` labels an image each is a decision of its own.
    """
    figure, axes = new_figure(f"Reliability: {title}", width=6.2, height=5.4)
    left, width, accuracy, confidence = (
        percent(bins[name]) for name in ("left_edge", "width", "accuracy", "confidence")
    )
    total = sum(bins["images"])
    parts = zip(bins["images"], bins["accuracy"], bins["confidence"], strict=True)
    error = ECE.with_unit(sum(n * abs(a - c) / total for n, a, c in parts))
    axes.bar(
        left, accuracy, width, align="edge", color="#56B4E9", edgecolor="white", label="accuracy"
    )
    axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", label="perfectly calibrated")
    axes.scatter(
        confidence,
        accuracy,
        s=[10 + 140 * n / total for n in bins["images"]],
        color="#D55E00",
        zorder=3,
        clip_on=False,
        label="bin's mean (area: its images)",
    )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"confidence ({'each label' if several else 'highest'} probability), %")
    axes.set_ylabel("images that have the label, %" if several else "accuracy, %")
    axes.legend(loc="upper left", frameon=False, title=f"{ECE.words} {error}")
    return figure
