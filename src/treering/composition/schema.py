"""What a composition's ``config.json`` may say; it was written by a stranger, so it is checked wherever it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from torch import nn
from transformers import PreTrainedConfig

from treering.backbone import Sha256, Standing
from treering.composition.layout import substrate_key
from treering.composition.rules import RULES
from treering.errors import TreeringError
from treering.reading import printable

MOST_CONFIGURATION = 64 * 2**20
"""Bytes of a ``config.json``; the list of a corpus's files is the longest that an honest one holds."""
MOST_EXPERTS = 1_000
MOST_LAYERS = 10_000
"""Ten times the deepest model there was: families make lists as long as this before a tensor is looked at."""
_HEAVIEST = 1e30
_DEEPEST = 32
_FAULTS = 10


def sound_configuration(values: Any) -> Any:
    """A model's own configuration, which may neither shadow what its class does, nor ask for endless lists or for code.

    Raises:
        ValueError: it does; says which field.
    """
    for key, value in values.items() if isinstance(values, dict) else ():
        name = str(key)
        if not name.isprintable() or name.startswith("__") or callable(getattr(PreTrainedConfig, name, None)):
            raise ValueError(f"{printable(name)} is no field of a model's configuration")
        if re.search(r"(layers?|depth)$", name) and isinstance(value, int) and value > MOST_LAYERS:
            raise ValueError(f"{name} is {value:,}, but no model of more than {MOST_LAYERS:,} layers is loaded")
        if name.endswith("_implementation") and value is not None and not str(value).isidentifier():
            raise ValueError(f"{name} names code from elsewhere, {printable(str(value))}, which is not run")
        if name.endswith("_config"):
            sound_configuration(value)
    return values


def _name(name: str) -> str:
    """What can be a file's and a module's name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise ValueError(
            f"{printable(repr(name))} cannot be an expert's name: use at most 100 letters, digits, '-' and '_' "
            "(NAME=DIR on the command line)"
        )
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(f"{name!r} cannot be an expert's name: PyTorch keeps it for itself. Choose another")
    return name


def _fitted(name: str) -> str:
    if name not in RULES:
        raise ValueError(f"there is no composition rule {printable(repr(name))} that could have been fitted")
    return name


Name = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, Field(max_length=10_000)]


class _Part(BaseModel):
    """Known fields are what they should be; whatever else somebody noted stays."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class Source(_Part):
    """One source of a corpus."""

    name: Text


class Data(_Part):
    """The manifest of an expert's corpus."""

    sources: list[Source] = []


class Measured(_Part):
    """What training measured."""

    tokens: Annotated[int, Field(ge=0, le=2**63)] | None = None


class Stage(_Part):
    """A stage of a growth: the blocks that it added, as ``31-32``."""

    new: Text = ""


class Plan(_Part):
    """How a model was grown."""

    stages: list[Stage] = []


class Growth(_Part):
    """A growth that ended."""

    plan: Plan = Plan()


class Shared(_Part):
    """A model, and its share: of a mean, or, as the teacher of an expert, of its loss."""

    name: Text
    share: float


class Origin(_Part):
    """What an expert was made from: ``start``, the expert that it went on from, and the digest of that one's weights;
    of a mean, ``average``, the models whose mean it is; ``teacher``, from whom it learnt beside its text."""

    data: Data | None = None
    sources: list[Text] = []
    start: Annotated[str, Field(max_length=1_000)] | None = None
    weights: Sha256 | None = None
    growth: Growth | None = None
    average: Annotated[list[Shared], Field(max_length=MOST_EXPERTS)] = []
    teacher: Shared | None = None


class Training(_Part):
    """An expert's ``training.json``."""

    origin: Origin = Origin()
    measured: Measured = Measured()


class ExpertConfiguration(_Part):
    """What must hold of an expert's own configuration before its family reads it."""

    model_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
    dtype: Literal["float32", "float64", "bfloat16", "float16"]
    treering: Standing | None = None


