from __future__ import annotations

import io

import pytest
from matplotlib.colors import to_hex

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.figures.methods.dqroute import (
    class_weights,
    effective_classes,
    routing_by_group,
    size_correlation,
)
from lt_pipeline.learning.figures.style import LINE_COLOURS

# counts 300, 200, 50, 5 are classes 1, 3, 2, 0
SMALL = LongTail.from_counts([5, 300, 50, 200], ["rare", "common", "some", "more"])


def is_png(figure) -> bool:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue().startswith(b"\x89PNG") and len(buffer.getvalue()) > 5000


def test_class_weights_are_rows_from_most_to_fewest_images_on_a_scale_around_one():
    history = [[1.0, 1.0, 1.0, 1.0], [2.0, 0.5, 1.2, 0.3], [2.5, 0.4, 1.0, 0.1]]
    figure = class_weights(history, SMALL, "dqroute on digits")
    image = figure.axes[0].images[0]
    assert image.get_array().tolist() == [
        [1.0, 0.5, 0.4],
        [1.0, 0.3, 0.1],
        [1.0, 1.2, 1.0],
        [1.0, 2.0, 2.5],
    ]
    assert (image.norm.vmin, image.norm.vmax) == pytest.approx((0.1, 10))
    assert image.get_extent() == [0, 100, 3.5, -0.5]
    assert figure.axes[0].get_title(loc="left") == "Class weights: dqroute on digits"
    assert is_png(figure)


@pytest.mark.parametrize("least", [1.0, 1e-12])
def test_weights_that_are_alike_or_nearly_nothing_can_be_drawn(least):
    assert is_png(class_weights([[1.0] * 4, [1.0, 1.0, 1.0, least]], SMALL, "x"))


def test_effective_classes_are_a_line_under_the_number_of_classes():
    figure = effective_classes([4.0, 3.9, 3.0], 4, "dqroute on digits")
    axes = figure.axes[0]
    line, all_alike = axes.lines
    assert line.get_xdata().tolist() == [0, 50, 100]
    assert line.get_ydata().tolist() == [4.0, 3.9, 3.0]
    assert set(all_alike.get_ydata()) == {4}
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 4
    assert axes.get_title(loc="left") == "Effective classes: dqroute on digits"
    assert is_png(figure)


def test_the_correlation_is_a_line_around_zero_on_its_whole_range():
    figure = size_correlation([0.0, -0.8, 0.4], "dqroute on digits")
    axes = figure.axes[0]
    line, zero = axes.lines
    assert line.get_xdata().tolist() == [0, 50, 100]
    assert line.get_ydata().tolist() == [0.0, -0.8, 0.4]
    assert set(zero.get_ydata()) == {0}
    low, high = axes.get_ylim()
    assert low < -1 < 1 < high
    assert {text.get_text() for text in axes.texts} == {
        "rarer classes are harder",
        "rarer classes are easier",
    }
    assert is_png(figure)


def test_routing_is_stacked_by_group_in_percent():
    shares = {
        "E_G": {"many": 0.9, "few": 0.5},
        "E_M": {"many": 0.07, "few": 0.3},
        "E_T": {"many": 0.03, "few": 0.2},
    }
    figure = routing_by_group(shares, "dqroute on digits")
    axes = figure.axes[0]
    bars = [[(b.get_y(), b.get_height()) for b in group] for group in axes.containers]
    wanted = [[(0, 90), (0, 50)], [(90, 7), (50, 30)], [(97, 3), (80, 20)]]
    assert bars == [[pytest.approx(pair) for pair in pairs] for pairs in wanted]
    colours = [to_hex(group[0].get_facecolor()).upper() for group in axes.containers]
    assert colours == list(LINE_COLOURS[:3])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(shares)
    # a slice of 3 % has no room for its number
    assert [text.get_text() for text in axes.texts] == ["90", "50", "7", "30", "", "20"]
    assert axes.get_title(loc="left") == "Routing: dqroute on digits"
    assert is_png(figure)
