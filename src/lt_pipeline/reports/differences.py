"""How far each row of a table is from one of them, over common seeds, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, Metric
from lt_pipeline.learning.evaluation.metrics.significance import pairs_needed
from lt_pipeline.learning.studies.comparison import DIFFERENCE

LEGEND = (
    "minus another row: mean of the differences seed by seed and its paired 95 % interval; seeds "
    "needed: to find a difference of that size with 80 % power"
)


class Paired(NamedTuple):
    """Two columns of a table: the differences of a metric from those of the row ``reference``."""

    metric: Metric
    reference: str

    @classmethod
    def of_first(cls, comparison: Mapping[str, Any]) -> Paired | None:
        """Return those of a comparison: from its first row, of what rows stand in order by."""
        gap = comparison["first_two"]
        return cls(METRICS[gap["metric"]], gap["first"]) if gap else None

    def there(self, summary: pd.DataFrame) -> bool:
        """Return whether ``summary`` has differences: one of a single row has none."""
        return f"{self.metric.key} difference" in summary

    @property
    def headings(self) -> list[str]:
        """Return the headings of both columns."""
        return [f"{self.metric.column} minus {self.reference}", "seeds needed"]

    def cells(self, row: Mapping[Any, Any]) -> list[str]:
        """Return a method's: the difference with its interval, and the seeds it takes to see it."""
        gap = {name: row[f"{self.metric.key} {name}"] for name in DIFFERENCE}
        if row["label"] == self.reference:
            return ["", ""]
        if not gap["difference pairs"]:
            return ["no common seed", "-"]
        ahead = self.metric.change(gap["difference"], more_digits=1)
        if pd.isna(gap["difference low"]):
            why = "one seed" if gap["difference pairs"] == 1 else "in every seed"
            return [f"{ahead} ({why})", "-"]
        ends = ", ".join(self.metric.change(gap[f"difference {end}"]) for end in ("low", "high"))
        needed = gap["seeds needed"]
        return [f"{ahead} [{ends}]", "-" if pd.isna(needed) else f"{needed:,.0f}"]

    def cells_of_paper(
        self, row: Mapping[Any, Any], source: str, beside: Sequence[Mapping[str, Any]]
    ) -> list[str]:
        """Return a paper's own difference, and the seeds that we would need to see one so large.

        The latter goes by the spread that our differences have. ``beside`` are papers' figures.
        """
        figures = {
            figure["label"]: figure["paper"]
            for figure in beside
            if figure["source"] == source and figure["metric"] == self.metric.key
        }
        if row["label"] == self.reference or not {row["label"], self.reference} <= figures.keys():
            return ["", ""]
        ahead = figures[row["label"]] - figures[self.reference]
        sd = row[f"{self.metric.key} difference sd"]
        needed = pairs_needed(ahead, sd) if sd > 0 else None
        return [self.metric.change(ahead), f"{needed:,}" if needed else ""]
