"""How many training images each class has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lt_pipeline.learning.data.longtail import LongTail
from lt_pipeline.learning.figures.style import GROUP_COLOURS, legend_above, new_figure

NAMED_CLASSES = 30


def class_distribution(longtail: LongTail, title: str) -> Figure:
    """Draw training images by class, from most to fewest, coloured by group, on a log scale."""
    found = longtail.statistics()
    size = (
        f"{found['images']:.0f} images, {longtail.classes} classes, "
        f"IR {found['imbalance_ratio']:.3g}, Gini {found['gini']:.2f}"
    )
    figure, axes = new_figure(f"{title}\n{size}", pad=26)
    order = by_count(longtail)
    width = bar_width(longtail)
    for name, classes in longtail.groups.items():
        places = [order.index(c) for c in classes]
        heights = [longtail.class_counts[c] for c in classes]
        label = f"{name}: {len(classes)} {'class' if len(classes) == 1 else 'classes'}"
        axes.bar(places, heights, width, color=GROUP_COLOURS[name], linewidth=0, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0.8)
    axes.set_ylabel("training images (log scale)")
    class_axis(axes, longtail, order)
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
    order = by_count(longtail)
    for name, classes in longtail.groups.items():
        places = [order.index(c) for c in classes if c in values]
        if not places:
            continue
        heights = [values[order[place]] for place in places]
        left, right = min(places) - 0.5, max(places) + 0.5
        mean = sum(heights) / len(heights)
        colour = GROUP_COLOURS[name]
        axes.axvspan(left, right, color=colour, alpha=0.12, linewidth=0)
        text = f"{name}: mean {label(mean)}"
        axes.bar(places, heights, bar_width(longtail), color=colour, linewidth=0, label=text)
        # a mean may lie on the frame
        axes.hlines(mean, left, right, color="black", linewidth=1.2, clip_on=False, zorder=3)
    legend_above(axes)
    class_axis(axes, longtail, order)


def by_count(longtail: LongTail) -> list[int]:
    """Return the classes from most to fewest training images."""
    return sorted(range(longtail.classes), key=lambda c: (-longtail.class_counts[c], c))


def bar_width(longtail: LongTail) -> float:
    """Return the width of a class's bar; 1, where gaps are too narrow to be drawn evenly."""
    return 0.85 if longtail.classes <= NAMED_CLASSES else 1.0


def class_axis(axes: Axes, longtail: LongTail, order: list[int]) -> None:
    """Label the x axis with class names where they fit, else with ranks."""
    axes.set_xlim(-0.6, longtail.classes - 0.4)
    if longtail.classes <= NAMED_CLASSES:
        longest = max(len(longtail.class_names[c]) for c in order)
        axes.set_xticks(
            range(longtail.classes),
            [longtail.class_names[c] for c in order],
            rotation=0 if longest <= 4 else 60,
            ha="center" if longest <= 4 else "right",
        )
        axes.set_xlabel("class, from most to fewest training images")
    else:
        axes.set_xlabel("rank of the class by training images (0 has most)")
