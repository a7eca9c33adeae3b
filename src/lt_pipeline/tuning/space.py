"""Search spaces: which of a method's parameters are tried, and between which values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from lt_pipeline.learning.schema import Config, UserError, check_distinct, one_line_errors, unknown

# what a method's block can change, and so what can be searched in
BLOCKS = ("options", "model", "training")
Value = float | int | str | bool | None


class Range(Config):
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        log: try orders of magnitude alike.
        integer: whole numbers only.
        step: only ``low``, ``low + step``, ...
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _makes_sense(self) -> Range:
        if not self.low < self.high:
            raise UserError(f"low must be < high, but they are {self.low:g} and {self.high:g}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise UserError("log needs low > 0 and no step")
        if self.step is not None and self.step > self.high - self.low:
            raise UserError(
                f"step must be at most high - low, or only low is tried, but is {self.step:g} "
                f"between {self.low:g} and {self.high:g}"
            )
        whole = (self.low, self.high, self.step or 1)
        if self.integer and any(number != int(number) for number in whole):
            raise UserError("integer needs whole numbers as low, high and step")
        return self

    def points(self) -> list[Value]:
        """Return low, a value between and high, and where these are whole one that is not.

        A parameter that takes whole numbers only so has one to refuse.
        """
        between = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        if self.step is not None:
            between = self.low + self.step * ((between - self.low) // self.step)
        if self.integer:
            return [int(self.low), int(between), int(self.high)]
        if self.step is None and all(n == int(n) for n in (self.low, between, self.high)):
            return [self.low, between, between + (self.high - between) / math.pi, self.high]
        return [self.low, between, self.high]


class Choices(Config):
    """One of several values."""

    choices: tuple[Value, ...] = Field(min_length=2)

    @field_validator("choices")
    @classmethod
    def _differ(cls, choices: tuple[Value, ...]) -> tuple[Value, ...]:
        check_distinct(choices)
        return choices

    def points(self) -> list[Value]:
        """Return all of them."""
        return list(self.choices)


Dimension = Range | Choices


class Space(Config):
    """The dimensions by path in the method's block, as in ``options.rank``."""

    dimensions: dict[str, Dimension]

    @classmethod
    def read(cls, block: Any, name: str = "") -> Space:
        """Return the space of ``block``: nested as the method's own, with ranges for values.

        A dimension that is null is left out. ``name`` is where the block is in conf/.

        Raises:
            UserError: in one line, if it is empty or a dimension is not one.
        """
        if block is not None and not isinstance(block, Mapping):
            raise UserError(f"{name}: is a block of ranges by parameter, but got {block!r}")
        dimensions = dict(_dimensions(block or {}, name, ""))
        if not dimensions:
            raise UserError(
                f"{name} is empty: there is nothing to search; give a range, as in "
                f"{name}.training.learning_rate.low=0.01 and .high=0.5"
            )
        return cls(dimensions=dimensions)

    def corners(self) -> Iterator[dict[str, Value]]:
        """Yield settings that have every point of every dimension among them."""
        points = {path: dimension.points() for path, dimension in self.dimensions.items()}
        for place in range(max(map(len, points.values()))):
            yield {path: values[min(place, len(values) - 1)] for path, values in points.items()}


def _dimensions(block: Mapping[str, Any], name: str, path: str) -> Iterator[tuple[str, Dimension]]:
    for key, value in block.items():
        here = f"{path}.{key}" if path else str(key)
        if not path and key not in BLOCKS:
            raise UserError(f"{name}: {unknown('block', str(key), BLOCKS)}")
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise UserError(
                f"{name}.{here}: needs low and high, or choices, but got {value!r}; null leaves "
                f"it out"
            )
        if {"low", "high", "choices"} & set(value):
            yield here, _dimension({n: v for n, v in value.items() if v is not None}, name, here)
        else:
            yield from _dimensions(value, name, here)


def _dimension(given: Mapping[str, Any], name: str, path: str) -> Dimension:
    """Return the dimension of what is ``given`` but for what is null."""
    where, bounds = f"{name}.{path}", sorted({"low", "high"} & given.keys())
    if bounds and "choices" in given:
        none = ",".join(f"{where}.{bound}=null" for bound in bounds)
        raise UserError(
            f"{where}: has both choices and {' and '.join(bounds)}: leave one out, by "
            f"{where}.choices=null or by {none}"
        )
    with one_line_errors(where):
        return (Choices if "choices" in given else Range).model_validate(given)
