from __future__ import annotations

import io
import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.profiles import Exponential, profile_counts
from lt_pipeline.learning.figures.methods.darl import calibration_by_class
from lt_pipeline.learning.figures.style import GROUP_COLOURS

CIFAR = LongTail.from_counts(
    profile_counts(Exponential(), classes=100, max_per_class=500, imbalance_ratio=100)
)
# counts 300, 200, 50, 5 are classes 1, 3, 2, 0
SMALL = LongTail.from_counts([5, 300, 50, 200], ["rare", "common", "some", "more"])


def is_png(figure) -> bool:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue().startswith(b"\x89PNG") and len(buffer.getvalue()) > 5000


def bars(axes):
    drawn = [bar for group in axes.containers for bar in group]
    return {round(b.get_x() + b.get_width() / 2): b for b in drawn}


def heights(axes):
    return {place: bar.get_height() for place, bar in sorted(bars(axes).items())}


def moments(figure):
    return [axes.get_title(loc="right") for axes in figure.axes]


def test_factors_stand_by_count_at_the_four_moments_of_figure_5():
    # point s holds 10 s + class
    snapshots = [[10.0 * s + c for c in range(4)] for s in range(9)]
    figure = calibration_by_class(snapshots, SMALL, "darl on digits")
    assert moments(figure) == [
        "start of training", "25 % of training", "50 % of training", "end of training",
    ]  # fmt: skip
    for axes, point in zip(figure.axes, (0, 2, 4, 8), strict=True):
        assert heights(axes) == {p: 10 * point + c for p, c in enumerate((1, 3, 2, 0))}
        colours = [to_hex(bar.get_facecolor()).upper() for _, bar in sorted(bars(axes).items())]
        assert colours == [GROUP_COLOURS[g] for g in ("many", "many", "medium", "few")]
        assert axes.lines[0].get_ydata()[0] == 10 * point + 1.5
    FigureCanvasAgg(figure).draw()
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert figure.axes[0].get_ylim()[0] == 0
    bottom = figure.axes[-1]
    assert [t.get_text() for t in bottom.get_xticklabels()] == ["common", "more", "some", "rare"]
    assert bottom.get_xlabel() == "class, from most to fewest training images"
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert sorted(legend) == ["few", "many", "mean of the classes", "medium"]
    assert "hat{E} - 1" in figure.get_supylabel()
    assert figure.get_suptitle() == "Calibration factor by class: darl on digits"
    assert is_png(figure)


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        (1, ["start of training"]),
        (2, ["start of training", "end of training"]),
        (3, ["start of training", "50 % of training", "end of training"]),
        (4, ["start of training", "33 % of training", "67 % of training", "end of training"]),
    ],
)
def test_few_snapshots_say_where_they_stand(points, wanted):
    figure = calibration_by_class([[0.1] * 4] * points, SMALL, "x")
    assert moments(figure) == wanted
    FigureCanvasAgg(figure).draw()
    box = figure._supylabel.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= figure.axes[0].get_legend().get_window_extent().y0


def test_a_class_that_is_not_known_has_no_bar_and_is_in_no_mean():
    values = [0.1, math.nan, 0.3, 0.2]
    axes = calibration_by_class([values, [math.nan] * 4], SMALL, "x").axes
    assert heights(axes[0]) == {1: 0.2, 2: 0.3, 3: 0.1}
    assert axes[0].lines[0].get_ydata()[0] == pytest.approx(0.2)
    assert heights(axes[1]) == {}
    assert len(axes[1].lines) == 0


def test_a_hundred_classes_have_ranks_and_small_numbers_no_offset():
    figure = calibration_by_class([[1e-7 * c for c in range(100)]] * 5, CIFAR, "x")
    assert len(heights(figure.axes[3])) == 100
    FigureCanvasAgg(figure).draw()
    assert figure.axes[3].get_xlabel() == "rank of the class by training images (0 has most)"
    assert {axes.yaxis.get_offset_text().get_text() for axes in figure.axes} == {""}
    legend = figure.axes[0].get_legend().get_window_extent()
    assert legend.y0 >= figure.axes[0].get_window_extent().y1 - 1
    assert is_png(figure)


@pytest.mark.parametrize("snapshots", [[], [[0.1] * 3], [[0.1] * 4, [0.1] * 5]])
def test_snapshots_that_do_not_fit_the_classes_are_refused(snapshots):
    with pytest.raises(ValueError, match=r"snapshots must be \[S, 4\] with S >= 1"):
        calibration_by_class(snapshots, SMALL, "x")
