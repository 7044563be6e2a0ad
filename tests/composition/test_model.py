from __future__ import annotations

import copy
import json
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.generation.streamers import BaseStreamer

from treering import substrate as substrates
from treering.backbone import dock, embedding
from treering.composition import ComposedModel, compose
from treering.composition.together import RATE, SHARPEN
from treering.errors import TreeringError

EXPERTS = {"deep": (1, 3, "gpt_neox"), "shallow": (2, 1, "gpt_neox"), "llama": (3, 2, "llama")}
RULES = [
    "mean",
    "weighted",
    "weighted:pool=log",
    "probability",
    "evidence",
    "evidence:switch=0.1",
    "evidence:cache=0.2",
    "evidence:switch=0.1,cache=0.4",
    "evidence:switch=0.1,together=0.2",
    "evidence:together=0.1,cache=0.2",
    "top_k",
    "top_k:k=2",
    "top_k:k=2,switch=0.1",
    "gate:switch=0.1",
    "gate:pool=log",
    "adapter",
]


@pytest.fixture(scope="module")
def experts(expert):
    return {name: expert(seed, layers, family) for name, (seed, layers, family) in EXPERTS.items()}


@pytest.fixture(scope="module")
def any_rule(experts):
    """The experts joined by a rule; weights are unequal, and what could be fitted is far from its start."""

    def make(spec: str) -> ComposedModel:
        equal = spec.startswith("top_k") and "switch" in spec  # see ComposedModel on sparse decoding
        records = {name: {"weight": 1.0 if equal else weight} for name, weight in zip(experts, (1, 3, 2), strict=True)}
        model = compose(experts, spec, records)
        generator = torch.Generator().manual_seed(7)
        for parameter in model.fusion.values():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        return model

    return make


@pytest.fixture(scope="module")
def composed(experts):
    return compose(experts, "mean")


@pytest.fixture(scope="module")
def prompt(tokenizer):
    return torch.tensor([tokenizer("To open this dialog, choose")["input_ids"]])


def brute_force(experts, model, input_ids, counted):
    """The next token's distribution [vocab] after a text [1, position], written down once more and plainly."""
    name, _, text = str(model.rule).partition(":")
    options = dict(part.split("=") for part in text.split(",") if part)
    with torch.no_grad():
        outputs = [expert(input_ids=input_ids, output_hidden_states=True) for expert in experts.values()]
    logs = [output.logits[0].double().log_softmax(-1) for output in outputs]
    prior = torch.tensor([record["weight"] for record in model.config.experts], dtype=torch.float64)
    prior /= prior.sum()
    equal = torch.full_like(prior, 1 / len(prior))
    weights = prior.clone()
    switch, share, beside = (float(options.get(name, 0)) for name in ("switch", "cache", "together"))
    text, vocabulary = input_ids[0].tolist(), model.config.vocab_size
    probabilities = torch.stack(logs).exp()
    start, half = torch.tensor([[1 - share, share], [0.5, 0.5]], dtype=torch.float64)
    slow, halves, whole = prior.clone(), half.clone(), start.clone()

    def spoken(said):
        """The experts' mixture, their product, and both, each [vocab]."""
        exponents = slow * (slow**2).sum() ** -SHARPEN
        product = (said ** exponents[:, None]).prod(0)
        product /= product.sum()
        return weights @ said, product, halves[0] * (weights @ said) + halves[1] * product

    for position in range(1, input_ids.shape[1]):
        mixture, product, both = (own[text[position]] for own in spoken(probabilities[:, position - 1]))
        foreseen = probabilities[:, position - 1, text[position]]
        if share:
            again = torch.tensor(counted(text[:position], vocabulary)[text[position]])
            whole *= torch.stack([both if beside else mixture, again])
            whole = (1 - share) * whole / whole.sum() + share * start
        if beside:
            halves *= torch.stack([mixture, product])
            halves = (1 - beside) * halves / halves.sum() + beside * half
            slow = (1 - beside) * slow * foreseen**RATE / (slow @ foreseen**RATE) + beside * prior
        weights = (1 - switch) * weights * foreseen / (weights @ foreseen) + switch * prior
    final = torch.cat([output.hidden_states[-1][0, -1] for output in outputs]).double()
    last = torch.stack([log[-1] for log in logs])
    if name == "top_k":
        weights[weights < weights.sort(descending=True).values[int(options.get("k", 1)) - 1]] = 0
        weights /= weights.sum()
    if name == "gate":
        inputs = torch.cat([final, weights.log(), torch.ones(1)])
        scores = model.fusion["gate"].double() @ inputs
        weights = scores.exp() if options.get("pool") == "log" else scores.softmax(0)
    if name == "adapter":
        return (model.fusion["adapter"].double() @ final).softmax(-1)
    weights = {"mean": equal, "probability": equal, "weighted": prior}.get(name, weights)
    if name == "mean" or options.get("pool") == "log":
        return (weights @ last).softmax(-1)
    joined = spoken(probabilities[:, -1])[2 if beside else 0]
    if share:
        return whole[0] * joined + whole[1] * torch.tensor(counted(text, vocabulary)).double()
    return joined


