"""The tables that runs end with on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from rich.console import Console

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.evaluation.metrics.catalog import (
    MEAN_RECALL,
    METRICS,
    OBJECTIVES,
    Metric,
    of_task,
    placed,
    shown,
)
from lt_pipeline.reports import screen
from lt_pipeline.reports.differences import LEGEND, Paired
from lt_pipeline.reports.documents import table_rows

BEST_TRIALS = 5
# what is read first where classes have unequal numbers of test images

Values = Mapping[str, Any]


def print_results(
    finished: Mapping[str, Values], ood: Mapping[str, Values], card: DataCard, where: str
) -> None:
    """Print a row a method, what must be known to read it, and where to look further.

    ``ood`` is what the node ``ood`` gave, by method.
    """
    tested = {name: {f"test/{n}": v for n, v in m["test"].items()} for name, m in finished.items()}
    metrics = shown("run", [key for values in tested.values() for key in values])
    if card.natural:
        # accuracy is that of the frequent classes there
        metrics = {MEAN_RECALL: METRICS[MEAN_RECALL], **metrics}
    rows = [
        ([name, *(_with_interval(m, values) for m in metrics.values())], False)
        for name, values in tested.items()
    ]
    table = screen.table(["method", *(m.heading for m in metrics.values())], rows)
    table.title = f"{card.config.title}: {card.config.test_set}, last epoch, %"
    console = _begin()
    console.print(table)
    _print_groups(console, card)
    first = next(iter(finished.values()))
    console.print(_of_which_classes(first, tested, card))
    if card.natural:
        console.print(_of_what(first["test"]))
    for name, values in finished.items():
        for line in _remarks(values):
            console.print(f"{name}: {line}.")
        if ood.get(name, {}).get("averaged_over"):
            _print_ood(console, name, ood[name])
    _print_where(console, where)


def _of_which_classes(first: Values, tested: Mapping[str, Values], card: DataCard) -> str:
    """Return which classes means are over, and what must be known to read them."""
    over = f"Means are over {first['test']['classes']:.0f} of {card.longtail.classes} classes"
    if card.longtail.several:
        chosen = (
            "from the probability on that has its class's best F1 on the hold-out"
            if "validation" in first
            else "where it is more likely than not"
        )
        return f"{over}; a label is said {chosen}."
    zero = METRICS["test/zero_recall_classes"]
    counts = ", ".join(f"{name} {values[zero.key]:.0f}" for name, values in tested.items())
    floor = first["test"]["recall_floor"]
    return f"{over} and take a recall of zero as {floor:g}; {zero.words}: {counts}."


def _with_interval(metric: Metric, values: Values) -> str:
    """Return a metric's value, of the mean recall with its interval where it has one."""
    text, ends = metric.number(values[metric.key]), (f"{metric.key}_low", f"{metric.key}_high")
    if metric.key != MEAN_RECALL or ends[0] not in values:
        return text
    if values[ends[0]] == values[ends[1]]:
        return text  # where each class is all right, or all wrong, drawing again says nothing
    return f"{text} [{', '.join(metric.number(values[end]) for end in ends)}]"


def _of_what(test: Values) -> str:
    """Return what the interval of the mean recall is of, or why there is none."""
    if "mean_recall_low" not in test:
        return f"No interval: {test['groups']:.0f} groups are tested, and it takes five."
    drawn = f"{test['groups']:.0f} groups" if "groups" in test else "images"
    name = METRICS[MEAN_RECALL].heading
    return f"In brackets: 95 % interval of the {name}, by drawing {drawn} again."


def _remarks(values: Values) -> Iterable[str]:
    """Yield what is to be known of a method's metrics beside the table."""
    held_out = values.get("validation", {})
    objective = of_task(OBJECTIVES, [f"validation/{name}" for name in held_out])
    best = values.get("best_epoch", {}).get("test")
    if best:
        label = METRICS["best_epoch/test/accuracy"]
        reached = f"the {label.heading} had {label.with_unit(best['accuracy'])}"
        yield (
            f"{reached} (epoch {best['epoch']:.0f}); for comparison with papers only, nothing is "
            f"chosen by it"
        )
    if held_out:
        reached = objective.with_unit(held_out[objective.name])
        of = f"{held_out['classes']} classes"
        yield f"{objective.words}, to choose by: {reached} (mean over {of})"
    yield from values.get("notes", [])


