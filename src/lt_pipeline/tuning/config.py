"""From the parameters in conf/ to a checked description of a sweep."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from lt_pipeline.learning import methods
from lt_pipeline.learning.data.prepare import DataConfig
from lt_pipeline.learning.experiments.config import (
    ExperimentConfig,
    data_config,
    search_of,
    updated,
)
from lt_pipeline.learning.schema import (
    Config,
    UserError,
    block_of,
    flatten,
    named,
    nested,
    unknown,
)
from lt_pipeline.learning.studies.config import AtOnceConfig
from lt_pipeline.tuning.space import Space, Value

# it keeps a password out of parameters, which are logged
STORAGE_VARIABLE = "OPTUNA_STORAGE"
# what decides nothing of what a trial gives
INDIFFERENT = ("device", "evaluation")


class TuneConfig(Config):
    """How a method's parameters are searched.

    Attributes:
        study: the study's name; null is the method's and the data's, as in ``more-digits-lt-ir20``.
        trials: of the whole study, however many processes work on it.
        sampler: ``tpe`` learns from the trials before; ``random`` does not.
        pruner: what stops trials that fall behind, epoch by epoch: ``median`` of the others at the
            same epoch, ``hyperband`` (for 40 trials and more), or ``none``.
        validation: the share of every class held out to judge by, where data.validation is 0.
        seed: of the search; that of the trainings is the parameter ``seed``.
        workers: processes at once, each with a GPU of its own where there are several, and with
            ``together`` trials at a time.
        engine: where workers run: ``processes`` of this machine, or a cluster of ``ray``.
        address: the Ray cluster, as in ``head:6379``, or ``auto`` for the one that this machine is
            part of; null is what the environment variable RAY_ADDRESS says, and without it workers
            of this machine.
        storage: the address of a database that several machines share, as in
            ``postgresql://user:password@host/name``; null is what the environment variable
            OPTUNA_STORAGE says, and without it a file in data/06_models.
        heartbeat: seconds between the signs of life of a trial in a database. One without any for
            twice as long is lost, and tried again.
        retries: how often a trial whose process died is tried again.
        timeout: seconds after which no further trial starts, and those that run end; null is never.
        test_best: train the best once more and read the test set. False on machines that only help.
        search: the space of methods without one of their own, which stands beside a method's block
            in conf/: ``more_search`` is that of ``more``.
    """

    block = "tune"

    study: str | None = None
    trials: PositiveInt = 20
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = "median"
    validation: float = Field(default=0.2, gt=0, lt=1)
    seed: NonNegativeInt = 0
    workers: int = Field(default=1, ge=1, le=10_000)
    engine: Literal["processes", "ray"] = "processes"
    address: str | None = None
    storage: str | None = None
    heartbeat: PositiveInt = 60
    retries: NonNegativeInt = 2
    timeout: PositiveFloat | None = None
    test_best: bool = True
    search: dict[str, Any] = Field(default_factory=dict)


class Sweep:
    """A method, what is searched of it, how, and everything that stays as it is."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        """Check ``parameters``, whose data have a hold-out.

        Raises:
            UserError: in one line, naming every parameter that is wrong and what would be right.
        """
        self.parameters = dict(parameters)
        self.method = method_name(parameters)
        self.config = tune_config(parameters)
        self.together = AtOnceConfig.of(parameters).together
        own = search_of(self.method)
        where = own if own in parameters else "tune.search"
        block = block_of(parameters, own) if own in parameters else self.config.search
        self.space = Space.read(block, where)
        for corner in self.space.corners():
            with named(f"{where}: "):
                self.experiment(corner)
        if self.config.pruner != "none" and not self.base.training.monitor_every:
            raise UserError(
                "tune.pruner looks at the hold-out epoch by epoch, but training.monitor_every is "
                "0: set that to 1, or tune.pruner to none"
            )

    @cached_property
    def data(self) -> DataConfig:
        """Return what the data are."""
        return data_config(self.parameters)

    @cached_property
    def base(self) -> ExperimentConfig:
        """Return the experiment that the trials change."""
        return self.experiment({})

    @property
    def name(self) -> str:
        """Return the study's name."""
        return self.config.study or f"{self.method}-{self.data.slug}"

    def experiment(self, values: Mapping[str, Value]) -> ExperimentConfig:
        """Return the experiment with ``values``, by path in the method's block.

        It never looks at the test set.
        """
        block = updated(self.parameters.get(self.method), nested(values, "."))
        config = ExperimentConfig.resolve(self.method, {**self.parameters, self.method: block})
        unseen = config.training.model_copy(update={"monitor_test": False})
        return config.model_copy(update={"training": unseen})

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for trials to be compared, in plain types."""
        fixed = self.base.model_dump(mode="json", exclude=set(INDIFFERENT))
        flat = dict(flatten(fixed, "."))
        searched = {path: d.model_dump(mode="json") for path, d in self.space.dimensions.items()}
        return {
            "another search space": searched,
            "other fixed parameters": {k: v for k, v in flat.items() if k not in searched},
        }


def method_name(parameters: Mapping[str, Any]) -> str:
    """Return the method that is tuned.

    Raises:
        UserError: with the nearest name, if there is none of this name.
    """
    name = parameters.get("method", "more")
    if name not in methods.available():
        raise UserError(f"method: {unknown('method', name, methods.available())}")
    return str(name)


def tune_config(parameters: Mapping[str, Any]) -> TuneConfig:
    """Return the checked block ``tune``.

    Raises:
        UserError: in one line, naming every parameter that is wrong and what would be right.
    """
    config = TuneConfig.read(block_of(parameters, TuneConfig.block))
    storage = config.storage or os.environ.get(STORAGE_VARIABLE) or None
    return config.model_copy(update={"storage": storage})


def with_holdout(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` with data that have a hold-out: trials are judged by it."""
    if data_config(parameters).holds_out:
        return dict(parameters)
    validation = tune_config(parameters).validation
    return {**parameters, "data": updated(parameters.get("data"), {"validation": validation})}
