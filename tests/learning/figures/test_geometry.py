from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import FillBetweenPolyCollection, LineCollection, PathCollection
from matplotlib.colors import to_hex

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.profiles import Exponential, profile_counts
from lt_pipeline.learning.figures.geometry import angle_distribution, separability_by_class
from lt_pipeline.learning.figures.style import GROUP_COLOURS

CIFAR = LongTail.from_counts(
    profile_counts(Exponential(), classes=100, max_per_class=500, imbalance_ratio=100)
)
SMALL = LongTail.from_counts([5, 300, 50, 200, 3])


def is_png(figure) -> bool:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue().startswith(b"\x89PNG") and len(buffer.getvalue()) > 5000


def drawn(figure, kind):
    return [artist for artist in figure.axes[0].collections if isinstance(artist, kind)]


def colours(artists):
    return [to_hex(a.get_facecolor()[0], keep_alpha=False).upper() for a in artists]


def bars(figure):
    drawn = [bar for group in figure.axes[0].containers for bar in group]
    return {round(b.get_x() + b.get_width() / 2): b for b in drawn}


def many_angles():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100).repeat_interleave(20)
    return 35 + 0.2 * labels + 8 * torch.randn(2000, generator=generator), labels


def test_each_group_has_a_violin_with_quartiles_inside_and_its_mean_written():
    angles, labels = many_angles()
    figure = angle_distribution(angles, labels, CIFAR, "dbm")
    axes = figure.axes[0]
    members = CIFAR.group_members(labels)
    violins = drawn(figure, FillBetweenPolyCollection)
    assert colours(violins) == [GROUP_COLOURS[name] for name in ("many", "medium", "few")]
    lines = drawn(figure, LineCollection)
    assert len(lines) == 9
    for place, (mask, violin) in enumerate(zip(members.values(), violins, strict=True)):
        (outline,) = violin.get_paths()
        values = angles[mask].double().numpy()
        assert outline.vertices[:, 1].min() == pytest.approx(values.min())
        assert outline.vertices[:, 1].max() == pytest.approx(values.max())
        for line, share in zip(lines[3 * place :], (0.25, 0.5, 0.75), strict=False):
            (left, low), (right, high) = line.get_segments()[0]
            assert low == high == pytest.approx(np.quantile(values, share))
            assert left + right == pytest.approx(2 * place)
            for narrower, is_inside in ((0.99, True), (1.01, False)):
                reach = narrower * (right - place)
                assert outline.contains_point((place + reach, low)) == is_inside
                assert outline.contains_point((place - reach, low)) == is_inside
            assert line.get_linestyle()[0][1] is not None  # dashed
    means = [f"{float(angles[mask].double().mean()):.1f}°" for mask in members.values()]
    assert [text.get_text() for text in axes.texts] == means
    assert axes.get_ylabel() == "angle between feature and class centre, degrees"
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == [f"{name}\n{int(mask.sum())} images" for name, mask in members.items()]
    assert axes.get_title(loc="left") == "Angle to the class centre: dbm"
    assert axes.get_ylim() == (0, 90)
    assert is_png(figure)


def test_the_written_means_lie_inside_the_picture():
    angles, labels = many_angles()
    figure = angle_distribution(angles, labels, CIFAR, "dbm")
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0].get_window_extent()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert all(axes.x0 < box.x0 and box.x1 < axes.x1 for box in boxes)


