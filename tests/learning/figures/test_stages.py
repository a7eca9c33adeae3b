from __future__ import annotations

from itertools import combinations

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.evaluation.metrics.classification import report
from lt_pipeline.learning.figures.stages import by_stage, interpolation, recall_profiles

NAN = float("nan")
TITLE = "BTM on MiSLAS, CIFAR-100-LT, imbalance ratio 100, ResNet-32, seed 0"
KEYS = ("harmonic_mean", "geometric_mean", "accuracy")


def point(share, harmonic, geometric):
    return {
        "share": share, "harmonic_mean": harmonic, "geometric_mean": geometric, "accuracy": 0.9
    }  # fmt: skip


def stage(name, *measures, **more):
    return {"stage": name, **dict(zip(KEYS, measures, strict=False)), **more}


PATH = [point(0.0, 0.0, 0.25), point(0.5, 0.125, 0.375), point(1.0, 0.25, 0.5)]


def points(axes):
    """Label -> the points of its line."""
    return {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}


def styles(axes):
    return [(line.get_color(), line.get_marker()) for line in axes.lines]


def legend_of(figure):
    (legend,) = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    return legend


def names(figure):
    return [text.get_text() for text in legend_of(figure).get_texts()]


def written(figure):
    """Every text that is drawn and its box."""
    labels = [figure._suptitle, *legend_of(figure).get_texts()]
    for axes in figure.axes:
        labels += [axes.xaxis.label, axes.yaxis.label, axes._left_title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    drawn = [text for text in labels if text.get_visible() and text.get_text()]
    return [(text.get_text(), text.get_window_extent()) for text in drawn]


def assert_readable(figure):
    """No text leaves the figure or covers another, and the legend covers no axes."""
    FigureCanvasAgg(figure).draw()
    boxes = written(figure)
    for text, box in boxes:
        assert box.x0 >= -0.5, text
        assert box.y0 >= -0.5, text
        assert box.x1 <= figure.bbox.x1 + 0.5, text
        assert box.y1 <= figure.bbox.y1 + 0.5, text
    for (text, box), (other, second) in combinations(boxes, 2):
        assert not box.overlaps(second), f"{text!r} covers {other!r}"
    legend = legend_of(figure).get_window_extent()
    assert all(not legend.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_a_path_is_drawn_in_per_cent_over_the_share_a_panel_for_each_mean():
    figure = interpolation({"pretrain to branch_0": PATH}, {}, TITLE)
    left, right = figure.axes
    assert points(left) == {"pretrain to branch 0": [[0, 0], [0.5, 12.5], [1, 25]]}
    assert points(right) == {"pretrain to branch 0": [[0, 25], [0.5, 37.5], [1, 50]]}
    assert left.get_ylabel() == "harmonic mean of the recalls, %"
    assert right.get_ylabel() == "geometric mean of the recalls, %"
    assert all("share $\\lambda$ of the second" in axes.get_xlabel() for axes in figure.axes)
    assert figure.get_suptitle() == TITLE
    assert names(figure) == ["pretrain to branch 0"]
    assert_readable(figure)


def test_points_may_come_in_any_order():
    shuffled = interpolation({"x": [PATH[2], PATH[0], PATH[1]]}, {}, "T").axes[0]
    assert points(shuffled) == {"x": [[0, 0], [0.5, 12.5], [1, 25]]}


def test_levels_are_dashed_lines_across_both_panels():
    level = {"harmonic_mean": 0.75, "geometric_mean": 0.875, "accuracy": 0.9}
    figure = interpolation({"x": PATH}, {"union of two subsets": level}, "T")
    for axes, height in zip(figure.axes, (75, 87.5), strict=True):
        line = axes.lines[-1]
        assert (line.get_label(), line.get_linestyle()) == ("union of two subsets", "--")
        assert line.get_xydata().tolist() == [[0, height], [1, height]]
        assert axes.get_ylim()[1] > height, "a level above all curves is in the picture"
    assert names(figure) == ["x", "union of two subsets"]


@pytest.mark.parametrize(("curves", "levels"), [(1, 0), (2, 1), (3, 3), (6, 6)])
def test_curves_and_levels_are_told_apart_and_their_names_are_not_cut(curves, levels):
    figure = interpolation(
        {f"branch_{n} to the merge of all branches": PATH for n in range(curves)},
        {f"level with a rather long name {n}": point(0, 0.1, 0.3) for n in range(levels)},
        TITLE,
    )
    drawn = figure.axes[1].lines
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in drawn}
    assert len(looks) == curves + levels
    assert len({line.get_color() for line in drawn[:curves]}) == curves
    assert names(figure) == [line.get_label() for line in drawn]
    assert_readable(figure)
    assert figure.axes[0].get_window_extent().height > 250, "the legend takes no room from panels"


def test_one_point_and_curves_that_do_not_move_are_drawn_without_blowing_up_noise():
    one = interpolation({"x": [point(0.5, 0.0, 1.0)]}, {}, "T")
    assert [axes.get_ylim() for axes in one.axes] == [(0, 1), (99, 100)]
    assert one.axes[0].lines[0].get_marker() not in ("", "None", None)
    assert_readable(one)
    still = interpolation({"x": [point(0, 0.5, 0.5), point(1, 0.5001, 0.5)]}, {}, "T")
    low, high = still.axes[0].get_ylim()
    assert high - low > 2
    assert interpolation({"x": []}, {}, "T").axes[0].get_ylim() == (0, 100)


def test_recalls_are_sorted_each_network_on_its_own_in_per_cent():
    figure = recall_profiles({"pretrain": [0.5, 0.0, 1.0], "merge_10": [0.25, 0.75, 0.5]}, TITLE)
    (axes,) = figure.axes
    assert list(points(axes).values()) == [
        [[1, 0], [2, 50], [3, 100]],
        [[1, 25], [2, 50], [3, 75]],
    ]
    assert {line.get_drawstyle() for line in axes.lines} == {"steps-mid"}
    assert len(set(styles(axes))) == 2
    assert axes.get_ylim() == (0, 100)
    assert axes.get_ylabel() == "recall on the test set, %"
    assert "(1: worst)" in axes.get_xlabel()
    assert [name.split(":")[0] for name in names(figure)] == ["pretrain", "merge 10"]
    assert figure.get_suptitle() == TITLE
    assert_readable(figure)


def test_the_legend_has_the_harmonic_mean_of_the_report():
    confusion = torch.tensor([[3, 1, 0, 0], [0, 0, 0, 4], [0, 3, 1, 0], [0, 0, 0, 4]])
    recalls = (confusion.diagonal() / confusion.sum(1)).tolist()
    for floor, written_as in ((1e-3, "0.1 %"), (0.3, "30 %")):
        metrics = report(confusion, LongTail.from_counts([9, 8, 7, 6]), floor)["harmonic_mean"]
        figure = recall_profiles({"merge": recalls}, "T", floor=floor)
        assert names(figure) == [f"merge: harmonic mean {100 * metrics:.1f} %"]
        label = figure.axes[0].get_xlabel()
        assert label.endswith(f"a recall below {written_as} counts as {written_as}")
    assert names(recall_profiles({"a": [0.5, 1.0]}, "T")) == ["a: harmonic mean 66.7 %"]


@pytest.mark.parametrize("classes", [1, 2, 10, 30, 31, 100, 365, 1000, 8142])
def test_profiles_of_any_number_of_classes_are_free_of_clutter(classes):
    recalls = [n / classes for n in range(classes)]
    figure = recall_profiles({f"network {n}": recalls for n in range(4)}, TITLE)
    axes = figure.axes[0]
    marked = {line.get_marker() != "None" for line in axes.lines}
    assert marked == {classes <= 30}, "markers show few classes and hide many"
    assert len({line.get_color() for line in axes.lines}) == 4
    ticks = [int(tick) for tick in axes.get_xticks()]
    assert ticks[0] == 1
    assert ticks == sorted(set(ticks))
    assert ticks[-1] <= classes
    low, high = axes.get_xlim()
    assert low < 1 <= classes < high
    assert_readable(figure)


def test_classes_without_a_test_image_are_left_out_of_profile_and_mean():
    figure = recall_profiles({"a": [NAN, 0.5, 0.25], "b": [NAN, NAN, NAN]}, "T")
    assert list(points(figure.axes[0]).values()) == [[[1, 25], [2, 50]]]
    assert names(figure) == ["a: harmonic mean 33.3 %"]


def test_recalls_of_zero_lie_on_the_axis_and_are_not_cut():
    figure = recall_profiles({"pretrain": [0.0] * 10}, "T")
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == [0] * 10
    assert not line.get_clip_on()
    assert names(figure) == ["pretrain: harmonic mean 0.1 %"]
    assert_readable(figure)


def test_stages_stand_from_top_to_bottom_with_a_marker_a_measure_in_per_cent():
    rows = [stage("pretrain", 0.0, 0.25, 0.5), stage("post_train", 0.125, 0.375, 0.625)]
    figure = by_stage(rows, TITLE)
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["pretrain", "post train"]
    bottom, top = axes.get_ylim()
    assert bottom > top, "the first row is on top"
    main = {label: points_of for label, points_of in points(axes).items() if points_of}
    assert main == {
        "harmonic mean": [[0, 0], [12.5, 1]],
        "geometric mean": [[25, 0], [37.5, 1]],
        "accuracy": [[50, 0], [62.5, 1]],
    }
    assert names(figure) == ["harmonic mean", "geometric mean", "accuracy"]
    looks = [s for s, line in zip(styles(axes), axes.lines, strict=True) if len(line.get_xdata())]
    assert len(set(looks)) == len({marker for _, marker in looks}) == 3
    assert {line.get_linestyle() for line in axes.lines} == {"None"}
    assert axes.get_xlabel().endswith("%")
    assert figure.get_suptitle() == TITLE
    assert_readable(figure)


def test_what_stands_aside_is_lighter_and_in_its_place():
    rows = [stage("a", 0.125, 0.25, 0.5), stage("b", 0.25, 0.375, 0.75, aside=True)]
    rows.append(stage("c", 0.5, 0.625, 1.0, aside=False))
    figure = by_stage(rows, "T")
    axes = figure.axes[0]
    for place, values in enumerate(([12.5, 25, 50], [25, 37.5, 62.5], [50, 75, 100])):
        main, aside = axes.lines[2 * place : 2 * place + 2]
        assert main.get_xydata().tolist() == [[values[0], 0], [values[2], 2]]
        assert aside.get_xydata().tolist() == [[values[1], 1]]
        assert main.get_marker() == aside.get_marker()
        pairs = zip(to_rgb(main.get_color()), to_rgb(aside.get_color()), strict=True)
        assert all(strong < light or strong == light == 1 for strong, light in pairs)
    colours = [tick.get_color() for tick in axes.get_yticklabels()]
    assert colours[0] == colours[2] != colours[1]
    assert names(figure) == ["harmonic mean", "geometric mean", "accuracy"]


def test_the_picture_grows_with_its_rows_and_cuts_no_name():
    heights = []
    for count in (1, 4, 16):
        rows = [
            stage(f"fine-tuned_on_balanced_subset_{n}", 0.2, 0.3, 0.4, aside=n % 2 == 1)
            for n in range(count)
        ]
        figure = by_stage(rows, TITLE)
        heights.append(figure.get_figheight())
        assert len(figure.axes[0].get_yticklabels()) == count
        assert_readable(figure)
        first, last = (figure.axes[0].transData.transform((0, y))[1] for y in (0, count - 1))
        assert count == 1 or (first - last) / (count - 1) > 20, "rows do not crowd"
    assert heights == sorted(set(heights))


def test_a_measure_that_is_not_known_is_left_out():
    rows = [stage("a", 0.5, NAN), stage("b", None, 0.25, aside=True)]
    figure = by_stage(rows, "T")
    drawn = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert [points for points in drawn if points] == [[[50, 0]], [[25, 1]]]
    assert names(figure) == ["harmonic mean", "geometric mean"]
    assert_readable(figure)


@pytest.mark.parametrize(
    ("measures", "end"), [((0.0, 0.0, 0.0), 5), ((1.0, 1.0, 1.0), 100), ((0.1, 0.2, 0.5), 53)]
)
def test_the_axis_of_stages_goes_from_zero_to_the_best(measures, end):
    figure = by_stage([stage("pretrain", *measures)], "T")
    assert figure.axes[0].get_xlim() == pytest.approx((0, end))
    assert_readable(figure)


def test_measures_that_coincide_all_show():
    lines = by_stage([stage("x", 0.5, 0.5, 0.5)], "T").axes[0].lines
    harmonic, geometric, accuracy = (line for line in lines if len(line.get_xdata()))
    assert harmonic.get_zorder() > geometric.get_zorder() > accuracy.get_zorder()
    assert harmonic.get_markersize() < geometric.get_markersize() < accuracy.get_markersize()


@pytest.mark.parametrize(
    "picture",
    [
        lambda: interpolation({}, {}, "T"),
        lambda: recall_profiles({}, "T"),
        lambda: recall_profiles({"a": [NAN]}, "T"),
        lambda: by_stage([], "T"),
    ],
)
def test_a_picture_of_nothing_is_refused(picture):
    with pytest.raises(ValueError, match="needs at least one, but 'T' has none"):
        picture()
