"""How training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lt_pipeline.learning.figures.style import LINE_COLOURS, plain

SHOWN_APART = ("train/learning_rate", "train/seconds", "train/images_per_second")


def training_curves(history: Mapping[str, Sequence[Mapping[str, float]]], title: str) -> Figure:
    """Draw loss terms, learning rate and monitored accuracies over the epochs.

    ``history`` maps names to points ``{"step": epoch, "value": value}``; a panel without data is
    left out.
    """
    losses = [n for n in history if n.startswith("train/") and n not in SHOWN_APART]
    accuracies = [n for n in history if n.endswith("/accuracy")]
    panels = [
        (losses, "loss term (mean of the epoch)", 1.0),
        (accuracies, "accuracy, %", 100.0),
        (["train/learning_rate"] if "train/learning_rate" in history else [], "learning rate", 1.0),
    ]
    panels = [panel for panel in panels if panel[0]]
    figure = Figure(figsize=(4.2 * max(len(panels), 1), 3.8), layout="constrained")
    figure.suptitle(f"Training: {title}", x=0.01, ha="left", fontsize=11)
    for place, (names, label, factor) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        _lines(axes, history, names, factor)
        axes.set_ylabel(label)
    return figure


def _lines(
    axes: Axes,
    history: Mapping[str, Sequence[Mapping[str, float]]],
    names: Sequence[str],
    factor: float,
) -> None:
    plain(axes)
    for place, name in enumerate(names):
        points = history[name]
        axes.plot(
            [p["step"] for p in points],
            [factor * p["value"] for p in points],
            color=LINE_COLOURS[place % len(LINE_COLOURS)],
            marker="." if len(points) < 30 else None,
            label=name.removeprefix("train/").removesuffix("/accuracy").replace("_", " "),
        )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if names[0] not in SHOWN_APART:
        axes.legend(frameon=False)
