"""A branch on a model of every family: what trains, what stays, and what plain transformers reads."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from treering import backbone
from treering.errors import Interrupted, TreeringError
from treering.growth import Plan, Stage, branch
from treering.training import Training
from treering.training.loss import collate, fused_loss

IDS = torch.arange(2 * 24).view(2, 24) * 7 % 700


@pytest.fixture
def settings():
    """Eight steps of 256 tokens, a checkpoint every second."""
    return Training(
        tokens=2048, batch_tokens=256, micro_batch_tokens=128, evaluations=2, checkpoint_steps=2, learning_rate=2e-2
    )


def tensors(directory):
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def losses(directory):
    return [e["loss"] for e in json.loads((directory / "history.json").read_text()) if "loss" in e]


@pytest.mark.parametrize(
    ("family", "plan"),
    [
        *((family, branch(2, 1)) for family in backbone.FAMILIES),
        *((f, branch(2, 0, 1)) for f in ("llama", "gemma3_text")),
    ],
)
def test_a_branch_of_every_family(family, plan, foreign, expert, growing, settings, tmp_path):
    def base():
        return expert(0, 2) if family == "gpt_neox" else foreign(family)

    model, trained = base(), plan.stages[0].trained
    growing(model, tmp_path / "cached", plan, settings, prefix="float32")
    growing(base(), tmp_path / "recomputed", plan, settings, prefix="recompute")
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "recomputed"), rel=1e-5)
    history = json.loads((tmp_path / "cached" / "history.json").read_text())
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert held_out[-1] < held_out[0]

    base().save_pretrained(tmp_path / "base")
    row, before, after = backbone.family(model.config), tensors(tmp_path / "base"), tensors(tmp_path / "cached")
    own = (*(f"{row.blocks}.{number - 1}." for number in trained), f"{row.final_norm}.")
    assert [n for n, t in after.items() if not n.startswith(own) and not t.equal(before[n])] == []
    for part in own:
        assert any(name not in before or not after[name].equal(before[name]) for name in after if name.startswith(part))

    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("base", "cached")]
    differing = {name for name in configs[0] | configs[1] if configs[0].get(name) != configs[1].get(name)}
    assert differing <= {"num_hidden_layers", "n_layer", "rotary_pct", "rotary_emb_base", *backbone.PER_BLOCK}

    tied = base().config.tie_word_embeddings
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "cached").eval()
    assert loaded.config.tie_word_embeddings == tied
    assert len(after) == len(before) + len([name for name in after if name not in before and name.startswith(own)])
    with torch.no_grad():
        assert loaded(IDS).logits.equal(model.eval()(IDS).logits)
        assert not loaded(IDS).logits.allclose(base()(IDS).logits, atol=1e-3)


@pytest.mark.parametrize("family", backbone.FAMILIES)
def test_the_loss_that_trains_is_the_models_own(family, foreign, expert):
    model = expert(0, 2) if family == "gpt_neox" else foreign(family)
    batch = collate([{"input_ids": row} for row in IDS])
    reference = model(**batch).loss
    parameter = backbone.final_norm(model).weight
    (expected,) = torch.autograd.grad(reference, parameter)
    with fused_loss(model):
        loss = model(**batch).loss
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(torch.autograd.grad(loss, parameter)[0], expected, rtol=1e-4, atol=1e-6)


def test_a_stopped_branch_with_a_tied_head_ends_with_the_same_bytes(foreign, growing, settings, tmp_path, monkeypatch):
    plan, passes = branch(2), 0
    growing(foreign(tie_word_embeddings=True), tmp_path / "whole", plan, settings, prefix="float32")

    def stop_once(self, *args, **inputs):
        nonlocal passes
        passes += self.training
        if passes == 9:
            signal.raise_signal(signal.SIGINT)

    model = foreign(tie_word_embeddings=True)
    hook = model.base_model.register_forward_pre_hook(stop_once)
    with pytest.raises(Interrupted, match="Stopped at step"):
        growing(model, tmp_path / "parts", plan, settings, prefix="float32")
    hook.remove()
    growing(foreign(tie_word_embeddings=True), tmp_path / "parts", plan, settings, prefix="float32")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole")]
    assert weights[0] == weights[1]


def test_a_tied_head_that_trains_at_last_is_untied_from_the_start(foreign, growing, settings, tmp_path):
    plan = Plan(stages=(Stage(new="3", share=0.5, head="frozen"), Stage(train="3", share=0.5, head="trained")))
    table = foreign(tie_word_embeddings=True).state_dict()["model.embed_tokens.weight"]
    growing(foreign(tie_word_embeddings=True), tmp_path / "out", plan, settings)
    first, last = tensors(tmp_path / "out" / "stages" / "1"), tensors(tmp_path / "out")
    assert first["lm_head.weight"].equal(table) and last["model.embed_tokens.weight"].equal(table)
    assert not last["lm_head.weight"].equal(table)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gpt2", ("resid_pdrop", "attn_pdrop", "embd_pdrop")),
        ("falcon", ("hidden_dropout", "attention_dropout")),
        ("stablelm", ("hidden_dropout", "attention_dropout")),
        ("mixtral", ("attention_dropout", "router_jitter_noise")),
        ("starcoder2", ("residual_dropout", "attention_dropout", "embedding_dropout")),
    ],
)
def test_dropout_of_the_base_neither_trains_nor_is_forgotten(foreign, growing, settings, tmp_path, family, fields):
    said = dict.fromkeys(fields, 0.3)
    growing(foreign(family, **said), tmp_path / "out", branch(2), settings, prefix="float32")
    none = foreign(family, **dict.fromkeys(fields, 0.0))
    growing(none, tmp_path / "default", branch(2), settings, prefix="float32")
    assert losses(tmp_path / "out") == losses(tmp_path / "default")
    assert json.loads((tmp_path / "out" / "config.json").read_text()).items() >= said.items()


def test_a_frozen_head_on_a_fresh_model_is_refused_before_anything_is_made(fresh, growing, settings, tmp_path):
    plan = Plan(stages=(Stage(new="1", start="random", share=1.0),), head="frozen")
    with pytest.raises(TreeringError, match="freezes the head of a model that has no block yet"):
        growing(fresh(), tmp_path / "out", plan, settings)
    assert not list(tmp_path.iterdir())
