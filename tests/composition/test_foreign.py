"""Models that Treering never saw, joined at their output: nothing but the tokenizer is common to them."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
)

from treering import tokenizer as tokenizers
from treering.composition import compose, compose_directories, load_model
from treering.errors import TreeringError

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
GEMMA = SHAPE | {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 96}
FAMILIES = {
    "llama": (LlamaConfig, SHAPE | {"tie_word_embeddings": True, "max_position_embeddings": 64}),
    "gpt2": (GPT2Config, {"n_embd": 24, "n_layer": 1, "n_head": 2, "n_positions": 48}),
    "gemma": (GemmaConfig, GEMMA),
    "gemma2": (Gemma2Config, GEMMA | {"sliding_window": 6}),
    "bloom": (BloomConfig, {"hidden_size": 16, "n_layer": 1, "n_head": 2}),
}
PADDING = {"llama": 0, "gpt2": 12, "gemma": 4, "gemma2": 0, "bloom": 52}


@pytest.fixture(scope="module")
def foreign(tokenizer):
    """One untrained model of each family; all but two have rows that no token needs."""
    models = {}
    for seed, (name, (config, shape)) in enumerate(FAMILIES.items()):
        torch.manual_seed(seed)
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        own = config(vocab_size=len(tokenizer) + PADDING[name], initializer_range=0.3, **ids, **shape)
        models[name] = AutoModelForCausalLM.from_config(own).eval()
    return models


@pytest.fixture(scope="module")
def places(foreign, tokenizer, tmp_path_factory):
    """Their directories."""
    root = tmp_path_factory.mktemp("foreign")
    for name, model in foreign.items():
        model.save_pretrained(root / name)
        tokenizers.save(tokenizer, root / name)
    return {name: root / name for name in foreign}


@torch.no_grad()
def brute_force(models, ids, tokens):
    """Greedy decoding of the posterior mixture, every token from whole forwards of the plain models."""
    for _ in range(tokens):
        logits = [model(input_ids=ids).logits[0].double() for model in models]
        vocabulary = min(each.shape[-1] for each in logits)
        logs = torch.stack([each[:, :vocabulary].log_softmax(-1) for each in logits])
        said = logs[:, :-1].gather(-1, ids[0, 1:].expand(len(logs), -1)[..., None]).sum((1, 2))
        ids = torch.cat([ids, (said.softmax(0) @ logs[:, -1].exp()).argmax()[None, None]], 1)
    return ids


@pytest.mark.parametrize("name", FAMILIES)
def test_any_family_beside_one_of_ours(foreign, expert, tokenizer, tmp_path, name):
    ours, ids = expert(7), torch.tensor([tokenizer("To open this dialog")["input_ids"]])
    joined = compose({"ours": ours, "theirs": foreign[name]}, "evidence", across_substrates=True)
    options = {"max_new_tokens": 15, "do_sample": False, "eos_token_id": -1}
    assert joined.generate(ids, **options).equal(brute_force([ours, foreign[name]], ids, 15))
    joined.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        assert loaded(ids).logits.equal(joined(ids).logits)
        logits, _ = loaded.read(ids)
        for each, model in zip(logits, (ours, foreign[name]), strict=True):
            assert each.equal(model(input_ids=ids).logits[..., : len(tokenizer)])
    assert loaded.generate(ids, **options).equal(joined.generate(ids, **options))


@pytest.mark.parametrize("rule", ["evidence", "top_k", "top_k:k=2"])
def test_all_together_in_left_padded_rows(foreign, places, tmp_path, rule):
    compose_directories(places, tmp_path / "joined", rule, across_substrates=True)
    joined, ids = load_model(tmp_path / "joined"), torch.arange(20, 29)[None]
    rows = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), ids[:, :6]], 1), ids])
    mask = torch.ones_like(rows)
    mask[0, :3] = 0
    written = joined.generate(rows, attention_mask=mask, max_new_tokens=10, do_sample=False, eos_token_id=-1)
    if rule == "evidence":
        assert written[1:].equal(brute_force(list(foreign.values()), ids, 10))
        assert written[:1, 3:].equal(brute_force(list(foreign.values()), ids[:, :6], 10))
    alone = joined.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=-1, use_cache=False)
    assert written[1:].equal(alone)


def test_what_they_have_in_common(places, tokenizer, tmp_path):
    compose_directories(places, tmp_path / "joined", across_substrates=True)
    config = json.loads((tmp_path / "joined" / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer)
    assert config["max_position_embeddings"] == 48
    assert config["treering"] is None
    assert [record["substrate"] for record in config["experts"]] == [None] * len(FAMILIES)


def test_tied_weights_are_stored_once_and_stay_tied(foreign, places, tmp_path):
    compose_directories(places, tmp_path / "joined", across_substrates=True)
    weights = json.loads((tmp_path / "joined" / "model.safetensors.index.json").read_text())["weight_map"]
    assert not [name for name in weights if name.endswith("lm_head.weight")]
    joined = load_model(tmp_path / "joined")
    for _, model in joined.named_experts():
        assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert sum(p.numel() for p in joined.parameters()) == sum(
        p.numel() for model in foreign.values() for p in model.parameters()
    )


def test_precisions_stay_on_disk_and_the_widest_runs(places, foreign, tmp_path):
    half = tmp_path / "half"
    load_model(places["gpt2"], dtype=torch.bfloat16).save_pretrained(half)
    tokenizers.save(tokenizers.load(places["gpt2"]), half)
    compose_directories({"narrow": half, "wide": places["llama"]}, tmp_path / "joined", across_substrates=True)
    size = (half / "model.safetensors").stat().st_size
    assert abs((tmp_path / "joined" / "expert-narrow.safetensors").stat().st_size - size) < 1000
    assert {p.dtype for p in load_model(tmp_path / "joined").parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(tmp_path / "joined", dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_rules_that_read_hidden_states_name_whom_they_cannot_read(foreign):
    with pytest.raises(TreeringError, match="does not know where gpt2, gemma keeps them"):
        compose({name: foreign[name] for name in ("llama", "gpt2", "gemma")}, "gate", across_substrates=True)


def test_a_model_without_a_cache_is_refused(foreign, tokenizer):
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    mamba = AutoModelForCausalLM.from_config(config)
    with pytest.raises(TreeringError, match="mamba model, which keeps no keys and values"):
        compose({"llama": foreign["llama"], "mamba": mamba}, across_substrates=True)


def test_a_vocabulary_that_lacks_tokens_is_refused(places, tokenizer, tmp_path):
    small = LlamaConfig(vocab_size=len(tokenizer) - 1, **SHAPE)
    AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path / "small")
    tokenizers.save(tokenizer, tmp_path / "small")
    with pytest.raises(TreeringError, match=f"an expert with only {len(tokenizer) - 1} rows"):
        compose_directories({"a": places["llama"], "b": tmp_path / "small"}, tmp_path / "out", across_substrates=True)
    assert not (tmp_path / "out").exists()
