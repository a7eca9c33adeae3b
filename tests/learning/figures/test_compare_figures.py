from __future__ import annotations

import math

import pandas as pd
import pytest

from lt_pipeline.learning.figures.compare import (
    accuracy_against_cost,
    recall_by_class,
    sorted_recalls,
)


def image_of(figure):
    (axes, _) = figure.axes
    (image,) = axes.images
    return axes, image.get_array()


def classes(recalls, names, counts):
    return pd.DataFrame({"name": names, "training_images": counts, "recall": recalls})


def test_classes_go_from_most_to_fewest_training_images_and_methods_keep_their_order():
    ce = classes([0.1, 0.9, 0.5], ["a", "b", "c"], [5, 100, 20])
    # on another draw of the data set: the columns are the same classes
    more = classes([0.2, 0.8, math.nan], ["a", "b", "c"], [100, 20, 5])
    axes, values = image_of(recall_by_class({"ce": ce, "more": more}, "t"))
    assert values[0].tolist() == [90, 50, 10]
    assert values[1].tolist()[0] == 80
    assert values[1].mask.tolist() == [False, True, False], "a class without a test image is blank"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ce", "more"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["b\n100", "c\n20", "a\n5"]


def test_many_classes_have_their_counts_only():
    counts = list(range(100, 0, -1))
    axes, _ = image_of(recall_by_class({"ce": classes(0.5, "x", counts)}, "t"))
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert shown[0] == "100"
    assert len(shown) < 12


def test_sorted_recalls_are_a_line_a_method_in_per_cent():
    figure = sorted_recalls({"ce": [0.0, 0.5, 1.0], "more": [0.25, 0.5, 0.75]}, "t")
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["ce"].get_xdata()) == [1, 2, 3]
    assert list(lines["more"].get_ydata()) == [25, 50, 75]
    with pytest.raises(ValueError, match="needs at least one"):
        sorted_recalls({"ce": []}, "t")


def row(label, seconds, accuracy, sd=None):
    values = {"arm": label, "runs": 2 if sd else 1, "cost/training_seconds": seconds}
    return {**values, "test/accuracy": accuracy, "test/accuracy sd": sd}


def test_cost_is_on_a_logarithmic_axis_with_times_in_words():
    figure = accuracy_against_cost([row("ce", 10, 0.4), row("darl", 4000, 0.5, 0.02)], "t")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.texts] == ["ce", "darl"]
    left, right = axes.get_xlim()
    shown = [axes.xaxis.get_major_formatter()(t) for t in axes.get_xticks() if left <= t <= right]
    assert shown == ["10 s", "20 s", "30 s", *(f"{m} min" for m in (1, 2, 5, 10, 20, 30)), "1 h"]
    low, high = axes.get_ylim()
    assert low < 40 < 52 < high


def test_labels_of_neighbours_do_not_cover_each_other():
    rows = [row(f"method {n}", 100 + n, 0.5 + n / 2000) for n in range(5)]
    figure = accuracy_against_cost(rows, "t")
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 5
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])


@pytest.mark.parametrize("rows", [[], [row("ce", 0, 0.4)]])
def test_nothing_to_draw_is_an_error(rows):
    with pytest.raises(ValueError, match="needs training times"):
        accuracy_against_cost(rows, "t")
    with pytest.raises(ValueError, match="at least one method"):
        recall_by_class({}, "t")
