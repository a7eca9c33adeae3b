"""DVC's experiments, in the width of a terminal: ``python -m lt_pipeline.versioning.experiments``.

``dvc exp show`` heads a metric with the path of its file as soon as two methods have it, some 50
characters a column. Here the method's name heads it, and only columns that differ are shown.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, OBJECTIVE
from lt_pipeline.learning.schema import flatten
from lt_pipeline.reports import screen

Values = Mapping[str, Any]
# the texts of a row, by where they are and what they are
Cells = dict[tuple[str, str], str]
MISSING = "-"
# the one metric of a run's few that is not of the test set
HOLD_OUT = replace(METRICS[OBJECTIVE], heading="hold-out")
# of a table that is only measured
WIDEST = 100_000


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(options: tuple[str, ...]) -> None:
    """Print a row an experiment; OPTIONS are those of `dvc exp show`, as -A or -n 3."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    console = screen.console()
    console.print(*tables(json.loads(done.stdout), console))


def tables(baselines: Sequence[Values], console: Console) -> Iterator[Table]:
    """Yield what differs between the experiments that ``dvc exp show --json`` gives.

    Columns that ``console`` has no room for stand in a table of their own below.
    """
    names, states = zip(*_named(baselines), strict=True)
    metrics, parameters = [*map(_metrics, states)], [*map(_parameters, states)]
    differing = [*_differing(metrics), *_differing(parameters)]
    often = Counter(words for _, words in differing)
    # a word a line: no column is wider than it has to be
    headings = [
        "\n".join([*([place] if often[words] > 1 else []), *words.split()])
        for place, words in differing
    ]
    cells = [measured | given for measured, given in zip(metrics, parameters, strict=True)]
    texts = [[row.get(column, MISSING) for column in differing] for row in cells]

    def table(start: int, stop: int) -> Table:
        lines = [[name, *row[start:stop]] for name, row in zip(names, texts, strict=True)]
        return screen.table(
            ["experiment", *headings[start:stop]], [(line, False) for line in lines]
        )

    stop = 0
    while not stop or stop < len(headings):
        start, stop = stop, stop + 1
        while stop < len(headings) and _fits(table(start, stop + 1), console):
            stop += 1
        yield table(start, stop)


def _fits(table: Table, console: Console) -> bool:
    unlimited = console.options.update(max_width=WIDEST)
    return console.measure(table, options=unlimited).maximum <= console.width


def _named(baselines: Sequence[Values]) -> Iterator[tuple[str, Values]]:
    """Yield the name and the values of every commit and of the experiments on top of it."""
    for baseline in baselines:
        yield baseline["name"] or baseline["rev"][:9], baseline.get("data") or {}
        for experiment in baseline["experiments"] or []:
            # the first of them is what the experiment came to
            state = experiment["revs"][0]
            yield f"  {state['name'] or state['rev'][:7]}", state.get("data") or {}


def _metrics(data: Values) -> Cells:
    """Return the metrics as they are shown, by the run's folder and the words of a heading."""
    cells = {}
    for file, read in data.get("metrics", {}).items():
        run, method = PurePath(file).parts[-3:-1]
        for name, value in read.get("data", {}).items():
            metric = METRICS.get(f"test/{name}", HOLD_OUT)
            cells[run, f"{method} {metric.heading}"] = metric.with_unit(value)
    return cells


def _parameters(data: Values) -> Cells:
    """Return the parameters, by the folder of conf/ and the words of a heading."""
    cells = {}
    for file, read in data.get("params", {}).items():
        for words, value in flatten(read.get("data", {}), " "):
            cells[PurePath(file).parts[-2], words] = escape(str(value))
    return cells


def _differing(rows: Sequence[Cells]) -> list[tuple[str, str]]:
    """Return the columns in which not all ``rows`` are alike, but for those of no run at all."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return [c for c in columns if len({row.get(c) for row in rows if row}) > 1]


if __name__ == "__main__":
    main()
