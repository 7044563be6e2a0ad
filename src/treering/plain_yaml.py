"""YAML with nothing but text, numbers, true and false, lists and fields; everything else is told with its line."""

from __future__ import annotations

from typing import Any

import yaml

from treering.errors import TreeringError
from treering.reading import printable

MOST_VALUES, DEEPEST = 100_000, 50
"""Values and levels of nesting, where what an alias stands for counts as often as it is named."""

_PREFIX = "tag:yaml.org,2002:"
_KINDS = {_PREFIX + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


class _Loader(yaml.SafeLoader):
    """Without dates and the like: what looks like one is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KINDS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse(text: str, origin: str) -> tuple[Any, yaml.Node | None]:
    """The value that YAML says, and its nodes, which know the lines; of nothing, no fields.

    Raises:
        TreeringError: it is not YAML, holds anything else, a name twice, or more than the bounds of this module.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, None
        _measure(node, origin, {})
        return loader.construct_document(node), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise TreeringError(f"{where}: not valid YAML: {printable(error.problem or error.context or '')}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise TreeringError(f"{origin}:{line}: not valid YAML: the character U+{error.character:04X}.") from None
    except RecursionError:
        raise TreeringError(f"{origin}: not valid YAML: nested too deeply.") from None


def _measure(node: yaml.Node, origin: str, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node stands for, and in how many levels; ``known`` has those that were seen before."""
    if id(node) in known:
        if not known[id(node)][0]:
            raise _wrong(node, origin, "an alias stands inside what it is an alias of")
        return known[id(node)]
    known[id(node)] = 0, 0  # until it is known
    if node.tag not in _KINDS:
        kind = printable(node.tag.removeprefix(_PREFIX))
        raise _wrong(node, origin, f"text, numbers, true or false, lists and fields may stand here, not !!{kind}")
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, origin)
        parts = []
    elif isinstance(node, yaml.MappingNode):
        _check_names(node, origin)
        parts = [value for _, value in node.value]
    else:
        parts = node.value
    sizes = [_measure(part, origin, known) for part in parts]
    size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
    if size > MOST_VALUES:
        raise _wrong(node, origin, f"more than {MOST_VALUES:,} values (what an alias stands for counts each time)")
    if depth > DEEPEST:
        raise _wrong(node, origin, f"nested more than {DEEPEST} levels deep")
    known[id(node)] = size, depth
    return size, depth


def _check_names(node: yaml.MappingNode, origin: str) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (_PREFIX + "str", _PREFIX + "merge"):
            raise _wrong(key, origin, "the name of a field must be text; put it in quotes")
        _check_text(key.value, key, origin)
        if key.value in lines:
            name = printable(key.value)
            raise _wrong(key, origin, f"{name} stands here again, after line {lines[key.value]}; keep one of them")
        lines[key.value] = key.start_mark.line + 1


def _check_scalar(node: yaml.ScalarNode, origin: str) -> None:
    kind = node.tag.removeprefix(_PREFIX)
    if kind in ("int", "float") and len(node.value) > 100:
        raise _wrong(node, origin, f"a number of {len(node.value):,} characters")
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError, LookupError, ArithmeticError):
        raise _wrong(node, origin, f"{printable(node.value)!r} is not {kind}") from None
    if isinstance(value, int) and abs(value) >= 2**63:
        raise _wrong(node, origin, f"{printable(node.value)} is beyond 64 bits")
    _check_text(node.value, node, origin)


def _check_text(text: str, node: yaml.Node, origin: str) -> None:
    for character in text:
        if (character < " " and character not in "\n\t") or "\ud800" <= character <= "\udfff":
            raise _wrong(node, origin, f"text with the character U+{ord(character):04X}, which is none to be read")


def _wrong(node: yaml.Node, origin: str, why: str) -> TreeringError:
    return TreeringError(f"{origin}:{node.start_mark.line + 1}: {why}.")
