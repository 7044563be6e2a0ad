"""One expert that leads and others that check, against the composition that writes token by token."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    DynamicCache,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from treering.composition import compose, speculation, speculative
from treering.composition.caches import crop, views
from treering.composition.speculation import MOST, Pace, blend, choice, handicap, may_speculate
from treering.errors import TreeringError

VOCABULARY, END = 12, 2
RULES = [
    "evidence",
    "evidence:switch=0.1",
    "evidence:switch=0.1,together=0.1,cache=0.2",
    "top_k",
    "top_k:k=2,switch=0.1",
    "gate:switch=0.1",
]
PROMPT = torch.tensor([[1, 3, 3, 6, 4, 7, 5, 5, 3]])
IDS = {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0}
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "initializer_range": 0.3}


def small(seed, layers=1, **changes):
    torch.manual_seed(seed)
    known = {"vocab_size": VOCABULARY, "num_hidden_layers": layers, "max_position_embeddings": 256}
    return LlamaForCausalLM(LlamaConfig(**SHAPE | IDS | known | changes)).eval()


def joined(rule, weights=(1.0, 2.0, 1.0)):
    """A base, two branches of which one is near to it, on one trunk, and a stranger of another family."""
    base, branch = small(0), small(1, 2)
    branch.model.embed_tokens.load_state_dict(base.model.embed_tokens.state_dict())
    branch.model.layers[0].load_state_dict(base.model.layers[0].state_dict())
    torch.manual_seed(2)
    config = GPTNeoXConfig(**SHAPE | IDS, vocab_size=VOCABULARY, num_hidden_layers=2, max_position_embeddings=256)
    stranger = GPTNeoXForCausalLM(config).eval()
    records = {name: {"weight": weight} for name, weight in zip("abc", weights, strict=True)}
    model = compose({"a": base, "b": branch, "c": stranger}, "evidence", records, across_substrates=True).use(rule)
    assert len(model.tree.trunks) == 1
    return model


def watched(model, monkeypatch):
    """For each expert, how many tokens it is given at a time."""
    calls = {name: [] for name in model.experts}
    for name, expert in model.experts.items():
        forward = expert.base_model.forward

        def noted(*args, _forward=forward, _calls=calls[name], **kwargs):
            given = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
            _calls.append(given.shape[1])
            return _forward(*args, **kwargs)

        monkeypatch.setattr(expert.base_model, "forward", noted)
    return calls


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:, :1]])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}])
def test_without_sampling_it_writes_what_the_composition_writes(rule, prompt, options):
    model = joined(rule)
    options = {"do_sample": False, "max_new_tokens": 60, "min_new_tokens": 60, **options}
    expected = model.generate(prompt, **options)
    assert prompt is not PROMPT or len(set(expected[0].tolist())) > 3
    assert torch.equal(model.generate(prompt, custom_generate=speculative, **options), expected)


@pytest.mark.parametrize("rule", RULES[:4])
def test_windows_that_let_go_of_a_text_take_tokens_back(rule):
    known = {"vocab_size": VOCABULARY, "num_key_value_heads": 1, "max_position_embeddings": 256}
    experts = {}
    for seed, (name, window, layers) in enumerate([("near", 6, 2), ("far", 9, 1)]):
        torch.manual_seed(seed)
        config = MistralConfig(**SHAPE | IDS | known, sliding_window=window, num_hidden_layers=layers)
        experts[name] = MistralForCausalLM(config).eval()
    model, options = compose(experts, rule, across_substrates=True), {"max_new_tokens": 50, "min_new_tokens": 50}
    expected = model.generate(PROMPT.repeat(1, 4), do_sample=False, use_cache=False, **options)
    found = model.generate(PROMPT.repeat(1, 4), do_sample=False, custom_generate=speculative, **options)
    assert torch.equal(found, expected)


def cooled(text, logits, penalty=1.2, temperature=0.7):
    """What is sampled from under a repetition penalty and a temperature."""
    for token in set(text):
        logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
    return logits / temperature


@pytest.mark.parametrize("rule", [RULES[1], RULES[2], "top_k:k=2,switch=0.1"])
def test_what_it_samples_comes_as_often_as_the_composition_says(rule, law, pearson):
    """Pearson's χ² of two tokens, of which any may be rejected; a draft alone, unchecked, fails by far."""
    model, prompt, samples = joined(rule), PROMPT[0, :5].tolist(), 500
    expected = law(model, prompt, 2, END, cooled)
    assert sum(expected.values()) == pytest.approx(1)
    options = {"do_sample": True, "top_k": 0, "temperature": 0.7, "repetition_penalty": 1.2, "max_new_tokens": 2}
    leader = "abc"[int(model.read(torch.tensor([prompt]))[1].likelihood.sum(-1)[:, 0].argmax())]
    alone = law(model.expert(leader), prompt, 2, END, cooled)
    torch.manual_seed(0)
    counts = Counter()
    for _ in range(samples):
        text = model.generate(torch.tensor([prompt]), custom_generate=speculative, **options)
        counts[tuple(text[0, len(prompt) :].tolist())] += 1
    statistic, limit = pearson(counts, expected)
    assert statistic < limit
    statistic, _ = pearson({text: share * samples for text, share in alone.items()}, expected)
    assert statistic > 2 * limit


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", [{"temperature": 1.4}, {"top_p": 0.8, "repetition_penalty": 1.3, "min_p": 0.01}])
def test_a_seed_gives_the_text_that_the_composition_samples_by_it(rule, options):
    model, texts = joined(rule), set()
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 40, **options}
    for seed in range(8):
        torch.manual_seed(seed)
        expected = model.generate(PROMPT, **options)
        torch.manual_seed(seed)
        found = model.generate(PROMPT, custom_generate=speculative, **options)
        assert found.tolist() == expected.tolist()
        texts.add(tuple(found[0].tolist()))
    assert len(texts) > 6


