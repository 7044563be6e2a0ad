"""Growth: a deep model in stages, each of which trains a few blocks and the head (paper section 5)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import ConcatDataset, Subset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from treering import backbone
from treering import corpus as corpora
from treering.errors import TreeringError
from treering.growth import lora
from treering.growth.blocks import deepen, kinds, only, require_one_kind, sources, tied
from treering.growth.cost import StageCost, cache_flops, count, require_budget, shape_of
from treering.growth.plan import Plan, Step, blocks_text, steps, trained_text
from treering.growth.prefix import HiddenBlocks, Precision, Prefix, PrefixCache, choose_precision
from treering.output import explain_full_disk, link_or_copy, require_new, staged_directory
from treering.training import Training
from treering.training.processes import claim, processes
from treering.training.run import (
    Moments,
    Text,
    blocks_per_step,
    export,
    frozen_digests,
    optimise,
    require_fit,
    require_unchanged,
    validation_blocks,
)
from treering.training.turns import Turns


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
) -> GrowthResult:
    """Grow ``model`` by ``plan``, in place, on the packed blocks of ``corpus``; head and final norm always train.

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

    Raises:
        TreeringError: the family is not supported, the plan does not fit the model or exceeds its budget, LoRA's
            targets are not there, the corpus does not fit the model, the output exists, another run's unfinished one
            stands in the way, the disk is full.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    backbone.family(model.config)  # an unknown one is refused before anything else is asked of it
    output, console = require_new(output), console or Console()
    place = output.with_name(output.name + ".unfinished")
    require_fit(model, corpus, tokenizer)
    _untie(model)
    placed, costs = survey(model, corpus, plan, training)
    validation, bytes_per_token = validation_blocks(corpus, tokenizer)
    directory = Path(prefix_directory) / f"{output.name}.prefix" if prefix_directory else place / "prefix"
    blocks: ConcatDataset[Any] = ConcatDataset([corpus.train, validation])  # type: ignore[list-item] # map-style, both
    held = len(blocks) * corpus.manifest.block_size
    own = {
        "plan": plan.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "prefix": prefix,
        "origin": origin or {},
    }
    claim(place, "growth.json", own)
    choice = choose_precision(
        prefix,
        saved=sum(cost.prefix_flops for cost in costs),
        spent=cache_flops(costs, held, shape_of(model.config, corpus.manifest.block_size)),
        numbers=held * model.config.hidden_size,
        directory=directory,
    )
    precision, why = _first_choice(place / "prefix.json", choice)
    if any(step.below for step in placed):
        console.print(f"  the frozen prefix is {why}", highlight=False)
    cache = PrefixCache(directory, blocks, _identity(corpus, validation), precision) if precision else None
    text = Text(corpus.train, validation, bytes_per_token, corpus.manifest.block_size, in_order=True)
    run = _Run(model, tokenizer, text, training, place, own, cache, measure, console)
    results, begun = list[StageResult](), 0
    for step, cost in zip(placed, costs, strict=True):
        finished, before = (place / "stages" / f"{number}" for number in (step.number, step.number - 1))
        moments = Moments()
        if not finished.exists() and step.number > 1:
            _restore(model, before)
            kept = _load_moments(_moments_file(place, step.number - 1))
            moments = _moved(kept, placed[step.number - 2], step, model)
        set_seed(training.seed + step.number)
        deepen(model, step.stage.new, step.stage.start, training.residual_init)
        if not finished.exists():
            console.print(f"  stage {step.number} of {len(placed)}: {_in_words(step)}", highlight=False)
            order = reading_order(len(corpus.train), training.seed, begun, cost.tokens // text.block_size)
            _run_stage(run, placed[step.number - 1 :], cost.tokens, order.tolist(), moments)
        results.append(_result(finished, cost))
        begun += results[-1].tokens // text.block_size
    _restore(model, place / "stages" / f"{len(placed)}")
    history = _history(place / "stages", results)
    processes().wait_for_everyone()  # before what all read is taken away
    if processes().is_main_process:
        with explain_full_disk(output.parent):
            _finish(place, output, own, results, history)
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(place)
    processes().wait_for_everyone()
    return GrowthResult(results, history)


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


def reading_order(blocks: int, seed: int, start: int, count: int) -> np.ndarray:
    """Rows of a corpus in the order in which a run reads them, from the ``start``-th on: epochs, each in its own order.

    It is the same whatever the plan, so that plans are compared on the same text in the same order.
    """
    first, last = start // blocks, (start + count - 1) // blocks
    epochs = [np.random.default_rng((seed, epoch)).permutation(blocks) for epoch in range(first, last + 1)]
    return np.concatenate(epochs)[start - first * blocks :][:count]


@dataclass(frozen=True)
class _Run:
    """What all stages of a run share; ``text`` is the whole corpus, ``own`` what tells the run from others."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    text: Text
    training: Training
    place: Path
    own: dict[str, Any]
    cache: PrefixCache | None
    measure: Callable[[PreTrainedModel], list[Any]] | None
    console: Console


def _run_stage(run: _Run, remaining: Sequence[Step], tokens: int, order: list[int], moments: Moments) -> None:
    """Train the first of the ``remaining`` stages and leave its checkpoint in ``stages/N``.

    Args:
        order: the rows of the corpus that it reads.
        moments: where its optimiser begins.
    """
    model, step, begun = run.model, remaining[0], time.perf_counter()
    finished = run.place / "stages" / f"{step.number}"
    unfinished = finished.with_name(f"{step.number}.unfinished")
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
            text = replace(run.text, train=Subset(run.text.train, order))
        prefix_seconds = round(time.perf_counter() - begun, 2)
        settings, origin = step.stage.training(run.training, tokens), run.own | {"stage": step.number}
        turns, patience = _turns(model, step), step.stage.patience
        result, final = optimise(model, text, unfinished, settings, origin, run.console, moments, patience, turns)
    require_unchanged(frozen, model)
    if attached is not None:
        lora.merge(attached)
    model.requires_grad_(True)
    if processes().is_main_process:
        with explain_full_disk(run.place):
            if any(later.stage.keep_moments for later in remaining[1:]):
                _save_moments(moments | final, _moments_file(run.place, step.number))
            growth = {
                "plan": run.own["plan"],
                "stage": {"number": step.number, "depth": step.depth, "prefix_seconds": prefix_seconds},
            }
            more = {"abilities": run.measure(model)} if run.measure else {}
            export(model, run.tokenizer, finished, settings, run.own["origin"] | {"growth": growth}, result, **more)
        _moments_file(run.place, step.number - 1).unlink(missing_ok=True)
        shutil.rmtree(unfinished)
    processes().wait_for_everyone()


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
    backbone.head(model).requires_grad_(True)
    backbone.embedding(model).requires_grad_(table)
    return attached


def _turns(model: PreTrainedModel, step: Step) -> Turns | None:
    if step.stage.turns is None:
        return None
    stack, groups = backbone.blocks(model), []
    for window in step.stage.windows():
        parts = [stack[number - 1] for number in window]
        if step.stage.turns.head and step.stage.head_trains(window):
            parts += [backbone.final_norm(model), backbone.head(model)]
        groups.append([parameter for part in parts for parameter in part.parameters()])
    return Turns(groups, step.stage.turns.steps)


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


def _first_choice(path: Path, choice: tuple[Precision | None, str]) -> tuple[Precision | None, str]:
    """What was chosen when the run began, whatever the disk has free by now."""
    if not path.exists():
        processes().wait_for_everyone()
        if processes().is_main_process:
            path.write_text(json.dumps(choice))
        processes().wait_for_everyone()
    precision, why = json.loads(path.read_text())
    return precision, why


def _identity(corpus: corpora.Corpus, validation: Dataset) -> str:
    """A hash of all tokens that the prefix cache is made from."""
    held_out = np.asarray(validation["input_ids"], dtype="<i4").tobytes()
    return hashlib.sha256(corpus.manifest.train.sha256.encode() + held_out).hexdigest()


def _restore(model: PreTrainedModel, checkpoint: Path) -> None:
    """Put the weights of a stage's checkpoint into ``model``, which has its depth."""
    model.load_state_dict(type(model).from_pretrained(checkpoint, dtype=model.dtype).state_dict())


def _moments_file(place: Path, stage: int) -> Path:
    """The optimiser's state after a stage: a file of its own, so that a stage begun again begins as it did before."""
    return place / f"moments-{stage}.safetensors"


def _save_moments(moments: Moments, path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file({f"{name}:{key}": value for name, kept in moments.items() for key, value in kept.items()}, partial)
    partial.rename(path)


def _load_moments(path: Path) -> Moments:
    moments = Moments()
    if path.exists():
        for name, value in load_file(path).items():
            parameter, _, key = name.rpartition(":")
            moments.setdefault(parameter, {})[key] = value
    return moments


def _moved(moments: Moments, before: Step, step: Step, model: PreTrainedModel) -> Moments:
    """The optimiser's state that a stage goes on with, under the names that its blocks have.

    Old blocks may have moved up. Blocks that were tied in the stage before, and new ones that are copies, have the
    state of the block that they come from.
    """
    if not step.stage.keep_moments:
        return Moments()
    place, new = backbone.family(model.config).blocks, step.stage.new
    old = [number for number in range(1, step.depth + 1) if number not in new]
    stood = {number: index for index, number in enumerate(old, 1)} | sources(new, len(old), step.stage.start)
    leaders = before.stage.leaders()
    moved = {name: kept for name, kept in moments.items() if not name.startswith(f"{place}.")}
    for number, source in stood.items():
        own, theirs = f"{place}.{number - 1}.", f"{place}.{leaders.get(source, source) - 1}."
        moved |= {own + name.removeprefix(theirs): kept for name, kept in moments.items() if name.startswith(theirs)}
    return moved


def _in_words(step: Step) -> str:
    stage = step.stage
    parts = [f"{step.depth} blocks"]
    if stage.new:
        parts.append(f"new {blocks_text(stage.new)} ({stage.start})")
    parts.append(f"training {trained_text(stage)}")
    return ", ".join(parts)


def _result(finished: Path, cost: StageCost) -> StageResult:
    record = json.loads((finished / "training.json").read_text())
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


def _history(stages: Path, results: Sequence[StageResult]) -> list[dict[str, Any]]:
    """The loss curves of all stages as one, over the tokens of all."""
    history, before = list[dict[str, Any]](), 0
    for result in results:
        for entry in json.loads((stages / f"{result.number}" / "history.json").read_text()):
            history.append(entry | {"stage": result.number, "tokens": entry["tokens"] + before})
        before += result.tokens
    return history


def _finish(
    place: Path,
    output: Path,
    own: Mapping[str, Any],
    results: Sequence[StageResult],
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Let the last stage's checkpoint become the output, with all stages in it."""
    with staged_directory(output) as staging:
        for result in results:
            for file in (place / "stages" / f"{result.number}").iterdir():
                link_or_copy(file, staging / "stages" / file.parent.name / file.name)
                if result is results[-1]:
                    link_or_copy(file, staging / file.name)
        # Of the whole run, what a run of one stage would say; linked files are replaced, never written to.
        training = json.loads((staging / "training.json").read_text()) | {"settings": own["training"]}
        training["measured"] |= {
            "steps": sum(result.steps for result in results),
            "tokens": sum(result.tokens for result in results),
            "seconds": round(sum(result.seconds + result.prefix_seconds for result in results), 2),
        }
        for name, content in (("training", training), ("history", history)):
            (staging / f"{name}.json").unlink()
            (staging / f"{name}.json").write_text(json.dumps(content, indent=None if name == "history" else 2))
        record = dict(own) | {"stages": [asdict(result) for result in results]}
        (staging / "growth.json").write_text(json.dumps(record, indent=2))
