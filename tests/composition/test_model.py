from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DynamicCache

from treering import substrate as substrates
from treering.backbone import dock, embedding
from treering.composition import ComposedModel, compose
from treering.errors import TreeringError


@pytest.fixture(scope="module")
def experts(expert):
    return {"deep": expert(1, layers=3), "shallow": expert(2, layers=1), "llama": expert(3, family="llama")}


@pytest.fixture(scope="module")
def composed(experts):
    return compose(experts)


@pytest.fixture(scope="module")
def prompt(tokenizer):
    return torch.tensor([tokenizer("To open this dialog, choose")["input_ids"]])


def brute_force_logits(experts, input_ids):
    with torch.no_grad():
        return sum(expert(input_ids=input_ids).logits for expert in experts.values()) / len(experts)


def test_forward_is_the_mean_of_the_experts(experts, composed, prompt):
    with torch.no_grad():
        torch.testing.assert_close(composed(prompt).logits, brute_force_logits(experts, prompt))


def test_greedy_generation_is_a_loop_over_full_forwards(experts, composed, prompt):
    expected = prompt
    for _ in range(20):
        token = brute_force_logits(experts, expected)[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, token], dim=1)
    assert composed.generate(prompt, max_new_tokens=20, min_new_tokens=20, do_sample=False, eos_token_id=-1).equal(
        expected
    )


def test_sampling_is_a_loop_over_full_forwards(experts, composed, prompt):
    torch.manual_seed(0)
    expected = prompt
    for _ in range(20):
        probabilities = brute_force_logits(experts, expected)[:, -1].softmax(-1)
        expected = torch.cat([expected, torch.multinomial(probabilities, 1)], dim=1)
    torch.manual_seed(0)
    sampled = composed.generate(prompt, max_new_tokens=20, do_sample=True, top_k=0, eos_token_id=-1)
    assert sampled.equal(expected)


def test_beam_search_with_caches_is_beam_search_without(composed, prompt):
    beams = [composed.generate(prompt, max_new_tokens=15, num_beams=4, use_cache=cached) for cached in (True, False)]
    assert beams[0].equal(beams[1])


def test_a_cache_made_without_a_configuration_is_used_and_kept(experts, composed, prompt):
    cache = DynamicCache()
    with torch.no_grad():
        composed(prompt[:, :-1], past_key_values=cache, use_cache=True)
        assert cache.get_seq_length() == prompt.shape[1] - 1
        last = composed(prompt[:, -1:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(last[:, -1], brute_force_logits(experts, prompt)[:, -1], rtol=1e-4, atol=1e-4)


def test_loss_is_the_mean_surprise_of_the_labels(experts, composed, prompt):
    with torch.no_grad():
        loss = composed(prompt, labels=prompt).loss
    surprise = -brute_force_logits(experts, prompt)[0, :-1].log_softmax(-1)
    torch.testing.assert_close(loss, surprise.gather(1, prompt[0, 1:, None]).mean())


def test_left_padded_batch_is_each_row_alone(composed, tokenizer):
    texts = ["To open", "Чтобы открыть диалоговое окно", "要打开"]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    together = composed.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=-1)[:, -12:]
    for text, row in zip(texts, together, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        alone = composed.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=-1)
        assert alone[0, -12:].equal(row)


def test_saved_and_loaded_it_gives_the_same_bits(composed, prompt, tmp_path):
    composed.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, ComposedModel)
    with torch.no_grad():
        assert loaded(prompt).logits.equal(composed(prompt).logits)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for shard in tmp_path.glob("*.safetensors"):
        assert shard.read_bytes() == (again / shard.name).read_bytes()


def test_transformers_loads_it_without_treering_imported(composed, tmp_path):
    composed.save_pretrained(tmp_path / "composed")
    script = (
        "import sys; from transformers import AutoModelForCausalLM; assert 'treering' not in sys.modules\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'composed')!r}, trust_remote_code=True)\n"
        "print(type(model).__name__, model.config.rule)"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "cache")}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert ran.stdout == "ComposedModel mean\n", ran.stderr


