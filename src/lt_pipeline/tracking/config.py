"""Parameters of what MLflow is told, none of which changes what is computed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lt_pipeline.learning.schema import Config, block_of
from lt_pipeline.tracking.client import home

BLOCK = "tracking"
# every class has a method of that name, for abstract ones, which no parameter needs
warnings.filterwarnings("ignore", message='Field name "register" in "TrackingConfig"')


class TrackingConfig(Config):
    """What MLflow does with a finished method.

    Attributes:
        register: make its model the newest version of the registered model ``<method>-<data>``,
            with the alias ``newest``; else it is kept with its run only. Trials of sweeps and arms
            of studies log no model, and experiments that DVC runs in a copy of the project, as
            ``dvc exp run --temp`` does, register none.
        system_metrics: what the machine does meanwhile: CPU, memory, disk, every 10 seconds.
    """

    block = BLOCK

    register: bool = True
    system_metrics: bool = True


def in_effect(parameters: Mapping[str, Any], project: Path) -> dict[str, Any]:
    """Return ``parameters`` with the block ``tracking`` checked, and as ``project`` allows.

    Raises:
        UserError: in one line, naming every parameter that is wrong and what would be right.
    """
    config = TrackingConfig.read(block_of(parameters, BLOCK))
    if home(project) != project:
        config = config.model_copy(update={"register": False})
    return {**parameters, BLOCK: config.model_dump()}
