"""One training run: what trains, on which blocks, for how long; resumable to the bit, exported when complete."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from treering import corpus as corpora
from treering import tokenizer as tokenizers
from treering.backbone import blocks
from treering.errors import Interrupted, TreeringError
from treering.output import explain_full_disk, require_new, staged_directory
from treering.training.checkpoints import AtomicTrainer
from treering.training.loss import collate, fused_loss
from treering.training.progress import Display, EvaluateAtEnd, Interruption, tensorboard
from treering.training.settings import Training


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run measured; ``history`` is the Trainer's log, with tokens and bits per byte added."""

    steps: int
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
) -> TrainingResult:
    """Train the parameters of ``model`` that require gradients on the packed blocks of ``corpus``.

    While it runs, checkpoints live in ``OUTPUT.unfinished``; stopped or killed, the same call goes on from the last
    one and ends with the same bytes as a run that was never stopped. ``OUTPUT`` appears when the run is complete, as a
    plain Hugging Face checkpoint with the tokenizer, ``training.json`` (what was run and measured) and
    ``history.json`` (the loss curve).

    Args:
        origin: what the run was made from; two runs with another origin or other settings never share checkpoints.

    Raises:
        TreeringError: the output exists, an unfinished run of another recipe stands in the way, the corpus was cut
            for another tokenizer or a longer context, it holds less than one batch, or the disk is full.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    output, console = require_new(output), console or Console()
    _check(model, corpus, tokenizer)
    unfinished = output.with_name(output.name + ".unfinished")
    validation, bytes_per_token = _validation_blocks(corpus, tokenizer)
    arguments = _arguments(settings, corpus, unfinished)
    tokens_per_step = _tokens_per_step(arguments, corpus)
    interruption = Interruption()
    display = Display(tokens_per_step, bytes_per_token, console)
    callbacks: list[TrainerCallback] = [display, interruption, EvaluateAtEnd()]
    if settings.tensorboard:
        callbacks.append(tensorboard(output.with_name(output.name + ".tensorboard")))
    frozen = {name: _digest(p) for name, p in model.named_parameters() if not p.requires_grad}
    with fused_loss(model), explain_full_disk(output.parent):
        trainer = AtomicTrainer(
            model=model,
            args=arguments,
            train_dataset=corpus.train,
            eval_dataset=validation,
            data_collator=collate,
            callbacks=callbacks,
        )
        _keep_quiet(trainer)
        checkpoint = _claim(unfinished, settings, origin or {}, trainer)
        if checkpoint and trainer.is_world_process_zero():
            console.print(f"  going on from step {checkpoint.rpartition('-')[2]} of an unfinished run")
        trained = trainer.train(resume_from_checkpoint=checkpoint)
        if interruption.requested:
            raise Interrupted(
                f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}. "
                "Run the same command again to go on from there."
            )
    changed = [name for name, digest in frozen.items() if _digest(model.get_parameter(name)) != digest]
    if changed:
        raise AssertionError(f"frozen parameters changed in training: {changed}")
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    result = TrainingResult(
        steps=trainer.state.global_step,
        tokens=trainer.state.global_step * tokens_per_step,
        seconds=round(trained.metrics["train_runtime"], 2),
        tokens_per_second=[e["tokens_per_second"] for e in history if "loss" in e][-1],
        validation_bits_per_byte=[e["eval_bits_per_byte"] for e in history if "eval_loss" in e][-1],
        history=history,
    )
    if trainer.is_world_process_zero():
        with explain_full_disk(output.parent):
            _export(model, tokenizer, output, settings, origin or {}, result)
        shutil.rmtree(unfinished)
    trainer.accelerator.wait_for_everyone()
    return result


def scale_residual_outputs(model: PreTrainedModel) -> None:
    """Divide the blocks' output matrices by √(2·layers), so that the residual stream starts at one scale at any depth.

    GPT-2's initialisation (Radford et al. 2019, section 2.3).
    """
    stack = blocks(model)
    for block in stack:
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear) and name.endswith(("dense", "dense_4h_to_h", "o_proj", "down_proj")):
                with torch.no_grad():
                    module.weight.div_(math.sqrt(2 * len(stack)))


def _check(model: PreTrainedModel, corpus: corpora.Corpus, tokenizer: PreTrainedTokenizerFast) -> None:
    block_size, context = corpus.manifest.block_size, model.config.max_position_embeddings
    if block_size > context:
        raise TreeringError(
            f"The corpus is packed in blocks of {block_size} tokens, the backbone's context is {context}. "
            "Prepare the corpus with a --block-size of at most that, or give the model a longer context."
        )
    corpora.require_match(corpus, tokenizer)


def _validation_blocks(corpus: corpora.Corpus, tokenizer: PreTrainedTokenizerFast) -> tuple[Dataset, float]:
    """Held-out documents packed as the training blocks are, and the UTF-8 bytes that a token of them stands for."""
    texts = corpus.validation["text"]
    ids = tokenizers.encode(tokenizer, list(texts))
    block_size = corpus.manifest.block_size
    packed = list(corpora.pack(ids, block_size, tokenizers.separator(tokenizer)))
    if not packed:
        raise TreeringError(
            f"The held-out documents fill not one block of {block_size} tokens. Prepare the corpus with a larger "
            "--validation share or a smaller --block-size."
        )
    bytes_per_token = sum(len(text.encode()) for text in texts) / sum(map(len, ids))
    return Dataset.from_dict({"input_ids": packed}), bytes_per_token


def _arguments(settings: Training, corpus: corpora.Corpus, unfinished: Path) -> TrainingArguments:
    block_size = corpus.manifest.block_size
    processes = int(os.environ.get("WORLD_SIZE", 1))
    micro_batch = max(1, min(settings.micro_batch_tokens, settings.batch_tokens // processes) // block_size)
    accumulation = max(1, round(settings.batch_tokens / (micro_batch * block_size * processes)))
    tokens_per_step = micro_batch * block_size * processes * accumulation
    available = len(corpus.train) * block_size
    if available < tokens_per_step:
        raise TreeringError(
            f"The corpus holds {available:,} training tokens, less than one step of {tokens_per_step:,}. "
            "Give more text, or lower training.batch_tokens."
        )
    steps = max(1, round((settings.tokens or (settings.epochs or 0) * available) / tokens_per_step))
    return TrainingArguments(
        output_dir=os.fspath(unfinished),
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        per_device_eval_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr" if settings.schedule == "cosine" else settings.schedule,
        lr_scheduler_kwargs={"min_lr_rate": settings.final_rate} if settings.schedule == "cosine" else None,
        warmup_steps=math.ceil(settings.warmup * steps),
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
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        seed=settings.seed,
        ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available() and not torch.backends.mps.is_available(),
    )


def _tokens_per_step(arguments: TrainingArguments, corpus: corpora.Corpus) -> int:
    sequences = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return sequences * corpus.manifest.block_size


def _keep_quiet(trainer: AtomicTrainer) -> None:
    """Drop the Trainer's own printing; the display shows the same figures, for people."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(callback)


