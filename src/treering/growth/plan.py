"""Growth plans as data: stages, each with its new blocks, what trains, for how long, from which start.

Blocks are numbered from 1, the lowest, as the paper numbers them. A baseline is a plan too: one stage in which
everything trains is monolithic training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from treering.errors import TreeringError
from treering.recipe import Schema
from treering.training import Training
from treering.training.settings import MOST_BLOCKS, BlockCount, Steps, Tokens

Start = Literal["random", "zero", "copy", "loop"]
Head = Literal["trained", "frozen"]
"""Whether the output head trains; a frozen one stays byte for byte what it was, tied to the embedding if it was."""


def _parse_blocks(value: Any) -> Any:
    """``"1-3,5"`` or a number to the blocks it means; a sequence stays as it is."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return value
    found: list[int] = []
    for part in filter(None, str(value).replace(" ", "").split(",")):
        if not (span := re.fullmatch(r"(\d+)(?:-(\d+))?", part)):
            raise ValueError('write blocks as "3", "1-3" or "1-3,5"')
        first, last = int(span[1]), int(span[2] or span[1])
        if last > MOST_BLOCKS:
            raise ValueError(f"a stack has {MOST_BLOCKS:,} blocks at most")
        found.extend(range(first, last + 1))
    return tuple(found)