def test_a_violin_is_widest_where_most_angles_are():
    angles = torch.cat([torch.linspace(20, 80, 30), torch.full((30,), 65.0)])
    longtail = LongTail.from_counts([200])
    figure = angle_distribution(angles, torch.zeros(60).long(), longtail, "x")
    ((outline,),) = [v.get_paths() for v in drawn(figure, FillBetweenPolyCollection)]
    assert outline.vertices[outline.vertices[:, 0].argmax(), 1] == pytest.approx(65, abs=2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("angles", [[30.0], [30.0, 50.0], [40.0] * 6])
def test_a_group_without_a_density_is_drawn_as_points(angles):
    longtail = LongTail.from_counts([200, 5])
    spread = torch.linspace(20, 60, 10)
    labels = torch.tensor([0] * 10 + [1] * len(angles))
    figure = angle_distribution(torch.cat([spread, torch.tensor(angles)]), labels, longtail, "x")
    assert colours(drawn(figure, FillBetweenPolyCollection)) == [GROUP_COLOURS["many"]]
    _, points, mean = drawn(figure, PathCollection)
    assert colours([points]) == [GROUP_COLOURS["few"]]
    assert points.get_offsets().tolist() == [[1, angle] for angle in angles]
    middle = sum(angles) / len(angles)
    assert mean.get_offsets().tolist() == [[1, middle]]
    assert figure.axes[0].texts[1].get_text() == f"{middle:.1f}°"
    words = "1 image" if len(angles) == 1 else f"{len(angles)} images"
    assert figure.axes[0].get_xticklabels()[1].get_text() == f"few\n{words}"
    assert is_png(figure)


def test_angles_beyond_90_degrees_are_in_the_picture():
    labels = torch.zeros(6).long()
    figure = angle_distribution(
        torch.tensor([10.0, 20, 30, 40, 50, 107]), labels, LongTail.from_counts([9]), "x"
    )
    assert figure.axes[0].get_ylim() == (0, 120)


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        angle_distribution(torch.empty(0), torch.empty(0).long(), SMALL, "x")


def test_separability_stands_by_count_in_group_colours_with_means():
    values = torch.tensor([5.0, 6.0, 4.0, 9.0, torch.nan])
    figure = separability_by_class(values, SMALL, "dbm on a toy")
    axes = figure.axes[0]
    # counts 300, 200, 50, 5, 3 are classes 1, 3, 2, 0, 4
    assert {place: bar.get_height() for place, bar in bars(figure).items()} == {
        0: 6, 1: 9, 2: 4, 3: 5,
    }  # fmt: skip
    colours = [to_hex(bar.get_facecolor()).upper() for _, bar in sorted(bars(figure).items())]
    assert colours == [GROUP_COLOURS[name] for name in ("many", "many", "medium", "few")]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["many: mean 7.5", "medium: mean 4", "few: mean 5"]
    shaded = [p for p in axes.patches if p not in bars(figure).values()]
    edges = [(p.get_x(), p.get_x() + p.get_width()) for p in shaded]
    assert edges == [(-0.5, 1.5), (1.5, 2.5), (2.5, 3.5)]
    lines = [line.get_segments()[0].ravel().tolist() for line in drawn(figure, LineCollection)]
    assert lines == [[-0.5, 7.5, 1.5, 7.5], [1.5, 4, 2.5, 4], [2.5, 5, 3.5, 5]]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "3", "2", "0", "4"]
    assert "separability" in axes.get_ylabel()
    assert axes.get_title(loc="left") == "Separability by class: dbm on a toy"
    assert is_png(figure)


def test_a_hundred_classes_have_a_bar_each():
    values = torch.linspace(9, 4, 100, dtype=torch.float64)
    figure = separability_by_class(values, CIFAR, "x")
    assert [bars(figure)[c].get_height() for c in range(100)] == pytest.approx(values.tolist())
    assert "rank of the class" in figure.axes[0].get_xlabel()
    assert is_png(figure)


def test_a_group_without_a_known_class_is_not_in_the_picture():
    values = torch.tensor([torch.nan, 6.0, 4.0, 9.0, torch.nan])
    figure = separability_by_class(values, SMALL, "x")
    assert len(figure.axes[0].get_legend().get_texts()) == 2


def test_a_picture_of_no_known_class_is_refused():
    with pytest.raises(ValueError, match="nan for all"):
        separability_by_class(torch.full((5,), torch.nan), SMALL, "x")
