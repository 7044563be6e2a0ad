"""Growth: a deep model in stages, each of which trains a few blocks and the head (paper section 5)."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from rich.console import Console
from torch import nn
from torch.utils.data import ConcatDataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from treering import backbone
from treering import corpus as corpora
from treering.errors import TreeringError
from treering.growth import lora
from treering.growth.blocks import deepen, kinds, only, require_one_kind, still, tied
from treering.growth.cost import StageCost, cache_flops, count, require_budget, shape_of
from treering.growth.moments import load_moments, moved, save_moments
from treering.growth.plan import Plan, Step, blocks_text, steps, trained_text
from treering.growth.prefix import HiddenBlocks, Precision, Prefix, PrefixCache, choose_precision
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
from treering.output import explain_full_disk, require_new, unfinished_of
from treering.training import Training
from treering.training.order import Reading, Text, blocks_per_step, reading_order
from treering.training.processes import decided, processes, sole_writer
from treering.training.record import read_record, write_record
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
from treering.training.turns import ByTurns
from treering.training.unfinished import claim, clean, was_made


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
        require_new(output)
        require_trackers(training.report_to)
        require_fit(model, corpus, tokenizer)
        placed, costs = survey(model, corpus, plan, training)
        if any(step.stage.head == "trained" for step in placed):
            _untie(model)
        validation, bytes_per_token = validation_blocks(corpus, tokenizer)
        both: list[Any] = [corpus.train, validation]
        blocks: ConcatDataset[Any] = ConcatDataset(both)
        held = len(blocks) * corpus.manifest.block_size
        claim(place, RECORD, own, console)
        choice = choose_precision(
            prefix,
            saved=sum(cost.prefix_flops for cost in costs),
            spent=cache_flops(costs, held, shape_of(model.config, corpus.manifest.block_size)),
            numbers=held * model.config.hidden_size,
            directory=directory,
        )
        precision, why = _first_choice(place / "prefix.json", choice, console)
        if any(step.below for step in placed):
            console.print(f"  the frozen prefix is {why}", highlight=False)
        cache = PrefixCache(directory, blocks, _identity(corpus, validation), precision) if precision else None
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


def survey(
    model: PreTrainedModel, corpus: corpora.Corpus, plan: Plan, training: Training
) -> tuple[list[Step], list[StageCost]]:
    """The plan's stages in their places on ``model``, and what each will cost, before anything runs.

    Raises:
        TreeringError: the plan does not fit the model, a stage exceeds its budget, ties blocks that attend in different
            ways, or LoRA's targets are not there.
    """
    block_size = corpus.manifest.block_size
    placed = steps(plan, len(backbone.blocks(model)))
    tokens_a_step = blocks_per_step(training, block_size) * block_size
    total = training.tokens or (training.epochs or 0) * len(corpus.train) * block_size
    # Rounded where each stage ends, so that all together take the steps of a single run.
    ends = list(accumulate(step.stage.tokens or (step.stage.share or 0) * total for step in placed))
    bounds = [0, *(round(end / tokens_a_step) for end in ends)]
    lengths = [high - low for low, high in pairwise(bounds)]
    if 0 in lengths:
        raise TreeringError(
            f"Stage {lengths.index(0) + 1} would take not one step of {tokens_a_step:,} tokens. Give it more tokens, "
            "or lower training.batch_tokens."
        )
    shape = shape_of(model.config, block_size)
    attending = getattr(model.config, "layer_types", None)
    for step in placed:
        if attending:
            attending = kinds(attending, step.stage.new, step.stage.start)
            require_one_kind(step.stage.leaders(), attending)
        if step.stage.lora:
            lora.require_targets(step.stage.lora, {name for name, _, _ in shape.linear}, model.config.model_type)
    costs = count(placed, [length * tokens_a_step for length in lengths], shape, _table_trains(model))
    require_budget(plan, costs)
    return placed, costs


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
    stage = stage_of(run.place, step.number)
    unfinished = unfinished_of(stage)
    table_trains = _table_trains(model) and step.number == 1
    attached = _set_trainable(model, step, table_trains)
    frozen = frozen_digests(model)
    with ExitStack() as stack:
        stack.enter_context(tied(model, step.stage.leaders()))
        if run.cache and step.below and not table_trains:
            hidden = run.cache.states(model, step.below, run.console)
            run.cache.keep_only(model, {later.below for later in remaining})
            held_out = range(len(run.text.train), len(run.cache.blocks))
            text = replace(
                run.text,
                train=HiddenBlocks(run.cache.blocks, hidden, order),
                validation=HiddenBlocks(run.cache.blocks, hidden, held_out),
            )
            stack.enter_context(only(model, step.below))
        else:
            text = replace(run.text, train=Reading(run.text.train.blocks, order))
        prefix_seconds = round(time.perf_counter() - begun, 2)
        settings, origin = step.stage.training(run.training, tokens), run.own | {"stage": step.number}
        # What a later stage goes on from is the end: the optimiser's state belongs to it, and the text that was read.
        keep: Keep = "last" if remaining[1:] else run.training.keep or "last"
        settings = settings.model_copy(update={"keep": keep})
        part, turns = Part(run.output, step.number, step.number + len(remaining) - 1), _turns(model, step)
        result, final = optimise(model, text, unfinished, part, settings, origin, run.console, moments, turns)
    require_unchanged(frozen, model)
    if attached is not None:
        lora.merge(attached)
    model.requires_grad_(True)
    if processes().is_main_process:
        with explain_full_disk(run.place):
            if any(later.stage.keep_moments for later in remaining[1:]):
                save_moments(moments | final, run.place, step.number)
            growth = {
                "plan": run.own["plan"],
                "stage": {"number": step.number, "depth": step.depth, "prefix_seconds": prefix_seconds},
            }
            more = {"abilities": run.measure(model)} if run.measure else {}
            origin = run.own["origin"] | {"growth": growth}
            export(model, run.tokenizer, stage, settings, origin, result, sealed=True, **more)
    clean(unfinished)


def _set_trainable(model: PreTrainedModel, step: Step, table: bool) -> nn.Module | None:
    """Let exactly what the stage trains require gradients; returns its low-rank updates, if it has any."""
    model.requires_grad_(False)
    attached = None
    if step.stage.lora:
        others = [number for number in range(1, step.depth + 1) if number not in step.stage.trained]
        attached = lora.attach(model, others, step.stage.lora)
    stack = backbone.blocks(model)
    for part in (*(stack[number - 1] for number in step.stage.trained), backbone.final_norm(model)):
        part.requires_grad_(True)
    # In this order: a frozen head may be the embedding itself.
    backbone.embedding(model).requires_grad_(table)
    backbone.head(model).requires_grad_(step.stage.head == "trained")
    return attached


def _turns(model: PreTrainedModel, step: Step) -> ByTurns | None:
    if step.stage.turns is None:
        return None
    stack, groups = backbone.blocks(model), []
    for window in step.stage.windows():
        parts = [stack[number - 1] for number in window]
        if step.stage.turns.head and step.stage.head_trains(window):
            parts += [backbone.final_norm(model), backbone.head(model)]
        groups.append([parameter for part in parts for parameter in part.parameters()])
    return ByTurns(groups, step.stage.turns.steps)


def _table_trains(model: PreTrainedModel) -> bool:
    """Whether the embedding is a trainable one, which is frozen after the first stage (the paper's control)."""
    known = backbone.standing(model.config)
    return known is not None and not known.frozen


def _untie(model: PreTrainedModel) -> None:
    """Give the head weights of its own, which train while the embedding does not."""
    if model.config.tie_word_embeddings:
        head = backbone.head(model)
        head.weight = nn.Parameter(backbone.embedding(model).weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}


def _first_choice(path: Path, choice: tuple[Precision | None, str], console: Console) -> tuple[Precision | None, str]:
    """What was chosen when the run began, whatever the disk has free by now.

    Raises:
        TreeringError: it was written, and is damaged, as is its copy.
    """

    def decide() -> tuple[Precision | None, str]:
        known = read_record(path, console)
        if known is None:
            if path.exists():
                raise TreeringError(
                    f"{path} and its copy are damaged: how the frozen prefix was had is not known. "
                    f"Delete {path.parent} to begin anew, or choose another output."
                )
            write_record(path, choice)
            known = choice
        precision, why = known
        return precision, why

    return decided(decide)


def _identity(corpus: corpora.Corpus, validation: Dataset) -> str:
    """A hash of all tokens that the prefix cache is made from."""
    held_out = np.asarray(validation["input_ids"], dtype="<i4").tobytes()
    return hashlib.sha256(corpus.manifest.train.sha256.encode() + held_out).hexdigest()


def _in_words(step: Step) -> str:
    stage = step.stage
    parts = [f"{step.depth} blocks"]
    if stage.new:
        parts.append(f"new {blocks_text(stage.new)} ({stage.start})")
    parts.append(f"training {trained_text(stage)}" + ", head frozen" * (stage.head == "frozen"))
    return ", ".join(parts)
