"""A study: one method's ablation or sweep, as arms that differ in a few parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from lt_pipeline.learning.evaluation.metrics.catalog import askable
from lt_pipeline.learning.experiments.config import (
    ExperimentConfig,
    MethodBlock,
    MethodName,
    updated,
)
from lt_pipeline.learning.schema import (
    Config,
    UserError,
    check_distinct,
    named,
    nested,
    shown,
    unknown,
)


def slug(label: str) -> str:
    """Return ``label`` as a name of folders and metrics."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")


def _node(label: str) -> str:
    """Return ``label`` as a part of a node's name, where a dot would end a namespace."""
    return slug(label).replace(".", "-").strip("-")


class Arm(MethodBlock):
    """A method and what it changes of its own block in conf/."""

    method: MethodName


class ParameterValues(Config):
    """An arm for each of ``values`` at ``path`` of the method's block, as in ``options.rank``."""

    method: MethodName
    path: str
    values: tuple[float, ...] = Field(min_length=1)

    @field_validator("path")
    @classmethod
    def _in_a_block(cls, path: str) -> str:
        if path.split(".")[0] not in MethodBlock.model_fields or "." not in path:
            raise UserError(
                f"must lie in options, model or training, as in options.rank, but is {path!r}"
            )
        return path

    def labels(self) -> list[str]:
        """Return the arms' labels, as in ``rank = 0.1``."""
        return [f"{self.path.split('.')[-1]} = {value:g}" for value in self.values]

    def arms(self) -> dict[str, Arm]:
        """Return the arms by label."""
        blocks = [nested({self.path: value}, ".") for value in self.values]
        arms = [Arm.model_validate({"method": self.method, **block}) for block in blocks]
        return dict(zip(self.labels(), arms, strict=True))


class AtOnceConfig(Config):
    """How runs are done, which changes no result.

    Attributes:
        together: how many runs of a study or of ``seeds``, or trials of a sweep, are trained at
            once in one process.
    """

    together: PositiveInt = 1

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> AtOnceConfig:
        """Return what ``parameters`` say."""
        return cls.read({name: parameters[name] for name in cls.model_fields if name in parameters})


class StudyConfig(Config):
    """What is compared, over how many seeds.

    Attributes:
        title: of the pictures.
        seeds: runs of every arm, with the same images and seeds 0, 1, ...
        these_seeds: the seeds themselves, in place of how many.
        arms: by label; of a study with a ``sweep`` they are its baselines.
        sweep: the values of one parameter.
        against: the arm that the others' paired differences are from; null is the first.
        evaluation: how its arms are judged, beside the usual.
        columns: what its table shows beside accuracies, time and images of no class.
        tables: other names of its pipeline, as ``table_more_1``: the papers' tables that it is of.
        env: the environment that ``kedro run`` takes for it where none is told, as it needs other
            images than conf/base has.
    """

    title: str
    seeds: int = Field(default=3, ge=1, le=10_000)
    these_seeds: tuple[NonNegativeInt, ...] = ()
    arms: dict[str, Arm] = Field(default_factory=dict)
    sweep: ParameterValues | None = None
    against: str | None = None
    evaluation: dict[str, Any] = Field(default_factory=dict)
    columns: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    env: str | None = None

    @field_validator("arms", mode="before")
    @classmethod
    def _without_dropped(cls, arms: Any) -> Any:
        """Leave out arms that are null, which is how a run takes one out."""
        if not isinstance(arms, dict):
            return arms
        return {label: arm for label, arm in arms.items() if arm is not None}

    @field_validator("tables")
    @classmethod
    def _named(cls, tables: tuple[str, ...]) -> tuple[str, ...]:
        for name in tables:
            if not re.fullmatch(r"table_\w+", name):
                raise UserError(f"must be names such as table_more_1, but has {shown(name)}")
        check_distinct(tables)
        return tables

    @field_validator("columns")
    @classmethod
    def _known(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        for name in columns:
            if name not in askable():
                raise UserError(unknown("columns", name, askable()))
        return columns

    @field_validator("columns", "these_seeds")
    @classmethod
    def _differ(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        check_distinct(values)
        return values

    @model_validator(mode="after")
    def _distinct(self) -> StudyConfig:
        labels = [*self.arms, *(self.sweep.labels() if self.sweep else [])]
        if not labels:
            raise UserError("needs arms or a sweep, but has neither")
        slugs = [_node(label) for label in labels]
        if not all(slugs):
            raise UserError(f"arms need names with letters or digits, but {labels} are not all so")
        twice = [label for label, name in zip(labels, slugs, strict=True) if slugs.count(name) > 1]
        if twice:
            raise UserError(f"arms need names and values that differ, but {twice} do not")
        if self.against not in (None, *labels):
            raise UserError(f"against must be null or one of {labels}, but is {self.against!r}")
        return self

    @property
    def reference(self) -> str:
        """Return the label of the arm that differences are from."""
        return self.against or next(iter(self.all_arms()))

    def all_arms(self) -> dict[str, Arm]:
        """Return every arm by label."""
        return {**self.arms, **(self.sweep.arms() if self.sweep else {})}

    def run_names(
        self, first_seed: int, folds: Sequence[int] = ()
    ) -> dict[str, tuple[str, int, int | None]]:
        """Return each run's arm, seed and fold by the name of its node, as in ``s0_f2_K-0-1``.

        The seed is in front: nodes run in the order of their names, all arms of a seed together,
        and of a fold, where there are ``folds``; else that is None.
        """
        seeds = self.these_seeds or range(first_seed, first_seed + self.seeds)
        digits, wide = len(str(max(seeds))), len(str(max(folds, default=0)))
        on: dict[str, int | None] = {f"_f{fold:0{wide}}": fold for fold in folds}
        return {
            f"s{seed:0{digits}}{name}_{_node(label)}": (label, seed, fold)
            for seed in seeds
            for name, fold in (on or {"": None}).items()
            for label in self.all_arms()
        }

    def at_once(
        self, first_seed: int, folds: Sequence[int] = (), together: int = 1
    ) -> list[list[str]]:
        """Return the names of ``run_names``, those of ``together`` runs that are done at once.

        What is done at once is on one fold.
        """
        by_fold: dict[int | None, list[str]] = {}
        for name, (_, _, fold) in self.run_names(first_seed, folds).items():
            by_fold.setdefault(fold, []).append(name)
        return [
            names[first : first + together]
            for names in by_fold.values()
            for first in range(0, len(names), together)
        ]

    def experiments(self, parameters: Mapping[str, Any]) -> dict[str, ExperimentConfig]:
        """Return the experiment of every arm by label, its own block over ``parameters``.

        Raises:
            UserError: in one line, naming the arm and the parameter that is wrong.
        """
        experiments = {}
        evaluation = updated(parameters.get("evaluation"), self.evaluation)
        for label, arm in self.all_arms().items():
            own = arm.model_dump(exclude={"method"})
            block = updated(parameters.get(arm.method), own)
            with named(f"arm {label!r}: "):
                given = {**parameters, "evaluation": evaluation, arm.method: block}
                experiments[label] = ExperimentConfig.resolve(arm.method, given)
        return experiments