def brute_force_logits(experts, input_ids):
    with torch.no_grad():
        return sum(expert(input_ids=input_ids).logits for expert in experts.values()) / len(experts)


def test_forward_is_the_mean_of_the_experts(experts, composed, prompt):
    with torch.no_grad():
        torch.testing.assert_close(composed(prompt).logits, brute_force_logits(experts, prompt))


@pytest.mark.parametrize("spec", RULES)
def test_forward_is_the_rule_at_every_position(experts, any_rule, prompt, spec, counted):
    model = any_rule(spec)
    with torch.no_grad():
        distributions = model(prompt).logits[0].softmax(-1)
    for position in range(prompt.shape[1]):
        expected = brute_force(experts, model, prompt[:, : position + 1], counted)
        torch.testing.assert_close(distributions[position].double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("spec", RULES)
def test_greedy_generation_is_a_loop_over_full_forwards(experts, any_rule, prompt, spec, counted):
    model, expected = any_rule(spec), prompt
    for _ in range(20):
        token = brute_force(experts, model, expected, counted).argmax()[None, None]
        expected = torch.cat([expected, token], dim=1)
    assert model.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=-1).equal(expected)


@pytest.mark.parametrize("spec", RULES)
def test_sampling_is_a_loop_over_full_forwards(experts, any_rule, prompt, spec, counted):
    model, expected = any_rule(spec), prompt
    torch.manual_seed(0)
    for _ in range(20):
        distribution = brute_force(experts, model, expected, counted).float()[None]
        expected = torch.cat([expected, torch.multinomial(distribution, 1)], dim=1)
    torch.manual_seed(0)
    sampled = model.generate(prompt, max_new_tokens=20, do_sample=True, top_k=0, eos_token_id=-1)
    assert sampled.equal(expected)


@pytest.mark.parametrize("spec", RULES)
def test_beam_search_with_caches_is_beam_search_without(any_rule, prompt, spec):
    model = any_rule(spec)
    beams = [model.generate(prompt, max_new_tokens=15, num_beams=4, use_cache=cached) for cached in (True, False)]
    assert beams[0].equal(beams[1])


@pytest.mark.parametrize("spec", RULES)
def test_assisted_decoding_is_greedy_decoding(any_rule, tokenizer, spec):
    """Prompt lookup crops the cache wherever a guess was wrong."""
    model = any_rule(spec)
    prompt = torch.tensor([tokenizer("To open this dialog, choose. To open this dialog, choose. To open")["input_ids"]])
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": -1}
    assisted = model.generate(prompt, prompt_lookup_num_tokens=3, **options)
    assert assisted.equal(model.generate(prompt, **options))


@pytest.mark.parametrize("spec", RULES)
def test_left_padded_batch_is_each_row_alone(any_rule, tokenizer, spec):
    model, texts = any_rule(spec), ["To open", "Чтобы открыть диалоговое окно", "要打开"]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    together = model.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=-1)[:, -12:]
    for text, row in zip(texts, together, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        alone = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=-1)
        assert alone[0, -12:].equal(row)


