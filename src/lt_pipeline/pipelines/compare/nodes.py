"""Nodes of the comparison."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import Any

import mlflow
import pandas as pd
from matplotlib.figure import Figure

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.evaluation.metrics import catalog
from lt_pipeline.learning.evaluation.metrics.catalog import HEADLINES, PRECISION, RECALL, Metric
from lt_pipeline.learning.figures.compare import (
    accuracy_against_cost,
    recall_by_class,
    sorted_recalls,
)
from lt_pipeline.learning.figures.study import by_arm
from lt_pipeline.learning.schema import UserError
from lt_pipeline.learning.studies.comparison import (
    SETTINGS,
    CompareConfig,
    by_data,
    choose,
    differing_settings,
    first_two,
    summarise,
    summary_sentence,
)
from lt_pipeline.learning.studies.published import beside_papers, read_papers
from lt_pipeline.reports import documents
from lt_pipeline.reports.differences import LEGEND, Paired
from lt_pipeline.tracking import registry as champion
from lt_pipeline.tracking.runs import Runs, data_of_runs

Values = dict[str, Any]

COST = "cost/"
# lines that can be told apart in one picture
PROFILES = 6
# by what a picture's name begins or ends with
CAPTIONS = {
    "_by_group": "{} of all classes and of each group",
    "_by_class": "{} of every class, classes from most to fewest training images",
    "sorted_": "{} from the worst class to the best of every run; mean over seeds",
    "_against_cost": "{} against training time",
}


def collect(
    compare: Values, card: DataCard
) -> tuple[pd.DataFrame, pd.DataFrame, list[str], pd.DataFrame]:
    """Return the runs to compare, the recalls of their classes, what is missing, and candidates.

    They are of the MLflow experiment that this run is logged to, the data set's. Candidates for the
    champion are all runs on these images, whatever is compared.

    Raises:
        UserError: if there is no run to compare, naming what to do.
    """
    options = CompareConfig.read(compare)
    active = mlflow.active_run()
    if active is None:
        raise UserError("compare reads the runs of an MLflow experiment, but no run is active")
    name = mlflow.get_experiment(active.info.experiment_id).name
    logged, several = Runs(active.info.experiment_id), card.longtail.several
    runs = logged.table()
    chosen, left_out = runs, list[str]()
    if len(runs):
        chosen, left_out = choose(runs, options, card.data_hash, several=several)
    recalls = logged.recalls(chosen["run_id"] if len(chosen) else ())
    if recalls.empty:
        wanted = f" of {' or '.join(options.methods)}" if options.methods else ""
        known = f" ({'; '.join([*logged.notes, *left_out])})" if logged.notes or left_out else ""
        raise UserError(
            f"there is nothing to compare: the MLflow experiment {name!r} has no finished run"
            f"{wanted} on these images{known}; {_elsewhere(card)}train first, as in kedro run "
            f"--pipelines=ce"
        )
    chosen = chosen[chosen["run_id"].isin(recalls["run_id"])].reset_index(drop=True)
    labels = chosen.set_index("run_id")["label"]
    notes = [*logged.notes, *left_out, *differing_settings(chosen)]
    every = CompareConfig(variants=True)
    candidates, _ = choose(runs, every, card.data_hash, several=several)
    return chosen, recalls.assign(label=recalls["run_id"].map(labels)), notes, candidates


def _elsewhere(card: DataCard) -> str:
    """Return which other data have runs in this store, as the beginning of advice."""
    other = by_data(data_of_runs(), card.settings)
    return f"there are {'; '.join(other)}: compare with their data parameters, or " if other else ""


def tabulate(
    compare: Values, card: DataCard, runs: pd.DataFrame, recalls: pd.DataFrame, papers: Any
) -> tuple[pd.DataFrame, Values]:
    """Return a row a method, and how it stands to its neighbour and to papers."""
    order, data = CompareConfig.read(compare).order(several=card.longtail.several), card.settings
    summary = summarise(runs, recalls, order)
    ahead = first_two(runs, summary, order)
    beside = beside_papers(runs, summary, read_papers(papers), data)
    return summary, {
        "first_two": ahead,
        "summary_sentence": summary_sentence(ahead),
        "beside_papers": beside,
    }


def promote(card: DataCard, candidates: pd.DataFrame) -> Values:
    """Name the champion; see ``champion.promote``."""
    return champion.promote(candidates, card.config.slug)


def write(summary: pd.DataFrame, comparison: Values, card: DataCard) -> tuple[str, str, str]:
    """Return the table in Markdown, LaTeX and HTML."""
    table, title = _rows(summary, comparison), _title(card)
    return (
        documents.markdown(*table),
        documents.latex(*table, caption=title),
        documents.html_table(*table),
    )


def draw(
    summary: pd.DataFrame, recalls: pd.DataFrame, card: DataCard
) -> tuple[dict[str, Figure], dict[str, str]]:
    """Return the pictures by file name, and their PNGs in base64 for the report."""
    rows = summary.rename(columns={"label": "arm"}).to_dict("records")
    named, title, several = summary["label"].tolist(), card.config.title, card.longtail.several
    whole, own = catalog.METRICS[HEADLINES[several]], (RECALL, PRECISION)[several]
    by_label = {label: recalls[recalls["label"] == label] for label in named}
    by_class = {label: _mean_recalls(table, own) for label, table in by_label.items()}
    lines = {label: _profile(by_label[label], own) for label in named[:PROFILES]}
    first = f", the first {PROFILES}" if len(named) > PROFILES else ""
    each, every = own.plain.capitalize(), f"{own.plain.capitalize()}s"
    drawn = {
        f"{whole.name}_by_group": by_arm(rows, whole, f"{whole.plain.capitalize()}: {title}"),
        f"{own.name}_by_class": recall_by_class(by_class, f"{each} by class: {title}", own),
        f"sorted_{own.name}s": sorted_recalls(
            lines, f"{every} from worst to best{first}: {title}", own
        ),
        f"{whole.name}_against_cost": accuracy_against_cost(rows, f"Cost: {title}", whole),
    }
    return {f"{name}.png": figure for name, figure in drawn.items()}, {
        name: _png(figure) for name, figure in drawn.items()
    }


def report(
    card: DataCard,
    runs: pd.DataFrame,
    summary: pd.DataFrame,
    comparison: Values,
    notes: list[str],
    pictures: dict[str, str],
    chosen: Values,
) -> str:
    """Return one HTML page with all of it."""
    single = (summary["runs"] == 1).any() and not card.longtail.several
    intervals = "; [ ]: 95 % bootstrap interval of one run over the test images" if single else ""
    return documents.html_report(
        title=_title(card),
        lead=(
            f"Mean ± standard deviation over seeds{intervals}; {LEGEND}. Last epoch; nothing is "
            f"chosen by the test set. Groups: {card.longtail.group_rule}."
        ),
        table=documents.html_table(*_rows(summary, comparison, costs=False)),
        costs=documents.html_table(*_cost_rows(summary)),
        sentences=[comparison["summary_sentence"], chosen["sentence"]],
        notes=notes,
        pictures=[documents.Picture(data, _caption(name)) for name, data in pictures.items()],
        gaps=documents.gap_rows(comparison["beside_papers"]),
        runs=documents.run_rows(runs),
    )


def _rows(
    summary: pd.DataFrame, comparison: Values, *, costs: bool = True
) -> tuple[list[str], list[documents.Row]]:
    shown, paired = catalog.shown("comparison", summary), Paired.of_first(comparison)
    metrics = {name: m for name, m in shown.items() if costs or not name.startswith(COST)}
    beside, settings = comparison["beside_papers"], tuple(SETTINGS)
    return documents.table_rows(summary, beside, metrics, paired=paired, settings=settings)


def _cost_rows(summary: pd.DataFrame) -> tuple[list[str], list[documents.Row]]:
    shown = catalog.shown("comparison", summary)
    metrics = {name: m for name, m in shown.items() if name.startswith(COST)}
    return documents.table_rows(summary, (), metrics)


def _caption(name: str) -> str:
    """Return what a picture shows, by its name, as ``recall_by_class``."""
    part = next(part for part in CAPTIONS if part in name)
    return CAPTIONS[part].format(name.replace(part, "").replace("_", " ").capitalize())


def _title(card: DataCard) -> str:
    return f"Methods on {card.config.title}"


def _mean_recalls(recalls: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return a row a class with its recall's mean over runs, NaN without a test image.

    It is the ``metric`` in its place that is told, where images have several labels.
    """
    tested = recalls.assign(**{metric.key: recalls[metric.key].where(recalls["test_images"] > 0)})
    columns = {"name": "first", "training_images": "first", metric.key: "mean"}
    return tested.groupby("class").agg(columns)


def _profile(recalls: pd.DataFrame, metric: Metric) -> list[float]:
    """Return the mean over runs of the lowest recall, of the one above it, and so on."""
    tested = recalls[recalls["test_images"] > 0].sort_values(metric.key)
    rank = tested.groupby("run_id").cumcount()
    return [float(value) for value in tested.groupby(rank)[metric.key].mean()]


def _png(figure: Figure) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return b64encode(buffer.getvalue()).decode()
