"""The stages of a run on the disk: each the complete model after it and what it measured; and what they become."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from treering.errors import TreeringError
from treering.growth.cost import StageCost
from treering.growth.moments import has_moments
from treering.growth.plan import Step, blocks_text, trained_text
from treering.output import link_or_copy, staged_directory
from treering.publishing.card import write_card
from treering.seal import SEAL
from treering.training.unfinished import put_aside, sound

RECORD = "growth.json"
"""What a run is: its plan, training, prefix and origin; of a finished one, also what its stages reached."""

PICTURE = "growth.png"


@dataclass(frozen=True)
class StageResult:
    """What a stage was and what it reached; ``flops`` with the prefix recomputed, ``prefix_seconds`` for its cache."""

    number: int
    depth: int
    new: str
    train: str
    total: int
    active: int
    flops: float
    steps: int
    tokens: int
    seconds: float
    prefix_seconds: float
    tokens_per_second: float
    validation_bits_per_byte: float


@dataclass(frozen=True)
class GrowthResult:
    """The stages in order; ``history`` is their loss curves one after another, each entry with its ``stage``."""

    stages: list[StageResult]
    history: list[dict[str, Any]]


def stage_of(place: Path, number: int) -> Path:
    """Where a run that lives in ``place`` leaves a stage."""
    return place / "stages" / f"{number}"


def to_train(place: Path, placed: Sequence[Step], console: Console) -> set[int]:
    """Stages that are not there, or not whole, or after which the optimiser's state is missing that another needs.

    What is damaged is told and put aside. A stage that is trained again ends with the same bytes, so that later ones
    stay what they are.
    """
    missing = {step.number for step in placed if not sound(stage_of(place, step.number), console)}
    for step in reversed(placed):
        before = step.number - 1
        needed = step.number in missing and step.stage.keep_moments and before > 0 and before not in missing
        if needed and not has_moments(place, before, console):
            put_aside(
                stage_of(place, before), "the optimiser's state after it, which another stage needs, is gone", console
            )
            missing.add(before)
    return missing


def require_sound(place: Path, placed: Sequence[Step], console: Console) -> None:
    """Check all stages once more before they become the output.

    Raises:
        TreeringError: one was damaged since it was written; it was put aside.
    """
    damaged = [step.number for step in placed if not sound(stage_of(place, step.number), console)]
    if damaged:
        raise TreeringError(
            f"Stage {damaged[0]} was damaged on the disk while the run went on. It was put aside, and nothing else is "
            "lost: run the same command again to train it again."
        )


def restore(model: PreTrainedModel, place: Path, number: int) -> None:
    """Put the weights after a stage into ``model``, which has its depth."""
    stage = stage_of(place, number)
    model.load_state_dict(type(model).from_pretrained(stage, dtype=model.dtype).state_dict())


def result_of(place: Path, cost: StageCost) -> StageResult:
    """What a finished stage reached."""
    record = json.loads((stage_of(place, cost.step.number) / "training.json").read_text())
    measured, stage = record["measured"], cost.step.stage
    return StageResult(
        number=cost.step.number,
        depth=cost.step.depth,
        new=blocks_text(stage.new),
        train=trained_text(stage),
        total=cost.total,
        active=cost.active,
        flops=cost.flops * measured["tokens"] / cost.tokens,
        steps=measured["steps"],
        tokens=measured["tokens"],
        seconds=measured["seconds"],
        prefix_seconds=record["origin"]["growth"]["stage"]["prefix_seconds"],
        tokens_per_second=measured["tokens_per_second"],
        validation_bits_per_byte=measured["validation_bits_per_byte"],
    )


def history_of(place: Path, results: Sequence[StageResult]) -> list[dict[str, Any]]:
    """The loss curves of all stages as one, over the tokens of all."""
    history, before = list[dict[str, Any]](), 0
    for result in results:
        for entry in json.loads((stage_of(place, result.number) / "history.json").read_text()):
            history.append(entry | {"stage": result.number, "tokens": entry["tokens"] + before})
        before += result.tokens
    return history


def finish(
    place: Path,
    output: Path,
    own: Mapping[str, Any],
    grown: GrowthResult,
    draw: Callable[[GrowthResult], bytes] | None = None,
) -> None:
    """Let the last stage become the output, with all stages in it, and what ``draw`` makes of them as a picture."""
    results = grown.stages
    with staged_directory(output) as staging:
        for result in results:
            for file in stage_of(place, result.number).iterdir():
                if file.name == SEAL:  # of the unfinished run alone
                    continue
                link_or_copy(file, staging / "stages" / file.parent.name / file.name)
                if result is results[-1]:
                    link_or_copy(file, staging / file.name)
        # Of the whole run, what a run of one stage would say; linked files are replaced, never written to.
        training = json.loads((staging / "training.json").read_text()) | {"settings": own["training"]}
        before_the_last = sum(result.steps for result in results[:-1])
        training["measured"] |= {
            "steps": before_the_last + results[-1].steps,
            "kept_step": before_the_last + training["measured"]["kept_step"],
            "tokens": sum(result.tokens for result in results),
            "seconds": round(sum(result.seconds + result.prefix_seconds for result in results), 2),
        }
        for name, content in (("training", training), ("history", grown.history)):
            (staging / f"{name}.json").unlink()
            (staging / f"{name}.json").write_text(json.dumps(content, indent=None if name == "history" else 2))
        record = dict(own) | {"stages": [asdict(result) for result in results]}
        (staging / RECORD).write_text(json.dumps(record, indent=2))
        if draw:
            (staging / PICTURE).write_bytes(draw(grown))
        write_card(staging)


def finished(output: Path) -> dict[str, Any] | None:
    """What the run was that made ``output``; None if nothing says so."""
    try:
        record = json.loads((output / RECORD).read_text())
        return {name: value for name, value in record.items() if name != "stages"}
    except (OSError, ValueError, AttributeError):
        return None


def grown_of(output: Path) -> GrowthResult:
    """What a finished run reached."""
    record = json.loads((output / RECORD).read_text())
    history = json.loads((output / "history.json").read_text())
    return GrowthResult([StageResult(**stage) for stage in record["stages"]], history)
