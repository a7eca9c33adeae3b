from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.data.profiles import Exponential, profile_counts
from lt_pipeline.learning.evaluation.metrics.classification import (
    class_table,
    confusion_matrix,
    confusion_of,
    confusion_table,
)
from lt_pipeline.learning.figures.compare import recall_by_class as compared
from lt_pipeline.learning.figures.distribution import class_distribution
from lt_pipeline.learning.figures.evaluation import (
    LARGEST,
    confusion,
    recall_by_class,
    recall_by_count,
    reliability_diagram,
)
from lt_pipeline.learning.figures.geometry import separability_by_class
from lt_pipeline.learning.figures.style import GROUP_COLOURS
from lt_pipeline.learning.figures.training import training_curves

DIGITS = LongTail.from_counts([124, 88, 63, 45, 32, 23, 16, 12, 8, 6])
CIFAR = LongTail.from_counts(
    profile_counts(Exponential(), classes=100, max_per_class=500, imbalance_ratio=100)
)


def texts(figure: Figure) -> str:
    words = [t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text"))]
    return "\n".join(words)


def is_png(figure: Figure) -> bool:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue().startswith(b"\x89PNG") and len(buffer.getvalue()) > 5000


def matrix(classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 3, (classes, classes), generator=generator)
    return noise + 30 * torch.eye(classes, dtype=torch.int64)


def bars(figure: Figure):
    return [bar for group in figure.axes[0].containers for bar in group]


def spans(figure: Figure):
    return [p for p in figure.axes[0].patches if p not in bars(figure)]


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def centre(bar) -> int:
    return round(bar.get_x() + bar.get_width() / 2)


@pytest.mark.parametrize("longtail", [DIGITS, CIFAR])
def test_the_distribution_has_a_bar_a_class_in_its_groups_colour(longtail):
    figure = class_distribution(longtail, "Training images of digits")
    axes = figure.axes[0]
    drawn = {centre(bar): bar.get_height() for bar in bars(figure)}
    assert drawn == dict(enumerate(longtail.class_counts))
    for name, group in zip(longtail.groups, axes.containers, strict=True):
        assert {to_hex(b.get_facecolor()).upper() for b in group} == {GROUP_COLOURS[name]}
    assert axes.get_yscale() == "log"
    assert "training images" in axes.get_ylabel()
    assert legend(axes) == [
        f"{name}: {len(classes)} {'class' if len(classes) == 1 else 'classes'}"
        for name, classes in longtail.groups.items()
    ]
    assert longtail.group_rule in axes.get_xlabel()
    title = axes.get_title(loc="left")
    assert title.startswith("Training images of digits\n")
    assert f"{sum(longtail.class_counts)} images, {longtail.classes} classes" in title
    assert f"IR {longtail.imbalance_ratio:.3g}, " in title
    assert f"Gini {longtail.statistics()['gini']:.2f}" in title
    assert is_png(figure)


def test_a_group_without_a_class_is_not_in_the_picture():
    longtail = LongTail.from_counts([50, 40, 10])
    figure = class_distribution(longtail, "x")
    assert "many:" not in texts(figure)
    table = class_table(matrix(3), longtail)
    assert "many" not in texts(recall_by_class(table, longtail, "x"))


@pytest.mark.parametrize("longtail", [DIGITS, CIFAR])
def test_recalls_stand_from_most_to_fewest_images_with_their_groups_mean(longtail):
    table = class_table(matrix(longtail.classes), longtail)
    figure = recall_by_class(table, longtail, "more on digits")
    axes = figure.axes[0]
    drawn = {centre(b): b.get_height() for b in bars(figure)}
    # class order is count order in both sets
    assert [drawn[c] for c in range(longtail.classes)] == pytest.approx(
        [100 * row["recall"] for row in table]
    )
    words = texts(figure)
    groups = longtail.groups
    means = [sum(100 * table[c]["recall"] for c in group) / len(group) for group in groups.values()]
    assert legend(axes) == [f"{n}: mean {m:.1f} %" for n, m in zip(groups, means, strict=True)]
    edges = [(group[0] - 0.5, group[-1] + 0.5) for group in groups.values()]
    assert [(s.get_x(), s.get_x() + s.get_width()) for s in spans(figure)] == edges
    lines = [tuple(line.get_segments()[0].ravel()) for line in axes.collections]
    wanted = [(a, m, b, m) for (a, b), m in zip(edges, means, strict=True)]
    assert lines == [pytest.approx(line) for line in wanted]
    assert "%" in axes.get_ylabel()
    assert "more on digits" in words
    assert is_png(figure)


def test_classes_are_drawn_by_count_and_not_by_index():
    longtail = LongTail.from_counts([5, 200], ["rare", "common"])
    figure = recall_by_class(class_table(matrix(2), longtail), longtail, "x")
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["common", "rare"]
    colours = {centre(b): to_hex(b.get_facecolor()).upper() for b in bars(figure)}
    assert colours == {0: GROUP_COLOURS["many"], 1: GROUP_COLOURS["few"]}


def test_bars_touch_where_gaps_would_swallow_them():
    longtail = LongTail.from_counts([5] * 400)
    table = class_table(torch.eye(400, dtype=torch.int64), longtail)
    for figure in (recall_by_class(table, longtail, "x"), class_distribution(longtail, "x")):
        assert {bar.get_width() for bar in bars(figure)} == {1.0}


def of_many(classes: int) -> tuple[LongTail, torch.Tensor]:
    """Classes of three test images each: a hundred with the most are right, others taken for 7."""
    counts = [200] * 100 + [50] * 300 + [5] * (classes - 400)
    labels = torch.arange(classes).repeat_interleave(3)
    predicted = torch.where((labels < 100) | (torch.arange(len(labels)) % 3 == 0), labels, 7)
    names = [f"a species of a rather long name, {c}" for c in range(classes)]
    scores = torch.eye(classes)[predicted]
    return LongTail.from_counts(counts, names), confusion_matrix(scores, labels)


def test_bars_of_many_classes_are_of_neighbours_and_few():
    longtail, counts = of_many(1000)
    table = class_table(counts, longtail)
    for figure in (
        recall_by_class(table, longtail, "x"),
        class_distribution(longtail, "x"),
        separability_by_class(torch.arange(1000.0), longtail, "x"),
    ):
        steps = [p.get_data() for p in figure.axes[0].patches if isinstance(p, StepPatch)]
        assert [len(data.values) for data in steps] == [20, 60, 120]
        assert [data.edges[-1] for data in steps] == [99.5, 399.5, 999.5]
        assert "a bar: mean of 5 neighbours" in texts(figure)
        assert is_png(figure)
    recall = recall_by_class(table, longtail, "x").axes[0].patches
    recall = [p.get_data().values for p in recall if isinstance(p, StepPatch)]
    assert (recall[0] == 100).all()
    assert recall[2] == pytest.approx([100 / 3] * 120)


def test_points_of_many_classes_are_of_neighbours():
    longtail, counts = of_many(1000)
    axes = recall_by_count(class_table(counts, longtail), longtail, "x").axes[0]
    points = [points.get_offsets() for points in axes.collections]
    assert [len(some) for some in points] == [20, 60, 120]
    assert points[0].tolist() == [[200, 100]] * 20
    np.testing.assert_allclose(points[2], [[5, 100 / 3]] * 120)
    assert "a point: mean of 5 neighbours" in axes.get_xlabel()


def test_the_confusions_of_many_classes_are_drawn_by_group_and_the_largest_by_name():
    longtail, counts = of_many(600)
    # ten images more make one of them the largest
    more = torch.sparse_coo_tensor([[450], [451]], [10], counts.shape, check_invariants=True)
    counts = (counts + more).coalesce()
    figure = confusion(counts, longtail, "x")
    groups, pairs = figure.axes
    assert legend(groups) == ["right", "→ many", "→ few"]
    widths = [[bar.get_width() for bar in part] for part in groups.containers]
    few = 200 * 3 + 10
    assert widths[0] == pytest.approx([100, 100 / 3, 100 * 200 / few])
    assert widths[1] == pytest.approx([0, 200 / 3, 100 * 400 / few])
    assert widths[2] == pytest.approx([0, 0, 100 * 10 / few])
    labels = [label.get_text() for label in pairs.get_yticklabels()]
    assert len(labels) == LARGEST
    assert labels[0] == "a species of a rather l… → a species of a rather l…"
    assert pairs.containers[0][0].get_width() == 10
    assert to_hex(pairs.containers[0][0].get_facecolor()).upper() == GROUP_COLOURS["few"]
    assert is_png(figure)
    again = confusion_of(confusion_table(counts, longtail.class_names), 600)
    drawn = confusion(again, longtail, "x").axes[1]
    assert [label.get_text() for label in drawn.get_yticklabels()] == labels


def test_recalls_of_many_classes_are_averaged_where_they_share_a_pixel():
    table = pd.DataFrame(
        {"name": "x", "training_images": range(4000, 0, -1), "recall": [1.0, 0.0] * 2000}
    )
    figure = compared({"ce": table, "more": table}, "x")
    figure.colorbar = None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.axes[0].get_window_extent()
    height = canvas.buffer_rgba().shape[0]
    row = np.asarray(canvas.buffer_rgba())[height - int(box.y0 + box.height / 4)]
    seen = row[int(box.x0) + 5 : int(box.x1) - 5, :3].astype(int)
    assert np.ptp(seen, axis=0).max() < 60


def test_a_class_without_a_test_image_has_no_bar_and_is_in_no_mean():
    counts = torch.tensor([[4, 0, 0], [0, 0, 0], [1, 0, 3]])
    longtail = LongTail.from_counts([200, 150, 5])
    figure = recall_by_class(class_table(counts, longtail), longtail, "x")
    assert {centre(b): b.get_height() for b in bars(figure)} == {0: 100, 2: 75}
    assert legend(figure.axes[0]) == ["many: mean 100.0 %", "few: mean 75.0 %"]


def test_legends_of_narrow_groups_do_not_overlap():
    longtail = LongTail.from_counts([200, 50] + [5] * 98)
    figure = recall_by_class(class_table(matrix(100), longtail), longtail, "x")
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.get_legend().get_texts()]
    assert len(boxes) == 3
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert boxes[0].y0 > axes.get_window_extent().y1
    assert boxes[-1].x1 < figure.bbox.x1


