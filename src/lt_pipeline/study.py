"""A study: one method's ablation or sweep, as arms that differ in a few parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, PositiveInt, field_validator

from lt_pipeline import methods
from lt_pipeline.config import ExperimentConfig, MethodBlock, merged
from lt_pipeline.schema import Config, one_line_errors


class Arm(MethodBlock):
    """A method and what it changes of its own block in conf/."""

    method: str

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        methods.get(name)
        return name


class Sweep(Config):
    """An arm for each of ``values`` at ``path`` of the method's block, as in ``options.rank``."""

    method: str
    path: str
    values: tuple[float, ...] = Field(min_length=1)

    def arms(self) -> dict[str, Arm]:
        """Return the arms by label, as in ``rank = 0.1``."""
        *parents, name = self.path.split(".")
        found = {}
        for value in self.values:
            block: dict[str, Any] = {name: value}
            for parent in reversed(parents):
                block = {parent: block}
            found[f"{name} = {value:g}"] = Arm.model_validate({"method": self.method, **block})
        return found


class StudyConfig(Config):
    """What is compared, over how many seeds.

    Attributes:
        title: of the pictures.
        seeds: runs of every arm, with the same images and seeds 0, 1, ...
        arms: by label; of a study with a ``sweep`` they are its baselines.
        sweep: the values of one parameter.
    """

    title: str
    seeds: PositiveInt = 3
    arms: dict[str, Arm] = Field(default_factory=dict)
    sweep: Sweep | None = None

    @classmethod
    def read(cls, name: str, block: Mapping[str, Any]) -> StudyConfig:
        """Return the checked block ``studies.<name>``.

        Raises:
            ValueError: in one line, naming every parameter that is wrong and what would be right.
        """
        with one_line_errors(f"studies.{name}"):
            found = cls.model_validate(dict(block))
            if not found.all_arms():
                raise ValueError(f"studies.{name}: needs arms or a sweep, but has neither")
            return found

    def all_arms(self) -> dict[str, Arm]:
        """Return every arm by label."""
        return {**self.arms, **(self.sweep.arms() if self.sweep else {})}

    def experiments(self, parameters: Mapping[str, Any]) -> dict[str, ExperimentConfig]:
        """Return the experiment of every arm by label, its own block over ``parameters``.

        Raises:
            ValueError: in one line, naming the parameter that is wrong.
        """
        found = {}
        for label, arm in self.all_arms().items():
            own = arm.model_dump(exclude={"method"})
            block = merged(parameters.get(arm.method), own)
            found[label] = ExperimentConfig.resolve(arm.method, {**parameters, arm.method: block})
        return found
