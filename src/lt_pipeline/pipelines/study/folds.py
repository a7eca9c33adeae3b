"""What came out of a study on folds: pooled over all images, and by fold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.evaluation.metrics.catalog import METRICS, OBJECTIVES, Metric
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.schema import UserError, numbers
from lt_pipeline.learning.studies.config import slug
from lt_pipeline.learning.studies.plan import Plan
from lt_pipeline.learning.studies.pooled import Pooled, class_rows, pool_table, pooled
from lt_pipeline.reports.documents import Row as Line
from lt_pipeline.reports.documents import markdown
from lt_pipeline.reports.studies import KEPT_IN, failed_runs
from lt_pipeline.tracking import client as tracking

Values = dict[str, Any]
Row = Mapping[Any, Any]


class FoldMetrics(NamedTuple):
    """The metrics of a table on folds: two are pooled, ``main`` with an interval, two are not."""

    main: Metric
    beside: Metric
    of_fold: Metric
    held_out: Metric

    @classmethod
    def by(cls, columns: Iterable[object]) -> FoldMetrics:
        """Return those of pooled arms with ``columns``, which tell one label from several."""
        names = set(map(str, columns))
        return next(metrics for metrics in FOLD_METRICS if metrics.main.key in names)

    @property
    def ahead(self) -> str:
        """Return the column of the difference."""
        return f"{self.main.key} difference"


FOLD_METRICS = tuple(
    FoldMetrics(*(METRICS[key] for key in keys))
    for keys in (
        ("pooled/mean_recall", "pooled/accuracy", "test/mean_recall", OBJECTIVES[0]),
        ("pooled/macro_f1", "pooled/micro_f1", "test/mean_average_precision", OBJECTIVES[1]),
    )
)


def pool(
    plan: Plan, card: DataCard, runs: pd.DataFrame, finished_arms: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row an arm, and a row an arm and class; tell MLflow of the first.

    Of an arm count the seeds that have a run on every fold; one without is left out.

    Raises:
        UserError: if no arm has.
    """
    store, arms, classes = Store(finished_arms), dict[str, Pooled](), card.longtail.classes
    for label in plan.experiments:
        own = runs[(runs["arm"] == label) & runs[KEPT_IN].notna()].sort_values("fold")
        whole = [
            [store.answers(name) for name in of_seed[KEPT_IN]]
            for _, of_seed in own.groupby("seed")
            if list(of_seed["fold"]) == list(plan.folds)
        ]
        if whole:
            arms[label] = pooled(whole, classes if card.longtail.several else None)
    if not arms:
        raise UserError(f"{plan.name}: no arm has a run on each of {len(plan.folds)} folds")
    table = pool_table(arms, plan.study.reference)
    metrics = {slug(row["arm"]): _metrics(row) for row in table.to_dict("records")}
    tracking.log_metrics(numbers({"arms": metrics}))
    if len(metrics) == 1:
        tracking.log_metrics(numbers(*metrics.values()))
    names = card.longtail.class_names
    rows = [row for label, arm in arms.items() for row in class_rows(label, arm, names)]
    return table, pd.DataFrame(rows)


def _metrics(row: Row) -> Values:
    """Return what MLflow has of an arm, by name."""
    named = {name.replace(" ", "_"): value for name, value in row.items() if "/" in name}
    values = {**named, "pooled/classes": row["classes"]}
    return {name: value for name, value in values.items() if not _missing(value)}


def tabulate_folds(
    plan: Plan, runs: pd.DataFrame, summary: pd.DataFrame, pooled: pd.DataFrame
) -> tuple[Values, str]:
    """Return a row an arm, pooled and by fold: for the screen, and in Markdown."""
    reference, count = plan.study.reference, len(plan.folds)
    over, metrics = summary.set_index("arm"), FoldMetrics.by(pooled)
    by_fold = runs.groupby(["arm", "fold"])[metrics.of_fold.key].mean()
    versus = len(pooled) > 1 and metrics.ahead in pooled
    # of one label it is the metric that is pooled
    of_what = "" if metrics is FOLD_METRICS[0] else f"{metrics.of_fold.heading}, "
    headings = [
        "arm",
        metrics.main.column,
        *([f"minus {reference}"] if versus else []),
        metrics.beside.column,
        f"{of_what}mean of {count} folds",
        *(f"fold {fold}" for fold in plan.folds),
        metrics.held_out.column,
    ]
    rows = [
        Line(
            [
                row["arm"],
                _pooled(row, metrics.main),
                *([_ahead(row, metrics)] if versus else []),
                metrics.beside.number(row[metrics.beside.key]),
                _over(over, row["arm"], metrics.of_fold),
                *(metrics.of_fold.number(by_fold[row["arm"], fold]) for fold in plan.folds),
                _over(over, row["arm"], metrics.held_out),
            ],
            of_paper=False,
        )
        for row in pooled.to_dict("records")
    ]
    failed = failed_runs(runs)
    notes = [*_notes(pooled, runs, metrics.main), *failed]
    comparison = {
        "of": f"{count} folds",
        "about": "pooled: every image is tested once, by the model that has not seen it; "
        "of folds and the hold-out: mean ± standard deviation over folds",
        "headings": headings,
        "rows": [row._asdict() for row in rows],
        "beside_papers": [],
        "notes": notes,
        "failed": failed,
    }
    return comparison, "\n".join([markdown(headings, rows), *(f"- {note}" for note in notes)])


def _missing(value: Any) -> bool:
    return bool(pd.isna(value))


def _pooled(row: Row, main: Metric) -> str:
    text, spread = main.number(row[main.key]), row[f"{main.key} sd"]
    seeds = "" if _missing(spread) else f" ± {main.number(spread)} over {row['seeds']} seeds"
    return f"{text}{seeds}{_ends(row, main.key, main.number)}"


def _ahead(row: Row, metrics: FoldMetrics) -> str:
    if _missing(row[metrics.ahead]):
        return ""
    return (
        f"{metrics.main.change(row[metrics.ahead])}{_ends(row, metrics.ahead, metrics.main.change)}"
    )


def _ends(row: Row, key: str, number: Any) -> str:
    ends = [row[f"{key} {end}"] for end in ("low", "high")]
    return "" if _missing(ends[0]) or ends[0] == ends[1] else f" [{', '.join(map(number, ends))}]"


def _over(summary: pd.DataFrame, arm: str, metric: Metric) -> str:
    if metric.key not in summary:
        return "-"
    names = metric.key, f"{metric.key} sd"
    mean, spread = (metric.number(summary[name].to_dict()[arm]) for name in names)
    return f"{mean} ± {spread}"


def _notes(pooled: pd.DataFrame, runs: pd.DataFrame, main: Metric) -> list[str]:
    first, own = pooled.to_dict("records")[0], runs["test/classes"].dropna().astype(int)
    of = f"{first['images']} images"
    of += "" if _missing(first["groups"]) else f" in {first['groups']:.0f} groups"
    each = f"{own.min()}" if own.min() == own.max() else f"{own.min()} to {own.max()}"
    what = "images" if _missing(first["groups"]) else "groups"
    ends = first[f"{main.key} low"]
    sure = (
        f"No interval: {first['groups']:.0f} groups are tested, and it takes five"
        if _missing(ends)
        else f"In brackets: 95 % intervals by drawing {what} again, the same for all arms; it says "
        f"nothing of another training"
    )
    return [
        f"{main.heading} is over {first['classes']} classes, {of}; a fold's own over {each}",
        sure,
    ]
