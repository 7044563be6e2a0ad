"""``FIELD=VALUE``: a recipe's field said on the command line, as ``training.learning_rate=1e-3``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treering.errors import TreeringError
from treering.plain_yaml import parse
from treering.reading import printable


@dataclass(frozen=True)
class Assignment:
    """A value, and the names and positions (in lists, from 0) that lead to its field."""

    place: tuple[str, ...]
    value: Any

    def __str__(self) -> str:
        return f"--set {printable('.'.join(self.place))}"


def parse_assignment(text: str) -> Assignment:
    """The place and the value of ``training.tokens=1_000``; the value is YAML, and nothing stands for none.

    Raises:
        TreeringError: there is no ``=``, a name is missing, or the value is not YAML.
    """
    field, separator, value = text.partition("=")
    place = tuple(part.strip() for part in field.split("."))
    if not separator or not all(place):
        raise TreeringError(
            f"--set {printable(text)} does not say which field is to be what: write FIELD=VALUE, for example "
            "training.learning_rate=1e-3."
        )
    parsed, node = parse(value, f"--set {printable(field.strip())}")
    return Assignment(place, None if node is None else parsed)


def assigned(
    values: Mapping[str, Any], assignment: Assignment, lists: Mapping[tuple[str, ...], Sequence[Any]]
) -> dict[str, Any]:
    """``values`` with the assigned field; what is given is not changed.

    Fields and lists on the way that are not there are made. ``lists`` has what such a list holds when no recipe says
    it, by its place.

    Raises:
        TreeringError: something on the way is neither fields nor a list, or a list is too short.
    """
    made = _assigned(values, assignment, (), lists)
    assert isinstance(made, dict)
    return made


def _assigned(
    held: Any, assignment: Assignment, above: tuple[str, ...], lists: Mapping[tuple[str, ...], Sequence[Any]]
) -> Any:
    if above == assignment.place:
        return assignment.value
    part, here = assignment.place[len(above)], printable(".".join(above))
    if held is None:
        held = lists.get(above, []) if part.isdecimal() else {}
    below = (*above, part)
    if isinstance(held, Mapping):
        return {**held, part: _assigned(held.get(part), assignment, below, lists)}
    if not isinstance(held, list | tuple):
        raise TreeringError(
            f"{assignment}: {here} is {printable(repr(held))}, which has no fields; set it as a whole: "
            f"--set '{here}={{...}}'."
        )
    position = int(part) if part.isdecimal() else -1
    if not 0 <= position <= len(held):
        raise TreeringError(
            f"{assignment}: {here} is a list of {len(held)}, counted from 0; {printable(part)} is neither one of them "
            "nor the next."
        )
    inner = held[position] if position < len(held) else None
    return [*held[:position], _assigned(inner, assignment, below, lists), *held[position + 1 :]]
