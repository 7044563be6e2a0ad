"""The optimiser's state between stages: stored beside them, and moved to where its parameters have moved."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from treering import backbone
from treering.growth.blocks import sources
from treering.growth.plan import Step
from treering.output import staged_directory
from treering.seal import seal
from treering.training.run import Moments
from treering.training.unfinished import remove, sound

FILE = "moments.safetensors"


def save_moments(moments: Moments, place: Path, stage: int) -> None:
    """Keep the state after a stage, in a directory of its own: a stage begun again begins as it did before.

    That of the stage before stays, in case that this one is found damaged and must be trained again; older ones go.
    """
    remove(_directory(place, stage))  # of the same stage, trained before
    with staged_directory(_directory(place, stage)) as staging:
        save_file(
            {f"{name}:{key}": value for name, kept in moments.items() for key, value in kept.items()}, staging / FILE
        )
        seal(staging)
    remove(_directory(place, stage - 2))


def has_moments(place: Path, stage: int, console: Console) -> bool:
    """Whether the state after a stage is there, and is what was written."""
    return sound(_directory(place, stage), console)


def load_moments(place: Path, stage: int) -> Moments:
    """The state after a stage."""
    moments = Moments()
    for name, value in load_file(_directory(place, stage) / FILE).items():
        parameter, _, key = name.rpartition(":")
        moments.setdefault(parameter, {})[key] = value
    return moments


def moved(moments: Moments, before: Step, step: Step, model: PreTrainedModel) -> Moments:
    """The optimiser's state that a stage goes on with, under the names that its blocks have.

    Old blocks may have moved up. Blocks that were tied in the stage before, and new ones that are copies, have the
    state of the block that they come from.
    """
    place, new = backbone.family(model.config).blocks, step.stage.new
    old = [number for number in range(1, step.depth + 1) if number not in new]
    stood = {number: index for index, number in enumerate(old, 1)} | sources(new, len(old), step.stage.start)
    leaders = before.stage.leaders()
    found = {name: kept for name, kept in moments.items() if not name.startswith(f"{place}.")}
    for number, source in stood.items():
        own, theirs = f"{place}.{number - 1}.", f"{place}.{leaders.get(source, source) - 1}."
        found |= {own + name.removeprefix(theirs): kept for name, kept in moments.items() if name.startswith(theirs)}
    return found


def _directory(place: Path, stage: int) -> Path:
    return place / "moments" / f"{stage}"
