"""Growth: a deep model in stages, each of which trains a few blocks and the head (paper section 5)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from treering import backbone
from treering import corpus as corpora
from treering.growth import lora
from treering.growth.blocks import deepen, only, still, tied
from treering.growth.caching import prefix_cache
from treering.growth.cost import StageCost
from treering.growth.moments import load_moments, moved, save_moments
from treering.growth.plan import Plan, Step, blocks_text, trained_text
from treering.growth.prefix import HiddenBlocks, Prefix, PrefixCache
from treering.growth.stages import (
    RECORD,
    GrowthResult,
    StageResult,
    finish,
    finished,
    grown_of,
    history_of,
    require_sound,
    restore,
    result_of,
    stage_of,
    to_train,
)
from treering.growth.surveying import survey
from treering.growth.trainable import set_trainable, table_trains, turns_of, untie
from treering.output import explain_full_disk, unfinished_of
from treering.training import Training
from treering.training.order import Reading, Text, reading_order
from treering.training.processes import decided, processes, sole_writer
from treering.training.run import (
    Moments,
    export,
    frozen_digests,
    optimise,
    require_fit,
    require_unchanged,
    validation_blocks,
)
from treering.training.settings import Keep
from treering.training.status import Part
from treering.training.trackers import require_trackers
from treering.training.unfinished import claim, clean, require_new_run, was_made


def grow(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    corpus: corpora.Corpus,
    output: str | os.PathLike[str],
    plan: Plan,
    training: Training,
    prefix: Prefix = "auto",
    prefix_directory: str | os.PathLike[str] | None = None,
    measure: Callable[[PreTrainedModel], list[Any]] | None = None,
    origin: dict[str, Any] | None = None,
    console: Console | None = None,
    draw: Callable[[GrowthResult], bytes] | None = None,
) -> GrowthResult:
    """Grow ``model`` by ``plan``, in place, on the packed blocks of ``corpus``; the final norm always trains.

    All stages together read the corpus in one order, as a single run would: each goes on where the one before ended.
    ``OUTPUT`` appears when the last is complete: the grown model as a plain Hugging Face checkpoint, and in
    ``stages/N`` the complete model after each stage. Until then the same call goes on where it was stopped, from
    ``OUTPUT.unfinished``.

    Args:
        model: with no block at all (``treering.growth.seedling``), or an existing one of a supported family, whose
            embedding and old blocks stay byte for byte what they are unless the plan trains them.
        training: of all stages, with ``tokens`` or ``epochs`` for the whole plan.
        prefix: how the hidden states below what trains are had: ``recompute`` them in every step, or read them from a
            cache on disk in a precision; ``auto`` compares what both take.
        prefix_directory: where the cache's own directory is made; beside the output if not given.
        measure: what is to be known of the model after each stage; it goes to ``abilities.json`` there.
        origin: what the run was made from; runs with another never share checkpoints.
        draw: makes the content of ``growth.png``, which appears with the output.

    Raises:
        TreeringError: the family is not supported, the plan does not fit the model or exceeds its budget, LoRA's
            targets are not there, the corpus does not fit the model, the output exists, another run's unfinished one
            stands in the way, the disk is full.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    backbone.family(model.config)  # an unknown one is refused before anything else is asked of it
    output, console = Path(output), console or Console()
    place = unfinished_of(output)
    directory = Path(prefix_directory) / f"{output.name}.prefix" if prefix_directory else place / "prefix"
    own = {
        "plan": plan.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "prefix": prefix,
        "origin": origin or {},
    }
    with sole_writer(output):
        if decided(lambda: was_made(finished(output), own, place, RECORD, console)):
            clean(directory, place)
            console.print(f"{output}: complete, nothing to do", markup=False)
            return grown_of(output)
        require_new_run(output, finished(output), own)
        require_trackers(training.report_to)
        require_fit(model, corpus, tokenizer)
        placed, costs = survey(model, corpus, plan, training)
        if any(step.stage.head == "trained" for step in placed):
            untie(model)
        validation, bytes_per_token = validation_blocks(corpus, tokenizer)
        claim(place, RECORD, own, console)
        cache = prefix_cache(model, corpus, validation, costs, prefix, directory, place / "prefix.json", console)
        everything = Reading(corpus.train, range(len(corpus.train)))
        text = Text(everything, validation, bytes_per_token, corpus.manifest.block_size, tokenizer)
        run = _Run(model, tokenizer, text, training, output, place, own, cache, measure, console)
        grown = _run_stages(run, placed, costs)
        decided(lambda: require_sound(place, placed, console))
        restore(model, place, len(placed))
        if processes().is_main_process:
            with explain_full_disk(output.parent):
                finish(place, output, own, grown, draw)
        clean(directory, place)
    return grown


