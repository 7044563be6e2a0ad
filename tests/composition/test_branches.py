"""Branches on one trunk against the same experts apart: the same bits, and what is shared is there once."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig
from transformers import MistralForCausalLM as Mistral

from treering import tokenizer as tokenizers
from treering.backbone import blocks
from treering.composition import (
    ComposedModel,
    add_expert,
    compose,
    compose_directories,
    joining,
    list_experts,
    load_model,
    remove_expert,
    variant,
)
from treering.errors import TreeringError
from treering.growth import deepen

VOCABULARY = 60
RULES = [
    "mean",
    "probability",
    "evidence",
    "evidence:switch=0.1",
    "evidence:cache=0.2",
    "evidence:switch=0.1,together=0.1",
    "top_k",
    "top_k:k=2",
    "gate",
    "adapter",
]
NAMES = ["base", "ru", "zh", "law", "tax", "upper"]


def small(seed, layers, vocabulary=VOCABULARY, kind=(LlamaConfig, LlamaForCausalLM), **changes):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 2}
    shape |= {"vocab_size": vocabulary, "max_position_embeddings": 128, "initializer_range": 0.3}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True}
    config, model = kind
    return model(config(**shape | ids | changes)).eval()


def branch(base, seed, new=1, replaced=0, head=False):
    """A branch of new blocks on a model, with a norm of its own, and a head of its own if so wanted."""
    kind, heads = (type(base.config), type(base)), base.config.num_key_value_heads
    top = small(seed, new, base.config.vocab_size, kind, tie_word_embeddings=False, num_key_value_heads=heads)
    config = copy.deepcopy(base.config)
    config.num_hidden_layers, config.tie_word_embeddings = base.config.num_hidden_layers - replaced + new, not head
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * config.num_hidden_layers
    grown = type(base)(config).eval()
    stack = [*list(blocks(base))[: base.config.num_hidden_layers - replaced], *blocks(top)]
    for block, own in zip(blocks(grown), stack, strict=True):
        block.load_state_dict(own.state_dict())
    grown.model.embed_tokens.load_state_dict(base.model.embed_tokens.state_dict())
    grown.model.norm.weight.data = 1 + 0.1 * torch.randn(32)
    if head:
        grown.lm_head.weight = torch.nn.Parameter(top.lm_head.weight.detach().clone())
    else:
        grown.tie_weights()
    return grown


@pytest.fixture(scope="module")
def experts():
    """A base, two branches, two branches of one branch, and one that replaces the base's upper block."""
    base = small(0, 3)
    ru, zh = branch(base, 1, 2), branch(base, 2, 1, head=True)
    grown = [base, ru, zh, branch(ru, 3), branch(ru, 4, 2), branch(base, 5, 1, replaced=1)]
    return dict(zip(NAMES, grown, strict=True))


@pytest.fixture(scope="module")
def apart(experts):
    """The same experts joined without sharing anything: what a composition of strangers is."""

    def make(spec, given=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(joining, "path", lambda *_: None)
            return compose(given or experts, spec, across_substrates=True)

    return make


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(0))


def test_what_is_shared_is_there_once(experts):
    model = compose(experts)
    assert sorted((t.first, t.last, len(t.experts)) for t in model.tree.trunks.values()) == [
        (0, 2, 6),
        (2, 3, 5),
        (3, 5, 3),
    ]
    count = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in blocks(experts["base"])[0].parameters())
    matrix, norm = VOCABULARY * 32, 32
    assert count == (3 + 2 + 1 + 1 + 2 + 1) * block + 2 * matrix + 6 * norm
    assert model.config.num_hidden_layers == 10


def test_to_build_it_makes_no_matrix_that_is_shared_twice(experts):
    """Loading counts what is made, and takes a composition that makes more than its files hold for damaged."""
    composed, made = compose(experts), {}
    hook = register_module_parameter_registration_hook(lambda _, __, p: made.update({id(p): p}))
    try:
        with torch.device("meta"):
            ComposedModel(composed.config)
    finally:
        hook.remove()
    numbers = sum(p.numel() for p in made.values() if p is not None)
    assert numbers < sum(p.numel() for p in composed.parameters()) + VOCABULARY * 32