def test_the_substrate_is_stored_once_and_each_expert_in_its_shard(experts, composed, substrate, tmp_path):
    composed.save_pretrained(tmp_path)
    shards = {path.name for path in tmp_path.glob("*.safetensors")}
    assert shards == {"substrate.safetensors", *(f"expert-{name}.safetensors" for name in experts)}
    with safe_open(tmp_path / "substrate.safetensors", "pt") as file:
        assert list(file.keys()) == ["substrate.weight"]
        assert file.get_tensor("substrate.weight").equal(substrate.matrix)
    stored = sum(p.numel() for p in composed.parameters())
    apart = sum(p.numel() for expert in experts.values() for p in expert.parameters())
    assert stored == apart - 2 * substrate.matrix.numel()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == shards


def test_composing_shares_the_experts_memory(experts):
    composed = compose(experts)
    for name, expert in experts.items():
        own = dict(expert.named_parameters())
        for key, parameter in composed.experts[name].named_parameters():
            assert parameter.data_ptr() == own[key].data_ptr()
    assert composed.substrate.weight.data_ptr() == embedding(experts["deep"]).weight.data_ptr()


def test_experts_keep_their_own_configuration(experts, composed):
    assert [record["name"] for record in composed.config.experts] == list(experts)
    assert composed.config.num_hidden_layers == 3 + 1 + 2
    assert composed.experts["llama"].config.model_type == "llama"


def test_one_expert_with_itself_is_itself(experts, prompt):
    one = experts["deep"]
    with torch.no_grad():
        torch.testing.assert_close(compose({"a": one, "b": one})(prompt).logits, one(prompt).logits)


def test_different_substrates_are_refused_naming_both(experts, tokenizer):
    other = substrates.build(tokenizer, 64, kind="random", seed=1)
    stranger = dock(copy.deepcopy(experts["deep"].config), other, tokenizer)
    with pytest.raises(TreeringError) as error:
        compose({"deep": experts["deep"], "stranger": stranger})
    assert other.fingerprint in str(error.value)
    assert experts["deep"].config.treering["fingerprint"] in str(error.value)


def test_different_tokenizers_are_refused_naming_both(experts):
    stranger = copy.deepcopy(experts["deep"])
    stranger.config.treering = {**stranger.config.treering, "tokenizer": "f" * 64}
    with pytest.raises(TreeringError, match="different tokenizers") as error:
        compose({"deep": experts["deep"], "stranger": stranger})
    assert "f" * 64 in str(error.value)


def test_an_embedding_changed_after_docking_is_refused(experts):
    changed = copy.deepcopy(experts["deep"])
    with torch.no_grad():
        embedding(changed).weight[5, 5] += 1e-3
    with pytest.raises(TreeringError, match="was changed after docking"):
        compose({"deep": experts["deep"], "changed": changed})


def test_a_trainable_substrate_is_refused(experts, tokenizer):
    trainable = substrates.build(tokenizer, 64, kind="trainable")
    docked = dock(copy.deepcopy(experts["deep"].config), trainable, tokenizer)
    with pytest.raises(TreeringError, match="trainable embedding"):
        compose({"a": docked, "b": docked})


def test_models_that_were_never_docked_are_refused(experts):
    stranger = copy.deepcopy(experts["deep"])
    del stranger.config.treering
    with pytest.raises(TreeringError, match="stranger names no substrate"):
        compose({"deep": experts["deep"], "stranger": stranger})


@pytest.mark.parametrize(
    ("names", "rule", "message"),
    [
        (["a"], "mean", "at least two experts"),
        (["a", "b/../c"], "mean", "cannot be an expert's name"),
        (["a", "b"], "medain", "no composition rule"),
    ],
)
def test_calls_that_make_no_sense_are_refused(experts, names, rule, message):
    with pytest.raises(TreeringError, match=message):
        compose(dict.fromkeys(names, experts["deep"]), rule)
