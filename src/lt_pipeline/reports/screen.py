"""Tables on the screen: in a terminal, or in a log."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import rich
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

# of what has no width of its own: pipes, files, logs of CI
LOG_WIDTH = 160


def console() -> Console:
    """Return where to print to."""
    output = Console()
    return output if _has_width(output) else Console(width=LOG_WIDTH)


def fit_logs() -> None:
    """Give log lines as much room, where rich would break them at 80."""
    if not _has_width(rich.get_console()):
        rich.reconfigure(width=LOG_WIDTH)


def _has_width(output: Console) -> bool:
    return output.is_terminal or "COLUMNS" in os.environ


def table(headings: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]] = ()) -> Table:
    """Return a table of ``rows``: cells, and whether they are a paper's, which stand in italics.

    The first column has names, which are never cut, and no heading is broken within a word.
    """
    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(headings):
        widest = max(map(len, heading.split()))
        right = {"justify": "right", "min_width": widest} if place else {"no_wrap": True}
        grid.add_column(heading, **right)
    for cells, of_paper in rows:
        first = f"  {cells[0]}" if of_paper else cells[0]
        grid.add_row(first, *cells[1:], style="italic" if of_paper else None)
    return grid