def blocks_text(blocks: Iterable[int]) -> str:
    """Blocks as people write them: ``1-3,5``."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


Rate = Annotated[float, Field(gt=0, le=1)]
Blocks = Annotated[tuple[BlockCount, ...], BeforeValidator(_parse_blocks), PlainSerializer(blocks_text)]


class Lora(Schema):
    """Low-rank updates of the blocks that do not train otherwise, merged into their weights when the stage ends."""

    rank: int = Field(8, ge=1, le=2**20)
    alpha: float | None = Field(None, gt=0, description="scale of the update, times 1/rank; 2·rank if not given")
    targets: tuple[str, ...] | None = Field(None, description="names of linear layers in a block; all if not given")


class Turns(Schema):
    """Blocks that train by turns, a window of them at a time (block-coordinate descent)."""

    width: BlockCount = Field(2, description="blocks of a window")
    steps: Steps = Field(25, description="of the optimiser in a turn")
    head: bool = Field(
        False, description="head and final norm train in the turn of the lowest window alone, instead of always"
    )


class Stage(Schema):
    """One stage of a plan; what it leaves out is as the run's ``training`` says."""

    new: Blocks = Field((), description='blocks that this stage adds: "4-6", numbered in the deeper stack')
    insert: bool = Field(False, description="the new blocks may stand below old ones, which move up")
    train: Blocks | None = Field(None, description="blocks that train, in the deeper stack; the new ones if not given")
    turns: Turns | None = Field(None, description="the blocks train by turns instead of together, the upper ones first")
    tied: BlockCount | None = Field(
        None, description="the blocks that train are the first so many of them, over and over (1 2 1 2), in this stage"
    )
    start: Start = Field("zero", description="how new blocks begin")
    head: Head | None = Field(None, description="whether the output head trains; as the plan says if not given")
    lora: Lora | None = Field(None, description="train the other blocks too, by low-rank updates")
    tokens: Tokens | None = Field(None, description="tokens of this stage; or give share")
    share: float | None = Field(None, gt=0, le=1, description="of the run's tokens; or give tokens")
    patience: Steps | None = Field(None, description="end early after so many validations without gain")
    keep_moments: bool = Field(False, description="go on with the optimiser's state where a parameter has trained")
    warmup: float | None = Field(None, ge=0, lt=1, description="share of the stage's steps")
    rate: tuple[Rate, Rate] | None = Field(
        None, description="learning rate at the stage's begin and end, as shares of the run's, a line between them"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Stage:
        if (self.tokens is None) == (self.share is None):
            raise ValueError("give either tokens or share")
        return self

    @model_validator(mode="after")
    def _rate_falls(self) -> Stage:
        if self.rate is not None and self.rate[0] < self.rate[1]:
            raise ValueError("rate is [begin, end], and end is at most begin")
        return self

    @property
    def trained(self) -> tuple[int, ...]:
        """Blocks that train in full."""
        return self.new if self.train is None else self.train

    def windows(self) -> list[tuple[int, ...]]:
        """Blocks that train together, in the order of their turns; without turns, all that train."""
        blocks = sorted(self.trained, reverse=True)
        width = self.turns.width if self.turns else max(1, len(blocks))
        return [tuple(sorted(blocks[i : i + width])) for i in range(0, len(blocks), width)]

    def head_trains(self, window: tuple[int, ...]) -> bool:
        """Whether the final norm, and the head if it is not frozen, train in the turn of ``window``."""
        return not (self.turns and self.turns.head) or window == self.windows()[-1]

    def leaders(self) -> dict[int, int]:
        """For each block that trains the one that it shares its parameters with; by itself, but where tied."""
        blocks = sorted(self.trained)
        return {block: blocks[i % (self.tied or len(blocks))] for i, block in enumerate(blocks)}

    def training(self, run: Training, tokens: int) -> Training:
        """How this stage trains: as the run does, with what the stage says otherwise."""
        changes: dict[str, Any] = {"tokens": tokens, "epochs": None, "patience": self.patience or run.patience}
        if self.warmup is not None:
            changes["warmup"] = self.warmup
        if self.rate is not None:
            begin, end = self.rate
            changes |= {"learning_rate": run.learning_rate * begin, "schedule": "linear", "final_rate": end / begin}
        return run.model_copy(update=changes)


def trained_text(stage: Stage) -> str:
    """What of the blocks trains in a stage: ``3-4``, ``1-6 by turns of 2``, ``1-6 as 2``, ``3-4 + rank 8``."""
    turns = f" by turns of {stage.turns.width}" + " and head" * stage.turns.head if stage.turns else ""
    tied = f" as {stage.tied}" if stage.tied else ""
    return f"{blocks_text(stage.trained)}{turns}{tied}" + (f" + rank {stage.lora.rank}" if stage.lora else "")


class Plan(Schema):
    """Stages in order, and the parameters that may train at once."""

    stages: tuple[Stage, ...] = Field(min_length=1)
    head: Head = Field("trained", description="of stages that do not say it")
    budget: int | None = Field(None, ge=1, description="active parameters, never exceeded; none if not given")
    note: str = ""


@dataclass(frozen=True)
class Step:
    """A stage in its place: how deep the stack is then, and where the lowest thing that trains stands.

    Attributes:
        depth: blocks of the stack in this stage.
        below: blocks under the lowest that trains in any way; the frozen prefix.
    """

    number: int
    stage: Stage
    depth: int
    below: int


def steps(plan: Plan, depth: int = 0) -> list[Step]:
    """The stages in their places, from a stack of ``depth`` blocks on.

    Raises:
        TreeringError: a stage skips blocks, adds what is there, trains what is not, or has nothing to do; all such
            faults of the plan are listed.
    """
    found, faults = list[Step](), list[str]()
    for number, stage in enumerate(plan.stages, 1):
        stage = stage.model_copy(update={"head": stage.head or plan.head})
        faults += [f"Stage {number} {fault}" for fault in _faults(stage, depth)]
        depth += len(stage.new)
        below = 0 if stage.lora else min(stage.trained, default=depth + 1) - 1
        found.append(Step(number, stage, depth, below))
    if faults:
        raise TreeringError("\n".join(faults))
    return found


def _faults(stage: Stage, depth: int) -> Iterator[str]:
    deeper = depth + len(stage.new)
    on_top = tuple(range(depth + 1, deeper + 1))
    if len(set(stage.new)) < len(stage.new) or len(set(stage.trained)) < len(stage.trained):
        yield "names a block twice."
    elif max(stage.new, default=0) > deeper:
        yield (
            f"adds blocks {blocks_text(stage.new)} to a stack of {depth}, which skips blocks: "
            f"the next would be {blocks_text(on_top)}."
        )
    elif stage.new and tuple(sorted(stage.new)) != on_top and not stage.insert:
        yield (
            f"adds blocks {blocks_text(stage.new)}, but a stack of {depth} has some of them already. The next would be "
            f"{blocks_text(on_top)}; to put new blocks below old ones, say insert: true; to train old ones, name them "
            "in train."
        )
    if beyond := [block for block in stage.train or () if block > deeper]:
        yield f"trains block {beyond[0]}, and the stack has {deeper}."
    if stage.head == "frozen" and not depth:
        yield (
            "freezes the head of a model that has no block yet: with a new vocabulary (substrate:) a head knows "
            "nothing and has to train. Say head: trained, or give model: to grow an existing one."
        )
    if not deeper:
        yield "has no block to train; the first one adds some (new: 1-2, say)."
    elif not stage.trained and not stage.lora and not stage.new:
        yield "changes nothing: it adds no block, trains none and has no lora."
    if stage.turns and stage.turns.head and len(stage.windows()) < 2:
        yield "lets the head take turns with its blocks, but all of them train at once: give turns a smaller width."
    if stage.turns and stage.turns.head and stage.head == "frozen":
        yield "lets the head take turns with its blocks, but freezes it: leave out one of the two."
    if stage.tied and stage.turns:
        yield "has both tied and turns: tied blocks train at once."
    if stage.tied and stage.tied >= len(stage.trained):
        yield f"ties its blocks as {stage.tied}, but trains no more than {len(stage.trained)}."
    elif stage.tied and (lost := [b for b, own in stage.leaders().items() if b != own and b not in stage.new]):
        yield (
            f"ties block {lost[0]}, which is old, to another and would lose what it has learned; tie new blocks "
            "to the ones before them."
        )
    if stage.lora and len(set(stage.trained)) == deeper:
        yield "has lora, but all its blocks train in full: no frozen one is left for it."
