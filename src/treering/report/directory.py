"""What a directory holds, as a page: a trained expert, a grown model, a composition, or a study."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from treering.composition import list_experts
from treering.composition.loading import read_composition
from treering.composition.schema import Origin
from treering.errors import TreeringError
from treering.evaluation.gains import Gains
from treering.growth.continual import Result
from treering.growth.outcome import Outcome
from treering.growth.stages import StageResult
from treering.reading import inside, printable, read_json
from treering.report.page import Report
from treering.report.reproduction import reproduction_report
from treering.report.runs import composition_report, growth_report, training_report
from treering.report.studies import composition_study_report, continual_report, growth_study_report
from treering.reproduction import Reproduction
from treering.training.status import Finished

MOST = 64 * 2**20
"""Bytes of a file that is read."""
LARGEST = 1e30
"""The largest number, in either direction, that a figure is drawn of."""

Studied = Literal["growth study", "continual study", "composition study", "reproduction study"]
Kind = Literal["trained", "grown", "composition"] | Studied
Read = TypeVar("Read")


class Entry(BaseModel):
    """An entry of ``history.json``: of a training step, or of a validation."""

    model_config = ConfigDict(frozen=True)

    step: int
    tokens: float
    stage: int | None = None
    loss: float | None = None
    bits_per_byte: float | None = None
    eval_loss: float | None = None
    eval_bits_per_byte: float | None = None

    @model_validator(mode="after")
    def _whole(self) -> Entry:
        if (self.loss is None) != (self.bits_per_byte is None) or (self.eval_loss is None) != (
            self.eval_bits_per_byte is None
        ):
            raise ValueError("a loss without its bits per byte")
        return self


class Record(BaseModel):
    """A run's ``training.json``."""

    model_config = ConfigDict(frozen=True)

    measured: Finished
    settings: dict[str, Any] = {}
    origin: Origin = Origin()


class AbilityRecord(BaseModel):
    """An entry of ``abilities.json``; see ``treering.evaluation.Ability``."""

    model_config = ConfigDict(frozen=True)

    text: str
    measure: str
    value: float
    low: float
    high: float
    count: Annotated[int, Field(ge=0)]


Filled = Annotated[list[Read], Field(min_length=1)]


def report_of(directory: str | os.PathLike[str]) -> Report:
    """The page of what a directory holds.

    Raises:
        TreeringError: it holds nothing that a page is made of, or what is there is damaged.
    """
    place = Path(directory)
    kind, name = kind_of(place), printable(place.absolute().name)
    command = f"treering report {name}"
    if kind == "growth study":
        outcomes = _read(place, "study.json", Filled[Outcome])
        return growth_study_report(outcomes, _histories(place, outcomes), command)
    if kind == "continual study":
        results = _read(place, "continual.json", Filled[Result])
        if any(not matrices or not all(matrices) for one in results for matrices in [list(one.matrices.values())]):
            raise TreeringError(f"{place / 'continual.json'} has no matrices. Run the study's command again.")
        return continual_report(results, command)
    if kind == "composition study":
        return composition_study_report(_read(place, "composition.json", Gains), command)
    if kind == "reproduction study":
        return reproduction_report(_read(place, "reproduction.json", Reproduction), command)
    if kind == "composition":
        config = read_composition(place)
        fitted = bool((config.fusion or {}).get(str(config.rule).partition(":")[0]))
        return composition_report(name, printable(str(config.rule)), fitted, _harmless(list_experts(place)), command)
    history = [e.model_dump(exclude_none=True) for e in _read(place, "history.json", list[Entry])]
    record = _read(place, "training.json", Record).model_dump()
    if kind == "trained":
        return training_report(name, history, record, command)
    stages = _read(place, "growth.json", _Growth).stages
    return growth_report(name, history, record, stages, _abilities(place, stages), command)


def kind_of(directory: Path) -> Kind:
    """What a directory holds, by the files in it.

    Raises:
        TreeringError: nothing that a page is made of.
    """

    def has(name: str) -> bool:
        return (directory / name).is_file()

    if has("continual.json"):
        return "continual study"
    if has("reproduction.json"):
        return "reproduction study"
    if has("composition.json"):
        return "composition study"
    if has("study.json") and isinstance(read_json(inside(directory, "study.json"), MOST), list):
        return "growth study"
    if has("growth.json") and has("history.json"):
        return "grown"
    if has("training.json") and has("history.json"):
        return "trained"
    if has("config.json"):
        config = read_json(inside(directory, "config.json"), MOST)
        if isinstance(config, dict) and config.get("model_type") == "treering_composition":
            return "composition"
    if has("demo.json") and has("report.html"):
        raise TreeringError(f"{directory} is a demo, which has its page: {directory / 'report.html'}.")
    raise TreeringError(
        f"{directory} holds nothing that a page is made of. Give what train, grow, compose or study made; of one that "
        "goes on, treering watch tells."
    )


def page_of(directory: str | os.PathLike[str]) -> Path:
    """Where the page of a directory is, unless told otherwise: of a study in it, of a model beside it.

    What lies in a model's directory is the model, which is compared, sealed and published as a whole.
    """
    place = Path(directory).absolute()
    return place / "report.html" if kind_of(place).endswith("study") else place.with_name(f"{place.name}.html")


class _Growth(BaseModel):
    stages: Annotated[list[StageResult], Field(min_length=1)]


def _histories(study: Path, outcomes: list[Outcome]) -> dict[str, list[dict[str, Any]]]:
    """By row that read the same tokens, the loss curve of its first run with the chosen settings, where it is there."""
    found = {}
    for one in outcomes:
        own = inside(study, f"runs/{one.name.replace(' ', '-').replace(',', '')}/x").parent
        chosen = f"{one.learning_rate:g}-{one.warmup:g}-{one.schedule}-"
        runs = sorted(p for p in own.glob("*") if p.name.startswith(chosen) and (p / "history.json").is_file())
        if runs and not one.name.endswith("equal compute"):
            entries = _read(runs[0], "history.json", list[Entry])
            found[one.name] = [entry.model_dump(exclude_none=True) for entry in entries]
    return found


def _abilities(place: Path, stages: list[StageResult]) -> dict[int, list[dict[str, Any]]]:
    """By stage, what was measured after it."""
    return {
        stage.number: [e.model_dump() for e in _read(place, name, list[AbilityRecord])]
        for stage in stages
        if inside(place, name := f"stages/{stage.number}/abilities.json").is_file()
    }


def _read(directory: Path, name: str, kind: type[Read] | Any) -> Any:
    """A JSON file of a directory as what it shall be.

    Raises:
        TreeringError: it is not.
    """
    values = _harmless(read_json(inside(directory, name), MOST))
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        why = printable(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        raise TreeringError(
            f"{directory / name} is not what Treering writes there: {why}. Run the command that made it again."
        ) from None


def _harmless(value: Any) -> Any:
    """What a JSON file holds with its strings made printable.

    Raises:
        TreeringError: a number is none that can be drawn.
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): _harmless(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_harmless(own) for own in value]
    if isinstance(value, (int, float)) and not abs(value) <= LARGEST:  # NaN is not, either
        raise TreeringError(
            "A number in what a page shall be made of is none that can be drawn. It is not to be trusted."
        )
    return value
