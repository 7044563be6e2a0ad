"""The server on a loopback port, spoken to by OpenAI's own client."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

from treering import tokenizer as tokenizers
from treering.cli import main
from treering.composition import draw, load_model
from treering.composition.speculation import Pace
from treering.errors import TreeringError
from treering.evaluation import generate, prompt_ids
from treering.serving import server
from treering.serving.served import Served

PROMPT = "To open this dialog, choose"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def joined_text(stream) -> str:
    return "".join(chunk.choices[0].text for chunk in stream)


def test_completion_is_the_greedy_one(client, greedy):
    told = client.completions.create(model="joined", prompt=PROMPT, temperature=0)
    assert told.choices[0].text == greedy(PROMPT, 16)
    assert (told.model, told.choices[0].finish_reason) == ("joined", "length")
    assert told.usage.completion_tokens == 16


def test_prompt_is_read_as_the_beginning_of_a_document(client, greedy, tokenizer):
    """The separator stands first, and what looks like a special token is text."""
    prompt = "</s><pad> a"
    told = client.completions.create(model="joined", prompt=prompt, temperature=0, max_tokens=12)
    assert told.choices[0].text == greedy(prompt, 12)
    assert told.usage.prompt_tokens == 1 + len(tokenizers.encode(tokenizer, [prompt])[0])
    empty = client.completions.create(model="joined", prompt="", temperature=0, max_tokens=12)
    assert (empty.choices[0].text, empty.usage.prompt_tokens) == (greedy("", 12), 1)


def test_stream_adds_up_to_the_completion(client, greedy):
    for tokens in (1, 7, 40):
        stream = client.completions.create(model="joined", prompt=PROMPT, temperature=0, max_tokens=tokens, stream=True)
        chunks = list(stream)
        assert joined_text(chunks) == greedy(PROMPT, tokens)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert chunks[-1].usage.completion_tokens == tokens


def test_stream_ends_as_openai_ends_it(client):
    url = str(client.base_url) + "completions"
    body = json.dumps({"model": "joined", "prompt": "x", "stream": True}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"})) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.read().endswith(b"data: [DONE]\n\n")


def test_many_at_once_each_get_their_own(client, greedy):
    prompts = [f"{PROMPT} {i}" for i in range(32)]
    expected = [greedy(prompt, 8) for prompt in prompts]

    def ask(i: int) -> str:
        told = client.completions.create(
            model="joined", prompt=prompts[i], temperature=0, max_tokens=8, stream=i % 2 == 1
        )
        return joined_text(told) if i % 2 else told.choices[0].text

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, range(32))) == expected
    assert len(set(expected)) > 16


def test_stop_strings_end_the_text_and_are_not_in_it(client, greedy):
    text = greedy(PROMPT, 40)
    for stop in (text[10], text[9:13], [text[30:33], text[14:18]], ["\u0378", text[3:]]):
        asked = {"model": "joined", "prompt": PROMPT, "temperature": 0, "max_tokens": 40, "stop": stop}
        expected = min((text.partition(s)[0] for s in ([stop] if isinstance(stop, str) else stop)), key=len)
        told = client.completions.create(**asked).choices[0]
        assert (told.text, told.finish_reason) == (expected, "stop")
        chunks = list(client.completions.create(**asked, stream=True))
        assert (joined_text(chunks), chunks[-1].choices[0].finish_reason) == (expected, "stop")


def test_end_of_document_is_a_stop_even_at_the_last_token(client, tokenizer):
    ending = {str(tokenizer.eos_token_id): 100}
    for tokens in (1, 5):
        told = client.completions.create(model="joined", prompt="x", max_tokens=tokens, logit_bias=ending)
        assert (told.choices[0].text, told.choices[0].finish_reason) == ("", "stop")
        assert told.usage.completion_tokens == 1


def test_seeds_hold_among_other_requests(client):
    def ask(seed: int | None) -> str:
        return client.completions.create(model="joined", prompt=PROMPT, temperature=1.5, seed=seed).choices[0].text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, [1, None, 2, 1, None, 1, 2, None]))
    assert texts[0] == texts[3] == texts[5] != texts[2] == texts[6]
    assert len({texts[1], texts[4], texts[7]}) == 3


def test_models(client):
    assert client.models.retrieve("joined").id == "joined"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_wrong_model(client):
    with pytest.raises(openai.NotFoundError, match="'joined'") as caught:
        client.completions.create(model="other", prompt=PROMPT)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_context(client, greedy, tokenizer):
    with pytest.raises(openai.BadRequestError, match=r"context is 96\b") as caught:
        client.completions.create(model="joined", prompt="word " * 200)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match=r"90 more were asked for"):
        client.completions.create(model="joined", prompt=PROMPT, max_tokens=90, stream=True)
    # a prompt that leaves less than the default gets what fits, to the last place of the context
    prompt = next(p for n in range(96) if len(tokenizers.encode(tokenizer, [p := "a b" * n])[0]) >= 85)
    told = client.completions.create(model="joined", prompt=prompt, temperature=0)
    assert told.usage.total_tokens == 96
    assert told.choices[0].text == greedy(prompt, told.usage.completion_tokens)


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "0"}, "temperature", "invalid_value"),
        ({"max_tokens": 2.5}, "max_tokens", "invalid_value"),
        ({"stop": [""]}, "stop.0", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt", "invalid_value"),
        ({"prompt": [5, "six"]}, "prompt", "invalid_value"),
        ({"prompt": [5, True]}, "prompt", "invalid_value"),
        ({"prompt": [[5], [700]]}, "prompt", "invalid_value"),
        ({"prompt": ["one"] * 129}, "prompt", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": 65, "prompt": ["one", "two"]}, "prompt", "invalid_value"),
        ({"best_of": 2}, "best_of", "invalid_value"),
        ({"best_of": 1, "n": 2}, "best_of", "invalid_value"),
        ({"echo": 1}, "echo", "invalid_value"),
        ({"logprobs": 6}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"presence_penalty": 0.5}, "presence_penalty", "invalid_value"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"logit_bias": {"700": 1}}, "logit_bias", "invalid_value"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"generation_config": "{}"}, "generation_config", "unsupported_parameter"),
    ],
)
def test_what_cannot_be_done_is_refused(client, change, param, code, post):
    status, told = post(client, "/completions", json.dumps({"model": "joined", "prompt": PROMPT, **change}).encode())
    assert status == 400
    assert told["error"].keys() == {"message", "type", "param", "code"}
    assert (told["error"]["param"], told["error"]["code"]) == (param, code)
    assert param.split(".")[0] in told["error"]["message"]


def test_what_changes_nothing_is_accepted(client, greedy, post):
    """LangChain and others send every parameter, with OpenAI's default."""
    unasked = {"n": 1, "best_of": 1, "logprobs": None, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0}
    body = {"model": "joined", "prompt": [PROMPT], "temperature": 0, "stop": None, "user": "me", **unasked}
    status, told = post(client, "/completions", json.dumps(body).encode())
    assert (status, told["choices"][0]["text"]) == (200, greedy(PROMPT))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "\xff"}', b'{"model": "\\ud800"}', b"[" * 100_000])
