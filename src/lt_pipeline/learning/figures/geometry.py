"""How features lie around their class's centre, and how far apart classes are."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.mlab import GaussianKDE
from numpy.typing import NDArray
from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.figures.distribution import group_bars
from lt_pipeline.learning.figures.style import ABOVE, GROUP_COLOURS, new_figure
from lt_pipeline.learning.schema import UserError

HALF_WIDTH = 0.36
DENSITY_NEEDS = 5  # images; the density of fewer would be invented


def angle_distribution(angles: Tensor, labels: Tensor, longtail: LongTail, title: str) -> Figure:
    """Draw the distribution of each group's angles, with quartiles and mean (DBM, figure 4).

    ``angles`` ``[N]`` are degrees between an image's feature and its class's centre, ``labels``
    ``[N]`` the true classes. A group of fewer than 5 images, or of equal angles, has no density
    and is drawn as points. The axis spans at least 0 to 90 degrees.

    Raises:
        UserError: when there is no image.
    """
    if not len(angles):
        raise UserError("angles must hold at least one image, but is empty")
    figure, axes = new_figure(f"Angle to the class centre: {title}", width=6.4, height=4.6)
    members = longtail.group_members(labels)
    names = []
    for place, (name, mask) in enumerate(members.items()):
        values = angles[mask].double().cpu().numpy()
        _violin(axes, place, values, GROUP_COLOURS[name])
        names.append(f"{name}\n{len(values):,} image{'' if len(values) == 1 else 's'}")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.55, len(names) - 0.3)
    top = max(90, 15 * math.ceil(float(angles.max()) / 15))
    axes.set_yticks(range(0, top + 1, 15))
    axes.set_ylim(0, top)
    axes.set_xlabel("group of the true class (dashed: quartiles, circle: mean)")
    axes.set_ylabel("angle between feature and class centre, degrees")
    return figure


def _violin(axes: Axes, place: int, values: NDArray[np.float64], colour: str) -> None:
    """Draw one group's angles: their density or, where there is none, themselves; the mean."""
    mean = float(values.mean())
    reach = 0.0  # half the violin's width at the mean
    if len(values) >= DENSITY_NEEDS and np.ptp(values) > 1e-6:
        grid = np.linspace(values.min(), values.max(), 200)
        density = GaussianKDE(values)(grid)
        half = HALF_WIDTH * density / density.max()
        axes.fill_betweenx(grid, place - half, place + half, color=colour, alpha=0.45, linewidth=0)
        for quartile in np.quantile(values, [0.25, 0.5, 0.75]):
            inside = float(np.interp(quartile, grid, half))
            axes.hlines(quartile, place - inside, place + inside, "black", "dashed", linewidth=1)
        # the widest place beside the number, which is some degrees high
        reach = float(half[np.abs(grid - mean) < 6].max(initial=np.interp(mean, grid, half)))
    else:
        axes.scatter([place] * len(values), values, s=60, color=colour, alpha=0.6, linewidth=0)
    axes.scatter([place], [mean], s=22, color="white", edgecolor="black", zorder=3)
    axes.annotate(
        f"{mean:.1f}°", (place + reach, mean), (5, 0), textcoords="offset points", va="center"
    )


def separability_by_class(separability: Tensor, longtail: LongTail, title: str) -> Figure:
    """Draw S_i ``[C]`` of every class, from most to fewest training images (DBM, table 6).

    Groups are shaded, their means in the legend. Classes whose S is nan are left out.

    Raises:
        UserError: when every class's S is nan.
    """
    known = {c: s for c, s in enumerate(separability.tolist()) if not math.isnan(s)}
    if not known:
        raise UserError("separability must be known for at least one class, but is nan for all")
    figure, axes = new_figure(f"Separability by class: {title}", width=9, pad=ABOVE)
    axes.set_ylabel(
        "separability $S_i$: mean Fisher criterion\nto the other classes (line: mean of the group)"
    )
    group_bars(axes, known, longtail, lambda mean: f"{mean:.3g}")
    axes.set_ylim(bottom=0)
    return figure