@dataclass(frozen=True)
class _Run:
    """What all stages of a run share; ``text`` is the whole corpus, ``own`` what tells the run from others."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    text: Text
    training: Training
    output: Path
    place: Path
    own: dict[str, Any]
    cache: PrefixCache | None
    measure: Callable[[PreTrainedModel], list[Any]] | None
    console: Console


def _run_stages(run: _Run, placed: Sequence[Step], costs: Sequence[StageCost]) -> GrowthResult:
    """Train the stages that are not there yet, each from the one before."""
    model, text, results, begun = run.model, run.text, list[StageResult](), 0
    missing = decided(lambda: to_train(run.place, placed, run.console))
    for step, cost in zip(placed, costs, strict=True):
        moments, before = Moments(), step.number - 1
        if step.number in missing and before:
            restore(model, run.place, before)
            if step.stage.keep_moments:
                moments = moved(load_moments(run.place, before), placed[before - 1], step, model)
        set_seed(run.training.seed + step.number)
        deepen(model, step.stage.new, step.stage.start, run.training.residual_init)
        still(model)
        if step.number in missing:
            run.console.print(f"  stage {step.number} of {len(placed)}: {_in_words(step)}", highlight=False)
            order = reading_order(len(text.train), run.training.seed, begun, cost.tokens // text.block_size)
            _run_stage(run, placed[before:], cost.tokens, order, moments)
        results.append(result_of(run.place, cost))
        begun += results[-1].tokens // text.block_size
    return GrowthResult(results, history_of(run.place, results))


def _run_stage(run: _Run, remaining: Sequence[Step], tokens: int, order: np.ndarray, moments: Moments) -> None:
    """Train the first of the ``remaining`` stages and leave its checkpoint in ``stages/N``.

    Args:
        order: the rows of the corpus that it reads.
        moments: where its optimiser begins.
    """
    model, step, begun = run.model, remaining[0], time.perf_counter()
    stage, keeps_moments = stage_of(run.place, step.number), any(later.stage.keep_moments for later in remaining[1:])
    unfinished = unfinished_of(stage)
    attached = set_trainable(model, step)
    frozen = frozen_digests(model)
    with tied(model, step.stage.leaders()), _reading(run, remaining, order) as text:
        prefix_seconds = round(time.perf_counter() - begun, 2)
        settings, origin = _settings(run, remaining, tokens), run.own | {"stage": step.number}
        part, turns = Part(run.output, step.number, step.number + len(remaining) - 1), turns_of(model, step)
        result, final = optimise(model, text, unfinished, part, settings, origin, run.console, moments, turns)
    require_unchanged(frozen, model)
    if attached is not None:
        lora.merge(attached)
    model.requires_grad_(True)
    if processes().is_main_process:
        with explain_full_disk(run.place):
            if keeps_moments:
                save_moments(moments | final, run.place, step.number)
            growth = {
                "plan": run.own["plan"],
                "stage": {"number": step.number, "depth": step.depth, "prefix_seconds": prefix_seconds},
            }
            more = {"abilities": run.measure(model)} if run.measure else {}
            origin = run.own["origin"] | {"growth": growth}
            export(model, run.tokenizer, stage, settings, origin, result, sealed=True, **more)
    clean(unfinished)


@contextmanager
def _reading(run: _Run, remaining: Sequence[Step], order: np.ndarray) -> Iterator[Text]:
    """What the first of the ``remaining`` stages reads: tokens; or what a cached prefix made of them.

    Then the model is what stands above the prefix alone, as long as it is read.
    """
    model, step = run.model, remaining[0]
    if run.cache is None or not step.below or table_trains(model, step):
        yield replace(run.text, train=Reading(run.text.train.blocks, order))
        return
    hidden = run.cache.states(model, step.below, run.console)
    run.cache.keep_only(model, {later.below for later in remaining})
    held_out = range(len(run.text.train), len(run.cache.blocks))
    with only(model, step.below):
        yield replace(
            run.text,
            train=HiddenBlocks(run.cache.blocks, hidden, order),
            validation=HiddenBlocks(run.cache.blocks, hidden, held_out),
        )


def _settings(run: _Run, remaining: Sequence[Step], tokens: int) -> Training:
    """How the first of the ``remaining`` stages trains.

    What a later one goes on from is the end: the optimiser's state belongs to it, and the text that was read.
    """
    keep: Keep = "last" if remaining[1:] else run.training.keep or "last"
    return remaining[0].stage.training(run.training, tokens).model_copy(update={"keep": keep})


def _in_words(step: Step) -> str:
    stage = step.stage
    parts = [f"{step.depth} blocks"]
    if stage.new:
        parts.append(f"new {blocks_text(stage.new)} ({stage.start})")
    parts.append(f"training {trained_text(stage)}" + ", head frozen" * (stage.head == "frozen"))
    return ", ".join(parts)