def print_stages(name: str, stages: pd.DataFrame) -> None:
    """Print what each stage of a method led to, in per cent; of branches, their mean."""
    branches = stages["role"] == "branch"
    metrics = [metric for metric in placed("stages") if metric.name in stages]
    table = screen.table(["stage", *(metric.heading for metric in metrics)])
    mean = stages[branches][[metric.name for metric in metrics]].mean().to_dict()
    before = {"merge": {"stage": f"mean of {branches.sum()} branches", **mean}}
    for row in stages[~branches].to_dict("records"):
        for numbers in (before.get(row["stage"]) if branches.any() else None, row):
            if numbers:
                table.add_row(numbers["stage"], *(m.number(numbers[m.name]) for m in metrics))
    console = _begin()
    console.print(f"Stages of {name}, %")
    console.print(table)


def print_comparison(
    summary: pd.DataFrame, comparison: Values, notes: list[str], champion: Values, card: DataCard
) -> None:
    """Print the main columns, what to know of them, and what is missing."""
    console, paired = _begin(), Paired.of_first(comparison)
    metrics = shown("screen", summary)
    headings, rows = table_rows(summary, comparison["beside_papers"], metrics, paired=paired)
    console.print(f"Methods on {card.config.title}: {card.config.test_set}, last epoch")
    single = "" if card.longtail.several else "; of one run a bootstrap interval"
    console.print(f"(mean ± standard deviation over seeds{single})")
    if paired:
        console.print(f"({LEGEND})")
    console.print(screen.table(headings, rows))
    console.print(f"Groups: {card.longtail.group_rule}.")
    for sentence in (comparison["summary_sentence"], champion["sentence"]):
        console.print(sentence)
    for note in notes:
        console.print(f"Note: {note}.")


def print_study(name: str, comparison: Values, card: DataCard, where: str) -> None:
    """Print mean and standard deviation over seeds of every arm, and what papers say of it.

    What is pooled over folds says so, under ``of`` and ``about``.
    """
    console, of = _begin(), comparison.get("of", card.config.test_set)
    rows = ((row["cells"], row["of_paper"]) for row in comparison["rows"])
    # not the table's title, which would be broken to the table's width
    console.print(f"{name} on {card.config.title}: {of}, last epoch, %")
    behind = "; behind a paper's figure: ours minus it, not paired"
    papers = behind if comparison["beside_papers"] else ""
    about = comparison.get("about", f"mean ± standard deviation over seeds{papers}")
    console.print(f"({about})")
    console.print(screen.table(comparison["headings"], rows))
    if "of" not in comparison:
        _print_groups(console, card)
    for note in comparison["notes"]:
        console.print(f"{note}.", soft_wrap=True)
    _print_where(console, where)


def print_sweep(
    trials: pd.DataFrame,
    best: Values,
    tested: Mapping[str, float],
    card: DataCard,
    command: str,
    where: str,
) -> None:
    """Print the best trials, what the best reaches on the test set, and how to repeat it."""
    objective, console = of_task(OBJECTIVES, trials), _begin()
    # the value of one that was stopped is of its last epoch, which is none to compare
    ended = objective.best_first(trials[trials["state"] == "complete"])
    table = screen.table(["trial", objective.heading, *best["params"]])
    for row in ended.head(BEST_TRIALS).to_dict("records"):
        values = [_plain(row[path]) for path in best["params"]]
        table.add_row(str(row["trial"]), objective.number(row[objective.key]), *values)
    console.print(f"{best['study']} on {card.config.title}: {objective.axis}")
    console.print(table)
    counts = ", ".join(f"{count} {state}" for state, count in best["trials"].items())
    console.print(f"Trials: {counts}; in {best['storage']}.", soft_wrap=True)
    if tested:
        reached = ", ".join(
            f"{m.heading} {m.with_unit(tested[m.key])}" for m in shown("sweep", tested).values()
        )
        console.print(
            f"Trial {best['trial']} on the {card.config.test_set}, which nothing was chosen by: "
            f"{reached}."
        )
    console.print("The best again, as a run of its own (data.validation=0 trains on all images):")
    console.print(f"  {command}", soft_wrap=True, markup=False, highlight=False)
    _print_where(console, where)


def _begin() -> Console:
    """Return where to print to, behind an empty line."""
    console = screen.console()
    console.print()
    return console


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_ood(console: Console, name: str, report: Values) -> None:
    """Print the mean over the OOD sets of every detector, and which sets these are."""
    means = {detector: by_set["mean"] for detector, by_set in report["detectors"].items()}
    metrics = [m for m in placed("comparison") if m.from_detection]
    values = ", ".join(
        " ".join([detector, *(f"{m.short} {m.number(mean[m.name])}" for m in metrics)])
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
