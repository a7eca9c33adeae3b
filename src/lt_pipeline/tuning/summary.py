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

SHOWN = 10


def markdown(folder: Path) -> str:
    """Return the best trials and, where it was judged, the test set's metrics.

    ``folder`` is a sweep's in data/08_reporting.

    Raises:
        ValueError: if there is no sweep.
    """
    if not (folder / "trials.csv").exists():
        raise ValueError(f"{folder} has no trials.csv: no sweep has ended there")
    trials = pd.read_csv(folder / "trials.csv")
    best = trials.sort_values("value", ascending=False).head(SHOWN)
    parts = [f"{len(trials)} trials; the best {len(best)}:", _table(best)]
    if (folder / "judged.json").exists():
        judged = json.loads((folder / "judged.json").read_text())
        numbers = {name: value for name, value in _flat(judged) if name.startswith("test/")}
        shown = pd.DataFrame({"metric": list(numbers), "test set": list(numbers.values())})
        parts += ["The best trial, trained once more, on the test set:", _table(shown)]
    return "\n\n".join(parts)


def _flat(values: Any, prefix: str = "") -> list[tuple[str, float]]:
    if isinstance(values, dict):
        return [pair for name, v in values.items() for pair in _flat(v, f"{prefix}{name}/")]
    return [(prefix.rstrip("/"), values)] if isinstance(values, int | float) else []


def _table(rows: pd.DataFrame) -> str:
    heading = [str(name) for name in rows.columns]
    lines = [heading, ["---"] * len(heading), *(map(_cell, row) for row in rows.to_numpy())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(folders: Sequence[str]) -> int:
    """Print the summary of each folder; return how many had none."""
    missing = 0
    for folder in folders:
        try:
            print(markdown(Path(folder)))
        except ValueError as error:
            print(error)
            missing += 1
    return missing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
