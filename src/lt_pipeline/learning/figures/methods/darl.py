"""How ambiguous images are to the experts while they train (DARL, figures 3 and 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.figures.distribution import bars, by_group, class_axis
from lt_pipeline.learning.figures.methods import lgla
from lt_pipeline.learning.figures.style import legend_above, plain, titled
from lt_pipeline.learning.schema import UserError

MOMENTS = (0.0, 0.25, 0.5, 1.0)  # figure 5's, as shares of the run


def draw(report: Mapping[str, Any], longtail: LongTail, title: str) -> dict[str, Figure]:
    """Return the pictures of energy and calibration factor over training."""
    excess = report["series"]["weight_above_1"]
    factor = calibration_by_class(excess, longtail, title)
    return {**lgla.draw(report, longtail, title), "calibration_factor": factor}


def calibration_by_class(
    snapshots: Sequence[Sequence[float]], longtail: LongTail, title: str
) -> Figure:
    """Draw E_hat - 1 by class at the start, 25 %, 50 % and the end of training (DARL, figure 5).

    ``snapshots`` ``[S, C]`` hold each class's mean calibration factor minus 1 at S equally spaced
    points, from the start to the end of training; the nearest to each moment is drawn and says
    where it stands. Classes go from most to fewest training images; one that is nan has no bar.

    Raises:
        UserError: when there is no snapshot, or one has not a value a class.
    """
    if not snapshots or any(len(values) != longtail.classes for values in snapshots):
        raise UserError(
            f"snapshots must be [S, {longtail.classes}] with S >= 1, but their lengths are "
            f"{sorted({len(values) for values in snapshots})}"
        )
    last = len(snapshots) - 1
    picked = sorted({math.floor(moment * last + 0.5) for moment in MOMENTS})
    figure = titled(f"Calibration factor by class: {title}", 9, 2.2 + 1.2 * len(picked))
    panels = figure.subplots(len(picked), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, place in zip(panels, picked, strict=True):
        _bars(axes, snapshots[place], longtail)
        axes.set_title(_moment(place, last), loc="right", fontsize=9)
    panels[0].yaxis.set_major_formatter("{x:g}")
    legend_above(panels[0])
    class_axis(panels[-1], longtail)
    figure.supylabel(r"$\hat{E} - 1$, mean of the class's images", fontsize=10)
    return figure


def _moment(place: int, last: int) -> str:
    if place in (0, last):
        return "end of training" if place else "start of training"
    return f"{100 * place / last:.0f} % of training"


def _bars(axes: Axes, values: Sequence[float], longtail: LongTail) -> None:
    plain(axes)
    known = {c: value for c, value in enumerate(values) if not math.isnan(value)}
    for name, places, heights in by_group(known, longtail):
        bars(axes, places, heights, longtail, name)
    if known:
        mean = sum(known.values()) / len(known)
        axes.axhline(mean, color="black", linewidth=1, linestyle="--", label="mean of the classes")
