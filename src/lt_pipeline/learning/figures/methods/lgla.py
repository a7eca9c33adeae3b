"""How ambiguous images are to the experts while they train (DARL, figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.figures.study import COLOURS
from lt_pipeline.learning.figures.style import ABOVE, legend_above, new_figure, over_training
from lt_pipeline.learning.schema import UserError


def draw(report: Mapping[str, Any], longtail: LongTail, title: str) -> dict[str, Figure]:
    """Return the picture of the energy by group over training."""
    energies = torch.tensor(report["series"]["energy"])
    by = {name: energies[:, members].mean(1) for name, members in longtail.groups.items()}
    groups = {name: values.tolist() for name, values in by.items()}
    return {"energy": energy_by_group(groups, title, "mean energy E(z), logits")}


def energy_by_group(history: Mapping[str, Sequence[float]], title: str, label: str) -> Figure:
    """Draw a value of each group over the run, as the mean energy (DARL, figure 3).

    ``history`` is {group: values at equally spaced points, from the start to the end of training},
    groups being many, medium, few and all; ``label`` names the value. A nan leaves a gap.

    Raises:
        UserError: when no group has a value.
    """
    if not any(history.values()):
        raise UserError("history must have at least one group with a value, but has none")
    figure, axes = new_figure(f"Ambiguity over training: {title}", width=7, pad=ABOVE)
    for group, values in history.items():
        axes.plot(
            over_training(axes, len(values)),
            values,
            color=COLOURS[group],
            marker="." if len(values) < 30 else None,
            linestyle="--" if group == "all" else "-",
            label=group,
        )
    axes.set_ylabel(label)
    legend_above(axes)
    return figure
