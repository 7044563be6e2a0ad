"""One training run: what trains, on which blocks, for how long; resumable to the bit, exported when complete."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback, TrainingArguments

from treering import corpus as corpora
from treering import tokenizer as tokenizers
from treering.backbone import blocks, context_length, residual_outputs, standing, with_older_names
from treering.errors import Interrupted, TreeringError
from treering.output import explain_full_disk, staged_directory, unfinished_of
from treering.publishing.card import write_card
from treering.seal import seal
from treering.training.announcing import Announcement
from treering.training.checkpoints import AtomicTrainer
from treering.training.divergence import Diverged, explain
from treering.training.length import lowest, too_far
from treering.training.loss import Lesson, collate, fused_loss
from treering.training.order import Reading, Text, batch_shape, blocks_per_step, reading_order
from treering.training.processes import decided, in_any, on_cpu, processes, sole_writer
from treering.training.progress import Clock, Display, EvaluateAtEnd, Interruption, Plateau
from treering.training.settings import Training
from treering.training.status import Part
from treering.training.trackers import require_trackers, trackers
from treering.training.turns import ByTurns
from treering.training.unfinished import checkpoints, claim, clean, intact_checkpoint, require_new_run, was_made

Moments = dict[str, dict[str, Tensor]]
"""By parameter's name, what the optimiser keeps of it (Adam: step, running mean and square of the gradient)."""

