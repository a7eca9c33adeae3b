from __future__ import annotations

import io

from lt_pipeline.learning.figures.methods.more import logit_shift_by_group
from lt_pipeline.learning.figures.style import GROUP_COLOURS


def test_the_logit_shift_has_a_bar_a_group():
    shift = {"many": 0.007, "medium": 0.3, "few": 123.4}
    figure = logit_shift_by_group(shift, {"many": 0, "medium": 0.1, "few": 0.25}, "x")
    (axes,) = figure.axes
    heights = [bar.get_height() for group in axes.containers for bar in group]
    assert heights == list(shift.values())
    assert [text.get_text() for text in axes.texts] == ["0.00700", "0.300", "123"], "three digits"
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["many\n0.0 %", "medium\n10.0 %", "few\n25.0 %"]
    assert GROUP_COLOURS.keys() == {"many", "medium", "few"}
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    assert buffer.getvalue().startswith(b"\x89PNG")
