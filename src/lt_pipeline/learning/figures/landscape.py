"""The Hessian of each class's loss."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.figures.distribution import by_group, class_axis
from lt_pipeline.learning.figures.style import GROUP_COLOURS, plain, titled

# columns of the table of classes, as they are drawn
PANELS = {
    "lambda_min": r"$|\lambda_{min}|$",
    "lambda_max": r"$|\lambda_{max}|$",
    "trace": "|trace|",
    "gamma": r"$\gamma = |\lambda_{min} / \lambda_{max}|$",
}


def landscape_by_class(table: pd.DataFrame, longtail: LongTail, title: str) -> Figure:
    """Draw sizes of the Hessian's eigenvalues and trace by class (MORE, table 6).

    ``table`` is that of the classes, with the columns of ``diagnostics.landscape.Curvature``. The
    axes are logarithmic, as what is compared is the largest over the smallest; zeros are left out.
    """
    figure = titled(f"Loss landscape by class: {title}", width=11, height=7)
    for place, (name, label) in enumerate(PANELS.items(), start=1):
        axes = figure.add_subplot(2, 2, place)
        plain(axes)
        sizes = table[name].abs()
        known = {c: v for c, v in zip(table["class"], sizes, strict=True) if v > 0}
        for group, places, heights in by_group(known, longtail):
            axes.scatter(places, heights, s=36, color=GROUP_COLOURS[group], label=group, zorder=3)
        axes.set_yscale("log")
        if sizes.min() > 0:
            ratio = f"largest / smallest: {sizes.max() / sizes.min():.3g}"
            axes.set_title(ratio, loc="left", fontsize=9)
        axes.set_ylabel(label)
        class_axis(axes, longtail)
    figure.legend(*axes.get_legend_handles_labels(), loc="upper right", ncols=3, frameon=False)
    return figure