@pytest.mark.parametrize("spec", RULES)
def test_a_text_gives_the_bits_of_the_experts_apart(experts, apart, ids, spec):
    with torch.no_grad():
        assert compose(experts, spec)(ids).logits.equal(apart(spec)(ids).logits)


@pytest.mark.parametrize("spec", RULES)
def test_every_step_of_decoding_is_that_of_the_experts_apart(experts, apart, ids, spec):
    models, caches = (compose(experts, spec), apart(spec)), (DynamicCache(), DynamicCache())
    with torch.no_grad():
        for piece in ids.split([5, 1, 1, 1, 3, *[1] * 9], dim=1):
            one, other = (m(piece, past_key_values=c).logits for m, c in zip(models, caches, strict=True))
            if "top_k" in spec:  # who wakes reads what it missed at once, and so rounds otherwise
                torch.testing.assert_close(one.softmax(-1), other.softmax(-1), rtol=1e-3, atol=1e-6)
            else:  # one product with a common head rounds otherwise than one for each
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", RULES)
@pytest.mark.parametrize(
    "way",
    [
        {"do_sample": False},
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 3},
        {"prompt_lookup_num_tokens": 3},
        {"do_sample": False, "use_cache": False},
    ],
    ids=["greedy", "beams", "samples", "lookup", "uncached"],
)
def test_generation_is_that_of_the_experts_apart(experts, apart, spec, way):
    prompt = torch.tensor([[5, 6, 7, 8, 9, 10] * 3])
    options = {"max_new_tokens": 24, "min_new_tokens": 24} | way
    written = []
    for model in (compose(experts, spec), apart(spec)):
        torch.manual_seed(0)
        written.append(model.generate(prompt, **options))
    assert written[0].equal(written[1])


@pytest.mark.parametrize("spec", ["evidence", "top_k"])
def test_left_padded_rows_are_those_alone(experts, spec):
    model = compose(experts, spec)
    rows = torch.tensor([[0, 0, 0, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16, 17]])
    mask = (rows != 0).long()
    options = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    together = model.generate(rows, attention_mask=mask, **options)
    assert together[0, 3:].equal(model.generate(rows[:1, 3:], **options)[0])
    assert together[1:].equal(model.generate(rows[1:], **options))


@pytest.mark.parametrize("spec", ["mean", "evidence", "top_k"])
def test_windows_that_slide_over_a_trunk(apart, spec):
    base = small(0, 2, kind=(MistralConfig, Mistral), sliding_window=6, num_key_value_heads=1)
    experts = {"base": base, "a": branch(base, 1), "b": branch(base, 2)}
    prompt = torch.tensor([[5, 6, 7, 8, 9, 10] * 4])
    joined, alone = compose(experts, spec), apart(spec, experts)
    assert joined.tree.trunks
    for way in ({}, {"prompt_lookup_num_tokens": 4}, {"use_cache": False}):
        options = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False} | way
        assert joined.generate(prompt, **options).equal(alone.generate(prompt, **options))


FALCON = {"num_kv_heads": 2, "max_position_embeddings": 128}
OTHERS = [
    ("falcon", FALCON),
    ("falcon", FALCON | {"parallel_attn": False, "multi_query": False, "alibi": True}),
    ("falcon", FALCON | {"new_decoder_architecture": True}),
    ("mixtral", {"num_key_value_heads": 1, "num_local_experts": 4, "intermediate_size": 48}),
    ("stablelm", {"num_key_value_heads": 1, "intermediate_size": 48}),
    ("starcoder2", {"num_key_value_heads": 1, "intermediate_size": 48}),
]


def of_family(family, config, vocabulary=VOCABULARY):
    """A model of two blocks, and two branches of one block more."""
    shape = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape | config)).eval()
    given = {"base": base, "a": copy.deepcopy(base), "b": copy.deepcopy(base)}
    for name in ("a", "b"):
        deepen(given[name], (3,), "random")
    return given


