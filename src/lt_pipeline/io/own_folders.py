"""Where a run writes: what its parameters make other than conf/ does has folders of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from operator import itemgetter
from typing import Any

from lt_pipeline.learning.schema import flatten, shown

# what says how something is looked at, where and beside what it is computed, or who is told of it
INDIFFERENT = (
    *("device", "together", "evaluation", "evaluate", "tracking", "serve", "compare", "method"),
    "tune",
)
# of a training, what no weight depends on
FOLLOWED = tuple(
    f"training.{name}"
    for name in (
        *("checkpoint_every", "monitor_every", "monitor_seconds", "monitor_test", "monitor_risk"),
    )
)
OVER_SEEDS = "_over_seeds"  # the study that a method with several seeds is
OVER_FOLDS = "_over_folds"  # and on several folds
SEARCHED = "_search"  # a sweep's own name says what it searches
LONGEST = 60  # letters of a folder's name
# words that tell nothing where the rest of a parameter's path is there
UNTOLD = {"training", "model", "options"}

Differences = dict[str, Any]


def differences(parameters: Mapping[str, Any], written: Mapping[str, Any]) -> Differences:
    """Return what decides of ``parameters`` and is not as ``written``, by dotted path.

    The order is that of the names, and equal numbers are equal: 1 and 1.0, but not ``true``.
    """
    known = {path: _as_json(value) for path, value in flatten(written, ".")}
    return {
        path: _canonical(value)
        for path, value in sorted(flatten(parameters, "."), key=itemgetter(0))
        if _decides(path) and known.get(path) != _as_json(value)
    }


def of_data(changes: Differences) -> Differences:
    """Return the differences that decide what the data are."""
    return {path: value for path, value in changes.items() if path.startswith("data.")}


def folder(run: str, changes: Differences) -> str:
    """Return the folder's name: the environment's ``run``, a readable part, and a hash.

    Without differences it is ``run`` itself.
    """
    if not changes:
        return run
    readable = "+".join(f"{_short(path)}-{_plain(value)}" for path, value in changes.items())
    ending = f"-{key(changes)[:8]}"
    return f"{run}+{readable}"[: LONGEST - len(ending)].rstrip("+-._") + ending


def in_words(changes: Differences) -> str:
    """Return what differs as a person reads it, as in ``seed 1 · epochs 20``."""
    return " · ".join(f"{_short(path)} {shown(value)}" for path, value in changes.items())


def key(values: Mapping[str, Any]) -> str:
    """Return a hash of ``values``, whatever order and spelling of numbers they have."""
    return sha256(_as_json(values).encode()).hexdigest()


def _decides(path: str) -> bool:
    parts = path.split(".")
    looked_at = parts[0] in INDIFFERENT or parts[0].endswith(SEARCHED)
    if parts[0] == "studies" and parts[1].endswith((OVER_SEEDS, OVER_FOLDS)):
        return False  # it follows from seeds or data.folds
    return not looked_at and ".".join(parts[-2:]) not in FOLLOWED


def _as_json(value: Any) -> str:
    return json.dumps(_canonical(value), sort_keys=True, default=str)


def _canonical(value: Any) -> Any:
    """Return ``value`` with one spelling for a number."""
    if isinstance(value, Mapping):
        return {str(name): _canonical(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else float(value)
    return value


def _short(path: str) -> str:
    *above, last = path.split(".")
    return _plain(".".join([*(part for part in above if part not in UNTOLD), last]))


def _plain(value: Any) -> str:
    """Return ``value`` in letters that every shell and disk takes as they are."""
    text = "null" if value is None else str(value)
    text = text.lower() if isinstance(value, bool) else text
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")
