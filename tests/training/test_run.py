from __future__ import annotations

import io
import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXForCausalLM, get_scheduler

from treering.backbone import blocks, embedding
from treering.errors import Interrupted, TreeringError
from treering.training import Training, train
from treering.training import run as run_module
from treering.training.checkpoints import AtomicTrainer
from treering.training.run import _schedule, scale_residual_outputs


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


def test_leaves_a_plain_checkpoint_with_the_substrate_unchanged(run, model, substrate, settings, tmp_path):
    before = [p.clone() for p in blocks(model).parameters()]
    result = run(model, tmp_path / "out", settings)
    assert (result.steps, result.tokens) == (8, 2048)
    assert not (tmp_path / "out.unfinished").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(loaded) is GPTNeoXForCausalLM
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.get_tensor("gpt_neox.embed_in.weight").equal(substrate.matrix)
    assert loaded.config.treering["fingerprint"] == substrate.fingerprint
    assert not any(p.equal(q) for p, q in zip(blocks(loaded).parameters(), before, strict=True))
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("Чтобы открыть", return_tensors="pt").input_ids
    with torch.no_grad():
        assert loaded.eval()(ids).logits.equal(model.eval()(ids).logits)


def test_history_and_record_say_what_was_measured(run, model, settings, tmp_path, corpus):
    result = run(model, tmp_path / "out", settings, origin={"data": "pages"})
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["origin"] == {"data": "pages"}
    assert record["settings"]["tokens"] == 2048
    assert record["measured"]["validation_bits_per_byte"] == result.validation_bits_per_byte
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    losses = [entry for entry in history if "loss" in entry]
    assert [entry["tokens"] for entry in losses] == [256 * step for step in range(1, 9)]
    first = losses[0]
    manifest = corpus.manifest
    ratio = first["bits_per_byte"] * math.log(2) / first["loss"]
    tokens = manifest.validation.tokens - manifest.validation.documents  # without separators
    assert ratio == pytest.approx(tokens / manifest.validation.text_bytes)
    assert [e["step"] for e in history if "eval_loss" in e] == [4, 8]


def test_validation_is_the_models_loss_on_held_out_blocks(run, model, settings, tmp_path, corpus, tokenizer):
    result = run(model, tmp_path / "out", settings)
    ids = [i for text in corpus.validation["text"] for i in (tokenizer.eos_token_id, *tokenizer(text)["input_ids"])]
    packed = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    with torch.no_grad():
        expected = model.eval()(packed, labels=packed).loss.item()
    assert result.history[-1]["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_what_chooses_is_not_what_measures(model, settings, tmp_path, corpus, tokenizer):
    """With documents set apart, a run is watched on these, and the held-out ones are not so much as looked at."""
    apart = replace(corpus, calibration=corpus.validation.select(range(5)), validation=None)
    result = train(model, tokenizer, apart, tmp_path / "out", settings, console=Console(file=io.StringIO()))
    ids = [i for text in apart.calibration["text"] for i in (tokenizer.eos_token_id, *tokenizer(text)["input_ids"])]
    packed = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    with torch.no_grad():
        expected = model.eval()(packed, labels=packed).loss.item()
    assert result.history[-1]["eval_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("stop_at", [2, 3, 5])
def test_stopped_and_resumed_is_the_same_to_the_bit(run, model, settings, tmp_path, monkeypatch, stop_at):
    initial = {name: p.clone() for name, p in model.state_dict().items()}
    run(model, tmp_path / "whole", settings)

    signals = iter([signal.SIGINT])

    def interrupt_at(trainer, *args, **kwargs):
        if trainer.state.global_step == stop_at - 1 and (number := next(signals, None)):
            os.kill(os.getpid(), number)
        return AtomicTrainer.__base__.training_step(trainer, *args, **kwargs)

    model.load_state_dict(initial)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=f"step {stop_at} of 8"):
        patch.setattr(AtomicTrainer, "training_step", interrupt_at)
        run(model, tmp_path / "parts", settings)
    assert not (tmp_path / "parts").exists()
    model.load_state_dict(initial)
    run(model, tmp_path / "parts", settings)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    histories = [
        [
            (e["step"], e.get("loss"), e.get("eval_loss"))
            for e in json.loads((tmp_path / d / "history.json").read_text())
        ]
        for d in ("parts", "whole")
    ]
    assert histories[0] == histories[1]


def test_a_kill_in_the_middle_of_a_save_is_never_picked_up(run, model, settings, tmp_path, monkeypatch):
    initial = {name: p.clone() for name, p in model.state_dict().items()}
    run(model, tmp_path / "whole", settings)

    def die_while_saving(trainer, *args):
        if trainer.state.global_step == 6:
            raise KeyboardInterrupt
        return AtomicTrainer.__base__._save_optimizer_and_scheduler(trainer, *args)

    model.load_state_dict(initial)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AtomicTrainer, "_save_optimizer_and_scheduler", die_while_saving)
        run(model, tmp_path / "parts", settings)
    unfinished = tmp_path / "parts.unfinished"
    assert [p.name for p in unfinished.glob("checkpoint-*")] == ["checkpoint-3"]
    model.load_state_dict(initial)
    run(model, tmp_path / "parts", settings)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_an_unfinished_run_of_another_recipe_is_refused_and_kept(run, model, settings, tmp_path, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "export", die)
        run(model, tmp_path / "out", settings)
    kept = sorted(p.name for p in (tmp_path / "out.unfinished").iterdir())
    with pytest.raises(TreeringError, match="unfinished run of another recipe"):
        run(model, tmp_path / "out", settings.model_copy(update={"learning_rate": 1e-4}))
    assert sorted(p.name for p in (tmp_path / "out.unfinished").iterdir()) == kept
    run(model, tmp_path / "out", settings)  # complete but for the export: nothing is trained again


