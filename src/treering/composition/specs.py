"""Rules by name, as people write them: ``evidence:switch=0.01``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import Field, create_model

from treering.composition.rules import RULES, Joined, Rule
from treering.errors import TreeringError
from treering.recipe import Schema, check_recipe

DEFAULT_RULE = "evidence:switch=0.01"
"""Measured best of those that need no fitting (docs/rules.md)."""


def rule(spec: str) -> Rule:
    """The rule that ``spec`` names, as ``evidence`` or ``evidence:switch=0.01``.

    Raises:
        TreeringError: there is no such rule (all are listed), or a parameter that it does not have or allow.
    """
    name, _, text = spec.partition(":")
    if name == "oracle":
        raise TreeringError(
            "The oracle knows a whole document before it begins: it is a yardstick of treering eval forgetting, "
            "not a rule that a model could use."
        )
    if name not in RULES:
        raise TreeringError(f"There is no composition rule {name!r}. There are: {', '.join(RULES)}.")
    values = dict(part.partition("=")[::2] for part in text.split(",") if part)
    checked = check_recipe(values, parameters(RULES[name].function), f"rule {spec!r}")
    chosen = checked.model_dump(exclude_unset=True)
    return replace(RULES[name], parameters=chosen)


def parameters(function: Callable[..., Joined]) -> type[Schema]:
    """The schema of a rule's keyword-only parameters; limits beside a type (``rules.Share``) are pydantic's by name."""
    signature = inspect.signature(function, eval_str=True).parameters.values()
    fields: Any = {p.name: _field(p.annotation, p.default) for p in signature if p.kind is p.KEYWORD_ONLY}
    return create_model(function.__name__, __base__=Schema, **fields)


def _field(annotation: Any, default: Any) -> tuple[Any, Any]:
    notes = getattr(annotation, "__metadata__", ())
    limits = {name: limit for note in notes if isinstance(note, dict) for name, limit in note.items()}
    return annotation, Field(default, **limits)
