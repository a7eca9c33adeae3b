"""The strict, frozen base of everything that is read from parameters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache, reduce
from numbers import Real
from operator import or_
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

# Fields that hold one of several kinds, chosen by a name, and all the names of kinds there are.
CHOICES = ("criterion", "margin", "profile", "groups")
KINDS: set[str] = set()
# the fields that choose a kind
CHOOSING = ("name", "rule")
# Whole numbers lie below: NumPy takes no larger seed, and nothing is counted in more.
LIMIT = 2**32
LONGEST = 200  # letters of a value that a message shows
# What is computed with them has float32, in which larger ones are infinite.
LARGEST = 3.4e38
WORDS = {bool: ["true", "false"], int: ["a whole number"], float: ["a number"], str: ["a text"]}


class UserError(ValueError):
    """What a person can put right: shown in one line. Any other error is ours and keeps its trace.

    The message names the parameter or the file, and says what would be right.
    """


class UnreachableError(UserError, ConnectionError):
    """A server or a database that does not answer."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that is to be put somewhere."""


class UnwritableError(UserError, OSError):
    """A file that cannot be written."""


class Config(BaseModel):
    """Parameters of one part: frozen, validated, and closed to names it does not know.

    What is given is taken as it looks: no text or truth value is a number, no number is infinite,
    nothing is null that may not be.

    Attributes:
        symbols: a paper's own symbols, and the parameters that they are here.
        block: its name in conf/, where there is only one.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )
    symbols: ClassVar[Mapping[str, str]] = {}
    block: ClassVar[str] = ""

    @classmethod
    def read(cls, block: Any, name: str = "") -> Self:
        """Return the checked ``block`` of that name in conf/: of its own one unless told.

        Raises:
            UserError: in one line, naming every parameter that is wrong and what would be right.
        """
        with one_line_errors(name or cls.block):
            return cls.model_validate(block)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Remember the names that choose this kind."""
        for field in CHOOSING:
            if field in cls.model_fields:
                KINDS.update(get_args(cls.model_fields[field].annotation))

    @model_validator(mode="wrap")
    @classmethod
    def _as_it_looks(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, dict):
            return handler(values)
        known = kinds(cls)
        given = {n: known[n].listed(v) if n in known else v for n, v in values.items()}
        wrong = {n: p for n, v in given.items() if (p := _problem(cls, n, v))}
        if not wrong:
            return handler(given)
        problems = [
            InitErrorDetails(type=p, loc=(n,) if n in known else (), input=given[n])
            for n, p in wrong.items()
        ]
        try:
            handler({name: value for name, value in given.items() if name not in wrong})
        except ValidationError as error:
            rest = error.errors(include_url=False)
            problems += [_again(p) for p in rest if not {*p["loc"][:1]} & wrong.keys()]
        raise ValidationError.from_exception_data(cls.__name__, problems)