def test_frozen_parameters_that_change_are_an_error(run, model, settings, tmp_path, monkeypatch):
    def meddle(trainer, *args, **kwargs):
        with torch.no_grad():
            embedding(trainer.model).weight[0, 0] += 1
        return AtomicTrainer.__base__.training_step(trainer, *args, **kwargs)

    monkeypatch.setattr(AtomicTrainer, "training_step", meddle)
    with pytest.raises(AssertionError, match="embed_in"):
        run(model, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_existing_output_is_refused(run, model, settings, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(TreeringError, match="already exists"):
        run(model, tmp_path / "out", settings)


def test_blocks_longer_than_the_context_are_refused(run, model, settings, tmp_path):
    model.config.max_position_embeddings = 32
    with pytest.raises(TreeringError, match="blocks of 64 tokens, the backbone's context is 32"):
        run(model, tmp_path / "out", settings)


def test_a_corpus_smaller_than_a_step_is_refused(run, model, tmp_path):
    with pytest.raises(TreeringError, match="less than one step"):
        run(model, tmp_path / "out", Training(tokens=10**9, batch_tokens=10**9, micro_batch_tokens=10**9))


def test_a_corpus_of_another_tokenizer_is_refused(run, model, settings, tmp_path, corpus, tokenizer, monkeypatch):
    other = corpus.manifest.tokenizer.model_copy(update={"identity": "0" * 64})
    manifest = corpus.manifest.model_copy(update={"tokenizer": other})
    stranger = replace(corpus, manifest=manifest)
    with pytest.raises(TreeringError, match="0" * 64):
        run_module.train(model, tokenizer, stranger, tmp_path / "out", settings)


def test_residual_outputs_are_scaled_by_depth(model):
    before = {name: p.clone() for name, p in model.named_parameters()}
    scale_residual_outputs(model)
    for name, p in model.named_parameters():
        scaled = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
        torch.testing.assert_close(p, before[name] / 2 if scaled else before[name])  # two layers: 1/√4


@pytest.mark.parametrize(
    ("schedule", "final", "last"),
    [("constant", 0.1, 1.0), ("linear", 1.0, 1.0), ("linear", 0.1, 0.1), ("cosine", 0.1, 0.1)],
)
def test_every_schedule_warms_up_from_nothing(schedule, final, last):
    """Rates of a run as shares of the highest; a stage of a growth plan is linear, often with a constant rate."""
    settings = Training(tokens=1, learning_rate=0.5, warmup=0.2, schedule=schedule, final_rate=final)
    name, more = _schedule(settings)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = get_scheduler(name, optimiser, 20, 100, more)
    rates = []
    for _ in range(101):
        rates.append(optimiser.param_groups[0]["lr"] / 0.5)
        optimiser.step()
        scheduler.step()
    assert rates[:20] == pytest.approx([step / 20 for step in range(20)])
    assert max(rates) == rates[20] == 1 and rates[100] == pytest.approx(last)
    if schedule == "linear":
        assert rates[60] == pytest.approx((1 + final) / 2)