@pytest.mark.parametrize(("family", "config"), OTHERS)
def test_other_families_share_their_trunk_too(apart, ids, family, config):
    given = of_family(family, config)
    joined, alone = compose(given, "evidence"), apart("evidence", given)
    assert [(t.first, t.last, len(t.experts)) for t in joined.tree.trunks.values()] == [(0, 2, 3)]
    rows = torch.cat([ids[:1, :12], torch.cat([torch.zeros(1, 3, dtype=torch.long), ids[1:, :9]], 1)])
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    with torch.no_grad():
        assert joined(ids).logits.equal(alone(ids).logits)
        written = joined.generate(rows, attention_mask=(rows != 0).long(), **options)
        assert written[:1].equal(alone.generate(rows[:1], **options))
        assert written[1:, 3:].equal(alone.generate(rows[1:, 3:], **options))


@pytest.mark.parametrize(("family", "config"), OTHERS)
def test_directories_of_other_families_share_their_trunk_too(ids, tokenizer, tmp_path, family, config):
    given = of_family(family, config, len(tokenizer))
    for name, model in given.items():
        model.save_pretrained(tmp_path / name)
        tokenizers.save(tokenizer, tmp_path / name)
    compose_directories({name: tmp_path / name for name in given}, tmp_path / "joined")
    loaded = load_model(tmp_path / "joined")
    assert [(t.first, t.last, len(t.experts)) for t in loaded.tree.trunks.values()] == [(0, 2, 3)]
    with torch.no_grad():
        assert loaded(ids).logits.equal(compose(given)(ids).logits)


def test_the_trunk_reads_a_text_once_and_sleeping_branches_do_not(experts, ids):
    model, ran = compose(experts, "top_k"), dict[str, int]()

    def count(name, module):
        module.register_forward_hook(lambda *_: ran.update({name: ran.get(name, 0) + 1}))

    for key, trunk in model.tree.trunks.items():
        count(f"{trunk.first}-{trunk.last}", model.trunks[key])
    for name, expert in model.named_experts():
        count(name, expert.base_model)
    model.generate(ids[:1], max_new_tokens=80, min_new_tokens=80, do_sample=False)
    assert ran["0-2"] == 80
    awake = [ran.get(name, 0) for name in NAMES if name != "base"]
    assert sum(awake) < 0.6 * 80 * len(awake)


def test_an_expert_alone_is_the_plain_model_and_shares_its_memory(experts, ids):
    model = compose(experts)
    for name, expert in experts.items():
        alone = model.expert(name)
        with torch.no_grad():
            assert alone(ids).logits.equal(expert(ids).logits)
        assert (
            alone.model.layers[0].mlp.up_proj.weight.data_ptr()
            == next(iter(model.trunks.values())).layers[0].mlp.up_proj.weight.data_ptr()
        )
    with pytest.raises(TreeringError, match="no expert 'fr'"):
        model.expert("fr")


def test_a_specialist_alone_is_itself_too(expert, tokenizer):
    ids = torch.tensor([tokenizer("To open this dialog")["input_ids"]])
    experts = {"a": expert(1), "b": expert(2, 1, "llama")}
    with torch.no_grad():
        for name, own in experts.items():
            assert compose(experts).expert(name)(ids).logits.equal(own(ids).logits)


def test_gradients_reach_the_trunk_from_all(experts, apart, ids):
    given = {name: copy.deepcopy(experts[name]) for name in ("base", "ru", "zh")}
    joined, alone = compose(copy.deepcopy(given), "evidence").train(), apart("evidence", copy.deepcopy(given)).train()
    for model in (joined, alone):
        model(ids, labels=ids).loss.backward()
    (trunk,) = joined.trunks.values()
    found = trunk.layers[1].mlp.up_proj.weight.grad
    expected = sum(e.model.layers[1].mlp.up_proj.weight.grad for _, e in alone.named_experts())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def places(tokenizer, tmp_path_factory):
    """A base and branches on disk, with a tokenizer."""
    root, base = tmp_path_factory.mktemp("branches"), small(0, 3, len(tokenizer))
    ru = branch(base, 1, 2)
    grown = {"base": base, "ru": ru, "zh": branch(base, 2, 1, head=True), "law": branch(ru, 3)}
    grown["upper"] = branch(base, 5, 1, replaced=1)
    for name, model in grown.items():
        model.save_pretrained(root / name)
        tokenizers.save(tokenizer, root / name)
    return {name: root / name for name in grown}


