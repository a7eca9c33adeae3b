"""The strict, frozen base of everything that is read from parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

# Fields that hold one of several kinds, chosen by a name, and all the names of kinds there are.
CHOICES = ("criterion", "margin", "profile", "groups")
KINDS: set[str] = set()


class Config(BaseModel):
    """Parameters of one part: frozen, validated, and closed to names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Remember the names that choose this kind."""
        for field in ("name", "rule"):
            if field in cls.model_fields:
                KINDS.update(get_args(cls.model_fields[field].annotation))

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in values:
                if name not in cls.model_fields:
                    raise ValueError(unknown("parameter", str(name), cls.model_fields))
        return values


def unknown(kind: str, name: str, valid: Any) -> str:
    """Return the error text for a name that does not exist: the nearest one, then all."""
    names = sorted(str(choice) for choice in valid)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}valid: {', '.join(names)}"


def flatten(
    values: Mapping[str, Any], separator: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested ``values`` with its path joined by ``separator``."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", value


@contextmanager
def one_line_errors(prefix: str = "") -> Iterator[None]:
    """Turn pydantic's report into a ValueError of one line: each parameter and what is wrong.

    ``prefix`` names the block that is validated, as in ``data`` for ``data.source``.
    """
    try:
        yield
    except ValidationError as error:
        raise ValueError("; ".join(_problems(error, prefix))) from None


def _path(loc: tuple[int | str, ...]) -> list[str]:
    """Return where a problem is, without the kinds that pydantic names behind a choice."""
    pairs = zip((None, *loc), loc, strict=False)
    return [str(part) for before, part in pairs if not (before in CHOICES and part in KINDS)]


def _problems(error: ValidationError, prefix: str) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        where = ".".join([prefix] * bool(prefix) + _path(problem["loc"]))
        what = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        if problem["type"] == "union_tag_invalid":
            context = problem["ctx"]
            valid = [name.strip(" '") for name in context["expected_tags"].split(",")]
            kind = where.split(".")[-1]
            yield f"{where}: {unknown(kind, context['tag'], valid)}"
            continue
        if problem["type"] == "union_tag_not_found":
            what = f"needs its {problem['ctx']['discriminator'].strip(chr(39))}"
        plain = problem["type"] != "value_error" and not isinstance(given, dict)
        got = f", but got {given!r}" if plain else ""
        yield f"{where}: {what}{got}" if where else f"{what}{got}"
