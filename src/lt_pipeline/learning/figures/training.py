"""How training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lt_pipeline.learning.evaluation.metrics.catalog import HEADLINES, METRICS, Metric
from lt_pipeline.learning.figures.style import (
    GREY,
    GROUP_COLOURS,
    LINE_COLOURS,
    new_figure,
    plain,
    titled,
    words,
)

SHOWN_APART = ("train/learning_rate", "train/seconds", "train/images_per_second")
MONITORED = METRICS["test/accuracy"]
# below this part of the largest one a loss term would be a line on the floor
SMALL = 0.2

Points = Sequence[Mapping[str, float]]


def training_curves(
    history: Mapping[str, Points],
    title: str,
    reported: float | None = None,
    metric: Metric = MONITORED,
) -> Figure:
    """Draw loss terms, accuracies and learning rate over the epochs.

    ``history`` maps names to points ``{"step": epoch, "value": value}``; a panel without data is
    left out. Terms whose peak is below a fifth of the largest one's have a panel of their own.
    ``reported`` is the accuracy on the test set after the last epoch, a fraction of 1; ``metric``
    is what stands in its place.
    """
    accuracies = [n for n in history if n.endswith(f"/{metric.name}")]
    losses = {n: ps for n, ps in history.items() if _is_loss(n) and n not in accuracies}
    large, small = _by_size(losses)
    panels = [
        (large, "loss term (mean of the epoch)", 1.0),
        (small, "small loss term, on its own scale", 1.0),
        (accuracies, f"{metric.heading}, {metric.unit}", metric.factor),
        (["train/learning_rate"] if "train/learning_rate" in history else [], "learning rate", 1.0),
    ]
    panels = [p for p in panels if p[0] or (p[0] is accuracies and reported is not None)]
    figure = titled(f"Training: {title}", width=4.2 * max(len(panels), 1), height=3.8)
    for place, (names, label, factor) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        _lines(axes, history, names, factor, len(large) if names is small else 0)
        axes.set_ylabel(label)
        if names is accuracies and reported is not None:
            _mark(axes, _last_epoch(history), reported, metric)
        if names != ["train/learning_rate"]:
            axes.legend(frameon=False)
    return figure


def risk_curves(history: Mapping[str, Points], title: str) -> Figure:
    """Draw the empirical risk of each group over the epochs (MORE, figure 4 b).

    ``history`` has it as ``risk/<group>``, with points as in ``training_curves``.
    """
    figure, axes = new_figure(f"Empirical risk: {title}", width=6.4, height=4)
    for name in ("all", *GROUP_COLOURS):
        if points := history.get(f"risk/{name}"):
            steps, values = ([p[key] for p in points] for key in ("step", "value"))
            axes.plot(steps, values, color=GROUP_COLOURS.get(name, GREY), label=name)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel("mean loss of training images,\nmean over the group's classes")
    axes.legend(frameon=False)
    return figure


def _is_loss(name: str) -> bool:
    return name.startswith("train/") and name not in SHOWN_APART


def _by_size(terms: Mapping[str, Points]) -> tuple[list[str], list[str]]:
    """Return the names of the terms that share a scale with the largest, and of the others."""
    peaks = {name: max(abs(p["value"]) for p in points) for name, points in terms.items()}
    limit = SMALL * max(peaks.values(), default=0.0)
    return [n for n in peaks if peaks[n] >= limit], [n for n in peaks if peaks[n] < limit]


def _last_epoch(history: Mapping[str, Points]) -> float:
    return max((points[-1]["step"] for points in history.values()), default=0.0)


def _label(name: str) -> str:
    """Return what a line's name says that its panel does not."""
    for key in HEADLINES:
        name = name.removesuffix(f"/{METRICS[key].name}")
    return words(name.removeprefix("train/"))


def _mark(axes: Axes, epoch: float, reported: float, metric: Metric) -> None:
    """Draw what is reported, which a training without monitors has no curve of."""
    alone = not axes.lines
    label = f"test, last epoch: {metric.number(reported)}"
    axes.plot(
        [epoch], metric.scaled([reported]), "D", color=GREY, markersize=5, label=label, zorder=4
    )
    if alone:
        axes.set_xlim(0, 1.05 * epoch)
        axes.set_ylim(0, 100)


def _lines(
    axes: Axes, history: Mapping[str, Points], names: Sequence[str], factor: float, first: int
) -> None:
    """Draw ``names`` times ``factor`` in the colours from the ``first`` on."""
    plain(axes)
    for place, name in enumerate(names, start=first):
        points = history[name]
        axes.plot(
            [p["step"] for p in points],
            [factor * p["value"] for p in points],
            color=LINE_COLOURS[place % len(LINE_COLOURS)],
            marker="." if len(points) < 30 else None,
            label=_label(name),
        )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
