"""Which parameters and data a run's files are of: told to the datasets, which check it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from lt_pipeline.learning.data.prepare import DataCard, DataConfig
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.schema import Config, UserError, flatten


def seal(catalog: DataCatalog, pipeline: Pipeline, data: str, subjects: Mapping[str, str]) -> None:
    """Let the files of ``pipeline`` say what they are of, and be refused where they are not.

    ``data`` is the key of prepared data, ``subjects`` have that of each method or study.
    """
    for name in pipeline.datasets():
        dataset: Any = catalog.get(name)
        if hasattr(dataset, "key"):
            space = name.partition(".")[0] if "." in name else ""
            dataset.key = subjects.get(space) if space else data
            dataset.node = _maker(name, space)
            if name in pipeline.inputs():
                dataset.check()


def _maker(dataset: str, space: str) -> str | None:
    """Return the node of the whole pipeline that makes ``dataset``."""
    whole = pipelines.get(space or "data_prep")
    nodes = whole.nodes if whole else []
    return next((node.name for node in nodes if dataset in node.outputs), None)


def check_card(card: DataCard, wanted: DataConfig) -> None:
    """Refuse prepared data of other parameters.

    Raises:
        UserError: naming the first parameter that differs.
    """
    differs = _difference(card.config, wanted)
    if differs:
        raise UserError(f"the prepared data are of data.{differs}: run data_prep first")


def check_config(saved: ExperimentConfig, wanted: ExperimentConfig) -> None:
    """Refuse a trained method of other parameters; how it is judged may differ.

    Raises:
        UserError: naming the first parameter that differs.
    """
    usual = {"evaluation": wanted.evaluation, "device": wanted.device}
    differs = _difference(saved.model_copy(update=usual), wanted)
    if differs:
        raise UserError(
            f"{wanted.method} was run with {differs}: run the whole pipeline, or say what was run"
        )


def _difference(saved: Config, wanted: Config) -> str:
    """Return the first parameter that differs, in words; nothing if none does."""
    before, now = (dict(flatten(config.model_dump(mode="json"), ".")) for config in (saved, wanted))
    differ = (key for key in [*now, *before] if before.get(key) != now.get(key))
    return next((f"{k} = {before.get(k)!r}, and this run says {now.get(k)!r}" for k in differ), "")