DISTRIBUTIONS = st.lists(st.floats(0.01, 1), min_size=4, max_size=4).map(lambda own: torch.tensor([own]).double())


@given(st.integers(0, 2**31), st.lists(st.sampled_from([0, 0.01, 0.3, 1.0]), min_size=1, max_size=9).filter(any))
def test_a_token_is_sampled_as_torch_samples_it(seed, weights):
    probabilities = torch.tensor([weights])
    probabilities /= probabilities.sum()
    torch.manual_seed(seed)
    expected, after = torch.multinomial(probabilities, 1), torch.rand(3)
    torch.manual_seed(seed)
    assert torch.equal(choice(probabilities.log(), handicap(probabilities)), expected)
    assert torch.equal(torch.rand(3), after)


@given(DISTRIBUTIONS, DISTRIBUTIONS, st.integers(0, 99))
def test_leader_and_composition_choose_alike_as_often_as_their_distributions_allow(p, q, seed):
    """P(alike) = Σ_v 1 / Σ_u max(p_u/p_v, q_u/q_v): of v's and all others' handicaps, which has to be least."""
    p, q, samples = p / p.sum(), q / q.sum(), 20_000
    ratios = torch.maximum(p / p.mT, q / q.mT)  # [v, u]
    expected = float((1 / ratios.sum(-1)).sum())
    torch.manual_seed(seed)
    rows = handicap(p.expand(samples, -1))
    found = float((choice(p.log(), rows) == choice(q.log(), rows)).double().mean())
    assert abs(found - expected) <= 5 * max(0, expected * (1 - expected) / samples) ** 0.5 + 1e-3
    apart = float((p - q).abs().sum() / 2)
    assert (1 - apart) / (1 + apart) - 1e-9 <= expected <= 1 - apart + 1e-9


@given(DISTRIBUTIONS, DISTRIBUTIONS, st.floats(0, 1))
def test_less_weight_is_put_on_probabilities(p, q, weight):
    p, q = p / p.sum(), q / q.sum()
    torch.testing.assert_close(blend(p.log() + 3, q.log() - 2, weight).exp(), weight * p + (1 - weight) * q)


