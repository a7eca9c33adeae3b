"""What a long computation says while it runs: a bar in a terminal, elsewhere a line now and then.

One thing at a time is shown: what is computed inside of it says nothing of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOGGER = logging.getLogger(__name__)
# what is done sooner needs no bar
PATIENCE_SECONDS = 5.0
SECONDS_BETWEEN_LINES = 30.0

_Item = TypeVar("_Item")


class Shown(Protocol):
    """Where something is said of what is done so far."""

    def advance(self, count: int = 1) -> None:
        """Count what was done."""

    def note(self, text: str) -> None:
        """Say something new, as the loss."""


class _Nothing:
    """Inside of what is shown already."""

    def advance(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _Counted:
    """What both ways of showing count; several threads may."""

    def __init__(self, name: str, total: int, patience: float) -> None:
        self.name, self.total, self.patience = name, total, patience
        self.done, self.text, self.started = 0, "", time.monotonic()
        self.lock = Lock()

    @property
    def is_late(self) -> bool:
        """Return whether it has taken long enough to be shown."""
        return time.monotonic() - self.started >= self.patience

    def note(self, text: str) -> None:
        """Say something new with the next sign of life."""
        self.text = text

    def advance(self, count: int = 1) -> None:
        """Count what was done, and show it if it is time."""
        with self.lock:
            self.done += count
            if self.is_late:
                self.show()

    def show(self) -> None:
        """Show what is done."""
        raise NotImplementedError

    def close(self) -> None:
        """End it."""


class _Bar(_Counted):
    """A bar in a terminal."""

    def __init__(self, name: str, total: int, patience: float, console: Console) -> None:
        super().__init__(name, total, patience)
        self.display = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=patience > 0,
        )
        self.task: TaskID | None = None

    def show(self) -> None:
        """Show what is done, the bar too from the first time on."""
        if self.task is None:
            self.task = self.display.add_task(self.name, total=self.total, text="")
            self.display.start()
        self.display.update(self.task, completed=self.done, text=self.text)

    def close(self) -> None:
        """Leave the bar where it is."""
        if self.task is not None:
            self.show()
        self.display.stop()


class _Lines(_Counted):
    """A line in a log every half a minute, and one behind what took longer."""

    def __init__(self, name: str, total: int, patience: float) -> None:
        super().__init__(name, total, patience)
        self.last_line = self.started

    def show(self) -> None:
        """Say it, if the last time is long enough ago, and there will be no last word at once."""
        late = time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES
        if late and self.done < self.total:
            self.write_line()

    def write_line(self) -> None:
        """Say what is done, and how long the rest takes at this pace."""
        self.last_line = time.monotonic()
        seconds = self.last_line - self.started
        left = seconds * (self.total - self.done) / self.done if self.done else 0.0
        when = f"{in_words(left)} left" if self.done < self.total else f"in {in_words(seconds)}"
        LOGGER.info(
            " · ".join(filter(None, (self.name, f"{self.done}/{self.total}", self.text, when)))
        )

    def close(self) -> None:
        """Say how it ended, if it was to be shown at all."""
        if self.done and self.is_late:
            self.write_line()


_ACTIVE: list[Shown] = []
_BEGINNING = Lock()


@contextmanager
def shown(name: str, total: int, patience: float = PATIENCE_SECONDS) -> Iterator[Shown]:
    """Show that ``name`` has ``total`` things to do, once it has taken ``patience`` seconds.

    In a terminal that is a bar, elsewhere a line to the log every ``SECONDS_BETWEEN_LINES``.
    """
    # of threads that begin at one moment, one is shown
    with _BEGINNING:
        own = None if _ACTIVE or not total else _begun(name, total, patience)
    if own is None:
        yield _Nothing()
        return
    try:
        yield own
    finally:
        _ACTIVE.remove(own)
        own.close()


def _begun(name: str, total: int, patience: float) -> _Counted:
    console = Console()
    own: _Counted = (
        _Bar(name, total, patience, console)
        if console.is_terminal
        else _Lines(name, total, patience)
    )
    _ACTIVE.append(own)
    return own


def track(items: Iterable[_Item], name: str, total: int) -> Iterator[_Item]:
    """Yield ``items``, of which there are ``total``, and show how far it is."""
    with shown(name, total) as progress:
        for item in items:
            yield item
            progress.advance()


def in_words(seconds: float) -> str:
    """Return a time as people say it, as in ``42 s``, ``3:05 min`` or ``2:10 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min"
    return f"{seconds // 3600:.0f}:{seconds % 3600 // 60:02.0f} h"
