"""A study without Kedro: its nodes, in the order in which they run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from confs import parameters
from lt_pipeline.learning.data.prepare import DataCard
from lt_pipeline.learning.experiments.experiment import Sets
from lt_pipeline.learning.studies.config import AtOnceConfig
from lt_pipeline.pipelines.study.nodes import plan_runs, train_runs
from lt_pipeline.reports.studies import summarise
from toys import toy_images


def smoke(study):
    """The smoke environment's parameters with one study, ``s``, on a short schedule."""
    params = parameters("smoke")
    params["studies"] = {"s": {"title": "arms", **study}}
    params["training"]["epochs"] = 1
    return params


def sets(held=(4, 4, 4, 4)) -> Sets:
    """Toy images, as many held out of each class."""
    test, none = toy_images((6, 6, 6, 6), seed=2), toy_images()[torch.arange(0)]
    return Sets(toy_images(), toy_images(held, seed=1), test, none)


def run_study(
    name: str, parameters, card: DataCard, images: Sets, raw_folder: Path, arms: Path
) -> pd.DataFrame:
    """Return a row a run of the study, by its nodes in the order of their names."""
    plan = plan_runs(name)(parameters, card, arms)
    nodes = plan.study.at_once(plan.first_seed, (), AtOnceConfig.of(parameters).together)
    given = plan, card, *images, raw_folder, arms
    rows = [row for members in sorted(nodes) for row in train_runs(members)(*given)]
    return summarise(plan, *rows)[0]