def test_with_no_weight_on_what_all_say_every_token_of_the_leader_is_kept(monkeypatch):
    model, drafts, learn = joined("evidence:switch=0.3"), [], Pace.learn
    monkeypatch.setattr(Pace, "learn", lambda pace, *counts: (drafts.append(counts), learn(pace, *counts)))
    options = {"do_sample": True, "top_k": 0, "min_new_tokens": 40, "max_new_tokens": 40}
    rejecting = {}
    for weight in (None, 0.5, 1e-9):
        drafts.clear()
        for seed in range(6):
            torch.manual_seed(seed)
            model.generate(PROMPT, custom_generate=speculative, assistant_ensemble_weight=weight, **options)
        rejecting[weight] = sum(agreed < drafted for agreed, drafted in drafts)
    assert rejecting[None] > rejecting[0.5] > rejecting[1e-9] == 0


def test_the_leader_reads_one_token_at_a_time_and_the_others_all_of_a_draft(monkeypatch):
    """Nobody reads a token twice that is kept, and the trunk none for each who stands on it."""
    model = joined("evidence", (1e-9, 1e-9, 1))
    calls = watched(model, monkeypatch)
    monkeypatch.setattr(Pace, "lead", 5)
    text = model.generate(PROMPT, custom_generate=speculative, do_sample=False, max_new_tokens=20, min_new_tokens=20)
    assert text.shape[1] == PROMPT.shape[1] + 20
    first = PROMPT.shape[1] - 1
    assert calls["c"] == [first] + [1] * 20  # it is sure of the text, so all that it drafts is kept
    assert calls["b"] == [first] + [5] * 4


def test_experts_that_sleep_go_on_sleeping(monkeypatch):
    """Under top_k the leader may be alone, and what sleepers have read is not taken from them."""
    model = joined("top_k", (1e-90, 1e-90, 1))
    calls = watched(model, monkeypatch)
    cache = DynamicCache()
    model.generate(
        PROMPT, custom_generate=speculative, do_sample=True, max_new_tokens=40, min_new_tokens=40, past_key_values=cache
    )
    assert calls["b"] == [PROMPT.shape[1] - 1]
    parts = views(cache, *model._configs(), model.rule)
    assert parts.experts["b"].get_seq_length() == PROMPT.shape[1] - 1
    assert parts.experts["c"].get_seq_length() == PROMPT.shape[1] + 39
    crop(parts, PROMPT.shape[1] + 5)
    assert parts.experts["b"].get_seq_length() == PROMPT.shape[1] - 1
    assert parts.experts["c"].get_seq_length() == cache.get_seq_length() == PROMPT.shape[1] + 5


@pytest.mark.parametrize("rule", RULES)
def test_it_goes_on_from_a_cache_and_leaves_one_that_can_be_gone_on_from(rule):
    model, options = joined(rule), {"do_sample": False, "min_new_tokens": 20, "max_new_tokens": 20}
    expected = model.generate(PROMPT, do_sample=False, min_new_tokens=40, max_new_tokens=40)
    for prompt in (PROMPT, PROMPT[:, :1]):
        cache = DynamicCache()
        if prompt is PROMPT:
            model(PROMPT[:, :5], past_key_values=cache, use_cache=True)
        half = model.generate(prompt, custom_generate=speculative, past_key_values=cache, **options)
        assert cache.get_seq_length() == half.shape[1] - 1
        for way in (speculative, None):  # tokens that were written are no padding, whatever they are
            own = {"past_key_values": DynamicCache() if way is None else cache, "attention_mask": torch.ones_like(half)}
            whole = model.generate(half, custom_generate=way, **options | own)
            if prompt is PROMPT:
                assert torch.equal(whole, expected)


def test_padding_before_a_text_changes_nothing():
    model, options = joined("evidence:switch=0.1"), {"do_sample": False, "min_new_tokens": 30, "max_new_tokens": 30}
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), PROMPT], 1)
    mask = torch.cat([torch.zeros(1, 4, dtype=torch.long), torch.ones_like(PROMPT)], 1)
    found = model.generate(padded, attention_mask=mask, custom_generate=speculative, **options)
    assert torch.equal(found[:, 4:], model.generate(PROMPT, **options))


