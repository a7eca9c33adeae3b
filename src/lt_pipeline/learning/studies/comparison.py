"""Methods side by side: which runs are compared, their mean over seeds, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import pandas as pd
from pydantic import AfterValidator, Field

from lt_pipeline.learning.evaluation.metrics import catalog
from lt_pipeline.learning.evaluation.metrics.significance import paired_difference, recall_interval
from lt_pipeline.learning.experiments.config import MethodName
from lt_pipeline.learning.schema import (
    Config,
    UserError,
    flatten,
    shown,
    unknown,
)

Values = dict[str, Any]


def _known_order(name: str) -> str:
    if name not in catalog.sortable():
        raise UserError(unknown("sort_by", name, catalog.sortable()))
    return name


Sorting = Annotated[str, AfterValidator(_known_order)]
# what does not change what is learned; the seed is what a configuration is repeated with
_IRRELEVANT = ("seed", "device", "evaluation")
# what makes runs of two rows a pair, as far as they have it
_PAIRED_BY = ("seed", "data_hash")
# what tables have of paired_difference, by the name behind the metric's
DIFFERENCE = {
    "difference": "mean",
    "difference sd": "sd",
    "difference low": "low",
    "difference high": "high",
    "difference pairs": "pairs",
    "seeds needed": "pairs_needed",
}


# settings that tables of a comparison show, by their heading
SETTINGS = {"epochs": "training.epochs", "backbone": "model.backbone"}
# the most data settings that a message names
NAMED = 8


class CompareConfig(Config):
    """What is compared.

    Attributes:
        methods: by name; None is every method with a run.
        variants: whether a method has a row for each set of parameters that it was run with, and
            not only for the latest one's.
        same_images: whether only runs on the very images of this run's data count.
        sort_by: the metric of the test set by which rows stand in order; None is the accuracy, and
            of images with several labels the mean average precision.
    """

    block = "compare"

    methods: tuple[MethodName, ...] | None = Field(default=None, min_length=1)
    variants: bool = False
    same_images: bool = True
    sort_by: Sorting | None = None

    def order(self, *, several: bool) -> Sorting:
        """Return the metric by which rows stand in order, of images with one label or ``several``.

        Raises:
            UserError: if it is of the other kind of images.
        """
        name = self.sort_by or catalog.METRICS[catalog.HEADLINES[several]].name
        metric = catalog.METRICS[f"test/{name}"]
        if metric.from_scores or bool(metric.from_decided) == several:
            return name
        kind = "several labels" if several else "one label"
        usual = catalog.METRICS[catalog.HEADLINES[several]].name
        raise UserError(
            f"compare.sort_by is {name}, which images with {kind} do not have: leave it out, which "
            f"is {usual}"
        )


def choose(
    runs: pd.DataFrame, options: CompareConfig, data_hash: str, *, several: bool = False
) -> tuple[pd.DataFrame, list[str]]:
    """Return the runs to compare, with a ``label`` each, and what was left out, in sentences.

    ``runs`` have a row each: ``method``, ``title``, ``seed``, ``data_hash``, ``started``, which can
    be sorted, ``config`` (the experiment as JSON) and ``experiment`` (DVC's name, empty where it is
    none). Of runs that differ in nothing the latest counts. They are of images with one label, or
    with ``several``: no table has both.
    """
    runs, notes = _of_task(runs, several)
    if options.methods:
        runs = runs[runs["method"].isin(options.methods)]
    if options.same_images:
        here = runs["data_hash"] == data_hash
        if (~here).any():
            notes.append(
                f"{_count((~here).sum())} on other images of this data set left out (another "
                f"data.seed or data.validation); compare.same_images=false takes them"
            )
        runs = runs[here]
    elif (sets := runs["data_hash"].nunique()) > 1:
        notes.append(
            f"the runs are on {sets} different draws of the data set, of which some may have fewer "
            f"training images"
        )
    if not options.variants and (tried := runs["experiment"] != "").any():
        notes.append(
            f"{_count(tried.sum())} of DVC experiments left out; compare.variants=true shows them"
        )
        runs = runs[~tried]
    recipes = [recipe(json.loads(text)) for text in runs["config"]]
    runs = runs.assign(recipe=recipes).sort_values("started", kind="stable")
    runs = runs.drop_duplicates(["recipe", "seed", "data_hash"], keep="last")
    if not options.variants:
        latest = runs.groupby("title")["recipe"].transform("last")
        for title, others in runs[runs["recipe"] != latest].groupby("title"):
            notes.append(
                f"{_count(len(others))} of {title} with other parameters than the latest left out; "
                f"compare.variants=true shows them"
            )
        runs = runs[runs["recipe"] == latest]
    missing = [name for name in options.methods or () if name not in set(runs["method"])]
    notes += [f"no run of {name} yet: kedro run --pipelines={name}" for name in missing]
    return runs.assign(label=_labels(runs)).drop(columns="recipe").reset_index(drop=True), notes


def _of_task(runs: pd.DataFrame, several: bool) -> tuple[pd.DataFrame, list[str]]:
    """Return the runs on images with one label or ``several``, and what was left out."""
    headline, kinds = catalog.HEADLINES[several], ("one label", "several labels")
    own = runs.reindex(columns=[headline])[headline].notna()
    if own.all():
        return runs, []
    note = f"{_count((~own).sum())} on images with {kinds[not several]} left out: no table has both"
    return runs[own].dropna(axis="columns", how="all"), [note]


def by_data(runs: Iterable[tuple[str, Values]], here: Values) -> list[str]:
    """Return which data settings have how many ``runs``, in words, those with most runs first.

    ``runs`` are methods and their data settings, nested, empty where they are not known. What is
    said of them is what differs from those of ``here``.
    """
    own = dict(flatten({"data": here}, "."))
    methods: dict[str, list[str]] = {}
    for method, settings in runs:
        other = dict(flatten({"data": settings}, "."))
        differs = [f"{n}={shown(v)}" for n, v in other.items() if n not in own or own[n] != v]
        same = "these data settings" if other else "data settings that are not logged"
        methods.setdefault(", ".join(differs) or same, []).append(method)
    ranked = sorted(methods, key=lambda words: -len(methods[words]))
    phrases = [
        f"{_count(len(methods[words]))} ({', '.join(sorted(set(methods[words])))}) with {words}"
        for words in ranked[:NAMED]
    ]
    rest = len(ranked) - NAMED
    return [*phrases, f"and runs with {rest} other data settings"] if rest > 0 else phrases


def _count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def recipe(config: Mapping[str, Any]) -> str:
    """Return what stands for all that decides what is learned, apart from seed, data and code."""
    kept = {name: value for name, value in config.items() if name not in _IRRELEVANT}
    return json.dumps(kept, sort_keys=True)


def _labels(runs: pd.DataFrame) -> list[str]:
    """Return each run's title, with the parameters that tell apart several of one title."""
    recipes, differing = runs["recipe"].map(_flat), {}
    for title, own in recipes.groupby(runs["title"]):
        names = sorted({name for config in own for name in config})
        differing[title] = [n for n in names if len({str(config.get(n)) for config in own}) > 1]
    return [
        ", ".join([title, *(f"{n.split('.')[-1]} = {own.get(n)}" for n in differing[title])])
        for title, own in zip(runs["title"], recipes, strict=True)
    ]


