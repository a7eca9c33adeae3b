"""The table that a comparison ends with on the screen."""

from __future__ import annotations

from typing import Any

import pandas as pd

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.studies.comparison import JUDGED_BY, shown_measures
from lt_pipeline.reports import screen
from lt_pipeline.reports.differences import LEGEND, Paired
from lt_pipeline.reports.documents import table_rows

# the others are in the files
SHOWN = (
    "test/accuracy",
    "test/many",
    "test/medium",
    "test/few",
    "test/harmonic_mean",
    JUDGED_BY,
    "cost/training_seconds",
    "cost/parameters_deployed",
)

Values = dict[str, Any]


def print_comparison(
    summary: pd.DataFrame, standing: Values, notes: list[str], champion: Values, card: DataCard
) -> None:
    """Print the main columns, what to know of them, and what is missing."""
    console = screen.console()
    measures = {name: m for name, m in shown_measures(summary).items() if name in SHOWN}
    paired = Paired.of_first(standing)
    headings, rows = table_rows(summary, standing["beside_papers"], measures, paired=paired)
    table = screen.table(headings, ((row.cells, row.of_paper) for row in rows))
    console.print()
    console.print(f"Methods on {card.config.title}: balanced test set, last epoch")
    console.print("(mean ± standard deviation over seeds; of one run a bootstrap interval)")
    if paired:
        console.print(f"({LEGEND})")
    console.print(table)
    console.print(f"Groups: {card.longtail.group_rule}.")
    for sentence in (standing["in_words"], champion["sentence"]):
        console.print(sentence)
    for note in notes:
        console.print(f"Note: {note}.")
