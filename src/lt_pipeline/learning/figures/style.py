"""The look that all pictures share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
GROUP_COLOURS = {"many": "#0072B2", "medium": "#E69F00", "few": "#D55E00"}
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, LIGHT = "#555555", "#dddddd"
Grid = Literal["x", "y", "both"]
ABOVE = 26.0  # points between title and axes that a legend of one line takes


def new_figure(
    title: str, width: float = 8.0, height: float = 4.5, pad: float = 6.0, grid: Grid = "y"
) -> tuple[Figure, Axes]:
    """Return a figure of ``width`` x ``height`` inches with one pair of axes.

    Its title stands ``pad`` points above them, to leave room for what is written between.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, pad=pad)
    plain(axes, grid)
    return figure, axes


def titled(title: str, width: float, height: float, wspace: float = 0.02) -> Figure:
    """Return a figure of ``width`` x ``height`` inches, for panels below one title.

    ``wspace`` is the room between them, a share of their width.
    """
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", wspace=wspace)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def legend_above(axes: Axes, more: Sequence[Artist] = ()) -> None:
    """Write the legend, ``more`` behind what is drawn, in one line between title and axes."""
    handles = [*axes.get_legend_handles_labels()[0], *more]
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3}
    axes.legend(handles=handles, ncols=6 if more else 4, frameon=False, **place)


def plain(axes: Axes, grid: Grid = "y") -> None:
    """Take away the frame that says nothing and set a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)


def over_training(axes: Axes, points: int) -> list[float]:
    """Return where as many ``points`` of a run stand, equally spaced, on an x axis of its share."""
    axes.set_xlabel("training done, %")
    axes.set_xlim(0, 100)
    return [100 * place / max(points - 1, 1) for place in range(points)]


def percent(fractions: Iterable[float]) -> list[float]:
    """Return fractions of 1 in per cent."""
    return [100 * fraction for fraction in fractions]


def words(name: str) -> str:
    """Return a name as words."""
    return name.replace("_", " ")
