"""The table that a run ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.studies.comparison import JUDGED_BY
from lt_pipeline.reports import screen

COLUMNS = {
    "accuracy": "accuracy",
    "many": "many",
    "medium": "medium",
    "few": "few",
    "harmonic_mean": "harm. mean",
    "geometric_mean": "geom. mean",
    "lowest_recall": "lowest recall",
    "expected_calibration_error": "ECE",
}
JUDGED = ("accuracy", "harmonic_mean", "geometric_mean")
BEST_TRIALS = 5
STAGE_COLUMNS = ("accuracy", "harmonic_mean", "geometric_mean", "lowest_recall")


def results_table(finished: Mapping[str, Mapping[str, Any]], card: DataCard) -> Table:
    """Return a row a method, in per cent, of the last epoch on the balanced test set."""
    shown = {
        key: heading
        for key, heading in COLUMNS.items()
        if any(key in metrics["test"] for metrics in finished.values())
    }
    title = f"{card.config.title}: balanced test set, last epoch, %"
    rows = [
        ([name, *(f"{100 * metrics['test'][key]:.1f}" for key in shown)], False)
        for name, metrics in finished.items()
    ]
    table = screen.table(["method", *shown.values()], rows)
    table.title = title
    return table


def print_results(
    finished: Mapping[str, Mapping[str, Any]],
    strange: Mapping[str, Mapping[str, Any]],
    card: DataCard,
    where: str,
) -> None:
    """Print the table, what must be known to read it, and where to look further.

    ``strange`` is what the node ``ood`` card, by method.
    """
    console = screen.console()
    console.print()
    console.print(results_table(finished, card))
    metrics = next(iter(finished.values()))
    _print_groups(console, card)
    console.print(
        f"Means take a recall of zero as {metrics['test']['recall_floor']:g}; "
        f"classes with zero recall: "
        + ", ".join(f"{n} {m['test']['zero_recall_classes']:.0f}" for n, m in finished.items())
        + "."
    )
    for name, values in finished.items():
        best = values.get("best_epoch", {}).get("test")
        if best:
            console.print(
                f"{name}: the best test epoch had {100 * best['accuracy']:.1f} % (epoch "
                f"{best['epoch']:.0f}); for comparison with papers only, nothing is chosen by it."
            )
        if "validation" in values:
            console.print(
                f"{name}: mean recall on the hold-out, to choose by: "
                f"{100 * values['validation']['mean_recall']:.1f} %."
            )
        for note in values.get("notes", []):
            console.print(f"{name}: {note}.")
        if strange.get(name, {}).get("averaged_over"):
            _print_ood(console, name, strange[name])
    _print_where(console, where)


def print_stages(name: str, stages: pd.DataFrame) -> None:
    """Print what each stage of a method led to, in per cent; of branches, their mean."""
    branches = stages["role"] == "branch"
    table = screen.table(["stage", *(COLUMNS[key] for key in STAGE_COLUMNS)])
    for row in stages[~branches].to_dict("records"):
        if branches.any() and row["stage"] == "merge":
            mean = stages[branches][list(STAGE_COLUMNS)].mean()
            cells = [f"{100 * mean[key]:.1f}" for key in STAGE_COLUMNS]
            table.add_row(f"mean of {branches.sum()} branches", *cells)
        table.add_row(row["stage"], *(f"{100 * row[key]:.1f}" for key in STAGE_COLUMNS))
    console = screen.console()
    console.print()
    console.print(f"Stages of {name}, %")
    console.print(table)


def print_study(name: str, standing: Mapping[str, Any], card: DataCard, where: str) -> None:
    """Print mean and standard deviation over seeds of every arm, and what papers say of it."""
    console = screen.console()
    rows = ((row["cells"], row["of_paper"]) for row in standing["rows"])
    table = screen.table(standing["headings"], rows)
    console.print()
    # not the table's title, which would be broken to the table's width
    console.print(f"{name} on {card.config.title}: balanced test set, last epoch, %")
    behind = "; behind a paper's figure: ours minus it, not paired"
    told = behind if standing["beside_papers"] else ""
    console.print(f"(mean ± standard deviation over seeds{told})")
    console.print(table)
    _print_groups(console, card)
    for note in standing["notes"]:
        console.print(f"{note}.", soft_wrap=True)
    _print_where(console, where)


def print_sweep(
    trials: pd.DataFrame,
    best: Mapping[str, Any],
    judged: Mapping[str, float],
    card: DataCard,
    command: str,
    where: str,
) -> None:
    """Print the best trials, what the best reaches on the test set, and how to repeat it."""
    # the value of one that was stopped is of its last epoch, which is none to compare
    ended = trials[trials["state"] == "complete"]
    shown = ended.sort_values(JUDGED_BY, ascending=False, kind="stable")
    table = screen.table(["trial", "hold-out mean recall", *best["params"]])
    for row in shown.head(BEST_TRIALS).to_dict("records"):
        values = [_plain(row[path]) for path in best["params"]]
        table.add_row(str(row["trial"]), f"{100 * row[JUDGED_BY]:.1f}", *values)
    console = screen.console()
    console.print()
    console.print(f"{best['study']} on {card.config.title}: mean recall on the hold-out, %")
    console.print(table)
    counts = ", ".join(f"{count} {state}" for state, count in best["trials"].items())
    console.print(f"Trials: {counts}; in {best['storage']}.", soft_wrap=True)
    if judged:
        console.print(
            f"Trial {best['trial']} on the balanced test set, which nothing was chosen by: "
            + ", ".join(f"{COLUMNS[k]} {100 * judged[f'test/{k}']:.1f} %" for k in JUDGED)
            + "."
        )
    console.print("The best again, as a run of its own (data.validation=0 trains on all images):")
    console.print(f"  {command}", soft_wrap=True, markup=False, highlight=False)
    _print_where(console, where)


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_ood(console: Console, name: str, report: Mapping[str, Any]) -> None:
    """Print the mean over the OOD sets of every detector, and which sets these are."""
    means = {detector: found["mean"] for detector, found in report["detectors"].items()}
    values = ", ".join(
        f"{detector} AUROC {100 * mean['auroc']:.1f} FPR95 {100 * mean['fpr95']:.1f}"
        for detector, mean in means.items()
    )
    console.print(f"{name}: out of distribution, %: {values}.")
    sets = report["averaged_over"]
    missing = f"; not there: {', '.join(report['left_out'])}" if report["left_out"] else ""
    console.print(f"  Mean over {len(sets)} sets: {', '.join(sets)}{missing}.")


def _print_groups(console: Console, card: DataCard) -> None:
    console.print(f"Groups: {card.longtail.group_rule}.")
    if card.longtail.empty_groups:
        console.print(f"No class in: {', '.join(card.longtail.empty_groups)}; left out.")


def _print_where(console: Console, where: str) -> None:
    text = f"Everything about this run is in the MLflow UI: {where}"
    console.print(text, soft_wrap=True)