class Kind(NamedTuple):
    """What a parameter may be.

    Attributes:
        types: of single values, ``dict`` for a block of any names.
        names: values that stand for themselves.
        items: what a list's are; ``many`` is one of any length.
        blocks: what its parameters are.
        anything: no more is known of it.
    """

    types: frozenset[type] = frozenset()
    names: tuple[Any, ...] = ()
    items: Kind | None = None
    many: bool = False
    blocks: tuple[type[Config], ...] = ()
    anything: bool = False

    def __or__(self, other: Kind) -> Kind:
        """Return what may be either."""
        return Kind(
            self.types | other.types,
            self.names + other.names,
            self.items or other.items,
            self.many or other.many,
            self.blocks + other.blocks,
            self.anything or other.anything,
        )

    def listed(self, value: Any) -> Any:
        """Return a single value as a list where that is what it must be: --params has no lists."""
        alone = self.items and self.many and isinstance(value, str | Real) and not self._fits(value)
        return (value,) if alone and self._holds(value) else value

    def problem(self, value: Any, name: str) -> PydanticCustomError | None:
        """Return what is wrong with ``value`` for the parameter ``name`` if it is none of this.

        What pydantic judges better, such as bounds and a block's parameters, is left to it.
        """
        if self._is_too_large(value):
            limit = "3.4e38" if float in self.types else "2^32"
            context = {"text": f"must be below {limit} in size, but is {value!r}"}
            return PydanticCustomError("refused", "{text}", context)
        if self.anything or self._fits(value):
            return None
        if isinstance(value, list | tuple) and self.items:
            problems = (self.items.problem(item, name) for item in value)
            return next((problem for problem in problems if problem), None)
        if isinstance(value, str) and self._is_one_of_texts:
            context = {"text": unknown(name, value, self.names)}
            return PydanticCustomError("refused", "{text}", context)
        context = {"words": self.words, "given": shown(value), "chooses": self._chosen_by(value)}
        return PydanticCustomError("kind", "must be {words}, but got {given}", context)

    def _fits(self, value: Any) -> bool:
        if isinstance(value, bool | str | None):
            return type(value) in self.types or any(value is n or value == n for n in self.texts)
        if isinstance(value, Real):
            return bool({int, float} & self.types) or len(self.texts) < len(self.names)
        if isinstance(value, Mapping):
            return bool(self.blocks) or dict in self.types
        return bool(self.blocks) and isinstance(value, Config)

    def _holds(self, value: Any) -> bool:
        """Return whether ``value`` could be in the list that this may be."""
        inside = self.items or Kind()
        return inside._fits(value) or (isinstance(value, str) and inside._is_one_of_texts)

    def _is_too_large(self, value: Any) -> bool:
        limit = LARGEST if float in self.types else LIMIT if int in self.types else math.inf
        return isinstance(value, int | float) and limit <= abs(value) < math.inf

    @property
    def texts(self) -> list[str]:
        """Return the names that are texts."""
        return [name for name in self.names if isinstance(name, str)]

    @property
    def _is_one_of_texts(self) -> bool:
        return not self.types - {NoneType} and bool(self.texts)

    @property
    def words(self) -> str:
        """Return what it may be, in words."""
        parts = [word for kind, words in WORDS.items() if kind in self.types for word in words]
        parts += [repr(name) for name in self.names]
        parts += [f"a list (each {self.items.words})"] if self.items else []
        parts += ["a block of parameters"] * bool(self.blocks or dict in self.types)
        parts += ["null"] * (NoneType in self.types)
        return " or ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)

    def _chosen_by(self, value: Any) -> str:
        """Return the parameter of the block that a text was meant for, if there is one."""
        names = (f for b in self.blocks for f in CHOOSING if f in b.model_fields)
        return next(names, "") if isinstance(value, str) else ""


@cache
def kinds(config: type[Config]) -> dict[str, Kind]:
    """Return what each parameter of ``config`` may be."""
    return {name: _kind(field.annotation) for name, field in config.model_fields.items()}


def _kind(annotation: Any) -> Kind:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return Kind(names=inner)
    if origin is tuple:
        return Kind(items=_either(part for part in inner if part is not ...), many=... in inner)
    if origin in (Union, UnionType):
        return _either(inner)
    if origin is dict:
        return Kind(frozenset({dict}))
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return Kind(blocks=(annotation,))
    return Kind(anything=True) if annotation is Any else Kind(frozenset({annotation}))


def _either(annotations: Iterable[Any]) -> Kind:
    return reduce(or_, map(_kind, annotations))


