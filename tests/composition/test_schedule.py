"""What the transcript notes of how experts read, and when they read at all."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GPTNeoXConfig, MistralConfig

from treering.backbone import embedding, head
from treering.composition import compose, transcript
from treering.errors import TreeringError

VOCABULARY = 60
BESIDE = "evidence:switch=0.1,together=0.1,cache=0.2"
WEIGHING = ["evidence", "evidence:switch=0.1", BESIDE, "top_k", "top_k:k=2", "gate"]


def small(seed, family="gpt_neox", context=128, **changes):
    """An untrained expert with an embedding of its own."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"vocab_size": VOCABULARY, "max_position_embeddings": context, "initializer_range": 0.3}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = {"gpt_neox": GPTNeoXConfig, "mistral": MistralConfig}[family](**shape | ids | changes)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def joined(experts, spec):
    return compose(experts, spec, across_substrates=True)


@pytest.fixture(scope="module")
def pair():
    return {"a": small(0), "b": small(1)}


@pytest.fixture(scope="module")
def sliding():
    """Two experts of which one sees the last 5 tokens and the other the last 8."""
    shape = {"num_key_value_heads": 1, "context": 256}
    return {
        "near": small(0, "mistral", sliding_window=6, num_hidden_layers=2, **shape),
        "far": small(1, "mistral", sliding_window=9, **shape),
    }


def never(expert, token):
    """The expert made to give a token probability 0 everywhere."""
    changed = copy.deepcopy(expert)
    out = head(changed)
    out.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    out.bias.data[token] = -math.inf
    return changed


def joined_never(experts, names, token, spec):
    """A composition some of whose experts give a token probability 0; a bias is none of its configuration."""
    model = joined(experts, spec)
    for name in names:
        head(model.experts[name]).bias = never(experts[name], token).lm_head.bias
    return model


@pytest.mark.parametrize("spec", WEIGHING)
def test_padding_that_experts_hold_impossible_is_no_evidence(pair, spec):
    model = joined_never(pair, pair, 0, spec)
    ids = torch.tensor([[0, 0, 0, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16, 17]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7])
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    with torch.no_grad():
        assert not model(ids, attention_mask=mask).logits.isnan().any()
    together = model.generate(ids, attention_mask=mask, **options)
    assert together[0, 3:].equal(model.generate(ids[:1, 3:], **options)[0])
    assert together[1:].equal(model.generate(ids[1:], **options))


@pytest.mark.parametrize("spec", WEIGHING)
@pytest.mark.parametrize("names", [["a", "b"], ["a"]])
def test_a_text_goes_on_after_a_token_that_was_impossible(pair, spec, names):
    model = joined_never(pair, names, 5, spec)
    ids, cache, pieces = torch.tensor([[7, 8, 9, 5, 10, 11, 12]]), DynamicCache(), []
    with torch.no_grad():
        whole = model(ids).logits
        for piece in ids.split(1, dim=1):
            pieces.append(model(piece, past_key_values=cache, use_cache=True).logits)
    assert not whole.isnan().any()
    torch.testing.assert_close(torch.cat(pieces, 1).softmax(-1), whole.softmax(-1), rtol=1e-4, atol=1e-6)
    if names == ["a"] and spec == "evidence":  # from then on the other is alone
        with torch.no_grad():
            torch.testing.assert_close(whole[:, 3:].softmax(-1), pair["b"](ids).logits[:, 3:].softmax(-1))


def test_an_expert_that_computes_no_numbers_is_named(pair):
    model = joined({"well": pair["a"], "ill": copy.deepcopy(pair["b"])}, "evidence")
    model.experts["ill"].lm_head.weight.data[3, 3] = math.nan
    with torch.no_grad(), pytest.raises(TreeringError, match="What ill makes of this text is no number"):
        model(torch.tensor([[7, 8, 9]]))


