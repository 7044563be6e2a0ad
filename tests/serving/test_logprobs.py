"""Log-probabilities, echo and several choices, against the model asked directly."""

from __future__ import annotations

import itertools
import json
import math
import random

import openai
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from treering import tokenizer as tokenizers
from treering.composition import draw, load_model, variant
from treering.evaluation import prompt_ids
from treering.serving import writing
from treering.serving.limits import Limits
from treering.serving.logprobs import Spelling
from treering.serving.served import Served

PROMPT = "To open this dialog, выберите 菜单 🙂"
RULES = [
    "mean",
    "weighted",
    "probability",
    "evidence",
    "evidence:switch=0.1,together=0.1,cache=0.2",
    "top_k",
    "top_k:k=2",
]
CLOSE = {"rel": 1e-4, "abs": 1e-4}


@torch.no_grad()
def distributions(model, ids: list[int]) -> list[torch.Tensor]:
    """What the model says after each beginning of a text, each read anew, in log-probabilities [vocab]."""
    return [model(torch.tensor([ids[:end]])).logits[0, -1].float().log_softmax(-1) for end in range(1, len(ids))]


def check(logprobs, expected: list[torch.Tensor], ids: list[int], top: int, spelling: Spelling) -> None:
    """Compare OpenAI's object with what the model says before each of the tokens that came."""
    named = [spelling.name(i, "bytes:") for i in ids]
    assert logprobs.tokens == named
    for name, i, own, alternatives, said in zip(
        named, ids, logprobs.token_logprobs, logprobs.top_logprobs, expected, strict=True
    ):
        assert own == pytest.approx(float(said[i]), **CLOSE)
        best = said.topk(top)
        assert {name} <= alternatives.keys()
        assert alternatives.keys() == {name, *(spelling.name(int(j), "bytes:") for j in best.indices)}
        if top:
            assert max(alternatives.values()) == pytest.approx(float(best.values[0]), **CLOSE)
            assert (own == max(alternatives.values())) == (int(best.indices[0]) == i)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("at_once", [3 * 700, 2**22])
def test_prompt_and_answer_are_told_as_the_model_says_them(client, directory, tokenizer, rule, at_once, monkeypatch):
    """Also where the prompt is read three tokens at a time."""
    monkeypatch.setattr(writing, "LOGITS_AT_ONCE", at_once)
    model, spelling = load_model(directory, rule=rule), Spelling(tokenizer)
    ids = prompt_ids(model, tokenizer, PROMPT, 8)
    asked = {"model": f"joined:{rule}", "max_tokens": 8, "temperature": 0, "logprobs": 3, "echo": True}
    for prompt, begin in ((PROMPT, 1), (ids, 0)):
        told = client.completions.create(prompt=prompt, **asked).choices[0]
        written = [int(i) for i in model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0]]
        expected = distributions(model, written)
        assert told.text == PROMPT + tokenizer.decode(written[len(ids) :], skip_special_tokens=True)
        logprobs = told.logprobs
        assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
        for values in (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
            del values[0]
        check(logprobs, expected[begin:], written[begin + 1 :], 3, spelling)


@pytest.mark.parametrize("family", [(MambaConfig, MambaForCausalLM), (BloomConfig, BloomForCausalLM)])
def test_models_without_a_longest_text_or_keys_and_values_are_told_of(serving, tokenizer, family):
    kind, make = family
    torch.manual_seed(0)
    model = make(kind(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, n_head=2, state_size=4)).eval()
    ids = prompt_ids(model, tokenizer, "To open", 4)
    with serving(Served("own", model, tokenizer)) as client:
        asked = {"model": "own", "prompt": ids, "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 1, "n": 2}
        told = client.completions.create(**asked).choices
    written = [int(i) for i in model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)[0]]
    expected = [float(said[i]) for said, i in zip(distributions(model, written), written[1:], strict=True)]
    for choice in told:
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected, **CLOSE)