def places(config: Config, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names of all parameters of ``config``, and papers' symbols, with their places.

    A place is a dotted path, as in ``criterion.margin.K``; outer ones come first.
    """
    for name in (*type(config).model_fields, *config.symbols):
        yield name, path + config.symbols.get(name, name)
    for name in type(config).model_fields:
        inner = getattr(config, name)
        if isinstance(inner, Config):
            yield from places(inner, f"{path}{name}.")


def shown(value: object) -> str:
    """Return ``value`` as YAML has it, and of a long one the beginning."""
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def check_distinct(values: Iterable[Any]) -> None:
    """Refuse ``values`` of which two are alike.

    Raises:
        UserError: naming those that are.
    """
    twice = [value for value, times in Counter(values).items() if times > 1]
    if twice:
        raise UserError(f"must differ from one another, but has {shown(twice)} more than once")


def unknown(kind: str, name: object, valid: Iterable[Any], place: str | None = None) -> str:
    """Return the error text for a name that does not exist: the nearest one, then all.

    ``place`` is where the parameter is that was meant, if that is known.
    """
    names = sorted(str(choice) for choice in valid)
    near = get_close_matches(name, names, n=1) if isinstance(name, str) else []
    meant = [place] if place else near
    hint = f"did you mean {meant[0]!r}? " if meant else ""
    return f"unknown {kind} {shown(name)}: {hint}valid: {', '.join(names)}"


def few(names: Iterable[str]) -> str:
    """Return the first three of ``names``, and of how many others they are examples."""
    listed = list(names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def _problem(config: type[Config], name: Any, value: Any) -> PydanticCustomError | None:
    valid = kinds(config)
    if name in valid:
        return valid[name].problem(value, name)
    context = {"text": unknown("parameter", name, valid), "name": name, "valid": [*valid]}
    return PydanticCustomError("unknown_parameter", "{text}", context)


def _again(problem: ErrorDetails) -> InitErrorDetails:
    """Return a problem that was reported, to be reported with others."""
    context = {"msg": problem["msg"], **problem.get("ctx", {})}
    kind = PydanticCustomError(problem["type"], "{msg}", context)
    return InitErrorDetails(type=kind, loc=problem["loc"], input=problem["input"])


def block_of(parameters: Mapping[str, Any], name: str, above: str = "") -> Mapping[str, Any]:
    """Return the block ``name``, empty where there is none; ``above`` is where it is.

    Raises:
        UserError: if it is something else: null would drop what conf/ says for what the code does.
    """
    block = parameters.get(name, {})
    if not isinstance(block, Mapping):
        raise UserError(f"{above}{name}: must be a block of parameters, but got {shown(block)}")
    return block


def canonical(config: Config) -> dict[str, Any]:
    """Return what of ``config`` is not at its default, as JSON has it.

    Names that choose a kind stay: two kinds at their defaults are not alike.
    """
    changed = {}
    for name, field in type(config).model_fields.items():
        value = _plain(getattr(config, name))
        usual = (
            None if field.is_required() else _plain(field.get_default(call_default_factory=True))
        )
        if name in CHOOSING or field.is_required() or value != usual:
            changed[name] = value
    return changed


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return canonical(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def flatten(
    values: Mapping[str, Any], separator: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested ``values`` with its path joined by ``separator``."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", value


def nested(values: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Return what ``flatten`` makes ``values`` of."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, name = path.split(separator)
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return tree


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return every number in nested ``values`` as a metric, named as in ``test/accuracy``."""
    return {
        name: float(value)
        for name, value in flatten(values, "/")
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


@contextmanager
def named(where: str) -> Iterator[None]:
    """Put ``where`` in front of what a UserError says: where the parameter is that it is of."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}{error}") from None


@contextmanager
def one_line_errors(
    prefix: str = "", meant: Callable[[str], str | None] = lambda name: None
) -> Iterator[None]:
    """Turn pydantic's report into a UserError of one line: each parameter and what is wrong.

    ``prefix`` names the block that is validated, as in ``data`` for ``data.source``; ``meant`` says
    where the parameter is that someone gave elsewhere by its name or symbol.
    """
    try:
        yield
    except ValidationError as error:
        _raise_bugs(error)
        problems = [_in_words(p, prefix, meant) for p in _of_the_kind_given(error)]
        raise UserError("; ".join(dict.fromkeys(problems))) from None


def _raise_bugs(error: ValidationError) -> None:
    """Raise what is no refusal: pydantic takes any ValueError of a validator for one."""
    for problem in error.errors(include_url=False):
        raised = problem.get("ctx", {}).get("error")
        if isinstance(raised, Exception) and not isinstance(raised, UserError):
            raise raised


def _of_the_kind_given(error: ValidationError) -> list[ErrorDetails]:
    """Return the problems, without a name's where a block was given that may be either."""
    every = error.errors(include_url=False)
    kept = [p for p in every if not (p["type"] == "literal_error" and isinstance(p["input"], dict))]
    return kept or every


def _path(loc: tuple[int | str, ...]) -> list[str]:
    """Return where a problem is, without the kinds that pydantic names behind a choice."""
    pairs = zip((None, *loc), loc, strict=False)
    return [
        str(part)
        for before, part in pairs
        if not (before in CHOICES and part in KINDS) and not str(part).endswith("Config")
    ]


def _in_words(problem: ErrorDetails, prefix: str, meant: Callable[[str], str | None]) -> str:
    where = ".".join([prefix] * bool(prefix) + _path(problem["loc"]))
    what = problem["msg"].removeprefix("Value error, ")
    context, given = problem.get("ctx", {}), problem["input"]
    if problem["type"] == "union_tag_invalid":
        valid = [name.strip(" '") for name in context["expected_tags"].split(",")]
        tag = given.get(context["discriminator"].strip("'"))
        what = unknown(where.split(".")[-1], tag, valid)
    elif problem["type"] == "union_tag_not_found":
        what = f"needs its {context['discriminator'].strip(chr(39))}"
    elif problem["type"] == "unknown_parameter":
        name, valid = context["name"], context["valid"]
        what = unknown("parameter", name, valid, meant(str(name)))
    elif problem["type"] == "kind" and context["chooses"]:
        what = f"is a block of parameters: write {where}.{context['chooses']}={given}"
    elif problem["type"] == "model_type":
        what = f"must be a block of parameters, but got {shown(given)}"
    elif problem["type"] not in ("value_error", "kind", "refused") and not isinstance(given, dict):
        what = f"{what}, but got {shown(given)}"
    return f"{where}: {what}" if where else what