RUN = "run.json"
"""The file of an unfinished run that says what it is."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run measured; ``history`` is the Trainer's log, with tokens and bits per byte added.

    Attributes:
        steps: of the whole run.
        kept_step: after which the weights are those that it left.
        validation_bits_per_byte: of those.
    """

    steps: int
    kept_step: int
    tokens: int
    seconds: float
    tokens_per_second: float
    validation_bits_per_byte: float
    history: list[dict[str, Any]]


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    corpus: corpora.Corpus,
    output: str | os.PathLike[str],
    settings: Training,
    origin: dict[str, Any] | None = None,
    console: Console | None = None,
    lesson: Lesson | None = None,
) -> TrainingResult:
    """Train the parameters of ``model`` that require gradients on the packed blocks of ``corpus``.

    While it runs, checkpoints live in ``OUTPUT.unfinished``; stopped or killed, the same call goes on from the last
    one that is intact and ends with the same bytes as a run that was never stopped. ``OUTPUT`` appears when the run is
    complete, as a plain Hugging Face checkpoint with the tokenizer, ``training.json`` (what was run and measured) and
    ``history.json`` (the loss curve).

    Args:
        origin: what the run was made from; two runs with another origin or other settings never share checkpoints.
        lesson: what it learns beside the corpus; ``origin`` is to name it.

    Raises:
        TreeringError: the output exists or another process writes it, an unfinished run of another recipe stands in the
            way, the corpus was cut for another tokenizer or a longer context, it holds less than one batch, the batch
            cannot be shared among the processes, the run diverged, or the disk is full.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    output, console = Path(output), console or Console()
    settings = settings.model_copy(update={"keep": settings.keep or "best"})
    unfinished, own = unfinished_of(output), _own(settings, origin)
    with sole_writer(output):
        if decided(lambda: was_made(_made(output), own, unfinished, RUN, console)):
            clean(unfinished)
            console.print(f"{output}: complete, nothing to do", markup=False)
            return _result_of(output)
        require_new_run(output, _made(output), own)
        require_trackers(settings.report_to)
        require_fit(model, corpus, tokenizer)
        validation, bytes_per_token = validation_blocks(corpus, tokenizer)
        block_size = corpus.manifest.block_size
        order = reading_order(len(corpus.train), settings.seed, 0, _blocks_to_read(settings, corpus))
        text = Text(Reading(corpus.train, order), validation, bytes_per_token, block_size, tokenizer)
        frozen = frozen_digests(model)
        result, _ = optimise(model, text, unfinished, Part(output), settings, origin, console, lesson=lesson)
        require_unchanged(frozen, model)
        if processes().is_main_process:
            with explain_full_disk(output.parent):
                export(model, tokenizer, output, settings, origin or {}, result)
        clean(unfinished)
    return result


def _own(settings: Training, origin: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"settings": settings.model_dump(mode="json"), "origin": origin or {}}


def _made(output: Path) -> dict[str, Any] | None:
    """What the run was that made ``output``; None if nothing says so."""
    try:
        record = json.loads((output / "training.json").read_text())
        return {name: record[name] for name in ("settings", "origin")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _result_of(output: Path) -> TrainingResult:
    measured = json.loads((output / "training.json").read_text())["measured"]
    return TrainingResult(**measured, history=json.loads((output / "history.json").read_text()))


def _blocks_to_read(settings: Training, corpus: corpora.Corpus) -> int:
    """Blocks of all steps.

    Raises:
        TreeringError: the corpus has less than one step takes.
    """
    block_size = corpus.manifest.block_size
    a_step, available = blocks_per_step(settings, block_size), len(corpus.train)
    if available < a_step:
        raise TreeringError(
            f"The corpus holds {available * block_size:,} training tokens, less than one step of "
            f"{a_step * block_size:,}. Give more text, or lower training.batch_tokens."
        )
    tokens = settings.tokens or (settings.epochs or 0) * available * block_size
    return a_step * max(1, round(tokens / (a_step * block_size)))


def optimise(
    model: PreTrainedModel,
    text: Text,
    unfinished: Path,
    part: Part,
    settings: Training,
    origin: dict[str, Any] | None = None,
    console: Console | None = None,
    moments: Moments | None = None,
    turns: ByTurns | None = None,
    lesson: Lesson | None = None,
) -> tuple[TrainingResult, Moments]:
    """The run alone: train ``model`` in place, with checkpoints in ``unfinished``, which stays, and export nothing.

    Args:
        text: read once, from the first block to the last.
        part: what the run is, where others are told of it.
        moments: where the optimiser begins with parameters that have trained before.
        turns: of parameters that do not train all the time.
        lesson: what it learns beside the text.

    Returns:
        What was measured, and the optimiser's state at the end, which is not that of weights kept from before it.

    Raises:
        TreeringError: see `train`.
        Interrupted: see `train`.
    """
    console = console or Console()
    arguments = _arguments(settings, text, unfinished)
    arguments.ddp_find_unused_parameters = turns is not None
    arguments.use_cache = getattr(model.config, "use_cache", True)  # what the Trainer writes into the configuration
    tokens_per_step = blocks_per_step(settings, text.block_size) * text.block_size
    interruption = Interruption()
    display = Display(tokens_per_step, text.bytes_per_token, console)
    callbacks: list[TrainerCallback] = [
        display,
        interruption,
        Clock(settings.checkpoint_minutes),
        EvaluateAtEnd(),
        Announcement(part, display),
    ]
    if settings.patience:
        callbacks.append(Plateau(settings.patience))
    if turns:
        callbacks.append(turns)
    if lesson:
        nn.Module.to(lesson.teacher, arguments.device)
    with fused_loss(model, lesson), explain_full_disk(unfinished.parent), interruption, display:
        trainer = AtomicTrainer(
            model=model,
            args=arguments,
            train_dataset=text.train,
            eval_dataset=text.validation,
            data_collator=collate,
            callbacks=callbacks,
        )
        trainer.moments = moments or {}
        if settings.keep == "best":
            trainer.keep_best()
        _keep_quiet(trainer)
        claim(unfinished, RUN, _own(settings, origin), console)
        if trainer.is_world_process_zero():
            for tracker in trackers(settings.report_to, part, unfinished):
                trainer.add_callback(tracker)
        checkpoint = intact_checkpoint(unfinished, console)
        if checkpoint and trainer.is_world_process_zero():
            console.print(f"  going on from step {checkpoint.name.rpartition('-')[2]} of an unfinished run")
        try:
            trained = trainer.train(resume_from_checkpoint=os.fspath(checkpoint) if checkpoint else None)
            trainer.require_finite()
        except Diverged as error:
            last = next(reversed(checkpoints(unfinished)), None)
            raise explain(error, text, settings, unfinished, last) from None
        except pickle.UnpicklingError:
            raise TreeringError(
                f"{checkpoint} holds something else than numbers, which Treering never wrote. It was not opened. "
                f"Delete {unfinished}, and do not trust whoever gave it to you."
            ) from None
        if in_any(interruption.requested):
            raise Interrupted(
                f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}. "
                "Run the same command again to go on from there."
            )
    if trainer.best:
        trainer.best.restore()
    log = trainer.state.log_history  # a checkpoint sorts the names in its entries
    history = [dict(sorted(entry.items())) for entry in log if "loss" in entry or "eval_loss" in entry]
    kept = lowest(history) if trainer.best else next(entry for entry in reversed(history) if "eval_loss" in entry)
    assert kept is not None
    result = TrainingResult(
        steps=trainer.state.global_step,
        kept_step=int(kept["step"]),
        tokens=trainer.state.global_step * tokens_per_step,
        seconds=round(trained.metrics["train_runtime"], 2),
        tokens_per_second=[e["tokens_per_second"] for e in history if "loss" in e][-1],
        validation_bits_per_byte=kept["eval_bits_per_byte"],
        history=history,
    )
    if result.steps < trainer.state.max_steps:
        console.print(
            f"  ended at step {result.steps:,} of {trainer.state.max_steps:,}: "
            f"{settings.patience} validations without gain (patience)",
            highlight=False,
        )
    if told := too_far(history, settings.keep):
        console.print(f"  {told}", highlight=False)
    return result, trainer.final_moments()


def frozen_digests(model: nn.Module) -> dict[str, str]:
    """SHA-256 of the parameters that do not require gradients, by name."""
    return {name: digest(p) for name, p in model.named_parameters() if not p.requires_grad}


def require_unchanged(before: Mapping[str, str], model: nn.Module) -> None:
    """Check that parameters are byte for byte what they were.

    Raises:
        AssertionError: some are not; a fault of the program, never of the user.
    """
    if changed := [name for name, known in before.items() if digest(model.get_parameter(name)) != known]:
        raise AssertionError(f"frozen parameters changed in training: {changed}")


def scale_residual_outputs(model: PreTrainedModel) -> None:
    """Divide the blocks' output matrices by √(2·layers), so that the residual stream starts at one scale at any depth.

    GPT-2's initialisation (Radford et al. 2019, section 2.3).
    """
    stack = blocks(model)
    with torch.no_grad():
        for output in (output for block in stack for output in residual_outputs(block) if output.dim() > 1):
            output.div_(math.sqrt(2 * len(stack)))


def require_fit(model: PreTrainedModel, corpus: corpora.Corpus, tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that a model can be trained on a corpus.

    Raises:
        TreeringError: the corpus was cut for another tokenizer or a longer context.
    """
    block_size, context = corpus.manifest.block_size, context_length(model.config)
    if block_size > context:
        raise TreeringError(
            f"The corpus is packed in blocks of {block_size} tokens, the backbone's context is {context}. "
            "Prepare the corpus with a --block-size of at most that, or give the model a longer context."
        )
    corpora.require_match(corpus, tokenizer)