@pytest.mark.parametrize("classes", [10, 100])
def test_the_confusion_matrix_shows_shares_of_the_true_class(classes):
    counts = matrix(classes)
    longtail = LongTail.from_counts([50] * classes, [f"class {c}" for c in range(classes)])
    figure = confusion(counts, longtail, "more on digits")
    image = figure.axes[0].images[0].get_array()
    wanted = 100 * counts.double() / counts.sum(1, keepdim=True)
    assert torch.allclose(torch.from_numpy(image.data).double(), wanted)
    assert figure.axes[0].get_ylabel().startswith("true class")
    assert "share of the true class's images, %" in texts(figure)
    ticks = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert (ticks == [f"class {c}" for c in range(classes)]) == (classes <= 30)
    assert list(figure.axes[0].lines) == [], "one group has no border"
    assert is_png(figure)


@pytest.mark.parametrize("longtail", [DIGITS, CIFAR, LongTail.from_counts([200, 50] + [5] * 98)])
def test_the_confusion_matrix_has_borders_between_groups_and_their_colours_at_its_edges(longtail):
    figure = confusion(matrix(longtail.classes), longtail, "x")
    axes = figure.axes[0]
    ends = [group[-1] + 0.5 for group in longtail.groups.values()]
    borders = [pytest.approx((end, end)) for end in ends[:-1]]
    assert [tuple(line.get_ydata()) for line in axes.lines[::2]] == borders
    assert [tuple(line.get_xdata()) for line in axes.lines[1::2]] == borders
    strips = [(s.get_label(), s.get_segments()[0].tolist()) for s in axes.collections]
    edges = list(zip(longtail.groups, [-0.5, *ends], ends, strict=False))
    assert strips[::2] == [(n, [[a, -0.5], [b, -0.5]]) for n, a, b in edges]
    assert [line for _, line in strips[1::2]] == [[[-0.5, a], [-0.5, b]] for _, a, b in edges]
    assert legend(axes) == list(longtail.groups)
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in axes.get_legend().get_texts()]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_the_confusion_matrix_stands_in_the_order_of_counts():
    longtail = LongTail.from_counts([5, 200, 50], ["rare", "common", "middling"])
    counts = torch.tensor([[7, 2, 1], [0, 10, 0], [4, 0, 6]])
    axes = confusion(counts, longtail, "x").axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["common", "middling", "rare"]
    drawn = axes.images[0].get_array().data.tolist()
    assert drawn == [[100, 0, 0], [0, 60, 40], [20, 10, 70]]


