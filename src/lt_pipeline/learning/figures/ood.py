"""How well images of no class are told apart, and how their losses pull at the head (DARL)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.metrics.catalog import METRICS
from lt_pipeline.learning.figures.study import COLOURS, MARKERS
from lt_pipeline.learning.figures.style import (
    GREY,
    LIGHT,
    LINE_COLOURS,
    legend_above,
    plain,
    titled,
    words,
)
from lt_pipeline.learning.schema import UserError

MEAN = "mean"
AUROC, FPR95 = (METRICS[f"ood/{{detector}}/mean/{name}"] for name in ("auroc", "fpr95"))
# the six colours and these seven go round together in 42 steps
DETECTOR_MARKERS = "oDs^vPX"
# so do these greys and markers, in 21; none is a group's marker
OOD_GREYS = ("#333333", "#8f8f8f", "#6b6b6b")
OOD_MARKERS = "x+Dv1p|"
MIXED_COLOURS = ("#009E73", "#CC79A7", "#56B4E9")

Style = tuple[str, str]  # colour, marker
GROUP_STYLES: dict[str, Style] = {name: (COLOURS[name], MARKERS[name]) for name in COLOURS}


def ood_by_set(report: Mapping[str, Mapping[str, Mapping[str, float]]], title: str) -> Figure:
    """Draw AUROC and FPR95 of every OOD set, a marker for each detector.

    ``report`` is {detector: {set: {"auroc": share, "fpr95": share}}}; the set ``mean`` comes last.
    What a detector does not have is left out.

    Raises:
        UserError: when there is no set.
    """
    rows = _ordered(name for sets in report.values() for name in sets)
    looks = zip(cycle(LINE_COLOURS), cycle(DETECTOR_MARKERS), strict=False)
    styles = dict(zip(report, looks, strict=False))
    figure, (left, right) = _panels(f"OOD detection by set: {title}", rows, len(report), 2)
    _auroc(left, {d: _column(sets, AUROC.name) for d, sets in report.items()}, rows, styles)
    _markers(right, {d: _column(sets, FPR95.name) for d, sets in report.items()}, rows, styles)
    right.set_xlim(0, 100)
    right.set_xlabel(f"{FPR95.short}, {FPR95.unit} ({FPR95.better} is better)")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False)
    return figure


def no_set(left_out: Iterable[str], title: str) -> Figure:
    """Say that no OOD set was looked at, and which were ``left_out``."""
    figure = titled(f"OOD detection by set: {title}", width=6.4, height=1.2)
    names = ", ".join(map(words, left_out))
    reason = f"left out, as ood.json says why: {names}" if names else "evaluation.ood names no set"
    figure.text(0.01, 0.3, f"No set was looked at: {reason}.", fontsize=9, wrap=True)
    return figure


def ood_by_group(report: Mapping[str, Mapping[str, float]], detector: str, title: str) -> Figure:
    """Draw the AUROC of ``detector`` on every OOD set by group of ID images (DARL, tables 3, 4).

    ``report`` is {set: {"auroc": share, "auroc_many": share, ...}}; a group's ID images stand
    against all images of the set. The set ``mean`` comes last; groups that are not there are left
    out.

    Raises:
        UserError: when there is no set.
    """
    rows = _ordered(report)
    what = f"OOD detection by group, {words(detector)}: {title}"
    figure, (axes,) = _panels(what, rows, len(MARKERS), 1)
    keys = {group: key.rpartition("/")[2] for group, key in AUROC.keys_by_group().items()}
    values = {group: _column(report, key) for group, key in keys.items()}
    _auroc(axes, values, rows, GROUP_STYLES)
    legend_above(axes)
    return figure


def conflict(report: Mapping[str, Mapping[str, Mapping[str, float]]], title: str) -> Figure:
    """Draw how ID gradients agree with those of other images, by group of the ID image's class.

    ``report`` is {other set: what ``diagnostics.gradient_conflict.conflict_by_group`` gave}. Left
    of 0 the losses pull the head apart (DARL, equations 2 and 5).

    Raises:
        UserError: when there is no set.
    """
    rows = list(report)
    figure, (left, right) = _panels(f"Gradient conflict: {title}", rows, len(MARKERS), 2)
    cosines, negative = (
        {name: row[key] for name, row in report.items()} for key in ("cosine", "negative_share")
    )
    by_group = {group: _column(cosines, group, 1) for group in COLOURS}
    _markers(left, by_group, rows, GROUP_STYLES)
    _markers(right, {group: _column(negative, group) for group in COLOURS}, rows, GROUP_STYLES)
    reach = max((abs(x) for x in _known(by_group)), default=0) or 1
    left.set_xlim(-1.15 * reach, 1.15 * reach)
    left.axvline(0, color=GREY, linewidth=1, zorder=1)
    left.set_xlabel("mean cosine of the head's gradients")
    right.set_xlim(0, 100)
    right.set_xlabel("conflicting pairs (cosine below 0), %")
    legend_above(left)
    return figure


def embedding(
    id_points: Tensor,
    labels: Tensor,
    longtail: LongTail,
    ood_points: Mapping[str, Tensor],
    mixed: Mapping[str, Tensor],
    title: str,
) -> Figure:
    """Draw features in the plane: ID images by group, OOD sets, mixed images (figures 2 and 6).

    ``id_points`` ``[N, 2]`` are positions of ID images of true classes ``labels`` ``[N]``;
    ``ood_points`` and ``mixed`` hold positions ``[n, 2]`` by the name of their set, all of one call
    of ``diagnostics.embedding.tsne``. OOD sets are grey, mixed images stars.
    """
    figure = Figure(figsize=(8.2, 5.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"Features (t-SNE): {title}", loc="left", fontsize=11)
    for group, mask in longtail.group_members(labels).items():
        _cloud(
            axes,
            id_points[mask.cpu()],
            group,
            GROUP_STYLES[group],
            outline="white",
            size=4.5,
            zorder=2,
        )
    greys = zip(cycle(OOD_GREYS), cycle(OOD_MARKERS), strict=False)
    for (name, points), (grey, marker) in zip(ood_points.items(), greys, strict=False):
        _cloud(axes, points, name, ("none", marker), outline=grey, size=4, zorder=1)
    for (name, points), colour in zip(mixed.items(), cycle(MIXED_COLOURS), strict=False):
        _cloud(axes, points, name, (colour, "*"), outline="black", size=8, zorder=3)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(LIGHT)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _cloud(
    axes: Axes, points: Tensor, name: str, style: Style, outline: str, size: float, zorder: float
) -> None:
    colour, marker = style
    axes.plot(
        points[:, 0].tolist(),
        points[:, 1].tolist(),
        linestyle="",
        marker=marker,
        markersize=size,
        markerfacecolor=colour,
        markeredgecolor=outline,
        markeredgewidth=0.8 if colour == "none" else 0.4,
        label=f"{words(name)}: {len(points):,}",
        zorder=zorder,
    )


def _ordered(sets: Iterable[str]) -> list[str]:
    """Return the sets in the order they first came in, the mean last."""
    return sorted(dict.fromkeys(sets), key=lambda name: name == MEAN)


def _column(
    table: Mapping[str, Mapping[str, float]], key: str, factor: float = 100
) -> dict[str, float]:
    """Return ``key`` of every row that has it, times ``factor``."""
    return {name: factor * row[key] for name, row in table.items() if key in row}


def _panels(
    title: str, rows: Sequence[str], series: int, columns: int
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a row for each set, tall enough for ``series`` markers side by side."""
    if not rows:
        raise UserError(f"a picture of OOD sets needs at least one, but {title!r} has none")
    height = max(1.5 + (0.18 + 0.05 * series) * len(rows), 1.0 + 0.22 * series)
    # 100 at the end of one panel and 0 at the start of the next need room
    figure = titled(title, width=3.4 + 3.2 * columns, height=height, wspace=0.06)
    panels = list(figure.subplots(1, columns, sharey=True, squeeze=False)[0])
    for axes in panels:
        plain(axes, "x")
        axes.tick_params(axis="y", length=0)
        for place in range(0, len(rows), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
        if rows[-1] == MEAN:
            axes.axhline(len(rows) - 1.5, color="black", linewidth=0.8)
    panels[0].set_yticks(range(len(rows)), [words(name) for name in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure, panels


def _markers(
    axes: Axes,
    values: Mapping[str, Mapping[str, float]],
    rows: Sequence[str],
    styles: Mapping[str, Style],
) -> None:
    """Draw {series: {row: value}}; within a row the series stand one below the other."""
    shown = {
        series: {name: v for name, v in of.items() if not math.isnan(v)}
        for series, of in values.items()
    }
    shown = {series: of for series, of in shown.items() if of}
    for place, (series, of) in enumerate(shown.items()):
        shift = 0.7 * ((place + 0.5) / len(shown) - 0.5)
        colour, marker = styles[series]
        axes.plot(
            list(of.values()),
            [rows.index(name) + shift for name in of],
            color=colour,
            marker=marker,
            markersize=5,
            linestyle="",
            label=words(series),
            clip_on=False,
            zorder=3,
        )


def _auroc(
    axes: Axes,
    values: Mapping[str, Mapping[str, float]],
    rows: Sequence[str],
    styles: Mapping[str, Style],
) -> None:
    """Draw AUROCs from chance, or whatever is worse, to perfect."""
    _markers(axes, values, rows, styles)
    worst = min(_known(values), default=50)
    axes.set_xlim(min(45, 10 * math.floor(worst / 10)), 100)
    axes.axvline(50, color=GREY, linewidth=1, linestyle="--", zorder=1)
    axes.set_xlabel(f"{AUROC.short}, {AUROC.unit} ({AUROC.better} is better; dashed: chance)")


def _known(values: Mapping[str, Mapping[str, float]]) -> list[float]:
    return [x for of in values.values() for x in of.values() if not math.isnan(x)]
