"""YAML as it looks: what YAML 1.1 reads as another number, or cannot read, is refused in a line."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lt_pipeline.learning.schema import UserError

# libyaml is ten times as fast, where PyYAML was built with it
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
# what parameters are made of; YAML's other kinds, and Python's, are none
KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
TAGS = {f"tag:yaml.org,2002:{kind}" for kind in KINDS}


def check_yaml(text: str, source: str, block: bool = False) -> None:
    """Refuse ``text`` that is no YAML, names something twice, or has a value that is another.

    ``source`` is the file or parameter it is from; ``block`` is whether it must name parameters.

    Raises:
        UserError: in one line, naming ``source`` and, if there are several, the line.
    """

    def where(line: int) -> str:
        return f"{source}, line {line + 1}" if "\n" in text.rstrip() else source

    try:
        root = yaml.compose(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        raise UserError(f"{where(line)}: is no YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n")
        raise UserError(f"{where(line)}: is no YAML: {error.reason}") from None
    except RecursionError:
        raise UserError(f"{source}: is nested too deeply") from None
    if block and root is not None and not isinstance(root, MappingNode):
        raise UserError(f"{source}: must be a block of parameters, as in 'seed: 0'")
    try:
        first = next(_problems(root, ""), None)
    except RecursionError:
        raise UserError(f"{source}: is nested too deeply, or stands within itself") from None
    if first:
        node, problem = first
        raise UserError(f"{where(node.start_mark.line)}: {problem}")


def _problems(node: Node | None, path: str) -> Iterator[tuple[Node, str]]:
    named = f"{path.rstrip('.')}: " if path else ""
    if node is not None and node.tag not in TAGS:
        kind = node.tag.replace("tag:yaml.org,2002:", "!!")
        yield node, f"{named}{kind} is no kind of parameter: write it without, or as a text"
    elif isinstance(node, MappingNode):
        yield from _problems_of_names([key for key, _ in node.value], path)
        for key, value in node.value:
            yield from _problems(value, f"{path}{key.value}.")
    elif isinstance(node, SequenceNode):
        for item in node.value:
            yield from _problems(item, path)
    elif isinstance(node, ScalarNode) and not node.tag.endswith(":str"):
        problem = _misleading(node.value)
        if problem:
            yield node, f"{named}{problem}"


def _problems_of_names(names: list[Node], path: str) -> Iterator[tuple[Node, str]]:
    seen = set[str]()
    for name in names:
        if not isinstance(name, ScalarNode) or name.tag.endswith(":null"):
            yield name, "a name must be a text"
        elif name.value in seen:
            yield name, f"{path}{name.value} is there twice"
        else:
            seen.add(name.value)


def _misleading(text: str) -> str | None:
    """Return how the number ``text`` is to be written, None if it is what it looks like."""
    read = yaml.safe_load(text) if BASE_60.fullmatch(text) or LEADING_ZERO.fullmatch(text) else None
    if not isinstance(read, int | float):
        return None
    if ":" in text:
        ratio = text.partition(":")[2]
        return (
            f"YAML reads {text} as {read:g}, to the base of 60: write {ratio} if it is a ratio, "
            f"{read:g} if that is meant, '{text}' for a text"
        )
    plain = re.sub(r"^([-+]?)[0_]+(?=[0-9])", r"\1", text)
    return f"YAML reads {text} as {read:g}: write {plain}, without the leading zero, or {read:g}"
