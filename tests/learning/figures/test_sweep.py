from __future__ import annotations

import io

import pytest

from lt_pipeline.learning.figures import sweep

VALUES = {0: 0.5, 1: 0.75, 2: 0.6}
SETTINGS = {n: {"rank": 0.1 * (n + 1), "schedule": s} for n, s in enumerate(("sin", "cos", "sin"))}
CURVES = {n: {1: 0.2, 2: value} for n, value in VALUES.items()} | {3: {1: 0.1}}
TITLE = "more on digits: 4 trials"
DRAWN = {
    "history": lambda: sweep.history(VALUES, [3], TITLE),
    "epochs": lambda: sweep.epochs(CURVES, 1, [3], TITLE),
    "slices": lambda: sweep.slices(VALUES, SETTINGS, ["rank"], TITLE),
    "parallel": lambda: sweep.parallel(VALUES, SETTINGS, ["rank"], TITLE),
    "importance": lambda: sweep.importance({"rank": 0.7, "schedule": 0.3}, TITLE),
}


def title(figure):
    return figure.get_suptitle() or figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_title_says_what_is_drawn_and_of_which_sweep(draw):
    figure = draw()
    what, of = title(figure).split(": ", 1)
    assert of == TITLE
    assert what
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    assert figure.get_tightbbox().x1 <= figure.get_figwidth()


def test_no_two_pictures_of_a_sweep_have_one_title():
    assert len({title(draw()) for draw in DRAWN.values()}) == len(DRAWN)