def test_what_is_not_json_is_refused(client, body, post):
    for path in ("/completions", "/chat/completions"):
        status, told = post(client, path, body)
        assert (status, told["error"]["type"]) == (400, "invalid_request_error")


def test_other_addresses(client, post):
    for path in ("/embeddings", "/../reset", "/../load_model"):
        status, told = post(client, path, b"{}")
        assert (status, told["error"]["code"]) == (404, "unknown_url")


def test_chat_without_a_template(client):
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="joined", messages=[{"role": "user", "content": "Hello"}])


def test_chat(directory, tokenizer, tmp_path, greedy, serving):
    tokenizers.save(tokenizer, tmp_path)
    templated = tokenizers.load(tmp_path)
    templated.chat_template = "{{ raise_exception('no') if messages[0].content == 'bad' }}" + TEMPLATE
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello </s>"}]
    expected = greedy("system: Be brief.\nuser: Hello </s>\nassistant:", 8)
    asked = {"model": "joined", "messages": messages, "temperature": 0, "max_tokens": 8}
    model = load_model(directory)
    model.config.model_type = "qwen2"  # whose chats transformers would take apart, leaving </s> in the text
    with serving(Served("joined", model, templated)) as client:
        told = client.chat.completions.create(**asked)
        assert (told.choices[0].message.content, told.choices[0].finish_reason) == (expected, "length")
        assert told.usage.completion_tokens == 8
        stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage.total_tokens == told.usage.total_tokens
        parts = [{"type": "text", "text": part} for part in ("Be", "brief.")]
        told = client.chat.completions.create(**{**asked, "messages": [{"role": "user", "content": parts}]})
        assert told.choices[0].message.content == greedy("user: Be\nbrief.\nassistant:", 8)
        ended = client.chat.completions.create(**asked, logit_bias={str(tokenizer.eos_token_id): 100})
        assert (ended.choices[0].message.content, ended.choices[0].finish_reason) == ("", "stop")
        # without max_tokens an answer may be as long as the context
        whole = client.chat.completions.create(model="joined", messages=messages, temperature=0)
        assert whole.usage.total_tokens == 96
        for wrong in ([], [{"role": "tool", "content": "x"}], [{"role": "user", "content": "bad"}]):
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(model="joined", messages=wrong)
        with pytest.raises(openai.BadRequestError, match="context is 96"):
            client.chat.completions.create(model="joined", messages=messages * 20)


