"""What a run in progress says of itself, and what can be seen of one from another process, without touching it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treering.errors import TreeringError
from treering.output import unfinished_of, write_file, writer_of
from treering.reading import inside, printable, read_json
from treering.recipe import Schema

STATUS, MOST_BYTES = "status.json", 2**14
"""The file in ``OUTPUT.unfinished``, and its largest size."""

RECORDS = ("training.json", "growth.json", "study.json", "continual.json", "composition.json", "results.json")
"""Files of which a finished output has one: of a run, a study, a demo."""

MOST_RUNS = 10_000
"""Unfinished runs below a directory that are looked at."""

Count = Annotated[int, Field(ge=0, le=10**18)]
Number = Annotated[float, Field(ge=0, le=1e18)]
State = Literal["running", "stopped", "complete"]


@dataclass(frozen=True)
class Part:
    """Which part of which output a run makes: all of it, or one of the stages of a growth, from 1."""

    output: Path
    stage: int | None = None
    stages: int | None = None

    @property
    def name(self) -> str:
        """What it is called where it stands beside others."""
        return self.output.name + (f"-stage-{self.stage}" if self.stage else "")


class Validation(Schema):
    """A validation of a run."""

    step: Count
    bits_per_byte: Number


class Status(Schema):
    """Where a run stands; loss in nats per token, times in seconds, ``updated`` since 1970."""

    stage: Count | None = None
    stages: Count | None = None
    step: Count
    steps: Count
    tokens: Count
    tokens_per_second: Number
    seconds_left: Number
    loss: Number | None = None
    bits_per_byte: Number | None = None
    validation: Validation | None = None
    best: Validation | None = None
    updated: Number


class Finished(BaseModel):
    """What a finished run says in ``training.json``."""

    model_config = ConfigDict(allow_inf_nan=False, frozen=True)

    steps: Count
    kept_step: Count
    tokens: Count
    seconds: Number
    validation_bits_per_byte: Number


@dataclass(frozen=True)
class Seen:
    """What can be seen of an output's run.

    Attributes:
        run: which of the runs of a study or demo goes on, by its path in the output; empty where there is but one.
        process: the number of the one that writes.
        status: what the run said last; None where it has said nothing, or what it said cannot be read.
        finished: of a single complete run.
    """

    output: str
    state: State
    run: str = ""
    process: int | None = None
    status: Status | None = None
    finished: Finished | None = None


class NoRun(TreeringError):
    """There is nothing to look at, or not yet."""


def announce(unfinished: Path, status: Status) -> None:
    """Leave a status in the directory of an unfinished run; a disk that does not take it disturbs nobody."""
    with contextlib.suppress(OSError):
        write_file(unfinished / STATUS, status.model_dump_json(), synced=False)


def look(output: str | os.PathLike[str]) -> Seen:
    """What goes on at an output of ``train``, ``grow``, ``study`` or ``demo``; nothing is locked or written.

    Raises:
        NoRun: nothing is there.
    """
    place = Path(output).absolute()
    process = writer_of(place) if place.name else None  # first: it may come to its end while the rest is looked at
    unfinished = _in_progress(place)
    made = place if unfinished is None else unfinished.with_name(unfinished.name.removesuffix(".unfinished"))
    process = process or (None if made == place else writer_of(made))
    name, run = os.fspath(output), "" if made == place else made.relative_to(place).as_posix()
    status = None if unfinished is None else _status(unfinished)
    if process is not None:
        return Seen(name, "running", run, process, status)
    if unfinished is not None:
        return Seen(name, "stopped", run, None, status)
    if any((place / record).is_file() for record in RECORDS):
        return Seen(name, "complete", finished=_finished(place))
    if (place / "runs").is_dir():
        return Seen(name, "stopped")
    raise NoRun(
        f"There is no run at {printable(name)}: neither an output nor an unfinished one. Give the directory that "
        "train, grow or study was given as output (-o)."
    )


def _in_progress(output: Path) -> Path | None:
    """The directory of the unfinished run of an output, or of those below it the one that was heard of last."""
    if not output.name:
        return None
    if (own := unfinished_of(output)).is_dir():
        return own
    below = chain.from_iterable(output.glob("*/" * depth + "*.unfinished") for depth in range(3))
    return max(islice(below, MOST_RUNS), key=_heard, default=None)


def _heard(unfinished: Path) -> float:
    status = _status(unfinished)
    return status.updated if status else 0.0


def _status(unfinished: Path) -> Status | None:
    try:
        return Status.model_validate(_json(unfinished, STATUS, MOST_BYTES))
    except (TreeringError, ValidationError, OSError):
        return None


def _finished(output: Path) -> Finished | None:
    try:
        record = _json(output, "training.json")
        return Finished.model_validate(record.get("measured") if isinstance(record, dict) else None)
    except (TreeringError, ValidationError, OSError):
        return None


def _json(directory: Path, name: str, most: int = 2**28) -> Any:
    return read_json(inside(directory, name), most)
