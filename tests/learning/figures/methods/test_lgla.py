from __future__ import annotations

import io
import math

import pytest

from lt_pipeline.learning.figures.methods.lgla import energy_by_group
from lt_pipeline.learning.figures.style import GROUP_COLOURS


def is_png(figure) -> bool:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue().startswith(b"\x89PNG") and len(buffer.getvalue()) > 5000


def test_energies_are_drawn_over_the_run_in_the_groups_colours():
    history = {"many": [-1.0, -3.0], "few": [-1.0, math.nan], "all": [-1.0, -2.0]}
    figure = energy_by_group(history, "darl on digits", "mean energy")
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert [line.get_xdata().tolist() for line in lines.values()] == [[0, 100]] * 3
    assert lines["many"].get_ydata().tolist() == [-1, -3]
    assert math.isnan(lines["few"].get_ydata()[1])
    assert [lines[name].get_color() for name in ("many", "few")] == [
        GROUP_COLOURS[name] for name in ("many", "few")
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(history)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training done, %", "mean energy")
    assert axes.get_title(loc="left") == "Ambiguity over training: darl on digits"
    assert is_png(figure)


def test_a_single_value_can_be_seen():
    axes = energy_by_group({"few": [-1.0]}, "x", "y").axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0]
    assert axes.lines[0].get_marker() == "."


@pytest.mark.parametrize("history", [{}, {"many": []}])
def test_a_history_without_a_value_is_refused(history):
    with pytest.raises(ValueError, match="at least one group with a value"):
        energy_by_group(history, "x", "y")
