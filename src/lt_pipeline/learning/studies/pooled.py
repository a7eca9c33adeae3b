"""Folds put together: every image is tested once, by the model that has not seen it.

The pooled recall of a class is over all of its images, whichever fold tested them, and so is the
interval; means over folds are of fewer images each, and of other classes where one has few groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lt_pipeline.learning.evaluation.metrics.intervals import Interval, Outcomes
from lt_pipeline.learning.schema import UserError

Values = dict[str, Any]
# the answers of one run on each fold
Folds = Sequence[pd.DataFrame]


class Pooled(NamedTuple):
    """An arm over all folds: its ``seeds``, and what of each image was right on average."""

    seeds: int
    outcomes: Outcomes
    by_seed: tuple[float, ...]


def pooled(runs: Sequence[Folds]) -> Pooled:
    """Return an arm's outcomes from what it made of each fold's test images, a run a seed.

    Raises:
        UserError: if runs were tested on other images.
    """
    whole = [pd.concat(folds, ignore_index=True) for folds in runs]
    first, known = whole[0], [name for name in ("label", "group") if name in whole[0]]
    if not all(one[known].equals(first[known]) for one in whole):
        raise UserError("runs cannot be pooled, as they were tested on other images")
    labels = first["label"].to_numpy()
    groups = first["group"].to_numpy() if "group" in first else None
    right = [(one["predicted"] == one["label"]).to_numpy(float) for one in whole]
    found = [Outcomes(labels, own, groups).mean_recall for own in right]
    return Pooled(len(whole), Outcomes(labels, np.mean(right, axis=0), groups), tuple(found))


def pool_table(arms: Mapping[str, Pooled], reference: str) -> pd.DataFrame:
    """Return a row an arm: pooled mean recall and accuracy, and what they are over.

    Under ``pooled/mean_recall low`` and ``high`` is its 95 % interval, under ``... difference`` how
    far it is from the arm ``reference``, whose very groups are drawn, with that one's interval.
    """
    return pd.DataFrame([_row(label, one, arms.get(reference)) for label, one in arms.items()])


def _row(label: str, own: Pooled, reference: Pooled | None) -> Values:
    outcomes, key = own.outcomes, "pooled/mean_recall"
    groups = None if outcomes.groups is None else len(np.unique(outcomes.groups))
    row: Values = {
        "arm": label,
        "seeds": own.seeds,
        "classes": len(outcomes.classes),
        "images": len(outcomes.labels),
        "groups": groups,
        key: outcomes.mean_recall,
        **_ends(key, outcomes.interval()),
        f"{key} sd": float(np.std(own.by_seed, ddof=1)) if own.seeds > 1 else None,
        "pooled/accuracy": float(outcomes.right.mean()),
    }
    if reference is None or reference is own:
        return row
    ahead = difference(own, reference)
    between = f"{key} difference"
    return {**row, between: ahead.mean_recall, **_ends(between, ahead.interval())}


def difference(one: Pooled, other: Pooled) -> Outcomes:
    """Return by how much more of each image is right with ``one`` than with ``other``.

    Raises:
        UserError: if they were tested on other images.
    """
    first, second = one.outcomes, other.outcomes
    if not np.array_equal(first.labels, second.labels):
        raise UserError("arms cannot be compared, as they were tested on other images")
    return Outcomes(first.labels, first.right - second.right, first.groups)


def _ends(key: str, found: Interval | None) -> Values:
    return dict(zip((f"{key} low", f"{key} high"), found or (None, None), strict=True))


def class_rows(label: str, own: Pooled, names: Sequence[str]) -> list[Values]:
    """Return a row a class of an arm: images, groups, and the pooled recall with its interval."""
    outcomes = own.outcomes
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