@pytest.mark.parametrize("sampled", [False, True])
def test_a_text_streams_token_by_token_and_ends_where_it_should(sampled, told):
    model, lengths = joined("evidence:switch=0.1"), set()
    for seed in range(12):
        torch.manual_seed(seed)
        heard, prompt = told(), PROMPT[:, : 2 + seed % 7]
        options = {"do_sample": sampled, "max_new_tokens": 25}
        if sampled:
            options |= {"temperature": 1.5, "top_k": 0}
        written = partial(speculative, streamer=heard)
        text = model.generate(prompt, custom_generate=written, streamer=heard, **options)[0].tolist()
        new = text[prompt.shape[1] :]
        assert (heard.prompts, heard.tokens, heard.ends) == (prompt.tolist(), new, 1)
        assert END not in new[:-1]
        assert len(new) == 25 or new[-1] == END
        lengths.add(len(new))
    assert len(lengths) > 1 or not sampled


def test_any_criterion_ends_a_text_at_its_first_token():
    model = joined("evidence")
    options = {"do_sample": False, "min_new_tokens": 30, "max_new_tokens": 30}
    whole = model.generate(PROMPT, **options)[0].tolist()
    new = whole[PROMPT.shape[1] :]
    pair = tuple(new[9:11])

    def seen(ids, _scores, **_kwargs):
        return torch.tensor([tuple(ids[0, -2:].tolist()) == pair])

    at = next(n for n in range(PROMPT.shape[1] + 2, len(whole) + 1) if tuple(whole[n - 2 : n]) == pair)
    text = model.generate(PROMPT, custom_generate=speculative, stopping_criteria=[seen], **options)
    assert text[0].tolist() == whole[:at]


@given(st.floats(0.0, 1.0), st.integers(0, 6))
def test_the_lead_is_the_one_that_brings_most_tokens_for_the_time(share, checking):
    """Against the expected value written down: k tokens are drafted, i of them kept with probability share^i."""
    pace = Pace(checking, kept=share * 100, tried=100)

    def worth(lead):
        outcomes = [(share**i * (1 - share), i + 1) for i in range(lead)] + [(share**lead, lead)]
        return sum(chance * came for chance, came in outcomes) / (lead + speculation.CHECK * checking)

    assert worth(pace.lead) == pytest.approx(max(map(worth, range(1, MOST + 1))))


def test_the_pace_learns():
    pace = Pace(1)
    begun = pace.lead
    for _ in range(20):
        pace.learn(0, pace.lead)
    assert pace.lead == 1 < begun
    for _ in range(200):
        pace.learn(pace.lead, pace.lead)
    assert pace.lead == MOST


def test_what_can_not_be_led_is_refused():
    for model, wrong, said in [
        (small(0), {}, "single model"),
        (joined("mean"), {}, "by mean"),
        (joined("evidence"), {"num_beams": 2}, "no beams"),
        (joined("evidence"), {"num_return_sequences": 2, "do_sample": True}, "one text"),
        (joined("evidence"), {"return_dict_in_generate": True}, "return_dict_in_generate"),
        (joined("evidence"), {"use_cache": False}, "use_cache"),
    ]:
        with pytest.raises(TreeringError, match=said):
            model.generate(PROMPT, custom_generate=speculative, max_new_tokens=5, **wrong)
    model, whole = joined("evidence"), DynamicCache()
    model(PROMPT, past_key_values=whole, use_cache=True)
    with pytest.raises(TreeringError, match="has read all"):
        model.generate(PROMPT, custom_generate=speculative, past_key_values=whole, max_new_tokens=5)
    config = Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    hybrid = compose({"a": small(0), "b": Lfm2ForCausalLM(config).eval()}, "evidence", across_substrates=True)
    assert not may_speculate(hybrid)
    assert not may_speculate(small(0))
    assert not may_speculate(joined("mean"))
    assert may_speculate(joined("gate"))


@pytest.mark.parametrize("rule", RULES)
def test_a_cache_that_was_cropped_is_gone_on_from(rule):
    """What the experts had said of the next token is not known any more, so they read the last one again."""
    model, cache, options = joined(rule), DynamicCache(), {"do_sample": False, "min_new_tokens": 20}
    with torch.no_grad():
        for token in torch.cat([PROMPT[:, :-1], PROMPT[:, :2]], 1).split(1, 1):
            model(token, past_key_values=cache, use_cache=True)
    cache.crop(-2)
    found = model.generate(PROMPT, past_key_values=cache, custom_generate=speculative, max_new_tokens=20, **options)
    assert torch.equal(found, model.generate(PROMPT, max_new_tokens=20, **options))
