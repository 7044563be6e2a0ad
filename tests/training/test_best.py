"""Which weights a run leaves, and that stopping it at any moment changes nothing of that."""

from __future__ import annotations

import io
import json
import os
import signal

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from treering.backbone import PRESETS, dock, gpt_neox
from treering.errors import Interrupted, TreeringError
from treering.seal import damage, seal
from treering.training import Training, train
from treering.training.checkpoints import AtomicTrainer

WORSENS = Training(
    tokens=2048,
    batch_tokens=256,
    micro_batch_tokens=256,
    evaluations=8,
    checkpoint_steps=3,
    learning_rate=1,
    warmup=0.9,
)
"""Eight steps at a rate that grows until it does harm, each with a validation."""


@pytest.fixture
def run(tokenizer, corpus, substrate):
    """``run(output, **changes)``: result and what was printed, from a model that is each time the same."""

    def start(output, **changes):
        torch.manual_seed(0)
        config = gpt_neox(PRESETS["tiny"])
        config.vocab_size = len(tokenizer)
        console = Console(file=io.StringIO(), width=500)
        model = dock(config, substrate, tokenizer)
        settings = WORSENS.model_copy(update=changes)
        return train(model, tokenizer, corpus, output, settings, console=console), console.file.getvalue()

    return start


def validations(result):
    return {entry["step"]: entry["eval_loss"] for entry in result.history if "eval_loss" in entry}


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


def test_the_weights_of_the_lowest_validation_are_left(run, tmp_path, monkeypatch):
    seen = {}
    evaluate = AtomicTrainer.evaluate

    def look(trainer, *args, **kwargs):
        seen[trainer.state.global_step] = {name: p.clone() for name, p in trainer.model.named_parameters()}
        return evaluate(trainer, *args, **kwargs)

    monkeypatch.setattr(AtomicTrainer, "evaluate", look)
    result, said = run(tmp_path / "best")
    measured = validations(result)
    best = min(measured, key=measured.__getitem__)
    assert list(measured) == list(range(1, 9)) and 1 < best < 8 and measured[8] > 1.1 * measured[best]
    assert (result.steps, result.tokens, result.kept_step) == (8, 2048, best)
    left = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "best").named_parameters())
    assert left.keys() == seen[best].keys() and all(left[name].equal(seen[best][name]) for name in left)
    bits = {entry["step"]: entry["eval_bits_per_byte"] for entry in result.history if "eval_loss" in entry}
    record = json.loads((tmp_path / "best" / "training.json").read_text())
    assert record["settings"]["keep"] == "best"
    assert (record["measured"]["kept_step"], record["measured"]["validation_bits_per_byte"]) == (best, bits[best])
    assert f"kept step {best} of 8: validation {bits[best]:.3f} bits/byte; it rose to {bits[8]:.3f} after" in said
    assert f"{bits[best]:.3f} bits per byte, by the weights of step {best} of 8" in (
        tmp_path / "best" / "README.md"
    ).read_text().replace("\n", " ")

    result, said = run(tmp_path / "last", keep="last")
    assert validations(result) == measured
    assert (result.kept_step, result.validation_bits_per_byte) == (8, bits[8])
    left = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "last").named_parameters())
    assert all(left[name].equal(seen[8][name]) for name in left)
    assert "overfitting: validation was" in said and "(training.keep: last)" in said


@pytest.mark.parametrize("step", [1, 2, 4, 7])
def test_killed_at_any_moment_it_leaves_the_same_bytes(kill_at, run, tmp_path, step):
    """Before the best is known, between it and the first checkpoint, after either checkpoint."""
    whole, _ = run(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, step)
        run(tmp_path / "parts")
    result, _ = run(tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert validations(result) == validations(whole) and result.kept_step == whole.kept_step


def test_a_checkpoint_holds_the_best_unless_it_is_it(kill_at, run, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 5)
        run(tmp_path / "parts", checkpoint_steps=2)
    unfinished = tmp_path / "parts.unfinished"
    state = json.loads((unfinished / "checkpoint-4" / "trainer_state.json").read_text())
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    assert min(losses, key=losses.__getitem__) == 2
    assert not (unfinished / "checkpoint-2" / "best.safetensors").exists()
    kept, trained = (load_file(unfinished / "checkpoint-4" / f"{name}.safetensors") for name in ("best", "trained"))
    assert kept.keys() == trained.keys() and not any("embed_in" in name for name in kept)
    then = load_file(unfinished / "checkpoint-2" / "trained.safetensors")
    assert all(kept[name].equal(then[name]) for name in kept)
    assert any(not kept[name].equal(trained[name]) for name in kept)
    assert damage(unfinished / "checkpoint-4") is None
    assert "best.safetensors" in json.loads((unfinished / "checkpoint-4" / "seal.json").read_text())
    assert sorted(path.name for path in unfinished.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_the_best_of_another_model_is_refused(kill_at, run, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 7)
        run(tmp_path / "parts")
    checkpoint = tmp_path / "parts.unfinished" / "checkpoint-6"
    save_file({"a": torch.zeros(2)}, checkpoint / "best.safetensors")
    (checkpoint / "seal.json").unlink()
    seal(checkpoint)
    with pytest.raises(TreeringError, match="checkpoint-6 is of another model"):
        run(tmp_path / "parts")


def test_patience_ends_it_and_keeps_the_best(run, tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole")
    best = whole.kept_step
    result, said = run(tmp_path / "short", patience=2)
    assert (result.steps, result.kept_step) == (best + 2, best)
    assert weights(tmp_path / "short") == weights(tmp_path / "whole")
    assert f"ended at step {best + 2} of 8: 2 validations without gain" in said and f"kept step {best} of" in said
    for moment in ("training_step", "evaluate"):  # in the last step, and in the validation that ends it
        with monkeypatch.context() as patch:
            interrupt_at(patch, moment, best + 2)
            with pytest.raises(Interrupted, match=f"Stopped at step {best + 2} of 8"):
                run(tmp_path / moment, patience=2)
        result, _ = run(tmp_path / moment, patience=2)
        assert result.steps == best + 2
        assert weights(tmp_path / moment) == weights(tmp_path / "whole")


def interrupt_at(patch, moment, step):
    """Press Ctrl-C in a step, from 1, or in the validation after it."""
    own = getattr(AtomicTrainer, moment)

    def acting(trainer, *args, **kwargs):
        if trainer.state.global_step == step - (moment == "training_step") and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        return own(trainer, *args, **kwargs)

    sent = []
    patch.setattr(AtomicTrainer, moment, acting)
