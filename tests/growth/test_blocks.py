from __future__ import annotations

import pytest
import torch

from treering import backbone
from treering.errors import TreeringError
from treering.growth import deepen
from treering.growth.blocks import only, require_one_kind, sources, tied

IDS = torch.arange(2 * 24).view(2, 24) * 7 % 700


VARIANTS = {
    "falcon, one after the other": (
        "falcon",
        {"parallel_attn": False, "multi_query": False, "num_kv_heads": 2, "bias": True},
    ),
    "falcon, new": ("falcon", {"new_decoder_architecture": True}),
    "falcon, new, one norm": ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "mixtral, window": ("mixtral", {"sliding_window": 8}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True, "qk_layernorm": True}),
}


@pytest.fixture(params=[*backbone.FAMILIES, *VARIANTS])
def model(request, expert, foreign):
    family, config = VARIANTS.get(request.param, (request.param, {}))
    return expert(0, 2) if family == "gpt_neox" else foreign(family, **config)


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.mark.parametrize("new", [(3,), (3, 4), (1,), (2, 4)])
def test_zero_blocks_change_nothing_wherever_they_stand(model, new):
    kinds = getattr(model.config, "layer_types", None)
    before, old = logits(model), list(backbone.blocks(model))
    deepen(model, new, "zero")
    assert model.config.num_hidden_layers == len(backbone.blocks(model)) == 2 + len(new)
    kept = [block for number, block in enumerate(backbone.blocks(model), 1) if number not in new]
    assert all(a is b for a, b in zip(kept, old, strict=True))
    if kinds:
        assert [kind for number, kind in enumerate(model.config.layer_types, 1) if number not in new] == kinds
    assert logits(model).equal(before)


def test_a_deeper_model_is_what_transformers_loads(model, tmp_path):
    deepen(model, (2, 4), "random")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert len(backbone.blocks(loaded)) == 4
    assert logits(loaded).equal(logits(model))


def test_cached_decoding_knows_the_new_blocks(model):
    deepen(model, (1, 4), "random")
    model.generation_config.pad_token_id = 0
    out = model.generate(IDS[:1, :5], max_new_tokens=12, do_sample=False)
    again = model.generate(IDS[:1, :5], max_new_tokens=12, do_sample=False, use_cache=False)
    assert out.equal(again)


@torch.no_grad()
def test_a_block_in_a_deeper_model_is_of_the_kind_that_its_configuration_says(model, tmp_path):
    """New blocks of each kind, where the fresh ones and the old ones do not alternate alike."""
    deepen(model, (1, 3, 4, 6), "random")
    with torch.no_grad():
        expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    names = ("is_sliding", "sliding_window", "use_rope", "layer_type", "layer_idx", "attention_type")
    for ours, theirs in zip(backbone.blocks(model), backbone.blocks(loaded), strict=True):
        for mine, other in zip(ours.modules(), theirs.modules(), strict=True):
            assert [getattr(mine, n, None) for n in names] == [getattr(other, n, None) for n in names]
    assert logits(loaded).equal(expected)


def test_a_copy_is_of_the_block_below(model):
    deepen(model, (1, 4), "copy")
    stack = backbone.blocks(model)
    for new, source in ((0, 1), (3, 2)):
        pairs = zip(stack[new].parameters(), stack[source].parameters(), strict=True)
        assert all(p.equal(q) and p is not q for p, q in pairs)


def test_a_looped_start_repeats_the_old_blocks(model):
    old, kinds = list(backbone.blocks(model)), getattr(model.config, "layer_types", None)
    deepen(model, (3, 4, 5), "loop")
    stack = backbone.blocks(model)
    assert stack[0] is old[0] and stack[1] is old[1]
    for new, source in ((2, 0), (3, 1), (4, 0)):
        pairs = zip(stack[new].parameters(), old[source].parameters(), strict=True)
        assert all(p.equal(q) and p is not q for p, q in pairs)
    if kinds:
        assert model.config.layer_types == [*kinds, *kinds, kinds[0]]


def test_what_new_blocks_are_copies_of():
    assert sources((3, 4, 5), 2, "loop") == {3: 1, 4: 2, 5: 1}
    assert sources((3, 4), 2, "copy") == {3: 2, 4: 2}
    assert sources((1, 3, 6), 3, "copy") == {1: 1, 3: 1, 6: 3}
    assert sources((1, 2), 0, "loop") == sources((3,), 2, "zero") == sources((3,), 2, "random") == {}


def test_random_blocks_are_initialised_as_the_family_does_and_scaled(expert):
    model = expert(0, 2)
    torch.manual_seed(5)
    deepen(model, (3,), "random", residual_init=True)
    block = backbone.blocks(model)[2]
    wide, out = block.mlp.dense_h_to_4h.weight, block.mlp.dense_4h_to_h.weight
    assert wide.std().item() == pytest.approx(model.config.initializer_range, rel=0.05)
    assert out.std().item() == pytest.approx(model.config.initializer_range / 6**0.5, rel=0.05)
    assert block.mlp.dense_h_to_4h.bias.eq(0).all()


def test_new_blocks_take_the_models_precision(foreign):
    model = foreign().bfloat16()
    deepen(model, (3,))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@torch.no_grad()
def test_a_part_of_a_model_computes_its_part_and_is_put_back(model):
    reference = model(IDS, output_hidden_states=True)
    names = list(model.state_dict())
    with only(model, 0, 1):
        lower = model.base_model(IDS, use_cache=False).last_hidden_state
    torch.testing.assert_close(lower, reference.hidden_states[1], rtol=0, atol=0)
    row = backbone.family(model.config)
    with only(model, 1):
        assert not any(name.startswith((row.embedding, f"{row.blocks}.0.")) for name in model.state_dict())
        assert set(model.state_dict()) < set(names)
        upper = model(inputs_embeds=lower, use_cache=False).logits
    torch.testing.assert_close(upper, reference.logits, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == names
    assert logits(model).equal(reference.logits)


def test_tied_blocks_are_one_and_then_apart(expert):
    model = expert(0, 2)
    deepen(model, (3, 4, 5), "random")
    names = [name for name, _ in model.named_parameters()]
    with tied(model, {1: 1, 2: 2, 3: 1, 4: 2, 5: 1}):
        stack = backbone.blocks(model)
        assert [list(stack).index(block) for block in stack] == [0, 1, 0, 1, 0]
        with torch.no_grad():
            inside = model.eval()(IDS, use_cache=False).logits
    stack = backbone.blocks(model)
    for block, leader in ((2, 0), (3, 1), (4, 0)):
        pairs = zip(stack[block].parameters(), stack[leader].parameters(), strict=True)
        assert all(p.equal(q) and p is not q for p, q in pairs)
    assert [name for name, _ in model.named_parameters()] == names
    assert logits(model).equal(inside)
    model.generation_config.pad_token_id = 0
    out = model.generate(IDS[:1, :5], max_new_tokens=12, do_sample=False)
    assert out.equal(model.generate(IDS[:1, :5], max_new_tokens=12, do_sample=False, use_cache=False))


def test_blocks_that_attend_in_different_ways_cannot_be_tied(foreign):
    with pytest.raises(TreeringError, match=r"Block 2 \(full_attention\) .* block 1 \(sliding_attention\)"):
        require_one_kind({1: 1, 2: 1}, foreign("qwen3").config.layer_types)
