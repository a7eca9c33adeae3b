from __future__ import annotations

import pytest
from pydantic import Field, ValidationError, field_validator

from lt_pipeline.learning.schema import (
    Config,
    MissingFileError,
    UnreachableError,
    UnwritableError,
    UserError,
    one_line_errors,
    unknown,
)


class Leaf(Config):
    ratio: float = Field(default=2.0, ge=1)


class Tree(Config):
    leaf: Leaf = Leaf()
    depth: int = 1


def test_an_unknown_parameter_is_refused_with_the_nearest_name():
    with pytest.raises(ValidationError, match="unknown parameter 'rato': did you mean 'ratio'"):
        Tree(leaf={"rato": 3})


def test_a_name_without_a_near_one_lists_all():
    assert unknown("source", "zzz", ["b", "a"]) == "unknown source 'zzz': valid: a, b"


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Tree().depth = 2


def test_every_problem_is_named_in_one_line_with_its_block_and_value():
    with pytest.raises(ValueError, match="^tree") as found, one_line_errors("tree"):
        Tree.model_validate({"leaf": {"ratio": 0.5}, "depth": "deep"})
    text = str(found.value)
    assert "\n" not in text
    assert "tree.leaf.ratio: Input should be greater than or equal to 1, but got 0.5" in text
    assert "tree.depth: " in text
    assert "but got 'deep'" in text


class Refusing(Config):
    depth: int = 2

    @field_validator("depth")
    @classmethod
    def _even(cls, depth):
        if depth % 2:
            raise UserError("must be even")
        return depth or int("a bug")


class Above(Config):
    below: Refusing = Refusing(depth=2)
    ratio: float = 1.0


def test_a_refusal_in_a_validator_is_one_line():
    with pytest.raises(UserError, match="^top.below.depth: must be even$"):  # noqa: SIM117
        with one_line_errors("top"):
            Above(below={"depth": 3})


@pytest.mark.parametrize("beside", [{}, {"ratio": "wrong"}])
def test_a_bug_in_a_validator_is_no_refusal(beside):
    """Pydantic takes every ValueError for one."""
    with pytest.raises(ValueError, match="invalid literal for int") as found:  # noqa: SIM117
        with one_line_errors("top"):
            Above(below={"depth": 0}, **beside)
    assert not isinstance(found.value, UserError)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (UnreachableError, ConnectionError),
        (MissingFileError, FileNotFoundError),
        (UnwritableError, OSError),
    ],
)
def test_kinds_are_what_python_calls_them_too(kind, builtin):
    assert issubclass(kind, UserError)
    assert issubclass(kind, builtin)
    assert str(kind("a line")) == "a line"
