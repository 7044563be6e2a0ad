"""Recipes: YAML files checked against a schema, with errors that name file, line and field."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from treering.assignment import assigned, parse_assignment
from treering.errors import TreeringError
from treering.plain_yaml import parse
from treering.reading import printable

TAG = "#"
"""Begins the tags of unions in recipes, so that they are told from fields."""

MOST_BYTES = 2**17
"""Of a recipe's file."""

MOST_FAULTS = 20
"""That are listed at once."""


class Schema(BaseModel):
    """Base of everything a recipe may hold: unknown fields are errors, numbers finite, values do not change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    ready: ClassVar[Mapping[str, Mapping[str, BaseModel]]] = {}
    """Fields that may be a name, with what each name stands for: so that parts of that can be set."""


Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""A seed that every library takes, with room for those that follow from it."""

Recipe = TypeVar("Recipe", bound=Schema)


def load_recipe(
    path: str | os.PathLike[str],
    schema: type[Recipe],
    overrides: Mapping[str, Any] | None = None,
    assignments: Sequence[str] = (),
) -> Recipe:
    """Read a YAML recipe and check it against ``schema``.

    Args:
        overrides: replace top-level fields before the check, where they are not None.
        assignments: ``FIELD=VALUE`` for any field, however deep, with a value in YAML (see ``treering.assignment``);
            they come last.

    Raises:
        TreeringError: the file is missing, is not YAML, or does not fit; every fault is listed with its line.
    """
    path = Path(path)
    values, node = parse(_read(path), f"{path}")
    if not isinstance(values, dict):
        raise TreeringError(f"{path} must hold fields (name: value), but it is a {type(values).__name__}.")
    values |= {name: value for name, value in (overrides or {}).items() if value is not None}
    return _validate(schema, values, f"{path}", node, assignments)


def check_recipe(
    values: Mapping[str, Any], schema: type[Recipe], origin: str, assignments: Sequence[str] = ()
) -> Recipe:
    """Check plain values against ``schema`` with the same messages as a file; ``origin`` names where they came from."""
    return _validate(schema, dict(values), origin, None, assignments)


def _read(path: Path) -> str:
    if not path.exists():
        raise TreeringError(f"There is no recipe {path}. Commented ones to start from: treering init.")
    if not path.is_file():
        raise TreeringError(f"{path} is no file; give the YAML file of the recipe.")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise TreeringError(f"{path} is larger than {MOST_BYTES >> 10} KiB, which no recipe is.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TreeringError(f"{path} is not UTF-8 text (byte {error.start}).") from None


def _validate(
    schema: type[Recipe], values: dict[str, Any], origin: str, node: yaml.Node | None, assignments: Sequence[str]
) -> Recipe:
    parsed = [parse_assignment(text) for text in assignments]
    if parsed:
        lists = _default_lists(schema)
        for assignment in parsed:
            values = assigned(_spelled_out(schema, values, assignment.place), assignment, lists)
    places = [assignment.place for assignment in parsed]
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        details = error.errors()[: 50 * MOST_FAULTS]
        faults = [_fault(schema, detail, origin, node, places) for detail in details if not _follows(detail, details)]
        more = [f"… and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
        raise TreeringError("\n".join(faults[:MOST_FAULTS] + more)) from None


def _follows(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Whether a list is said to be too short only because what it holds is faulty itself."""
    place = detail["loc"]
    return detail["type"] == "too_short" and any(
        other["loc"][: len(place)] == place and len(other["loc"]) > len(place) for other in details
    )


def _spelled_out(schema: type[Schema], values: dict[str, Any], place: Sequence[str]) -> dict[str, Any]:
    """``values`` with the fields that a name stands for in its stead, where one of them is to be set."""
    name = values.get(place[0])
    known = schema.ready.get(place[0], {})
    if len(place) == 1 or not isinstance(name, str) or name not in known:
        return values
    return values | {place[0]: known[name].model_dump(by_alias=True, exclude_none=True)}


def _default_lists(schema: type[BaseModel], above: tuple[str, ...] = ()) -> dict[tuple[str, ...], Sequence[Any]]:
    """What the lists of a schema, and of those that its fields always have, hold when nothing is said."""
    found: dict[tuple[str, ...], Sequence[Any]] = {}
    for name, field in _fields_of(schema).items():
        place = (*above, name)
        if isinstance(field.default, list | tuple):
            found[place] = field.default
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _default_lists(field.annotation, place)
    return found


def _fault(
    schema: type[BaseModel],
    detail: ErrorDetails,
    origin: str,
    node: yaml.Node | None,
    assigned_places: Sequence[tuple[str, ...]],
) -> str:
    location = tuple(part for part in detail["loc"] if not _is_tag(part))
    line = _line_of(node, location)
    where = f"{origin}:{line}" if line else origin
    parts = tuple(str(part) for part in location)
    unknown = detail["type"] == "extra_forbidden"
    if any(parts[: len(place)] == place or (unknown and place[: len(parts)] == parts) for place in assigned_places):
        where = "--set"
    field = printable(".".join(parts))
    message = printable(detail["msg"][:1].lower() + detail["msg"][1:], 1_000)
    if unknown:
        known = _fields_at(schema, detail["loc"][:-1])
        close = difflib.get_close_matches(str(location[-1])[:100], known, n=1)
        message = "there is no such field" + (
            f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}" if known else ""
        )
    elif detail["type"] == "missing":
        message = "this field is required"
    else:
        message += f" (got {printable(repr(detail['input']))})"
    return f"{where}: {field}: {message}"


def _is_tag(part: int | str) -> bool:
    """Whether a part of a fault's place names no field but the kind of a union that was taken (pydantic's Tag)."""
    return isinstance(part, str) and part.startswith(TAG)


def _fields_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The fields that a place in a recipe may have."""
    annotation: Any = schema
    for part in location:
        if _is_tag(part):
            kinds = (get_args(kind) for kind in get_args(annotation))
            annotation = next(
                (kind[0] for kind in kinds if any(part == getattr(m, "tag", "") for m in kind)), annotation
            )
        elif isinstance(part, str):
            field = _fields_of(annotation).get(part)
            annotation = field.annotation if field else annotation
    return list(_fields_of(annotation))


def _fields_of(annotation: Any) -> dict[str, FieldInfo]:
    """Those of the schema that an annotation holds: ``Stage`` of ``tuple[Stage, ...]``, ``Lora`` of ``Lora | None``."""
    candidates = (annotation, *get_args(annotation))
    found = (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return next(({f.alias or name: f for name, f in schema.model_fields.items()} for schema in found), {})


def _line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int | None:
    """The 1-based line of a field in the file, or of the nearest parent that the file does hold."""
    line = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
