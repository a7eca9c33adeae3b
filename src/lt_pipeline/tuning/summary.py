"""A sweep's outcome as Markdown: ``python -m lt_pipeline.tuning.summary FOLDER...``.

For pages that have no access to MLflow, such as a job's summary on GitHub.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lt_pipeline.learning.evaluation.metrics.catalog import OBJECTIVES, of_task
from lt_pipeline.learning.schema import UserError

SHOWN = 10
FOR_MACHINES = ["state", "repeats", "reason", "process"]


def markdown(folder: Path) -> str:
    """Return the best trials and, where it was tested, the test set's metrics.

    ``folder`` is a sweep's in data/08_reporting.

    Raises:
        UserError: if there is no sweep.
    """
    if not (folder / "trials.csv").exists():
        raise UserError(f"{folder} has no trials.csv: no sweep has ended there")
    trials = pd.read_csv(folder / "trials.csv")
    # the value of one that was stopped is of its last epoch, which is none to compare
    ended = trials[trials["state"] == "complete"]
    best = of_task(OBJECTIVES, ended).best_first(ended).head(SHOWN)
    went = f"{len(trials)} trials, {len(ended)} of them to the end; the best {len(best)}:"
    parts = [went, _table(best.drop(columns=FOR_MACHINES))]
    numbers = {n: v for n, v in _tested(folder).items() if n.startswith("test/")}
    if numbers:
        shown = pd.DataFrame({"metric": list(numbers), "test set": list(numbers.values())})
        parts += ["The best trial, trained once more, on the test set:", _table(shown)]
    else:
        parts.append("The test set is not read yet: trials are left, or another machine does it.")
    return "\n\n".join(parts)


def _tested(folder: Path) -> dict[str, float]:
    """Return the metrics of the best trial; none where the sweep is not at its end."""
    path = folder / "tested.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _table(rows: pd.DataFrame) -> str:
    heading = [str(name) for name in rows.columns]
    lines = [heading, ["---"] * len(heading), *(map(_cell, row) for row in rows.to_numpy())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")


def main(folders: Sequence[str]) -> int:
    """Print the summary of each folder; return how many had none."""
    missing = 0
    for folder in folders:
        try:
            print(markdown(Path(folder)))
        except UserError as error:
            print(error)
            missing += 1
    return missing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
