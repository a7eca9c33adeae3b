from __future__ import annotations

import json
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from lt_pipeline.learning.schema import (
    Config,
    MissingFileError,
    UnreachableError,
    UnwritableError,
    UserError,
    canonical,
    flatten,
    nested,
    numbers,
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
    with pytest.raises(ValueError, match="^tree") as error, one_line_errors("tree"):
        Tree.model_validate({"leaf": {"ratio": 0.5}, "depth": "deep"})
    text = str(error.value)
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
    with pytest.raises(ValueError, match="invalid literal for int") as error:  # noqa: SIM117
        with one_line_errors("top"):
            Above(below={"depth": 0}, **beside)
    assert not isinstance(error.value, UserError)


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


def test_nested_values_become_grouped_numbers():
    values = {"test": {"accuracy": 0.5, "floor": 1}, "rule": "x", "ok": True, "left": []}
    assert numbers(values) == {"test/accuracy": 0.5, "test/floor": 1.0}
    assert dict(flatten({"a": {"b": [1], "c": None}}, ".")) == {"a.b": [1], "a.c": None}


class Plain(Config):
    name: Literal["plain"] = "plain"
    tau: float = 1.0


class Focal(Config):
    name: Literal["focal"] = "focal"
    tau: float = 1.0
    weights: tuple[float, ...] = ()


Chosen = Annotated[Plain | Focal, Field(discriminator="name")]


class Whole(Config):
    method: str
    tree: Tree = Tree()
    deeper: Tree = Tree(leaf=Leaf(ratio=4.0))
    kind: Chosen = Plain()
    other: Chosen | None = None


def test_what_is_at_its_default_is_left_out_and_what_has_none_stays():
    assert canonical(Whole(method="m")) == {"method": "m"}
    assert canonical(Tree(depth=1, leaf={"ratio": 2})) == {}
    assert canonical(Tree(leaf={"ratio": 3})) == {"leaf": {"ratio": 3.0}}


def test_kinds_at_their_defaults_differ():
    names = {name: canonical(Whole(method="m", kind={"name": name})) for name in ("plain", "focal")}
    assert names == {"plain": {"method": "m"}, "focal": {"method": "m", "kind": {"name": "focal"}}}
    texts = [canonical(Whole(method="m", other=other)) for other in (None, Plain(), Focal())]
    assert [one.get("other") for one in texts] == [None, {"name": "plain"}, {"name": "focal"}]


def test_a_block_at_its_own_default_is_not_the_one_that_stands_there_usually():
    assert canonical(Whole(method="m", deeper=Tree(leaf=Leaf(ratio=4.0)))) == {"method": "m"}
    assert canonical(Whole(method="m", deeper=Tree())) == {"method": "m", "deeper": {}}


def test_what_is_canonical_is_json():
    text = canonical(Whole(method="m", other=Focal(weights=(1.0, 2.0))))
    assert json.loads(json.dumps(text)) == text
    assert text["other"] == {"name": "focal", "weights": [1.0, 2.0]}


def test_a_parameter_that_is_new_changes_nothing_at_its_default():
    class Later(Plain):
        sigma: float | None = None
        leaf: Leaf = Leaf()

    for given in ({}, {"tau": 2.0}):
        assert canonical(Later(**given)) == canonical(Plain(**given))
    assert canonical(Later(sigma=1.0)) != canonical(Plain())


def test_values_are_nested_as_they_were_flattened():
    values = {"options.a.b": 1, "options.a.c": 2, "training.d": 3}
    blocks = nested(values, ".")
    assert blocks == {"options": {"a": {"b": 1, "c": 2}}, "training": {"d": 3}}
    assert dict(flatten(blocks, ".")) == values
