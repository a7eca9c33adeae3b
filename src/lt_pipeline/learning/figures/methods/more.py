"""What MORE's low-rank part does to the logits (table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.figures.style import GROUP_COLOURS, new_figure


def draw(report: Mapping[str, Any], longtail: LongTail, title: str) -> dict[str, Figure]:
    """Return the picture of table 4, with the share of predictions that change."""
    diagnostics = report["diagnostics"]
    shift, changed = diagnostics["logit_shift"], diagnostics["changed_predictions"]
    return {"logit_shift": logit_shift_by_group(shift, changed, title)}


def logit_shift_by_group(
    shift: Mapping[str, float], changed: Mapping[str, float], title: str
) -> Figure:
    """Draw the mean shift of the true class's logit by group (MORE, table 4).

    ``changed`` is the share of each group's predictions that are others without the shift.
    """
    figure, axes = new_figure(f"Logit shift: {title}", width=6, height=4)
    names = [f"{name}\n{100 * changed[name]:.1f} %" for name in shift]
    bars = axes.bar(names, list(shift.values()), color=[GROUP_COLOURS[n] for n in shift], width=0.6)
    axes.bar_label(bars, [f"{value:#.3g}".rstrip(".") for value in shift.values()], padding=2)
    axes.set_xlabel(r"group of the true class, and the share of decisions that $\theta^t$ changes")
    axes.set_ylabel(r"mean $|f_y(\theta) - f_y(\theta^g)|$, logits")
    axes.margins(y=0.12)
    return figure
