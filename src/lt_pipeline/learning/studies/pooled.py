"""Folds put together: every image is tested once, by the model that has not seen it.

The pooled recall of a class is over all of its images, whichever fold tested them, and so is the
interval; means over folds are of fewer images each, and of other classes where one has few groups.
Of several labels decisions are pooled, each made from its own fold's thresholds on: macro F1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lt_pipeline.learning.data.distribution import BETWEEN
from lt_pipeline.learning.evaluation.metrics.intervals import Array, Interval, Outcomes, percentiles
from lt_pipeline.learning.evaluation.metrics.label_intervals import Decisions
from lt_pipeline.learning.schema import UserError

Values = dict[str, Any]
# the answers of one run on each fold
Folds = Sequence[pd.DataFrame]


class Pooled(NamedTuple):
    """An arm over all folds: its ``seeds``, and what of each image was right on average."""

    seeds: int
    outcomes: Outcomes | Decisions
    by_seed: tuple[float, ...]

    @property
    def numbers(self) -> dict[str, float]:
        """Return what it is told by, the first with an interval."""
        outcomes = self.outcomes
        if isinstance(outcomes, Decisions):
            return {"pooled/macro_f1": outcomes.macro_f1, "pooled/micro_f1": outcomes.micro_f1}
        right = float(outcomes.right.mean())
        return {"pooled/mean_recall": outcomes.mean_recall, "pooled/accuracy": right}

    @property
    def groups(self) -> int | None:
        """Return how many groups were tested, None where images are independent."""
        own = self.outcomes.groups
        return None if own is None else len(np.unique(own))


def pooled(runs: Sequence[Folds], classes: int | None = None) -> Pooled:
    """Return an arm's outcomes from what it made of each fold's test images, a run a seed.

    ``classes`` says of how many, where images may have several labels; else it is None.

    Raises:
        UserError: if runs were tested on other images.
    """
    whole = [pd.concat(folds, ignore_index=True) for folds in runs]
    first, known = whole[0], [name for name in ("label", "group") if name in whole[0]]
    if not all(table[known].equals(first[known]) for table in whole):
        raise UserError("runs cannot be pooled, as they were tested on other images")
    groups = first["group"].to_numpy() if "group" in first else None
    if classes is not None:
        predicted = np.stack([_matrix(table["predicted"], classes) for table in whole])
        decided = Decisions(_matrix(first["label"], classes), predicted, groups)
        return Pooled(len(whole), decided, tuple(decided.by_run.tolist()))
    labels = first["label"].to_numpy()
    right = [(table["predicted"] == table["label"]).to_numpy(float) for table in whole]
    recalls = [Outcomes(labels, own, groups).mean_recall for own in right]
    return Pooled(len(whole), Outcomes(labels, np.mean(right, axis=0), groups), tuple(recalls))


def _matrix(cells: pd.Series, classes: int) -> Array:
    """Return which labels the ``cells`` name, bool ``[N, C]``, as in ``0;3``; empty is none."""
    flags = np.zeros((len(cells), classes), dtype=bool)
    for row, cell in zip(flags, cells, strict=True):
        # a column in which no cell has two is read as numbers
        named = cell.split(BETWEEN) if isinstance(cell, str) else [] if pd.isna(cell) else [cell]
        row[[int(label) for label in named if label != ""]] = True
    return flags


def pool_table(arms: Mapping[str, Pooled], reference: str) -> pd.DataFrame:
    """Return a row an arm: pooled mean recall and accuracy, and what they are over.

    Of several labels these are macro and micro F1. Under ``pooled/mean_recall low`` and ``high`` is
    the first's 95 % interval, under ``... difference`` how far it is from the arm ``reference``,
    whose very groups are drawn, with that one's interval.
    """
    return pd.DataFrame([_row(label, own, arms.get(reference)) for label, own in arms.items()])


def _row(label: str, own: Pooled, reference: Pooled | None) -> Values:
    outcomes, numbers = own.outcomes, own.numbers
    key, other = numbers
    row: Values = {
        "arm": label,
        "seeds": own.seeds,
        "classes": len(outcomes.classes),
        "images": len(outcomes.labels),
        "groups": own.groups,
        key: numbers[key],
        **_ends(key, outcomes.interval()),
        f"{key} sd": float(np.std(own.by_seed, ddof=1)) if own.seeds > 1 else None,
        other: numbers[other],
    }
    if reference is None or reference is own:
        return row
    between, ahead = f"{key} difference", difference(own, reference)
    if isinstance(ahead, Outcomes):
        return {**row, between: ahead.mean_recall, **_ends(between, ahead.interval())}
    return {**row, between: numbers[key] - reference.numbers[key], **_ends(between, ahead)}


def difference(one: Pooled, other: Pooled) -> Outcomes | Interval | None:
    """Return by how much more of each image is right with ``one`` than with ``other``.

    Of several labels it is the 95 % interval by drawing the very groups again for both.

    Raises:
        UserError: if they were tested on other images.
    """
    first, second = one.outcomes, other.outcomes
    if np.array_equal(first.labels, second.labels):
        if isinstance(first, Outcomes) and isinstance(second, Outcomes):
            return Outcomes(first.labels, first.right - second.right, first.groups)
        if isinstance(first, Decisions) and isinstance(second, Decisions):
            return None if first.few else percentiles(first.drawn() - second.drawn())
    raise UserError("arms cannot be compared, as they were tested on other images")


def _ends(key: str, interval: Interval | None) -> Values:
    return dict(zip((f"{key} low", f"{key} high"), interval or (None, None), strict=True))


def class_rows(label: str, own: Pooled, names: Sequence[str]) -> list[Values]:
    """Return a row a class of an arm: images, groups, and the pooled recall with its interval.

    Of several labels it is the F1 of what is said, without one.
    """
    outcomes = own.outcomes
    if isinstance(outcomes, Decisions):
        f1, has = outcomes.by_class(), outcomes.labels.sum(0)
        return [
            {"arm": label, "class": c, "name": name, "images": int(has[c]), "f1": float(f1[c])}
            for c, name in enumerate(names)
        ]
    images = np.bincount(outcomes.labels, minlength=len(names))
    right = np.bincount(outcomes.labels, outcomes.right, minlength=len(names))
    rows: list[Values] = []
    sure, counted = outcomes.class_intervals(len(names)), outcomes.groups_by_class(len(names))
    for c, name in enumerate(names):
        low, high = sure[c] or (None, None)
        groups = {} if outcomes.groups is None else {"groups": counted[c]}
        recall = right[c] / images[c] if images[c] else None
        row = {"arm": label, "class": c, "name": name, "images": int(images[c]), **groups}
        rows.append({**row, "recall": recall, "recall_low": low, "recall_high": high})
    return rows
