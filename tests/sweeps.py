"""Small sweeps that tests share."""

from __future__ import annotations

import os
from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
from kedro.config import OmegaConfigLoader

from lt_pipeline.learning.experiments.config import search_of
from lt_pipeline.pipelines.tune.task import Task
from lt_pipeline.settings import CONFIG_LOADER_ARGS
from lt_pipeline.tuning.config import with_holdout
from toys import PROJECT, toy_card, toy_images

HELD = (4, 4, 4, 4)


@cache
def _smoke():
    loader = OmegaConfigLoader(conf_source=str(PROJECT / "conf"), env="smoke", **CONFIG_LOADER_ARGS)
    return loader["parameters"]


def parameters(method="ce", epochs=1, search=None, **tune):
    """The smoke environment's, for ``method``, on a short schedule."""
    found = deepcopy(_smoke())
    found["method"] = method
    found["training"] |= {"epochs": epochs, "warmup_epochs": 0}
    found["tune"] |= tune
    if search is not None:
        found[search_of(method)] = search
    return with_holdout(found)


def sets():
    """Training set, hold-out, auxiliary set."""
    return toy_images(), toy_images(HELD, seed=1), toy_images()[torch.arange(0)]


def task(folder: Path, found=None, **changes) -> Task:
    """What a process is given to do."""
    return Task(
        parameters=found or parameters(**changes),
        card=toy_card(),
        sets=sets(),
        folder=folder,
        deadline=None,
        parent=os.getpid(),
    )