def content(place):
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_saved_and_loaded_it_gives_the_same_bits(places, tmp_path):
    composed = compose_directories(places, tmp_path / "all")
    loaded, ids = load_model(tmp_path / "all"), torch.arange(5, 25)[None]
    assert loaded.tree == composed.tree
    with torch.no_grad():
        assert loaded(ids).logits.equal(composed(ids).logits)
    loaded.save_pretrained(tmp_path / "again")
    for shard in (tmp_path / "all").glob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "again" / shard.name).read_bytes()
    stored = sum(path.stat().st_size for path in (tmp_path / "all").glob("*.safetensors"))
    numbers = sum(p.numel() for p in composed.parameters())
    assert 4 * numbers < stored < 4 * numbers + 50_000
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "all", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    assert load_model(tmp_path / "half").dtype == torch.bfloat16


@pytest.mark.parametrize("leaving", ["base", "ru", "zh", "law", "upper"])
def test_who_leaves_leaves_no_trace_and_who_comes_back_changes_nothing(places, tmp_path, leaving):
    order = [*(name for name in places if name != leaving), leaving]
    compose_directories({name: places[name] for name in order}, tmp_path / "all")
    compose_directories({name: places[name] for name in order[:-1]}, tmp_path / "without")
    whole = content(tmp_path / "all")
    remove_expert(tmp_path / "all", leaving)
    assert content(tmp_path / "all") == content(tmp_path / "without")
    add_expert(tmp_path / "all", places[leaving], leaving)
    assert content(tmp_path / "all") == whole


def test_down_to_the_base_and_up_again(places, tmp_path):
    compose_directories({name: places[name] for name in ("base", "ru")}, tmp_path / "pair")
    before = content(tmp_path / "pair")
    remove_expert(tmp_path / "pair", "ru")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        alone, base = load_model(tmp_path / "pair", rule="mean"), load_model(places["base"])
        torch.testing.assert_close(alone(ids).logits.softmax(-1), base(ids).logits.softmax(-1))
    assert not list((tmp_path / "pair").glob("trunk-*"))
    add_expert(tmp_path / "pair", places["ru"], "ru")
    assert content(tmp_path / "pair") == before


def test_a_branch_that_joins_neither_reads_nor_writes_the_trunk(places, tmp_path):
    compose_directories({name: places[name] for name in ("base", "ru")}, tmp_path / "pair")
    (trunk,) = (tmp_path / "pair").glob("trunk-*.safetensors")
    inode = trunk.stat().st_ino
    damaged = bytearray(trunk.read_bytes())
    damaged[-2] ^= 1
    trunk.write_bytes(damaged)
    add_expert(tmp_path / "pair", places["zh"], "zh")
    assert trunk.stat().st_ino == inode
    with pytest.raises(TreeringError, match="does not hold the trunk") as error:
        load_model(tmp_path / "pair")
    assert trunk.name in str(error.value)


