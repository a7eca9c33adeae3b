"""How many training images each class has, and values of classes as bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lt_pipeline.learning.data.distribution import MANY_CLASSES, LongTail
from lt_pipeline.learning.figures.style import ABOVE, GROUP_COLOURS, legend_above, new_figure

NAMED_CLASSES = 30
Array = np.ndarray[Any, np.dtype[Any]]
# the bars of a picture of more than MANY_CLASSES classes, of which each is of neighbours
BARS = 200


def class_distribution(longtail: LongTail, title: str) -> Figure:
    """Draw training images by class, from most to fewest, coloured by group, on a log scale."""
    statistics = longtail.statistics()
    size = (
        f"{statistics['images']:.0f} images, {longtail.classes} classes, "
        f"IR {statistics['imbalance_ratio']:.3g}, Gini {statistics['gini']:.2f}"
    )
    figure, axes = new_figure(f"{title}\n{size}", pad=ABOVE)
    for name, places, heights in by_group(dict(enumerate(longtail.class_counts)), longtail):
        label = f"{name}: {len(places)} {'class' if len(places) == 1 else 'classes'}"
        bars(axes, places, heights, longtail, name, label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0.8)
    axes.set_ylabel("training images (log scale)")
    class_axis(axes, longtail)
    axes.set_xlabel(f"{axes.get_xlabel()}\ngroups: {longtail.group_rule}")
    legend_above(axes)
    return figure


def group_bars(
    axes: Axes, values: Mapping[int, float], longtail: LongTail, label: Callable[[float], str]
) -> None:
    """Draw ``values`` by class, from most to fewest training images, groups shaded.

    Classes without a value are left out. A line marks the mean of each group, and ``label`` says
    it in the legend.
    """
    for name, places, heights in by_group(values, longtail):
        if not places:
            continue
        left, right = min(places) - 0.5, max(places) + 0.5
        mean = sum(heights) / len(heights)
        axes.axvspan(left, right, color=GROUP_COLOURS[name], alpha=0.12, linewidth=0)
        bars(axes, places, heights, longtail, name, f"{name}: mean {label(mean)}")
        # a mean may lie on the frame
        axes.hlines(mean, left, right, color="black", linewidth=1.2, clip_on=False, zorder=3)
    legend_above(axes)
    class_axis(axes, longtail)


def by_count(longtail: LongTail) -> list[int]:
    """Return the classes from most to fewest training images."""
    return sorted(range(longtail.classes), key=lambda c: (-longtail.class_counts[c], c))


def by_group(
    values: Mapping[int, float], longtail: LongTail
) -> Iterator[tuple[str, list[int], list[float]]]:
    """Yield each group, where its classes with a value stand in ``by_count``, and these values."""
    places = {c: place for place, c in enumerate(by_count(longtail))}
    for name, classes in longtail.groups.items():
        known = [c for c in classes if c in values]
        yield name, [places[c] for c in known], [values[c] for c in known]


def bars(
    axes: Axes, places: Sequence[int], heights: Sequence[float], longtail: LongTail, *name: str
) -> None:
    """Draw the bars of a group's classes; ``name`` is the group's, and the legend's if another.

    Above ``MANY_CLASSES`` a bar is the mean of neighbours.
    """
    if longtail.classes > MANY_CLASSES and places:
        parts = neighbours(places, heights, longtail)
        edges = [*(where[0] - 0.5 for where, _ in parts), parts[-1][0][-1] + 0.5]
        look: dict[str, Any] = {"fill": True, "color": GROUP_COLOURS[name[0]], "linewidth": 0}
        axes.stairs([own.mean() for _, own in parts], edges, label=name[-1], **look)
        return
    # gaps would be too narrow to be drawn evenly
    width = 0.85 if longtail.classes <= NAMED_CLASSES else 1.0
    axes.bar(places, heights, width, color=GROUP_COLOURS[name[0]], linewidth=0, label=name[-1])


def neighbours(places: Sequence[float], values: Sequence[float], longtail: LongTail) -> list[Array]:
    """Return ``places`` in order and the ``values`` there, ``[2, n]`` of neighbours at a time."""
    both = np.stack([places, values])[:, np.argsort(places, kind="stable")]
    return np.array_split(both, max(len(places) // _together(longtail), 1), axis=1)


def of_neighbours(longtail: LongTail, what: str) -> str:
    """Return in words of how many classes ``what`` is drawn; nothing where it is of one."""
    several = longtail.classes > MANY_CLASSES
    return f"; a {what}: mean of {_together(longtail)} neighbours" if several else ""


def _together(longtail: LongTail) -> int:
    return -(-longtail.classes // BARS)


def class_axis(axes: Axes, longtail: LongTail) -> None:
    """Label the x axis, of classes by count, with their names where they fit, else with ranks."""
    axes.set_xlim(-0.6, longtail.classes - 0.4)
    if longtail.classes > NAMED_CLASSES:
        rank = "rank of the class by training images (0 has most)"
        axes.set_xlabel(rank + of_neighbours(longtail, "bar"))
        return
    names = [longtail.class_names[c] for c in by_count(longtail)]
    level = max(map(len, names)) <= 4
    turned: dict[str, Any] = (
        {"rotation": 0, "ha": "center"} if level else {"rotation": 60, "ha": "right"}
    )
    axes.set_xticks(range(len(names)), names, **turned)
    axes.set_xlabel("class, from most to fewest training images")