def _claim(unfinished: Path, settings: Training, origin: dict[str, Any], trainer: AtomicTrainer) -> str | None:
    """Make ``unfinished`` this run's own, or find the checkpoint of the same run in it."""
    claim = json.dumps({"settings": settings.model_dump(mode="json"), "origin": origin}, indent=2, sort_keys=True)
    path = unfinished / "run.json"
    if path.exists() and path.read_text() != claim:
        raise TreeringError(
            f"{unfinished} holds an unfinished run of another recipe (see run.json there). Finish it with that recipe, "
            "choose another output, or delete it."
        )
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        unfinished.mkdir(parents=True, exist_ok=True)
        path.write_text(claim)
    trainer.accelerator.wait_for_everyone()
    return get_last_checkpoint(os.fspath(unfinished))


def _export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    output: Path,
    settings: Training,
    origin: dict[str, Any],
    result: TrainingResult,
) -> None:
    measured = {name: value for name, value in asdict(result).items() if name != "history"}
    record = {"origin": origin, "settings": settings.model_dump(mode="json"), "measured": measured}
    with staged_directory(output) as staging:
        model.save_pretrained(staging)
        tokenizers.save(tokenizer, staging)
        (staging / "training.json").write_text(json.dumps(record, indent=2))
        (staging / "history.json").write_text(json.dumps(result.history))


def _digest(parameter: torch.Tensor) -> str:
    flat = parameter.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()
