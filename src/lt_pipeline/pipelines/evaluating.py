"""Nodes that judge a finished method, whether it was trained here or taken from MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.data.protocol import Images
from lt_pipeline.learning.experiments import geometry as shape
from lt_pipeline.learning.experiments import ood
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.models.merging import StateDict

Values = dict[str, Any]


def geometry(
    config: ExperimentConfig, card: DataCard, model: StateDict, test: Images
) -> tuple[Values, dict[str, Figure]]:
    """Return numbers by group and pictures of the test images' features."""
    return shape.geometry(Experiment(config, card), model, test)


def detect(
    config: ExperimentConfig,
    card: DataCard,
    model: StateDict,
    train: Images,
    test: Images,
    raw_folder: Path,
) -> tuple[Values, dict[str, Figure]]:
    """Return what every detector makes of every OOD set, and pictures."""
    return ood.evaluate_ood(Experiment(config, card), model, train, test, raw_folder)