def test_evidence_goes_on_from_the_prompt(client, model, tokenizer):
    """The chain rule: a text's probability is the mixture of the two that it has for each expert."""
    ids = tokenizers.encode(tokenizer, ["The menu opens if you click it."])[0]
    asked = {"model": "joined:evidence", "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    told = client.completions.create(**asked).choices[0].logprobs.token_logprobs
    alone = [model.expert(name)(torch.tensor([ids])).logits[0].double().log_softmax(-1) for name in ("a", "b")]
    whole = [[float(text[i, ids[i + 1]]) for i in range(len(ids) - 1)] for text in alone]
    for begin in (1, 4, len(ids) - 1):
        after, before = (
            torch.logsumexp(torch.tensor([math.fsum(own[:end]) for own in whole]), 0)
            for end in (len(ids) - 1, begin - 1)
        )
        assert math.fsum(told[begin:]) == pytest.approx(float(after - before), **CLOSE)


def test_what_is_told_is_the_model_s_own_whatever_the_sampling(client, model, tokenizer):
    changed = {"temperature": 1.7, "top_p": 0.6, "frequency_penalty": 1, "logit_bias": {"5": 5, "300": 20}, "seed": 3}
    asked = {"model": "joined", "prompt": PROMPT, "max_tokens": 12, "logprobs": 5}
    told = client.completions.create(**asked, **changed).choices[0]
    plain = client.completions.create(**{**asked, **changed, "logprobs": None}).choices[0]
    assert (told.text, plain.logprobs) == (plain.text, None)
    by_name = {Spelling(tokenizer).name(i, "bytes:"): i for i in range(len(tokenizer))}
    ids = [by_name[name] for name in told.logprobs.tokens]
    prompt = prompt_ids(model, tokenizer, PROMPT, 12)
    check(told.logprobs, distributions(model, prompt + ids)[len(prompt) - 1 :], ids, 5, Spelling(tokenizer))


def test_tokens_are_where_they_are_said_to_be(client):
    for seed in range(6):
        asked = {"model": "joined", "prompt": PROMPT, "max_tokens": 30, "temperature": 1.5, "seed": seed}
        told = client.completions.create(**asked, logprobs=0, echo=seed % 2 == 0).choices[0]
        tokens, starts = told.logprobs.tokens, told.logprobs.text_offset
        assert starts == sorted(starts)
        plain = [(token, start) for token, start in zip(tokens, starts, strict=True) if token.isascii()]
        plain = [(token, start) for token, start in plain if not token.startswith(("bytes:", "<"))]
        assert len(plain) > 10
        assert all(told.text.startswith(token, start) for token, start in plain)


def test_what_is_ruled_out_has_openais_least_log_probability(directory, tokenizer, serving):
    model = load_model(directory)
    forward = model.forward

    def without_5(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits[..., 5] = -math.inf
        return output

    model.forward = without_5
    with serving(Served("joined", model, tokenizer)) as client:
        asked = {"model": "joined", "prompt": [7, 5, 9], "max_tokens": 0, "logprobs": 1, "echo": True}
        assert client.completions.create(**asked).choices[0].logprobs.token_logprobs[1] == -9999.0


def test_log_probabilities_are_cut_where_the_text_is(client):
    asked = {"model": "joined", "prompt": PROMPT, "temperature": 0, "max_tokens": 40, "logprobs": 1}
    whole = client.completions.create(**asked).choices[0]
    for echo, begin, length in itertools.product((False, True), (0, 3, 10, 21), (1, 3)):
        cut = client.completions.create(**asked, stop=whole.text[begin : begin + length], echo=echo).choices[0]
        assert cut.finish_reason == "stop"
        own = cut.text.removeprefix(PROMPT) if echo else cut.text
        assert own == whole.text.partition(whole.text[begin : begin + length])[0]
        kept = sum(start < len(own) for start in whole.logprobs.text_offset)
        tokens = cut.logprobs.tokens
        assert tokens[len(tokens) - kept :] == whole.logprobs.tokens[:kept]
        read = 0 if not echo else sum(start < len(PROMPT) for start in cut.logprobs.text_offset)
        assert len(tokens) == kept + read


def gathered(chunks) -> dict[int, dict]:
    """The choices of a stream put together, by their indices."""
    found: dict[int, dict] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            own = found.setdefault(choice.index, {"text": "", "finish_reason": None, "logprobs": None})
            assert own["finish_reason"] is None
            own["text"] += choice.text
            own["finish_reason"] = choice.finish_reason
            if choice.logprobs is not None:
                own["logprobs"] = own["logprobs"] or {}
                for name, values in choice.logprobs.model_dump().items():
                    own["logprobs"].setdefault(name, []).extend(values)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_streams_add_up_to_the_whole(client, seed):
    """Any parameters together."""
    rng = random.Random(seed)
    ids = [rng.randrange(4, 700) for _ in range(rng.randrange(1, 9))]
    asked = {
        "model": rng.choice(["joined", "joined:mean", "joined-without-a"]),
        "prompt": rng.choice([PROMPT, ["", PROMPT], ids, [ids, ids[:1], ids]]),
        "n": rng.randrange(1, 4),
        "echo": rng.random() < 0.5,
        "logprobs": rng.choice([None, 0, 2]),
        "max_tokens": rng.choice([0, 1, 17]),
        "temperature": rng.choice([0, 1, 1.4]),
        "stop": rng.choice([None, "e", ["th", "о"]]),
        "seed": seed,
    }
    told = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    whole = {choice.index: choice.model_dump(include={"text", "finish_reason", "logprobs"}) for choice in told.choices}
    prompts = len(asked["prompt"]) if isinstance(asked["prompt"][0], list | str) and asked["prompt"] != PROMPT else 1
    assert list(whole) == list(range(asked["n"] * prompts))
    assert gathered(chunks) == whole
    assert chunks[-1].usage == told.usage
    assert [chunk for chunk in chunks[:-1] if chunk.usage] == []


def test_choices_are_several_and_come_again(client):
    asked = {"model": "joined", "temperature": 1.3, "seed": 5, "max_tokens": 12}
    first, again = (client.completions.create(prompt=PROMPT, n=4, **asked).choices for _ in range(2))
    texts = [choice.text for choice in first]
    assert [choice.index for choice in first] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert texts == [choice.text for choice in again]
    assert client.completions.create(prompt=PROMPT, **asked).choices[0].text == texts[0]
    both = client.completions.create(prompt=["x", PROMPT], n=4, best_of=4, **asked)
    assert [choice.text for choice in both.choices[4:]] == texts
    assert both.usage.completion_tokens == 8 * 12
    assert len({c.text for c in client.completions.create(prompt="x", n=3, model="joined", max_tokens=12).choices}) == 3


def test_choices_of_a_drawn_expert(directory, tokenizer, serving):
    with serving(Served("joined", load_model(directory, rule="evidence"), tokenizer, drawn=True)) as client:
        asked = {"prompt": PROMPT, "max_tokens": 12, "seed": 7, "n": 3}
        texts = [choice.text for choice in client.completions.create(model="joined", **asked).choices]
        assert len(set(texts)) == 3
        left = variant(load_model(directory, rule="evidence"), without=["a"])
        with torch.random.fork_rng():
            torch.manual_seed(7)
            prompt = prompt_ids(left, tokenizer, PROMPT, 12)
            ids = draw(left, torch.tensor([prompt]), 12)[0, len(prompt) :]
        told = client.completions.create(model="joined-without-a", **asked).choices[0]
        assert told.text == tokenizer.decode(ids, skip_special_tokens=True)
        told = client.completions.create(model="joined", **asked, logprobs=0).choices
        assert all(choice.logprobs.token_logprobs for choice in told)


def test_nothing_is_written_where_nothing_is_asked(client):
    told = client.completions.create(model="joined", prompt=PROMPT, max_tokens=0)
    assert (told.choices[0].text, told.choices[0].finish_reason, told.usage.completion_tokens) == ("", "length", 0)
    echoed = client.completions.create(model="joined", prompt=["</s> x", ""], max_tokens=0, echo=True, logprobs=1)
    assert [choice.text for choice in echoed.choices] == ["</s> x", ""]
    assert echoed.choices[1].logprobs.tokens == []


def test_the_end_of_a_document_is_a_token_like_others(client, tokenizer):
    ending = {str(tokenizer.eos_token_id): 100}
    told = client.completions.create(model="joined", prompt="x", max_tokens=3, logit_bias=ending, logprobs=0)
    assert (told.choices[0].text, told.choices[0].logprobs.tokens) == ("", ["</s>"])


def test_a_prompt_may_fill_the_context_to_be_told(client):
    asked = {"model": "joined", "max_tokens": 0, "echo": True, "logprobs": 0}
    told = client.completions.create(prompt=[9] * 96, **asked).choices[0]
    assert len(told.logprobs.tokens) == 96
    with pytest.raises(openai.BadRequestError, match="context is 96"):
        client.completions.create(prompt=[9] * 97, **asked)


def test_answers_that_may_be_too_long_are_refused(directory, tokenizer, serving):
    limits = Limits(tokens=90, choices=5)
    with serving(Served("joined", load_model(directory), tokenizer, limits)) as client:
        asked = {"model": "joined", "prompt": [[8] * 10] * 2, "max_tokens": 5, "echo": True}
        client.completions.create(**asked, logprobs=2)
        for more, param, told in (
            ({"logprobs": 3}, "logprobs", "30 tokens, with 3 alternatives to each; one may have 90"),
            ({"max_tokens": 40}, "echo", "100 tokens, with 0"),
            ({"n": 3}, "prompt", "are 6 texts; one request may ask for 5"),
        ):
            with pytest.raises(openai.BadRequestError, match=told) as caught:
                client.completions.create(**asked | more)
            assert (caught.value.code, caught.value.param) == ("invalid_value", param)


@pytest.fixture(scope="module")
def chatting(directory, tokenizer, tmp_path_factory, serving):
    """A client of the same model with a chat template."""
    place = tmp_path_factory.mktemp("chatting")
    tokenizers.save(tokenizer, place)
    templated = tokenizers.load(place)
    templated.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    with serving(Served("joined", load_model(directory), templated)) as client:
        yield client


MESSAGES = [{"role": "user", "content": "Hello 🙂"}]


def test_chat_tells_the_same_in_its_own_form(chatting, client, model, tokenizer):
    asked = {"model": "joined", "temperature": 1.4, "seed": 11, "max_tokens": 16}
    told = chatting.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=20, n=2, **asked)
    same = client.completions.create(prompt="user: Hello 🙂\nassistant:", logprobs=5, n=2, **asked)
    spelling, prompt = Spelling(tokenizer), prompt_ids(model, tokenizer, "user: Hello 🙂\nassistant:", 16)
    by_bytes = {spelling.spell(i): i for i in range(len(tokenizer))}
    for chat, completion in zip(told.choices, same.choices, strict=True):
        assert (chat.index, chat.message.content) == (completion.index, completion.text)
        content = chat.logprobs.content
        assert [one.logprob for one in content] == completion.logprobs.token_logprobs
        assert b"".join(bytes(one.bytes) for one in content).decode(errors="replace") == chat.message.content
        ids = [by_bytes[bytes(one.bytes)] for one in content]
        for one, said in zip(content, distributions(model, prompt + ids)[len(prompt) - 1 :], strict=True):
            best = said.topk(20)
            assert [by_bytes[bytes(other.bytes)] for other in one.top_logprobs] == best.indices.tolist()
            assert [other.logprob for other in one.top_logprobs] == pytest.approx(best.values.tolist(), **CLOSE)
            assert one.token == spelling.name(by_bytes[bytes(one.bytes)])


def test_chat_streams_add_up_to_the_whole(chatting):
    asked = {"model": "joined", "messages": MESSAGES, "seed": 3, "max_tokens": 10, "n": 2, "logprobs": True}
    told = chatting.chat.completions.create(**asked)
    chunks = list(chatting.chat.completions.create(**asked, stream=True))
    for choice in told.choices:
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert [one.delta.role for one in own] == ["assistant"] + [None] * (len(own) - 1)
        assert "".join(one.delta.content or "" for one in own) == choice.message.content
        assert [t for one in own for t in one.logprobs.content] == choice.logprobs.content
        assert own[-1].finish_reason == choice.finish_reason == "length"
    assert chunks[-1].usage == told.usage


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"logprobs": 1}, "logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"echo": True}, "echo", "unsupported_parameter"),
    ],
)
def test_what_a_chat_cannot_do_is_refused(chatting, change, param, code, post):
    body = {"model": "joined", "messages": MESSAGES, **change}
    status, told = post(chatting, "/chat/completions", json.dumps(body).encode())
    assert (status, told["error"]["param"], told["error"]["code"]) == (400, param, code)


def metaspace() -> PreTrainedTokenizerFast:
    """A tokenizer that writes the space before a word as part of it, and none before the first."""
    words = {word: i for i, word in enumerate(["<unk>", "</s>", "▁", "▁open", "▁the", "ing", "<0xE2>", "▁выбор"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_tokens_are_spelled_as_they_stand_in_a_text(tokenizer, pages):
    bytes_apart = tokenizers.train({"en": pages["en"]}, 400)
    for own in (tokenizer, bytes_apart):
        spelling, text = Spelling(own), f"{PROMPT} \ufffd {pages['zh'][0][:300]}"
        ids = tokenizers.encode(own, [text])[0]
        assert b"".join(map(spelling.spell, ids)) == text.encode()
        assert spelling.name(own.eos_token_id) == "</s>"
    spelling = Spelling(metaspace())
    assert [spelling.name(i) for i in range(1, 8)] == ["</s>", " ", " open", " the", "ing", "\\xe2", " выбор"]
    assert spelling.name(6, "bytes:") == "bytes:\\xe2"