@pytest.mark.parametrize("spec", RULES)
def test_a_text_read_in_pieces_is_the_text_read_at_once(any_rule, tokenizer, spec):
    model, cache, pieces = any_rule(spec), DynamicCache(), []
    ids = torch.tensor([tokenizer("To open this dialog, choose 要打开此对话框 and OK")["input_ids"]])
    with torch.no_grad():
        for piece in ids.split([3, 1, 1, 4, ids.shape[1] - 9], dim=1):
            pieces.append(model(piece, past_key_values=cache, use_cache=True).logits)
        whole = model(ids).logits
        kept = model(ids, logits_to_keep=torch.tensor([2, 5])).logits
    torch.testing.assert_close(torch.cat(pieces, 1).softmax(-1), whole.softmax(-1), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(kept, whole[:, [2, 5]])


def test_streaming_gives_what_generation_returns(any_rule, tokenizer, prompt):
    class Collect(BaseStreamer):
        ids: ClassVar[list[int]] = []

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            pass

    whole = any_rule("evidence").generate(prompt, max_new_tokens=10, do_sample=False, streamer=Collect())
    assert Collect.ids == whole[0].tolist()


def test_evidence_begins_anew_with_each_text(any_rule, prompt):
    model = any_rule("evidence")
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1}
    first = model.generate(prompt, **options)
    model.generate(prompt.flip(1), **options)
    assert model.generate(prompt, **options).equal(first)


def test_sparse_decoding_runs_only_the_credible(any_rule, prompt):
    model, ran = any_rule("top_k"), dict.fromkeys(EXPERTS, 0)
    for name, expert in model.named_experts():
        expert.register_forward_hook(lambda *_, name=name: ran.update({name: ran[name] + 1}))
        expert.base_model.register_forward_hook(lambda *_, name=name: ran.update({name: ran[name] + 1}))
    model.generate(prompt, max_new_tokens=60, min_new_tokens=60, do_sample=False)
    assert max(ran.values()) == 60
    assert sum(ran.values()) < 60 * 1.5


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


def test_the_substrate_is_stored_once_and_each_expert_in_its_shard(experts, composed, substrate, tmp_path):
    composed.save_pretrained(tmp_path)
    shards = {path.name for path in tmp_path.glob("*.safetensors")}
    stored = f"substrate-{substrate.fingerprint[:16]}.safetensors"
    assert shards == {stored, *(f"expert-{name}.safetensors" for name in experts)}
    with safe_open(tmp_path / stored, "pt") as file:
        (name,) = file.keys()
        assert file.get_tensor(name).equal(substrate.matrix)
    stored = sum(p.numel() for p in composed.parameters())
    apart = sum(p.numel() for expert in experts.values() for p in expert.parameters())
    assert stored == apart - 2 * substrate.matrix.numel()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == shards


def test_composing_shares_the_experts_memory(experts):
    composed = compose(experts, "mean")
    for name, expert in experts.items():
        own = dict(expert.named_parameters())
        for key, parameter in composed.experts[name].named_parameters():
            assert parameter.data_ptr() == own[key].data_ptr()
    assert composed.get_input_embeddings().weight.data_ptr() == embedding(experts["deep"]).weight.data_ptr()


def test_experts_keep_their_own_configuration(experts, composed):
    assert [record["name"] for record in composed.config.experts] == list(experts)
    assert composed.config.num_hidden_layers == 3 + 1 + 2
    assert composed.experts["llama"].config.model_type == "llama"


def test_one_expert_with_itself_is_itself(experts, prompt):
    one = experts["deep"]
    with torch.no_grad():
        for spec in (spec for spec in RULES if "cache" not in spec and "together" not in spec):
            joined = compose({"a": one, "b": one}, spec)(prompt).logits
            torch.testing.assert_close(joined.softmax(-1), one(prompt).logits.softmax(-1))


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
        ([], "mean", "at least one expert"),
        (["a", "b/../c"], "mean", "cannot be an expert's name"),
        (["a", "b"], "medain", "no composition rule"),
    ],
)
def test_calls_that_make_no_sense_are_refused(experts, names, rule, message):
    with pytest.raises(TreeringError, match=message):
        compose(dict.fromkeys(names, experts["deep"]), rule)
