"""What came out of a study: means over seeds, beside what papers say of its arms, and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.evaluation.metrics.catalog import (
    HEADLINES,
    MEAN_RECALL,
    METRICS,
    OBJECTIVES,
    of_task,
    pictured,
    shown_by_study,
)
from lt_pipeline.learning.figures.study import by_arm, over_values
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.studies.comparison import over_seeds, with_differences
from lt_pipeline.learning.studies.config import slug
from lt_pipeline.learning.studies.plan import Plan
from lt_pipeline.learning.studies.published import beside_arms, read_papers, why_none
from lt_pipeline.reports.differences import LEGEND, Paired
from lt_pipeline.reports.documents import markdown, table_rows

Values = dict[str, Any]
# the column of a run that failed: why
FAILED = "failed"
# and the folder in the store of a run on a fold, whose answers are pooled
KEPT_IN = "kept_in"


def summarise(plan: Plan, *rows: Values) -> tuple[pd.DataFrame, pd.DataFrame, Values]:
    """Return all runs, their mean, deviation and paired differences by arm, and that for MLflow.

    Failed runs are in the first table only. On folds means and deviations are over those, of means
    over seeds, and there are no differences: ``pool`` has them.

    Raises:
        UserError: if every run failed.
    """
    runs = pd.DataFrame(rows)
    finished = _finished(runs)
    if finished.empty:
        raise UserError(f"every run of {plan.name} failed; the first one: {runs[FAILED][0]}")
    reference = plan.study.reference
    metrics = [n for n in map(str, finished) if n not in ("arm", "seed", "fold", KEPT_IN)]
    if plan.folds:
        of_folds = finished.groupby(["arm", "fold"], sort=False)[metrics].mean().reset_index()
        table = over_seeds(of_folds, "arm", metrics)
        return runs, table.reset_index(), _by_arm(table)
    table = over_seeds(finished, "arm", metrics)
    shown = shown_by_study(table, (), natural=True)
    tested = [key for key in shown if key.startswith("test/")]
    arms = _by_arm(table)
    if reference in table.index:
        table = with_differences(table, finished, reference, tested)
    return runs, table.reset_index(), arms


def _finished(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that did not fail."""
    return runs[runs[FAILED].isna()].drop(columns=FAILED) if FAILED in runs else runs


def failed_runs(runs: pd.DataFrame) -> list[str]:
    """Return the runs that failed, and why, in words."""
    rows = runs.dropna(subset=[FAILED]).to_dict("records") if FAILED in runs else ()
    return [f"{row['arm']} · seed {row['seed']}{_on(row)} failed: {row[FAILED]}" for row in rows]


def _on(row: Mapping[Any, Any]) -> str:
    return f" · fold {row['fold']}" if "fold" in row else ""


def _by_arm(table: pd.DataFrame) -> Values:
    """Return what MLflow is told of every arm: means and deviations of what is drawn."""
    drawn = [key for metric in pictured(table) for key in metric.keys_by_group().values()]
    arms: Values = {}
    for label, row in table.iterrows():
        arm = arms.setdefault(slug(str(label)), {})
        for name in (*OBJECTIVES, *drawn):
            if name in row:
                arm[name] = {"mean": float(row[name])}
            if name in row and row["runs"] > 1:
                arm[name]["sd"] = float(row[f"{name} sd"])
    return arms


def tabulate(
    plan: Plan, card: DataCard, runs: pd.DataFrame, summary: pd.DataFrame, papers: Any
) -> tuple[Values, str]:
    """Return the summary beside what papers say of its arms: for the screen, and in Markdown.

    What is for the screen has the runs that failed, in words, under ``failed``.
    """
    study, published, data = plan.study, read_papers(papers), card.settings
    configs = {label: arm.model_dump(mode="json") for label, arm in plan.experiments.items()}
    own = summary.rename(columns={"arm": "label"})
    beside = beside_arms(plan.name, configs, own, published, data)
    metrics = shown_by_study(summary, study.columns, natural=card.natural)
    # what arms' differences are of in the table; the file has the other metrics' as well
    headline = METRICS[MEAN_RECALL] if card.natural else of_task(HEADLINES, summary)
    paired = Paired(headline, study.reference)
    headings, rows = table_rows(own, beside, metrics, "arm", gaps=True, paired=paired)
    reasons = [f"{b['label']}, {b['source']}: {b['reason']}" for b in beside if b["reason"]]
    none = why_none(plan.name, configs, published, data)
    floors = list(summary["test/recall_floor"][:1]) if "test/recall_floor" in summary else []
    floor = [f"The harmonic mean takes a recall of zero as {value:g}" for value in floors]
    legend = [LEGEND.capitalize()] if paired.there(summary) else []
    failed = failed_runs(runs)
    notes = [*floor, *legend, *dict.fromkeys(reasons), *([none] if none else []), *failed]
    comparison = {
        "headings": headings,
        "rows": [row._asdict() for row in rows],
        "beside_papers": beside,
        "notes": notes,
        "failed": failed,
    }
    return comparison, "\n".join([markdown(headings, rows), *(f"- {note}" for note in notes)])


def draw(plan: Plan, card: DataCard, summary: pd.DataFrame) -> dict[str, Figure]:
    """Return the pictures of the summary, by file name."""
    study = plan.study
    title = f"{study.title}: {card.config.title}"
    over = {"over": "folds"} if plan.folds else {}
    rows = [{**row, **over} for row in summary.to_dict("records")]
    metrics = {f"{metric.picture}.png": metric for metric in pictured(summary)}
    if not study.sweep:
        return {name: by_arm(rows, metric, title) for name, metric in metrics.items()}
    values = dict(zip(study.sweep.labels(), study.sweep.values, strict=True))
    axis = study.sweep.path.split(".")[-1]
    return {name: over_values(rows, values, m, axis, title) for name, m in metrics.items()}