def test_client_that_leaves_lets_others_on(directory, tokenizer, greedy, serving):
    """Of 60 tokens that two clients asked for and did not wait for, most are never written."""
    model = load_model(directory)
    permits, forward, written = threading.Semaphore(3), model.forward, []

    def slow_forward(*args, **kwargs):
        permits.acquire()
        written.append(1)
        return forward(*args, **kwargs)

    model.forward = slow_forward
    with serving(Served("joined", model, tokenizer, speculates=False)) as client, ThreadPoolExecutor(1) as pool:
        asked = {"model": "joined", "prompt": PROMPT, "temperature": 0}
        with client.completions.create(**asked, max_tokens=60, stream=True) as stream:
            next(iter(stream))
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).completions.create(**asked, max_tokens=60)
        other = pool.submit(client.completions.create, **asked, max_tokens=4)
        while not other.done():
            permits.release()
            time.sleep(0.02)
        count = len(written)
        permits.release(1000)
        assert other.result().choices[0].text == greedy(PROMPT, 4)
        assert count < 60


def test_failure_of_the_model_is_told(directory, tokenizer, serving):
    model = load_model(directory)

    def broken(*args, **kwargs):
        raise RuntimeError('out of "memory"')

    model.join = broken
    with serving(Served("joined", model, tokenizer)) as client:
        asked = {"model": "joined", "prompt": PROMPT}
        with pytest.raises(openai.InternalServerError, match='out of "memory"'):
            client.completions.create(**asked)
        with pytest.raises(openai.APIError, match='out of "memory"'):
            list(client.completions.create(**asked, stream=True))