class Path(_Part):
    """The names of an expert's parts, the blocks from the lowest on."""

    embedding: Sha256
    blocks: Annotated[list[Sha256], Field(max_length=MOST_LAYERS)]
    norm: Sha256
    head: Sha256


class Expert(_Part):
    """One expert's record."""

    name: Name
    weight: float
    substrate: Sha256 | None
    config: Annotated[ExpertConfiguration, BeforeValidator(sound_configuration)]
    origin: Text | None = None
    licence: Text | None = None
    fingerprint: Sha256 | None = None
    path: Path | None = None
    data: Data | None = None
    training: Training | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Expert:
        if not 0 <= self.weight <= _HEAVIEST:
            raise ValueError(
                f"The weight of {self.name} is {self.weight}; a weight is a number of at least 0 (and at most 1e30)"
            )
        own = self.config.treering
        if self.substrate != (own.fingerprint if own and own.frozen else None):
            raise ValueError(f"the substrate of {self.name} is not the one that its own configuration names")
        return self


class Matrix(_Part):
    """A substrate's matrix as it is stored: its precision, and the SHA-256 of its shape and bytes."""

    dtype: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,20}$")]
    sha256: Sha256


class Composition(_Part):
    """The fields of `treering.composition.CompositionConfig`."""

    experts: Annotated[list[Expert], Field(max_length=MOST_EXPERTS)]
    rule: Annotated[str, Field(max_length=200)]
    fusion: dict[Annotated[str, AfterValidator(_fitted)], dict[str, Any] | None] | None
    treering: Standing | None
    substrates: dict[Sha256, Matrix] | None

    @model_validator(mode="after")
    def _consistent(self) -> Composition:
        names = [expert.name for expert in self.experts]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two experts are called {min(twice)}")
        if names and not any(expert.weight for expert in self.experts):
            raise ValueError("All weights are 0: at least one expert must count")
        substrates = {expert.substrate for expert in self.experts if expert.substrate}
        if len({substrate_key(substrate) for substrate in substrates}) < len(substrates):
            raise ValueError("two substrates have one name")
        return self


def expert_name(name: str) -> None:
    """Refuse what cannot be an expert's name.

    Raises:
        TreeringError: it could not be a file's or a module's.
    """
    try:
        _name(name)
    except ValueError as error:
        raise TreeringError(f"{error}.") from None


def check(schema: type[BaseModel], values: Mapping[str, Any], origin: str) -> None:
    """Refuse values that do not fit a schema; ``origin`` says in the message where they are from.

    Raises:
        TreeringError: naming the first faults.
    """
    _require_shallow(values, origin)
    try:
        schema.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        told = []
        for fault in faults[:_FAULTS]:
            place = ".".join(printable(str(part)) for part in fault["loc"])
            given = fault["input"]
            got = f" (got {printable(repr(given))})" if isinstance(given, str | int | float | None) else ""
            message = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"] + got
            told.append(f"{origin}: {place}: {message}." if place else f"{origin}: {message}.")
        more = [f"… and {len(faults) - _FAULTS} more."] if len(faults) > _FAULTS else []
        raise TreeringError("\n".join([*told, *more])) from None


def check_fields(values: Any, origin: str) -> None:
    """`sound_configuration` for people: ``origin`` says in the message where the values are from.

    Raises:
        TreeringError: there is a field that cannot be.
    """
    _require_shallow(values, origin)
    try:
        sound_configuration(values)
    except ValueError as error:
        raise TreeringError(f"{origin}: {error}.") from None


def _require_shallow(values: Any, origin: str) -> None:
    """Refuse lists and mappings so deep in each other that copying or writing them would fail."""
    level = [values]
    for _ in range(_DEEPEST):
        containers = [value for value in level if isinstance(value, Mapping | list | tuple)]
        level = [below for value in containers for below in (value.values() if isinstance(value, Mapping) else value)]
    if any(isinstance(value, Mapping | list | tuple) for value in level):
        raise TreeringError(f"{origin}: values are nested more than {_DEEPEST} deep, which no honest ones are.")
