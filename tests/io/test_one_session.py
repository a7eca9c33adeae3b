"""Of two sessions in threads the first goes on, whatever the second has begun."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import click
import pytest

from lt_pipeline.io import one_session
from lt_pipeline.io.conf_loader import ConfLoader
from lt_pipeline.learning.schema import UserError
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from toys import PROJECT


def loader():
    return ConfLoader(conf_source=str(PROJECT / "conf"), env="smoke", **CONFIG_LOADER_ARGS)


def work(begun, end):
    """Stand in for a session's run."""
    one_session.check_alone()
    begun.set()
    end.wait(30)


@contextmanager
def a_session(monkeypatch):
    """Have a session at work in another thread."""
    monkeypatch.setattr(one_session, "RUNS", (work.__code__,))
    begun, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=work, args=(begun, end))
    thread.start()
    try:
        assert begun.wait(30)
        yield
    finally:
        end.set()
        thread.join()


def test_the_first_goes_on_and_the_second_is_refused_however_often_it_asks(monkeypatch):
    with a_session(monkeypatch):
        for _ in range(2):
            with pytest.raises(UserError, match="a process of its own"):
                one_session.check_alone()
    one_session.check_alone()


def test_one_thread_may_ask_again():
    one_session.check_alone()
    one_session.check_alone()


def test_the_seconds_loader_touches_nothing_of_the_firsts(monkeypatch):
    """OmegaConf's resolvers are of the process: a loader half made would answer for the first."""
    first = loader()
    with (
        a_session(monkeypatch),
        pytest.raises(click.ClickException, match="another session"),
    ):
        loader()
    assert first["parameters"]["seed"] == 0