def test_command(directory, greedy):
    """The command serves under the directory's name, refuses a busy port, and ends at Ctrl-C within a text."""
    command = [sys.executable, "-m", "treering", "serve", str(directory), "--port"]
    with subprocess.Popen([*command, "0"], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = r"http://127\.0\.0\.1"
            line = process.stderr.readline()
            found = re.match(rf"joined at ({address}:(\d+)/v1), to play with at {address}:\2/;", line)
            assert found
            with openai.OpenAI(base_url=found[1], api_key="none", max_retries=0) as client:
                told = client.completions.create(model="joined", prompt=PROMPT, temperature=0)
                assert told.choices[0].text == greedy(PROMPT)
                with pytest.raises(TreeringError, match=f"port {found[2]} .*in use"):
                    server.listen("127.0.0.1", int(found[2]))
                stream = client.completions.create(model="joined", prompt=PROMPT, max_tokens=80, stream=True)
                next(iter(stream))
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "")


def test_command_errors(directory, monkeypatch, capsys):
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["treering", "serve", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        return capsys.readouterr().err

    with server.listen("127.0.0.1", 0) as taken:
        assert "choose another --port" in run(str(directory), "--port", str(taken.getsockname()[1]))
    assert "host" in run(str(directory), "--host", "no.such.host.invalid")
    assert "no directory" in run(str(directory / "nothing"), "--port", "0")
    monkeypatch.setattr(server, "NEEDED", ("no_such_package",))
    assert "pip install 'treering[serve]'" in run(str(directory))


def test_the_most_credible_expert_leads_unless_an_answer_tells_of_each_token(
    directory, tokenizer, serving, monkeypatch
):
    model, led, learn = load_model(directory, rule="evidence:switch=0.01"), [], Pace.learn
    monkeypatch.setattr(Pace, "learn", lambda pace, *counts: (led.append(counts), learn(pace, *counts)))
    alone = generate(model, tokenizer, PROMPT, 12, temperature=0, speculate=False)
    sampled = generate(model, tokenizer, PROMPT, 12, temperature=0.9, top_p=0.9, seed=3, speculate=False)
    asked = {"model": "joined", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    seeded = {"temperature": 0.9, "top_p": 0.9, "seed": 3}
    with serving(Served("joined", model, tokenizer)) as client:
        for way in ({}, {"n": 2}, {"logprobs": 1}, seeded, seeded | {"logprobs": 1}):
            led.clear()
            answer = client.completions.create(**asked | way)
            assert {choice.text for choice in answer.choices} == {sampled if "seed" in way else alone}
            assert bool(led) == ("logprobs" not in way)
        led.clear()
        assert joined_text(client.completions.create(**asked, stream=True)) == alone
        stop = alone[4:8]
        stopped = client.completions.create(**asked, stop=stop).choices[0]
        assert (stopped.text, stopped.finish_reason) == (alone.partition(stop)[0], "stop")
        assert led
    led.clear()
    with serving(Served("joined", model, tokenizer, speculates=False)) as client:
        assert client.completions.create(**asked).choices[0].text == alone
    assert not led


def test_plain_sampling_is_answered_by_one_drawn_expert_where_that_was_asked_for(directory, tokenizer, serving):
    model = load_model(directory, rule="evidence")
    with serving(Served("joined", model, tokenizer, drawn=True)) as client:
        asked = {"model": "joined", "prompt": PROMPT, "max_tokens": 12, "seed": 7}
        with torch.random.fork_rng():
            torch.manual_seed(7)
            prompt = prompt_ids(model, tokenizer, PROMPT, 12)
            ids = draw(model, torch.tensor([prompt]), 12)[0, len(prompt) :]
        expected = tokenizer.decode(ids, skip_special_tokens=True)
        assert client.completions.create(**asked).choices[0].text == expected
        assert joined_text(client.completions.create(**asked, stream=True)) == expected
        greedy = generate(model, tokenizer, PROMPT, 12, temperature=0)
        assert client.completions.create(**asked, temperature=0).choices[0].text == greedy
        stop = expected[4:8]
        stopped = client.completions.create(**asked, stop=stop).choices[0]
        assert (stopped.text, stopped.finish_reason) == (expected.partition(stop)[0], "stop")
    with pytest.raises(TreeringError, match="not by top_k"):
        Served("joined", load_model(directory, rule="top_k"), tokenizer, drawn=True)