@pytest.mark.parametrize("spec", ["mean", *WEIGHING, "adapter"])
@pytest.mark.parametrize("keep", [1, 2, 100, torch.tensor([-1]), torch.tensor([0])])
def test_one_new_token_has_one_row_of_logits(spec, keep):
    """The experts are of nearly one mind, so that one that fell behind often catches up."""
    model = joined({"a": small(0, initializer_range=0.15), "b": small(1, initializer_range=0.15)}, spec)
    ids = torch.randint(3, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache()
    with torch.no_grad():
        model(ids[:, :3], past_key_values=cache, use_cache=True)
        for position in range(3, 40):
            new = ids[:, position : position + 1]
            kept = model(new, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits
            assert kept.shape == (1, 1, VOCABULARY)
        torch.testing.assert_close(kept.softmax(-1), model(ids).logits[:, -1:].softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("remembered", [transcript.REMEMBERED, 1])
@pytest.mark.parametrize("spec", ["mean", *WEIGHING, "adapter"])
def test_assisted_decoding_with_sliding_windows_is_greedy_decoding(sliding, monkeypatch, spec, remembered):
    """Guesses that were wrong are taken back from windows that have let go of what came before them."""
    monkeypatch.setattr(transcript, "REMEMBERED", remembered)
    model, ids = joined(sliding, spec), torch.tensor([[5, 6, 7, 8, 9, 10] * 5])
    options = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False}
    plain = model.generate(ids, use_cache=False, **options)
    assert model.generate(ids, **options).equal(plain)
    assert model.generate(ids, prompt_lookup_num_tokens=4, **options).equal(plain)
    own = model.generate(ids, prompt_lookup_num_tokens=4, past_key_values=DynamicCache(), **options)
    assert own.equal(plain)
    alone = sliding["near"].generate(ids, **options)
    assert sliding["near"].generate(ids, assistant_model=model, **options).equal(alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_text_costs_no_more_than_the_bound(dtype):
    """Above ln 2 there is only rounding; in float32 its sum alone had been 7e-4 nats here."""
    experts = {name: small(seed, context=2048, initializer_range=0.1).to(dtype) for name, seed in (("a", 0), ("b", 2))}
    ids = torch.randint(VOCABULARY, (1, 2048), generator=torch.Generator().manual_seed(0))
    model = joined(experts, "evidence")

    def loss(logits):
        return -logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item()

    with torch.no_grad():
        own = torch.tensor([loss(logits) for logits in model.read(ids)[0]], dtype=torch.float64)
        exact = math.log(2) - torch.logsumexp(-own, 0).item()
        assert loss(model(ids).logits) == pytest.approx(exact, abs=1e-5)
    assert exact <= own.min().item() + math.log(2)


@pytest.mark.parametrize("spec", ["mean", "evidence", "evidence:switch=0.1", "top_k:k=2"])
def test_the_gradient_is_that_of_the_rule_written_down(pair, spec):
    model, ids = joined(copy.deepcopy(pair), spec).train(), torch.tensor([[7, 8, 9, 10, 11, 12]])
    model(ids, labels=ids).loss.backward()
    found = [head(expert).weight.grad.clone() for _, expert in model.named_experts()]
    model.zero_grad()
    logs = torch.stack(
        [expert(input_ids=ids).logits[0].double().log_softmax(-1) for _, expert in model.named_experts()]
    )
    switch = 0.1 if "switch" in spec else 0.0
    weights, nats = torch.full((2,), 0.5, dtype=torch.float64), 0.0
    for log, token in zip(logs[:, :-1].unbind(1), ids[0, 1:], strict=True):
        if spec == "mean":
            nats = nats - log.mean(0).log_softmax(-1)[token]
            continue
        nats = nats - (weights @ log[:, token].exp()).log()
        weights = weights * log[:, token].exp()
        weights = (1 - switch) * weights / weights.sum() + switch / 2
    (nats / 5).backward()
    for own, (_, expert) in zip(found, model.named_experts(), strict=True):
        torch.testing.assert_close(own, head(expert).weight.grad, rtol=1e-3, atol=1e-6)
    assert embedding(pair["a"]).weight.grad is None


@pytest.mark.parametrize("first", ["evidence", "top_k", "evidence:switch=0.1,cache=0.2"])
def test_what_was_not_learnt_from_a_text_cannot_go_on(pair, first):
    cache, ids, model = DynamicCache(), torch.arange(5, 12)[None], joined(pair, first)
    with torch.no_grad():
        model(ids[:, :4], past_key_values=cache)
        with pytest.raises(TreeringError, match="begun by another rule"):
            model.use(BESIDE)(ids[:, 4:], past_key_values=cache)