def test_a_path_that_lies_is_found_out(places, tmp_path):
    """What is stored must be what the paths name: nobody can let an honest branch stand on another trunk."""
    compose_directories({name: places[name] for name in ("base", "ru")}, tmp_path / "pair")
    for shard in (tmp_path / "pair").glob("trunk-*.safetensors"):
        with safe_open(shard, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        name = next(iter(tensors))
        tensors[name] = tensors[name] + 1
        save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(TreeringError, match="does not hold the trunk"):
        load_model(tmp_path / "pair")


def test_precisions_of_one_trunk_become_the_widest(experts, ids):
    given = {"base": copy.deepcopy(experts["base"]).bfloat16()}
    given["ru"] = branch(given["base"].float(), 1)
    given["base"] = given["base"].bfloat16()
    model = compose(given)
    assert model.tree.trunks and {p.dtype for p in model.parameters()} == {torch.float32}


def test_branches_need_no_flag_where_the_embedding_is_one(experts):
    with pytest.raises(TreeringError, match="names no substrate"):
        compose({"base": experts["base"], "stranger": small(9, 3)})
    compose({"base": experts["base"], "ru": experts["ru"]})


@pytest.mark.parametrize("changed", ["embedding", 0, 2])
@pytest.mark.parametrize("who", ["base", "zh"])
def test_one_bit_of_another_trunk_is_told(experts, changed, who):
    given = {name: copy.deepcopy(experts[name]) for name in ("base", "ru", "zh")}
    for name in ("ru", "zh"):
        given[name].config.treering_trunk = {"base": "hub:some/base", "blocks": 3}
    if who == "zh":
        del given["base"]
    place = given[who].model.embed_tokens if changed == "embedding" else given[who].model.layers[changed].mlp.up_proj
    place.weight.data.view(torch.int32)[1, 1] ^= 1
    with pytest.raises(TreeringError, match="do not stand on one trunk") as error:
        compose(given)
    assert ("the embedding" if changed == "embedding" else f"block {changed + 1} of 3") in str(error.value)
    assert "hub:some/base" in str(error.value)
    assert compose(given, across_substrates=True).config.experts[0]["name"] in given


def test_files_come_back_as_links(places, tmp_path):
    compose_directories({name: places[name] for name in ("base", "ru", "zh")}, tmp_path / "all")
    before = {path.name: path.stat().st_ino for path in (tmp_path / "all").glob("trunk-*")}
    remove_expert(tmp_path / "all", "zh")
    assert before == {path.name: path.stat().st_ino for path in (tmp_path / "all").glob("trunk-*")}


def test_an_expert_that_has_nothing_alone_is_listed(places, tmp_path):
    compose_directories({"base": places["base"], "ru": places["ru"], "twin": places["ru"]}, tmp_path / "all")
    listed = {record["name"]: record["parameters"] for record in list_experts(tmp_path / "all")}
    assert listed == {"base": 32, "ru": 0, "twin": 0}  # the base's norm is all that it has alone


@pytest.mark.parametrize("spec", [spec for spec in RULES if spec not in ("gate", "adapter")])
@pytest.mark.parametrize("without", [[], ["ru"], ["tax", "base"], ["zh", "law", "tax", "upper"], NAMES[1:]])
def test_a_variant_is_the_composition_of_the_others(experts, ids, tmp_path, spec, without):
    """In memory, a step at a time, and saved; the one that it was made from stays as it is, and so do its numbers."""
    model = compose(experts)
    before, numbers = model(ids).logits, {p.data_ptr() for p in model.parameters()}
    other = variant(model, spec, without)
    expected = compose({name: own for name, own in experts.items() if name not in without}, spec)
    assert {p.data_ptr() for p in other.parameters()} <= numbers
    assert [name for name, _ in other.named_experts()] == [name for name in NAMES if name not in without]
    with torch.no_grad():
        assert other(ids).logits.equal(expected(ids).logits)
        step = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        assert other.generate(ids[:1], **step).equal(expected.generate(ids[:1], **step))
        other.save_pretrained(tmp_path)
        assert load_model(tmp_path)(ids).logits.equal(expected(ids).logits)
        assert model(ids).logits.equal(before)
    assert (model.rule.name, list(model.experts)) == ("evidence", NAMES)


@pytest.mark.parametrize(
    ("spec", "without", "told"),
    [
        ("gate", [], "has to be fitted"),
        ("adapter", ["ru"], "cannot stay"),
        (None, ["de"], "no expert 'de'"),
        (None, NAMES, "at least one"),
        ("best", [], "no composition rule"),
    ],
)
def test_a_variant_that_there_is_not(experts, spec, without, told):
    with pytest.raises(TreeringError, match=told):
        variant(compose(experts), spec, without)
