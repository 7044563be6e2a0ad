"""What may stand in a recipe: the fields of a schema, in the reference of its class."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from sphinx.util.inspect import object_description
from sphinx.util.typing import stringify_annotation

from treering.recipe import Schema


def _told(name: str, field: FieldInfo) -> str:
    kind = stringify_annotation(field.annotation, "smart").replace("~", "")
    given = "" if field.is_required() else f" = {object_description(field.get_default(call_default_factory=True))}"
    about = f": {field.description}" if field.description else ""
    return f"* ``{field.alias or name}{given}`` (``{kind}``){about}"


def _add_fields(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    if isinstance(thing, type) and issubclass(thing, Schema):
        lines += ["", "Fields:", "", *(_told(name, field) for name, field in thing.model_fields.items()), ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell of the fields wherever a schema is described."""
    app.connect("autodoc-process-docstring", _add_fields)
    return {"parallel_read_safe": True}