def _flat(config: str) -> Values:
    """Return a configuration's settings by dotted name."""
    return dict(flatten(json.loads(config), "."))


def over_seeds(runs: pd.DataFrame, by: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Return a row each value of the column ``by``: how many ``runs``, and the ``metrics``' means.

    Under ``<metric> sd`` stands the standard deviation (n - 1).
    """
    grouped = runs.groupby(by, sort=False)
    means, spread = grouped[list(metrics)].mean(), grouped[list(metrics)].std()
    table = means.join(spread.add_suffix(" sd"))
    table.insert(0, "runs", grouped.size())
    return table


def paired(runs: pd.DataFrame, by: str, one: str, other: str, metric: str) -> Values:
    """Return ``paired_difference`` of ``metric``, ``one`` minus ``other`` in the column ``by``.

    Runs are pairs when seed and, where it is there, data hash agree; those without the metric are
    left out. With no pair only ``pairs`` is returned, which is 0.
    """
    keys = [name for name in _PAIRED_BY if name in runs]
    values = runs.pivot(index=keys, columns=by, values=metric)[[one, other]].dropna()
    if values.empty:
        return {"pairs": 0}
    return paired_difference(values[one].tolist(), values[other].tolist())


def with_differences(
    table: pd.DataFrame, runs: pd.DataFrame, reference: str, metrics: Iterable[str]
) -> pd.DataFrame:
    """Return ``table``, indexed by what the runs are grouped by, with paired differences.

    Each row's ``metrics`` less those of the row ``reference``, over the seeds that both have: the
    columns ``<metric> <name>`` for the names of ``DIFFERENCE``. The reference itself has none.
    """
    differences = {
        label: {
            f"{metric} {name}": of.get(key)
            for metric in metrics
            for of in [paired(runs, str(table.index.name), label, reference, metric)]
            for name, key in DIFFERENCE.items()
        }
        for label in table.index
        if label != reference
    }
    return table.join(pd.DataFrame.from_dict(differences, orient="index").astype(float))


def summarise(runs: pd.DataFrame, recalls: pd.DataFrame, sort_by: Sorting) -> pd.DataFrame:
    """Return a row a label, the best by ``sort_by`` first.

    Each metric has its mean over seeds and, under ``<metric> sd``, their standard deviation. Where
    images have one label, a single run has a 95 % bootstrap interval of accuracy and groups in
    place of it, under ``<metric> low`` and ``<metric> high``. Those of the test set have how far
    they are from the first row's, as in ``with_differences``. ``recalls`` have ``run_id``,
    ``group``, ``test_images`` and ``recall``, a row a run and class.

    Raises:
        UserError: if no run has the metric to sort by.
    """
    if f"test/{sort_by}" not in runs:
        raise UserError(
            f"compare.sort_by is {sort_by}, which no run has: no class is in that group"
        )
    metrics = list(catalog.shown("comparison", runs.columns))
    table, grouped = over_seeds(runs, "label", metrics), runs.groupby("label", sort=False)
    table.insert(1, "seeds", grouped["seed"].agg(lambda s: " ".join(map(str, sorted(set(s))))))
    for name in ("method", "title"):
        table.insert(0, name, grouped[name].first())
    settings = grouped["config"].first().map(_flat)
    for heading, path in SETTINGS.items():
        table[heading] = settings.map(lambda own, path=path: str(own.get(path, "-")))
    for label, group in grouped:
        if len(group) == 1 and catalog.HEADLINES[0] in metrics:
            own = recalls[recalls["run_id"] == group["run_id"].iloc[0]]
            for metric, (low, high) in _intervals(own).items():
                table.loc[label, [f"{metric} low", f"{metric} high"]] = low, high
    table = catalog.METRICS[f"test/{sort_by}"].best_first(table)
    tested = [metric for metric in metrics if metric.startswith("test/")]
    return with_differences(table, runs, str(table.index[0]), tested).reset_index()


def _intervals(recalls: pd.DataFrame) -> dict[str, tuple[float, float]]:
    keys = catalog.METRICS["test/accuracy"].keys_by_group()
    parts = {g: recalls if g == "all" else recalls[recalls["group"] == g] for g in keys}
    return {
        keys[group]: recall_interval(part["recall"].tolist(), part["test_images"].tolist())
        for group, part in parts.items()
        if part["test_images"].sum()
    }


def first_two(runs: pd.DataFrame, summary: pd.DataFrame, sort_by: Sorting) -> Values | None:
    """Return how far the first row is ahead of the second, over the seeds that both have.

    What ``paired`` gives, with the labels of both and the metric; None when there is one row only.
    """
    if len(summary) < 2:
        return None
    metric = f"test/{sort_by}"
    first, second = summary["label"].iloc[0], summary["label"].iloc[1]
    gap = paired(runs, "label", first, second, metric)
    return {"first": first, "second": second, "metric": metric, **gap}


def summary_sentence(gap: Mapping[str, Any] | None) -> str:
    """Return what ``first_two`` found as a sentence."""
    if gap is None:
        return "One method only: there is nothing to compare it with."
    first, second, pairs = gap["first"], gap["second"], gap["pairs"]
    metric = catalog.METRICS[gap["metric"]]
    if not pairs:
        return f"{first} and {second} have no seed in common: their difference cannot be tested."
    ahead = f"{first} minus {second}: {metric.change(gap['mean'], 1)} points of {metric.plain}"
    if pairs < 2:
        return f"{ahead} on the one seed that both have; an interval and a test need two."
    spread = f"sd {metric.number(gap['sd'], 1)} over {pairs} common seeds"
    if gap["p_value"] is None:
        return f"{ahead} ({spread}); the differences are all the same, so there is nothing to test."
    low, high = (metric.change(gap[end], 1) for end in ("low", "high"))
    needed = gap["pairs_needed"]
    size = f"; a difference of this size takes {needed:,} seeds to be found" if needed else ""
    return (
        f"{ahead} [{low}, {high}] (paired 95 % interval; {spread}); paired t test: "
        f"t = {gap['statistic']:.2f}, p = {gap['p_value']:.3g}{size}."
    )


def differing_settings(runs: pd.DataFrame) -> list[str]:
    """Return a sentence for every setting that the compared methods should share and do not."""
    sentences = []
    settings = dict(zip(runs["label"], runs["config"].map(_flat), strict=True))
    for name in ("training.epochs", "training.batch_size", "model.backbone"):
        by_value: dict[str, list[str]] = {}
        for label, own in settings.items():
            by_value.setdefault(str(own.get(name)), []).append(label)
        if len(by_value) > 1:
            parts = [f"{value} ({', '.join(labels)})" for value, labels in by_value.items()]
            sentences.append(f"{name} is not the same for all: {'; '.join(parts)}")
    return sentences
