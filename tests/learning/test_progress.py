"""What a long computation says: a bar in a terminal, lines elsewhere, one thing at a time."""

from __future__ import annotations

import io
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from rich.console import Console

from lt_pipeline.learning import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def said(caplog):
    return [record.getMessage() for record in caplog.records]


def to_a_file(monkeypatch):
    monkeypatch.setattr(progress, "Console", lambda: Console(file=io.StringIO()))


def test_in_a_file_there_is_a_line_every_half_minute_and_one_at_the_end(clock, caplog, monkeypatch):
    to_a_file(monkeypatch)
    with caplog.at_level(logging.INFO), progress.shown("train", 8, patience=0) as shown:
        for step in range(8):
            clock[0] += 20
            shown.advance()
            shown.note(f"loss {step}")
    assert said(caplog) == [
        "train · 2/8 · loss 0 · 2:00 min left",
        "train · 4/8 · loss 2 · 80 s left",
        "train · 6/8 · loss 4 · 40 s left",
        "train · 8/8 · loss 7 · in 2:40 min",
    ]


@pytest.mark.parametrize(("seconds", "lines"), [(1, 0), (4, 0), (6, 1)])
def test_what_is_done_soon_is_not_shown(seconds, lines, clock, caplog, monkeypatch):
    to_a_file(monkeypatch)
    with caplog.at_level(logging.INFO):
        for _ in progress.track(range(2), "scoring images", 2):
            clock[0] += seconds / 2
    assert len(said(caplog)) == lines


def test_of_threads_that_begin_at_one_moment_one_is_shown(caplog, monkeypatch):
    begin, end = Barrier(4), Barrier(4)

    def slow():
        # others would look while this one is about to begin
        time.sleep(0.05)
        return Console(file=io.StringIO())

    def work(number):
        begin.wait()
        with progress.shown(f"thread {number}", 1, patience=0) as shown:
            end.wait()
            shown.advance()

    monkeypatch.setattr(progress, "Console", slow)
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(said(caplog)) == 1


def test_what_is_computed_inside_of_something_shown_says_nothing(clock, caplog, monkeypatch):
    to_a_file(monkeypatch)
    with caplog.at_level(logging.INFO), progress.shown("outer", 1, patience=0) as shown:
        for _ in progress.track(range(3), "inner", 3):
            clock[0] += 100
        shown.advance()
    assert [line.split(" · ")[0] for line in said(caplog)] == ["outer"]


def test_a_terminal_has_a_bar_with_what_is_noted(monkeypatch, caplog):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda: Console(file=screen, force_terminal=True, width=120)
    )
    with caplog.at_level(logging.INFO), progress.shown("train", 4, patience=0) as shown:
        for _ in range(4):
            shown.advance()
            shown.note("loss 1.25")
    assert "train" in screen.getvalue()
    assert "4/4" in screen.getvalue()
    assert "loss 1.25" in screen.getvalue()
    assert said(caplog) == []


def test_an_error_ends_it_and_the_next_is_shown_again(clock, caplog, monkeypatch):
    to_a_file(monkeypatch)
    with pytest.raises(KeyError), progress.shown("one", 2, patience=0):
        raise KeyError
    with caplog.at_level(logging.INFO), progress.shown("two", 1, patience=0) as shown:
        clock[0] += 1
        shown.advance()
    assert said(caplog) == ["two · 1/1 · in 1 s"]


def test_nothing_to_do_is_not_shown(caplog, monkeypatch):
    to_a_file(monkeypatch)
    with caplog.at_level(logging.INFO):
        assert list(progress.track([], "nothing", 0)) == []
    assert said(caplog) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (42.4, "42 s"), (185, "3:05 min"), (5999, "99:59 min"), (7800, "2:10 h")],
)
def test_times_are_as_people_say_them(seconds, words):
    assert progress.in_words(seconds) == words
