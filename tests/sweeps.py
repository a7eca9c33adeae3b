"""Small sweeps that tests share."""

from __future__ import annotations

import os
from pathlib import Path

import torch

import confs
from lt_pipeline.learning.experiments.config import search_of
from lt_pipeline.pipelines.tune.task import Task
from lt_pipeline.tuning.config import with_holdout
from toys import toy_card, toy_images

HELD = (4, 4, 4, 4)


def parameters(method="ce", epochs=1, search=None, **tune):
    """The smoke environment's, for ``method``, on a short schedule."""
    params = confs.parameters("smoke")
    params["method"] = method
    params["training"] |= {"epochs": epochs, "warmup_epochs": 0, "checkpoint_every": 0}
    params["tune"] |= tune
    if search is not None:
        params[search_of(method)] = search
    return with_holdout(params)


def sets():
    """Training set, hold-out, auxiliary set."""
    return toy_images(), toy_images(HELD, seed=1), toy_images()[torch.arange(0)]


def task(folder: Path, params=None, **changes) -> Task:
    """What a process is given to do."""
    return Task(
        parameters=params or parameters(**changes),
        card=toy_card(),
        sets=sets(),
        folder=folder,
        deadline=None,
        parent=os.getpid(),
    )