def test_the_reliability_diagram_says_the_error():
    bins = {
        "left_edge": [0.5, 0.75], "width": [0.25, 0.25], "images": [1.0, 3.0],
        "confidence": [0.6, 0.9], "accuracy": [0.5, 1.0],
    }  # fmt: skip
    figure = reliability_diagram(bins, "x")
    # (1 * 10 % + 3 * 10 %) / 4
    assert "expected calibration error 10.0 %" in texts(figure)
    assert [b.get_height() for b in bars(figure)] == [50, 100]
    assert is_png(figure)


def points(*values):
    return [{"step": i + 1, "value": v} for i, v in enumerate(values)]


def test_training_curves_have_a_panel_for_what_there_is():
    history = {
        "train/logit_adjustment": points(2.0, 1.0),
        "train/rebalancing": points(0.0, 0.1),
        "train/learning_rate": points(0.1, 0.0),
        "train/seconds": points(1.0, 1.0),
        "validation/accuracy": points(0.5, 0.75),
    }
    figure = training_curves(history, "x")
    losses, small, accuracy, rate = figure.axes
    assert [line.get_label() for line in losses.lines] == ["logit adjustment"]
    assert [line.get_label() for line in small.lines] == ["rebalancing"]
    assert small.get_ylim()[1] < 0.2 < losses.get_ylim()[1], "it is seen on an axis of its own"
    assert small.lines[0].get_color() != losses.lines[0].get_color()
    assert accuracy.lines[0].get_ydata().tolist() == [50, 75]
    assert (accuracy.get_ylabel(), rate.get_ylabel()) == ("accuracy, %", "learning rate")
    assert all(axes.get_xlabel() == "epoch" for axes in figure.axes)
    assert legend(accuracy) == ["validation"]
    assert is_png(figure)
    del history["validation/accuracy"]
    assert len(training_curves(history, "x").axes) == 3
    history["train/rebalancing"] = points(0.0, 1.0)
    losses, _ = training_curves(history, "x").axes
    assert legend(losses) == ["logit adjustment", "rebalancing"]


@pytest.mark.parametrize("followed", [{}, {"train/accuracy": (0.3, 0.9), "test/accuracy": (0, 0)}])
def test_the_accuracy_that_is_reported_stands_at_the_end_of_the_curves(followed):
    history = {"train/cross_entropy": points(2.0, 1.0)}
    history |= {name: points(*values) for name, values in followed.items()}
    losses, accuracy = training_curves(history, "x", 0.412).axes
    assert legend(losses) == ["cross entropy"], "an accuracy is no loss"
    *curves, end = accuracy.lines
    assert [line.get_label() for line in curves] == [name.split("/")[0] for name in followed]
    assert end.get_xydata().tolist() == [[2, pytest.approx(41.2)]]
    assert legend(accuracy)[-1] == "test, last epoch: 41.2"
    low, high = accuracy.get_ylim()
    assert low < 41.2 < high


def test_a_single_loss_term_is_named_and_a_single_epoch_is_a_whole_number():
    figure = training_curves({"train/cross_entropy": points(2.0)}, "x")
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert legend(axes) == ["cross entropy"]
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]
