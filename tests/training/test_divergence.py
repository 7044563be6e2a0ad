"""A run that leaves the numbers stops, says where, and exports nothing."""

from __future__ import annotations

import math
import re

import pytest
import torch

from treering.backbone import blocks
from treering.errors import TreeringError
from treering.growth import reading_order
from treering.reading import printable
from treering.seal import damage
from treering.training import run as run_module
from treering.training.checkpoints import AtomicTrainer


def message(run, model, output, settings):
    with pytest.raises(TreeringError) as error:
        run(model, output, settings)
    assert not output.exists()
    return str(error.value)


def test_a_rate_of_a_million_is_told_and_nothing_exported(run, model, settings, tmp_path, corpus, tokenizer):
    said = message(run, model, tmp_path / "out", settings.model_copy(update={"learning_rate": 1e6}))
    step = int(re.search(r"diverged: .* is (nan|inf) at step (\d)", said)[2])
    rows = reading_order(len(corpus.train), settings.seed, 4 * (step - 1), 4).tolist()
    assert f"The step read the blocks {', '.join(map(str, rows))} of the corpus" in said
    beginning = tokenizer.decode(corpus.train[rows[0]]["input_ids"])[:40]
    assert f"  {rows[0]}: {printable(beginning)}" in said
    assert "Lower training.learning_rate (1e+06)" in said and "gradient_clip (1; 0 is none)" in said


def poison(patch, step, value, what="loss"):
    """Let one pass of a step give a loss, or gradients, of ``value``."""

    def poisoned(trainer, model, inputs, *args, **kwargs):
        loss = AtomicTrainer.__base__.training_step(trainer, model, inputs, *args, **kwargs)
        if trainer.state.global_step == step - 1:
            if what == "loss":
                return loss * 0 + value
            next(blocks(model).parameters()).grad.fill_(value)
        return loss

    patch.setattr(AtomicTrainer, "training_step", poisoned)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_number_that_is_none_stops_the_run(run, model, settings, tmp_path, monkeypatch, clip, what, value):
    settings = settings.model_copy(update={"gradient_clip": clip, "checkpoint_steps": 2})
    initial = {name: p.clone() for name, p in model.state_dict().items()}
    run(model, tmp_path / "whole", settings)
    model.load_state_dict(initial)
    with monkeypatch.context() as patch:
        poison(patch, 6, value, what)
        said = message(run, model, tmp_path / "out", settings)
    assert f"the {what if what == 'loss' else 'gradient' + chr(39) + 's norm'} is {value:g} at step 6" in said
    assert all(torch.isfinite(p).all() for p in model.parameters())  # the step was not taken
    unfinished = tmp_path / "out.unfinished"
    assert f"The last good checkpoint ({unfinished / 'checkpoint-4'}) is kept" in said
    assert "the same recipe would go on from it and diverge again" in said
    assert damage(unfinished / "checkpoint-4") is None
    model.load_state_dict(initial)
    run(model, tmp_path / "out", settings)  # what was wrong has been put right
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert weights[0] == weights[1]


def test_one_infinite_loss_in_validation_stops_the_run(run, model, settings, tmp_path, monkeypatch):
    seen = []

    def infinite(trainer, *args, **kwargs):
        loss, *rest = AtomicTrainer.__base__.prediction_step(trainer, *args, **kwargs)
        seen.append(loss)
        return loss + math.inf if len(seen) == 2 else loss, *rest

    monkeypatch.setattr(AtomicTrainer, "prediction_step", infinite)
    said = message(run, model, tmp_path / "out", settings)
    assert "the validation loss is inf at step 4" in said
    assert len(seen) > 2


def test_weights_that_are_no_numbers_are_never_saved(run, model, settings, tmp_path, monkeypatch):
    def spoil(trainer, *args, **kwargs):
        loss = AtomicTrainer.__base__.training_step(trainer, *args, **kwargs)
        if trainer.state.global_step == 5:
            trainer.optimizer.optimizer.register_step_post_hook(
                lambda *_: next(blocks(model).parameters()).data.fill_(math.inf)
            )
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(AtomicTrainer, "training_step", spoil)
        said = message(run, model, tmp_path / "out", settings)
    assert re.search(r"the parameter gpt_neox\.layers\.0\.\S+ is not finite at step 6", said)
    assert [path.name for path in (tmp_path / "out.unfinished").glob("checkpoint-*")] == ["checkpoint-3"]


def test_weights_that_the_last_step_spoils_are_not_exported(run, model, settings, tmp_path, monkeypatch):
    train = AtomicTrainer.train

    def spoiled(trainer, *args, **kwargs):
        result = train(trainer, *args, **kwargs)
        next(blocks(model).parameters()).data[0] = math.nan
        return result

    monkeypatch.setattr(AtomicTrainer, "train", spoiled)
    assert "is not finite at step 8" in message(run, model, tmp_path / "out", settings)


def test_nothing_to_go_on_from_is_said(run, model, settings, tmp_path, monkeypatch):
    poison(monkeypatch, 1, math.nan)
    said = message(run, model, tmp_path / "out", settings)
    assert "There was no checkpoint yet" in said


def test_the_words_of_a_block_cannot_move_the_cursor(run, model, settings, tmp_path, monkeypatch, tokenizer):
    poison(monkeypatch, 1, math.nan)
    monkeypatch.setattr(run_module.tokenizers, "encode", run_module.tokenizers.encode)
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, ids: "\x1b[2J\u202eevil")
    said = message(run, model, tmp_path / "out", settings)
    assert "\x1b" not in said and "\u202e" not in said and r"\x1b[2J\u202eevil" in said
