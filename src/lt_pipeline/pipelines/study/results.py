"""What came out of a study: means over seeds, beside what papers say of its arms, and drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lt_pipeline.learning.data.longtail import GROUP_NAMES
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.figures.study import by_arm, over_values
from lt_pipeline.learning.studies.comparison import (
    JUDGED_BY,
    MEASURES,
    over_seeds,
    study_measures,
    with_differences,
)
from lt_pipeline.learning.studies.config import StudyConfig, first_detector, slug
from lt_pipeline.learning.studies.published import beside_arms, read_papers, why_none
from lt_pipeline.reports.differences import LEGEND, Paired
from lt_pipeline.reports.documents import markdown, table_rows

Values = dict[str, Any]
# what arms' differences are of in the table; the file has the other metrics' as well
JUDGED = "test/accuracy"


def summarise(study: str) -> Callable[..., tuple[pd.DataFrame, Values]]:
    """Return the node that puts the runs of ``study`` together."""

    def over_arms(parameters: Values, runs: pd.DataFrame) -> tuple[pd.DataFrame, Values]:
        """Return mean, deviation and paired differences over seeds: a table, by arm for MLflow."""
        reference = StudyConfig.read(study, parameters["studies"][study]).reference
        table = over_seeds(runs, "arm", list(runs.columns.drop(["arm", "seed"])))
        tested = [metric for metric in study_measures(table, ()) if metric.startswith("test/")]
        arms = _by_arm(table)
        return with_differences(table, runs, reference, tested).reset_index(), arms

    return over_arms


def _by_arm(table: pd.DataFrame) -> Values:
    """Return what MLflow is told of every arm: means and deviations of what is drawn."""
    drawn = [column for columns, *_ in _shown(table).values() for column in columns.values()]
    arms: Values = {}
    for label, row in table.iterrows():
        arm = arms.setdefault(slug(str(label)), {})
        for name in (JUDGED_BY, *drawn):
            if name in row:
                arm[name] = {"mean": float(row[name])}
            if name in row and row["runs"] > 1:
                arm[name]["sd"] = float(row[f"{name} sd"])
    return arms


def tabulate(study: str) -> Callable[..., tuple[Values, str]]:
    """Return the node that puts the summary of ``study`` beside what papers say of its arms."""

    def table(
        parameters: Values, card: Values, summary: pd.DataFrame, papers: Any
    ) -> tuple[Values, str]:
        """Return the table for the screen, with what to know of it, and in Markdown."""
        found = StudyConfig.read(study, parameters["studies"][study])
        experiments, published = found.experiments(parameters), read_papers(papers)
        configs = {label: one.model_dump(mode="json") for label, one in experiments.items()}
        data = DataCard.from_json(card).settings
        own = summary.rename(columns={"arm": "label"})
        beside = beside_arms(study, configs, own, published, data)
        measures = study_measures(summary, found.columns)
        paired = Paired(JUDGED, MEASURES[JUDGED], found.reference)
        headings, rows = table_rows(own, beside, measures, "arm", gaps=True, paired=paired)
        reasons = [f"{b['label']}, {b['source']}: {b['reason']}" for b in beside if b["reason"]]
        none = why_none(study, configs, published, data)
        floor = f"The harmonic mean takes a recall of zero as {summary['test/recall_floor'][0]:g}"
        told = [LEGEND.capitalize()] if paired.there(summary) else []
        notes = [floor, *told, *dict.fromkeys(reasons), *([none] if none else [])]
        standing = {
            "headings": headings,
            "rows": [row._asdict() for row in rows],
            "beside_papers": beside,
            "notes": notes,
        }
        return standing, "\n".join([markdown(headings, rows), *(f"- {note}" for note in notes)])

    return table


def draw(study: str) -> Callable[..., dict[str, Figure]]:
    """Return the node that draws the summary of ``study``."""

    def pictures(parameters: Values, card: Values, summary: pd.DataFrame) -> dict[str, Figure]:
        found = StudyConfig.read(study, parameters["studies"][study])
        title = f"{found.title}: {DataCard.from_json(card).config.title}"
        rows = summary.to_dict("records")
        drawn = {}
        for name, (columns, label, factor) in _shown(summary).items():
            if not any(column in summary for column in columns.values()):
                continue
            if found.sweep:
                values = dict(zip(found.sweep.labels(), found.sweep.values, strict=True))
                axis = found.sweep.path.split(".")[-1]
                drawn[name] = over_values(rows, values, columns, axis, label, title, factor)
            else:
                drawn[name] = by_arm(rows, columns, label, title, factor)
        return {f"{name}.png": figure for name, figure in drawn.items()}

    return pictures


# file: (columns by what they show, label of the axis, factor)
_SHOWN: dict[str, tuple[dict[str, str], str, float]] = {
    "accuracy": (
        {"all": "test/accuracy", **{g: f"test/{g}" for g in GROUP_NAMES}},
        "accuracy on the balanced test set, %",
        100,
    ),
    "angle": (
        {g: f"geometry/angle_mean/{g}" for g in ("all", *GROUP_NAMES)},
        "mean angle to the class centre, degrees",
        1,
    ),
    "separability": (
        {g: f"geometry/separability/{g}" for g in ("all", *GROUP_NAMES)},
        "separability S (equation 13)",
        1,
    ),
}


def _shown(summary: pd.DataFrame) -> dict[str, tuple[dict[str, str], str, float]]:
    """Return what there are pictures of: also the first detector's AUROC, if there is one."""
    detector = first_detector(summary)
    if not detector:
        return _SHOWN
    mean = f"ood/{detector}/mean/auroc"
    columns = {"all": mean, **{group: f"{mean}_{group}" for group in GROUP_NAMES}}
    return {**_SHOWN, "auroc": (columns, f"AUROC of {detector}, mean over the OOD sets, %", 100)}
