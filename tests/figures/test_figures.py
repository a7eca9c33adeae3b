from __future__ import annotations

import io

import pytest
import torch
from matplotlib.figure import Figure

from lt_pipeline.data.longtail import LongTail
from lt_pipeline.data.profiles import Exponential, profile_counts
from lt_pipeline.figures.distribution import class_distribution
from lt_pipeline.figures.evaluation import (
    confusion,
    logit_shift_by_group,
    recall_by_class,
    reliability_diagram,
)
from lt_pipeline.figures.style import GROUP_COLOURS
from lt_pipeline.figures.training import training_curves
from lt_pipeline.metrics.classification import class_table

DIGITS = LongTail.from_counts([124, 88, 63, 45, 32, 23, 16, 12, 8, 6])
CIFAR = LongTail.from_counts(
    profile_counts(Exponential(), classes=100, max_per_class=500, imbalance_ratio=100)
)


def texts(figure: Figure) -> str:
    found = [t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text"))]
    return "\n".join(found)


def is_png(figure: Figure) -> bool:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue().startswith(b"\x89PNG") and len(buffer.getvalue()) > 5000


def matrix(classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 3, (classes, classes), generator=generator)
    return noise + 30 * torch.eye(classes, dtype=torch.int64)


def bars(figure: Figure):
    return [p for p in figure.axes[0].patches if p.get_height() > 0]


@pytest.mark.parametrize("longtail", [DIGITS, CIFAR])
def test_the_distribution_has_a_bar_a_class_in_its_groups_colour(longtail):
    figure = class_distribution(longtail, "Training images of digits")
    axes = figure.axes[0]
    assert sorted(bar.get_height() for bar in bars(figure)) == sorted(longtail.class_counts)
    assert axes.get_yscale() == "log"
    assert "training images" in axes.get_ylabel()
    found = texts(figure)
    for name, classes in longtail.groups.items():
        assert f"{name}: {len(classes)} class" in found
    assert longtail.group_rule in found
    assert f"{sum(longtail.class_counts)} images" in found
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
    drawn = {
        round(b.get_x() + b.get_width() / 2): b.get_height()
        for b in bars(figure)
        if b.get_width() < 0.9
    }
    # class order is count order in both sets
    assert [drawn[c] for c in range(longtail.classes)] == pytest.approx(
        [100 * row["recall"] for row in table]
    )
    found = texts(figure)
    for name, classes in longtail.groups.items():
        mean = sum(100 * table[c]["recall"] for c in classes) / len(classes)
        assert f"{name}\n{mean:.1f} %" in found
    assert "%" in axes.get_ylabel()
    assert "more on digits" in found
    assert is_png(figure)


def test_classes_are_drawn_by_count_and_not_by_index():
    longtail = LongTail.from_counts([5, 200], ["rare", "common"])
    figure = recall_by_class(class_table(matrix(2), longtail), longtail, "x")
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["common", "rare"]
    colours = [b.get_facecolor()[:3] for b in bars(figure) if b.get_width() < 0.9]
    assert len(set(colours)) == 2


@pytest.mark.parametrize("classes", [10, 100])
def test_the_confusion_matrix_shows_shares_of_the_true_class(classes):
    counts = matrix(classes)
    figure = confusion(counts, [str(c) for c in range(classes)], "more on digits")
    image = figure.axes[0].images[0].get_array()
    wanted = 100 * counts.double() / counts.sum(1, keepdim=True)
    assert torch.allclose(torch.from_numpy(image.data).double(), wanted)
    assert figure.axes[0].get_ylabel() == "true class"
    assert "share of the true class's images, %" in texts(figure)
    assert is_png(figure)


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


def test_the_logit_shift_has_a_bar_a_group():
    figure = logit_shift_by_group({"many": 0.1, "few": 0.3}, "x")
    assert [b.get_height() for b in bars(figure)] == [0.1, 0.3]
    assert {"0.100", "0.300"} <= set(texts(figure).splitlines())
    assert GROUP_COLOURS.keys() == {"many", "medium", "few"}
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
    losses, accuracy, rate = figure.axes
    assert [line.get_label() for line in losses.lines] == ["logit adjustment", "rebalancing"]
    assert accuracy.lines[0].get_ydata().tolist() == [50, 75]
    assert (accuracy.get_ylabel(), rate.get_ylabel()) == ("accuracy, %", "learning rate")
    assert all(axes.get_xlabel() == "epoch" for axes in figure.axes)
    assert is_png(figure)
    del history["validation/accuracy"]
    assert len(training_curves(history, "x").axes) == 2
