"""Nodes of data preparation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lt_pipeline.learning.data.prepare import DataCard, make
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.data.published import beside_published
from lt_pipeline.learning.experiments.config import data_config
from lt_pipeline.learning.figures.distribution import class_distribution

LOGGER = logging.getLogger(__name__)


def make_sets(
    raw_folder: Path, packed_folder: Path, data: dict[str, Any]
) -> tuple[Images, Images, Images, Images, DataCard, pd.DataFrame]:
    """Return training set, hold-out, test set, auxiliary set, data card and manifest."""
    prepared = make(data_config({"data": data}), raw_folder, packed_folder)
    return (
        prepared.train,
        prepared.validation,
        prepared.test,
        prepared.auxiliary,
        prepared.card,
        prepared.manifest(),
    )


def describe(card: DataCard) -> tuple[pd.DataFrame, dict[str, Any], Figure]:
    """Return class counts, imbalance statistics with seed and hash, and a picture of the tail.

    Beside what a paper says of the set stands in the log what was read.
    """
    longtail, sentence = card.longtail, beside_published(card)
    if sentence:
        LOGGER.info(sentence)
    counts = pd.DataFrame(
        {
            "class": range(longtail.classes),
            "name": longtail.class_names,
            "group": longtail.class_groups,
            "training_images": longtail.class_counts,
        }
    )
    statistics = {
        **longtail.statistics(),
        "group_rule": longtail.group_rule,
        "empty_groups": longtail.empty_groups,
        "seed": card.settings["seed"],
        "data_hash": card.data_hash,
    }
    return (
        counts,
        statistics,
        class_distribution(longtail, f"Training images of {card.config.title}"),
    )