def validation_blocks(corpus: corpora.Corpus, tokenizer: PreTrainedTokenizerFast) -> tuple[Dataset, float]:
    """Documents that a run is watched on, packed as the training blocks are, and the UTF-8 bytes of a token of them.

    They choose which weights are kept and when a run ends, so they are the calibration documents where a corpus sets
    some apart: those held out for measuring are then read by no run.
    """
    name, apart = ("calibration", corpus.calibration) if len(corpus.calibration) else ("validation", corpus.validation)
    texts = apart["text"]
    ids = tokenizers.encode(tokenizer, list(texts))
    block_size = corpus.manifest.block_size
    packed = list(corpora.pack(ids, block_size, tokenizers.separator(tokenizer)))
    if not packed:
        raise TreeringError(
            f"The {name} documents fill not one block of {block_size} tokens. Prepare the corpus with a larger "
            f"--{name} share or a smaller --block-size."
        )
    bytes_per_token = sum(len(text.encode()) for text in texts) / sum(map(len, ids))
    return Dataset.from_dict({"input_ids": packed}), bytes_per_token


def _arguments(settings: Training, text: Text, unfinished: Path) -> TrainingArguments:
    micro_batch, accumulation = batch_shape(settings, text.block_size)
    steps = len(text.train) // blocks_per_step(settings, text.block_size)
    schedule, schedule_settings = _schedule(settings)
    return TrainingArguments(
        output_dir=os.fspath(unfinished),
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs=schedule_settings,
        warmup_steps=_warmup_steps(settings, steps),
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.gradient_clip,
        bf16=settings.precision == "bfloat16",
        eval_strategy="steps",
        eval_steps=math.ceil(steps / settings.evaluations),
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=2,
        logging_steps=max(1, steps // 200),
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        dataloader_drop_last=True,
        seed=settings.seed,
        ddp_find_unused_parameters=False,
        use_cpu=on_cpu(),
    )


def _schedule(settings: Training) -> tuple[str, dict[str, Any]]:
    """The Trainer's name for a schedule, and its parameters."""
    if settings.schedule == "cosine":
        return "cosine_with_min_lr", {"min_lr_rate": settings.final_rate}
    if settings.schedule == "constant" or settings.final_rate == 1:
        return "constant_with_warmup", {}
    # Not warmup_stable_decay, which warms up from the last rate instead of 0: from a constant one, not at all.
    return "polynomial", {"power": 1.0, "lr_end": settings.learning_rate * settings.final_rate}


def _warmup_steps(settings: Training, steps: int) -> int:
    return math.ceil(settings.warmup * steps)


def _keep_quiet(trainer: AtomicTrainer) -> None:
    """Drop the Trainer's own printing; the display shows the same figures, for people."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(callback)


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    output: Path,
    settings: Training,
    origin: dict[str, Any],
    result: TrainingResult,
    sealed: bool = False,
    **more: Any,
) -> None:
    """Leave a plain Hugging Face checkpoint with tokenizer, ``training.json`` and ``history.json`` in ``output``.

    Args:
        sealed: with a record of its files (see ``treering.seal``), as a part of a larger run; else with a model card.
        more: what else is written, each to a JSON file of its name.
    """
    measured = {name: value for name, value in asdict(result).items() if name != "history"}
    record = {"origin": origin, "settings": settings.model_dump(mode="json"), "measured": measured}
    with staged_directory(output) as staging:
        model.save_pretrained(staging)
        with_older_names(model.config).save_pretrained(staging)
        context, docked = getattr(model.config, "max_position_embeddings", None), standing(model.config) is not None
        tokenizers.save(tokenizer, staging, context, begins_with_separator=docked)
        (staging / "training.json").write_text(json.dumps(record, indent=2))
        for name, content in {"history": result.history, **more}.items():
            (staging / f"{name}.json").write_text(json.dumps(content))
        if sealed:
            seal(staging)
        else:
            write_card(staging)


def digest(parameter: Tensor) -> str:
    """SHA-256 of a parameter's bytes, in hex."""
    flat = parameter.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all parameters with their names, in hex."""
    return hashlib.sha256(json.dumps({name: digest(p) for name, p in model.named_parameters()}).encode()).hexdigest()
