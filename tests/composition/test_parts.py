"""Names of parts: the same wherever the numbers and what is computed with them are the same, and else not."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from treering.composition import parts


def small(tied=True, layers=3, **changes):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": layers, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=20, max_position_embeddings=32, tie_word_embeddings=tied, **shape | changes)
    return LlamaForCausalLM(config)


def path(model):
    return parts.path(model.config, model.state_dict())


def test_a_digest_is_of_shape_and_float32_numbers_by_hand():
    tensor = torch.tensor([[1.0, -2.5], [0.0, 3.0]])
    told = json.dumps(["torch.float32", [2, 2]]).encode() + b"\n" + tensor.numpy().tobytes()
    assert parts.digest(tensor) == hashlib.sha256(told).hexdigest()
    assert parts.digest(tensor.bfloat16()) == parts.digest(tensor.half()) == parts.digest(tensor)
    assert parts.digest(tensor.T.contiguous().T) == parts.digest(tensor)
    assert parts.digest(tensor.T) != parts.digest(tensor)
    assert parts.digest(tensor.reshape(4)) != parts.digest(tensor)
    assert parts.digest(-0.0 * tensor[1:]) != parts.digest(0.0 * tensor[1:])  # bits, not values


def test_a_tied_head_bears_the_embeddings_name_and_an_equal_one_too():
    tied, untied = path(small()), small(tied=False)
    assert tied["head"] == tied["embedding"] != path(untied)["head"]
    untied.lm_head.weight.data = untied.model.embed_tokens.weight.data.clone()
    assert path(untied)["head"] == path(untied)["embedding"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_bit_of_a_block_changes_its_name_alone(number):
    model = small()
    before = path(model)
    model.model.layers[number].self_attn.q_proj.weight.data.view(torch.int32)[0, 0] ^= 1
    after = path(model)
    changed = [one != other for one, other in zip(before["blocks"], after["blocks"], strict=True)]
    assert changed == [n == number for n in range(3)]
    assert {key: before[key] for key in ("embedding", "norm", "head")} == {
        key: after[key] for key in ("embedding", "norm", "head")
    }


def test_what_a_block_computes_with_names_it_and_what_it_does_not_does_not():
    model = small()
    before = path(model)
    for field, value in {"rms_norm_eps": 1e-3, "num_key_value_heads": 1, "hidden_act": "gelu"}.items():
        config = copy.deepcopy(model.config)
        setattr(config, field, value)
        found = parts.path(config, model.state_dict())
        assert not set(found["blocks"]) & set(before["blocks"])
        assert (found["embedding"], found["head"]) == (before["embedding"], before["head"])
    for field, value in {"eos_token_id": 7, "use_cache": False, "treering_trunk": {"base": "x", "blocks": 1}}.items():
        config = copy.deepcopy(model.config)
        setattr(config, field, value)
        assert parts.path(config, model.state_dict()) == before


def test_the_same_block_has_one_name_in_stacks_of_any_depth():
    model, deeper = small(), small(layers=5)
    for number, block in enumerate(model.model.layers):
        deeper.model.layers[number].load_state_dict(block.state_dict())
    assert path(deeper)["blocks"][:3] == path(model)["blocks"]
    assert len(set(path(deeper)["blocks"])) == 5


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_belongs_to_exactly_one_part(tied):
    model = small(tied)
    names, tensors = path(model), model.state_dict()
    found = parts.named(model.config, tensors, names)
    assert set(found) == {names["embedding"], names["norm"], names["head"], *names["blocks"]}
    assert sorted(name for part in found.values() for name in part) == sorted(tensors)


def test_a_family_that_is_not_known_and_a_tensor_of_no_part_have_no_path():
    bloom = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=16, n_layer=1, n_head=2))
    assert parts.path(bloom.config, bloom.state_dict()) is None
    model = small()
    assert parts.path(model.config, {**model.state_dict(), "model.more.weight": torch.ones(1)}) is None
    lost = {name: t for name, t in model.state_dict().items() if name != "model.layers.1.mlp.up_proj.weight"}
    assert parts.path(model.config, lost) != path(model)
