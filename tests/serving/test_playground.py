"""The page to play with and what it asks of the server, against experts asked alone and seen in a browser."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect

from treering import tokenizer as tokenizers
from treering.composition import load_model, rule
from treering.evaluation import explain, prompt_ids
from treering.report.explanation import OKABE_ITO
from treering.serving import playground
from treering.serving.limits import Limits
from treering.serving.served import Served

PROMPT = "To open this dialog, выберите 菜单 🙂"
RULES = [
    *("mean", "weighted", "probability", "evidence", "evidence:switch=0.01", "top_k", "top_k:k=2"),
    *("evidence:cache=0.2", "evidence:switch=0.1,together=0.1,cache=0.2"),
]
CLOSE = {"rel": 1e-3, "abs": 1e-4}
KEY = "sk-secret"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def root(client) -> str:
    return f"http://{client.base_url.host}:{client.base_url.port}"


def ask(client, path: str = "/play", headers: dict[str, str] | None = None, **body) -> tuple[int, dict]:
    """Status and JSON; without a body it is a GET."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(root(client) + path, data, {"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def play(client, **body) -> dict:
    """What was told of the only choice, and the usage."""
    status, told = ask(client, **{"model": "joined", "temperature": 0, **body})
    assert status == 200, told
    [choice] = told["choices"]
    return {**choice, "tokens": choice["logprobs"]["tokens"], "usage": told["usage"]}


def streamed(client, **body) -> list[dict]:
    data = json.dumps({"model": "joined", "temperature": 0, "stream": True, **body}).encode()
    request = urllib.request.Request(root(client) + "/play", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        events = response.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def pieces(told: dict) -> str:
    """The text put together from where its tokens start."""
    starts = [token["start"] for token in told["tokens"]]
    ends = [*starts[1:], len(told["text"])]
    return "".join(told["text"][start:end] for start, end in zip(starts, ends, strict=True))


@pytest.mark.parametrize("spec", RULES)
def test_of_the_prompt_it_tells_what_explain_finds(client, directory, tokenizer, spec):
    found = explain(load_model(directory, rule=spec), tokenizer, PROMPT)
    told = play(client, model=f"joined:{spec}", prompt=PROMPT, echo=True, max_tokens=0)
    assert (told["text"], pieces(told), len(told["tokens"])) == (PROMPT, PROMPT, len(found.spans))
    for at, token in enumerate(told["tokens"]):
        assert list(token["experts"]) == list(found.experts)
        assert token["logprob"] == pytest.approx(float(found.joined[at]), **CLOSE)
        for e, of in enumerate(token["experts"].values()):
            assert of["weight"] == pytest.approx(float(found.weights[e, at].exp()), **CLOSE)
            assert of["credit"] == pytest.approx(float(found.credit[e, at]), **CLOSE)
            assert of["logprob"] == pytest.approx(float(found.likelihood[e, at]), **CLOSE)
        assert sum(of["weight"] for of in token["experts"].values()) == pytest.approx(1, abs=1e-5)
        assert ("product" in token) == ("together" in spec)


@torch.no_grad()
@pytest.mark.parametrize("spec", RULES)
def test_of_the_answer_it_tells_what_each_expert_says_alone(client, directory, tokenizer, spec):
    """Weights, probabilities and the likeliest tokens, from experts that read the whole text anew."""
    model = load_model(directory, rule=spec)
    told = play(client, model=f"joined:{spec}", prompt=PROMPT, max_tokens=12)
    greedy = client.completions.create(model=f"joined:{spec}", prompt=PROMPT, max_tokens=12, temperature=0)
    assert told["text"] == pieces(told) == greedy.choices[0].text
    prompt, ids = prompt_ids(model, tokenizer, PROMPT, 12), [token["id"] for token in told["tokens"]]
    read = torch.tensor([prompt + ids])
    whole = rule(spec)(*model.read(read))
    says = [whole.logits, *(model.expert(name)(read).logits for name in model.experts)]
    joined, *alone = [logits[0, len(prompt) - 1 : -1].log_softmax(-1) for logits in says]
    weights = whole.weights[:, 0, len(prompt) - 1 : -1].exp()
    for at, token in enumerate(told["tokens"]):
        for of, logprobs in zip((token, *token["experts"].values()), (joined, *alone), strict=False):
            if of["top"] is None:
                assert (of["logprob"], of["weight"], of["credit"]) == (None, 0, 0)
                assert spec == "top_k"
                continue
            best = logprobs[at].topk(5)
            assert of["logprob"] == pytest.approx(float(logprobs[at, token["id"]]), **CLOSE)
            assert [one["id"] for one in of["top"]] == best.indices.tolist()
            assert [one["logprob"] for one in of["top"]] == pytest.approx(best.values.tolist(), **CLOSE)
        assert [of["weight"] for of in token["experts"].values()] == pytest.approx(weights[:, at].tolist(), **CLOSE)
    if spec == "evidence":  # in closed form: the prior times what each expert gave to all before
        before = [model.expert(name)(read).logits[0, :-1].double().log_softmax(-1) for name in model.experts]
        sums = [of.gather(1, read[0, 1:, None])[: len(prompt) - 1].sum() for of in before]
        first = [of["weight"] for of in told["tokens"][0]["experts"].values()]
        assert first == pytest.approx(torch.stack(sums).softmax(0).tolist(), **CLOSE)
    if "together" in spec:
        assert all(0 < token["product"] < 1 for token in told["tokens"])


def test_an_expert_that_rests_is_said_to_rest(client):
    told = play(client, model="joined:top_k", prompt=PROMPT, max_tokens=30)
    resting = [of for token in told["tokens"] for of in token["experts"].values() if of["top"] is None]
    assert resting
    assert all(of["weight"] == 0 for of in resting)


def test_tokens_that_are_given_are_read_like_a_prompt(client, model, tokenizer):
    """And told like those that were written; `known` ones are not told again."""
    whole = play(client, prompt=PROMPT, max_tokens=16)
    ids = [token["id"] for token in whole["tokens"]]
    for known in (0, 5, 9):
        rest = play(client, prompt=PROMPT, tokens=ids[:9], known=known, max_tokens=7)
        assert [token["id"] for token in rest["tokens"]] == ids[known:]
        assert rest["text"] == whole["text"][whole["tokens"][known]["start"] :]
        assert rest["usage"]["completion_tokens"] == 7
        for one, same in zip(rest["tokens"], whole["tokens"][known:], strict=True):
            assert one["start"] == same["start"]
            assert one["logprob"] == pytest.approx(same["logprob"], **CLOSE)
            assert one["experts"]["a"]["weight"] == pytest.approx(same["experts"]["a"]["weight"], **CLOSE)
    other = whole["tokens"][4]["experts"]["b"]["top"][3]["id"]  # a token put in another's place
    forced = play(client, prompt=PROMPT, tokens=[*ids[:4], other], known=4, max_tokens=8)
    assert forced["tokens"][0]["id"] == other
    prompt = [*prompt_ids(model, tokenizer, PROMPT, 16), *ids[:4], other]
    told = client.completions.create(model="joined", prompt=prompt, max_tokens=8, temperature=0, logprobs=0)
    assert [token["token"] for token in forced["tokens"][1:]] == [
        name.replace("bytes:", "") for name in told.choices[0].logprobs.tokens
    ]
    drawn = {"max_tokens": 8, "temperature": 1.2, "seed": 3}
    told = client.completions.create(model="joined", prompt=prompt, logprobs=0, **drawn)
    rest = play(client, prompt=PROMPT, tokens=[*ids[:4], other], known=5, **drawn)
    assert [token["token"] for token in rest["tokens"]] == [
        name.replace("bytes:", "") for name in told.choices[0].logprobs.tokens
    ]


def test_who_plays_gets_what_fits(client, tokenizer):
    told = play(client, prompt="To open", tokens=[5] * 80, known=80, max_tokens=50)
    assert told["usage"]["total_tokens"] == 96
    assert len(told["tokens"]) == told["usage"]["completion_tokens"] < 16


def test_a_character_may_be_cut_between_its_bytes(client, tokenizer):
    text = "ab🙂菜, 🙂"
    ids = tokenizers.encode(tokenizer, [text])[0]
    whole = play(client, prompt="x", tokens=ids, max_tokens=0)
    assert whole["text"] == pieces(whole) == text
    assert any(one["start"] == other["start"] for one, other in zip(whole["tokens"], whole["tokens"][1:], strict=False))
    for known in range(len(ids)):
        rest = play(client, prompt="x", tokens=ids, known=known, max_tokens=0)
        assert rest["text"] == text[whole["tokens"][known]["start"] :]
        assert [token["start"] for token in rest["tokens"]] == [token["start"] for token in whole["tokens"][known:]]


def test_streams_add_up_and_tell_the_prompt_first(client):
    whole = play(client, prompt=PROMPT, echo=True, max_tokens=20, temperature=1.3, seed=5)
    events = streamed(client, prompt=PROMPT, echo=True, max_tokens=20, temperature=1.3, seed=5)
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == whole["text"] == pieces(whole)
    assert [token for choice in choices for token in choice["logprobs"]["tokens"]] == whole["tokens"]
    assert choices[0]["text"] == PROMPT
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    usage = events[-1]["usage"]
    assert usage["completion_tokens"] == 20
    assert usage["tokens_per_second"] > 0


def test_a_stop_string_and_several_choices_hold_here_too(client):
    text = play(client, prompt=PROMPT, max_tokens=20)["text"]
    assert play(client, prompt=PROMPT, max_tokens=20, stop=text[6:9])["text"] == text.partition(text[6:9])[0]
    _, told = ask(client, model="joined", prompt=PROMPT, max_tokens=3, n=3, seed=1)
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]


def test_a_single_model_has_no_experts(directory, tokenizer, serving):
    model = load_model(directory)
    with serving(Served("own", model.expert("a"), tokenizer)) as client:
        told = play(client, model="own", prompt=PROMPT, echo=True, max_tokens=4)
        assert all("experts" not in token and len(token["top"]) == 5 for token in told["tokens"])
        alone = play(client, model="own", prompt=PROMPT, max_tokens=4)
        status, described = ask(client)
    assert told["text"] == PROMPT + alone["text"]
    assert (status, described["experts"], described["rule"], described["rules"]) == (200, [], None, [])


def test_a_conversation(directory, tokenizer, tmp_path, serving):
    tokenizers.save(tokenizer, tmp_path)
    templated = tokenizers.load(tmp_path)
    templated.chat_template = TEMPLATE
    messages = [{"role": "user", "content": "Hello"}]
    with serving(Served("joined", load_model(directory), templated)) as client:
        told = client.chat.completions.create(model="joined", messages=messages, max_tokens=6, temperature=0)
        played = play(client, messages=messages, max_tokens=6)
        assert played["text"] == told.choices[0].message.content
        assert ask(client)[1]["chat"] is True
        status, refused = ask(client, model="joined", prompt="x", messages=messages)
        assert (status, refused["error"]["param"]) == (400, "messages")


def test_what_is_described(client):
    assert ask(client) == (
        200,
        {
            "model": "joined",
            "rule": "evidence:switch=0.01",
            "experts": ["a", "b"],
            "shared": 0,
            "rules": ["mean", "weighted", "probability", "evidence", "top_k"],
            "chat": False,
            "context": 96,
            "separator": 2,
        },
    )


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"tokens": [5, 700]}, "tokens", "invalid_value"),
        ({"tokens": [5, -1]}, "tokens.1", "invalid_value"),
        ({"tokens": [5, True]}, "tokens.1", "invalid_value"),
        ({"tokens": [5], "known": 2}, "known", "invalid_value"),
        ({"top": 21}, "top", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"tokens": [5] * 96}, "prompt", "context_length_exceeded"),
        ({"prompt": "word " * 200}, "prompt", "context_length_exceeded"),
        ({"prompt": [5]}, "prompt", "invalid_value"),
        ({"logprobs": 3}, "logprobs", "unsupported_parameter"),
        ({"model": "joined-without-c"}, "model", "model_not_found"),
    ],
)
def test_what_cannot_be_done_is_refused(client, change, param, code):
    status, told = ask(client, **{"model": "joined", "prompt": "To open", **change})
    assert status == (404 if code == "model_not_found" else 400)
    assert (told["error"]["param"], told["error"]["code"]) == (param, code)


def test_limits_hold_here_too(directory, tokenizer, serving):
    limits = Limits(body=2000, tokens=18 * 20, request_seconds=30)
    with serving(Served("joined", load_model(directory), tokenizer, limits)) as client:
        assert ask(client, model="joined", prompt="x", max_tokens=20)[0] == 200  # times 6 for each of three
        status, told = ask(client, model="joined", prompt="x", max_tokens=21)
        assert (status, "360" in told["error"]["message"]) == (400, True)
        assert ask(client, model="joined", prompt="x", tokens=[5] * 10, known=0, max_tokens=11)[0] == 400
        assert ask(client, model="joined", prompt="x", tokens=[5] * 10, known=10, max_tokens=11)[0] == 200
        assert ask(client, model="joined", prompt="x" * 2001)[0] == 413


@pytest.fixture(scope="module")
def guarded(directory, tokenizer, serving):
    with serving(Served("joined", load_model(directory), tokenizer), KEY) as client:
        yield client


def test_the_page_needs_no_key_and_what_it_asks_for_does(guarded):
    with urllib.request.urlopen(root(guarded) + "/") as response:
        assert (response.status, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = response.headers["content-security-policy"]
        told = response.read().decode()
    assert told == playground.page()
    assert KEY not in told
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for body in ({}, {"model": "joined", "prompt": "x"}):
        assert ask(guarded, **body)[0] == 401
        assert ask(guarded, headers={"authorization": f"Bearer {KEY}"}, **body)[0] == 200


def test_the_page_has_every_file_of_its_script_once():
    script = Path(playground.__file__).parent / "script"
    assert sorted(playground.SCRIPT) == sorted(path.stem for path in script.iterdir())
    assert all(playground.page().count(path.read_text(encoding="utf-8")) == 1 for path in script.iterdir())


def test_without_a_key_only_the_server_s_own_page_may_ask(client):
    port = client.base_url.port

    def status(origin: str, host: str = f"127.0.0.1:{port}") -> int:
        return ask(client, headers={"origin": origin, "host": host}, model="joined", prompt="x", max_tokens=1)[0]

    assert status(f"http://127.0.0.1:{port}") == 200
    assert status(f"http://localhost:{port}", f"localhost:{port}") == 200
    assert status(f"http://[::1]:{port}", f"[::1]:{port}") == 200
    assert status(f"http://127.0.0.1:{port + 1}") == 403
    assert status(f"https://127.0.0.1:{port}") == 403
    assert status("null") == 403
    # a name that its owner lets lead to this machine
    assert status(f"http://example.com:{port}", f"example.com:{port}") == 403
    assert status(f"http://127.0.0.1.example.com:{port}", f"127.0.0.1.example.com:{port}") == 403
    assert status("http://[::1", "[::1") == 403


def written(page, how: str = "Done") -> None:
    expect(page.locator("#status")).to_contain_text(f"{how}: ", timeout=10_000)


def answer(page) -> str:
    return page.locator("#plain").text_content()


def test_a_text_is_written_looked_at_and_taken_elsewhere(client, visit, greedy):
    page = visit(root(client) + "/")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("12")
    prompt = "<img src=x onerror=alert(1)> To open"
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Prompt").press("Control+Enter")
    written(page)
    first = greedy(prompt, 12)
    assert answer(page) == first
    assert page.locator("#text img").count() == 0
    assert page.locator("#text").text_content() == prompt + first

    # The arrow keys move one tab stop through the words, and what is known of them is shown.
    tokens, title = page.locator(".piece"), page.locator("#token-about")
    assert page.locator(".piece[tabindex='0']").count() == 1
    tokens.first.focus()
    expect(title).to_contain_text("Prompt, piece 1 of")
    page.keyboard.press("End")
    expect(title).to_contain_text(f"Answer, piece {tokens.count()} of")
    page.keyboard.press("ArrowLeft")
    expect(title).to_contain_text(f"Answer, piece {tokens.count() - 1} of")
    assert page.locator(".piece[tabindex='0'][aria-selected='true']:focus").count() == 1
    assert page.locator(".piece:focus").get_attribute("aria-description")
    assert page.locator("tbody th").all_inner_texts() == ["A a", "B b", "together"]
    assert page.locator(".tops ol").count() == 3
    assert page.locator(".tops button").count() == 15
    colours = [one.evaluate("e => e.style.getPropertyValue('--own')") for one in page.locator("#legend .sign").all()]
    assert tuple(colours) == OKABE_ITO[:2]

    # Another word is put in the place of the last but one, and the text goes on from there.
    kept = [one.text_content() for one in tokens.all()][:-2]
    second = page.locator(".tops ol").first.locator("button").nth(1)
    put = second.locator(".name").text_content()
    second.press("Enter")
    expect(page.locator("#branches button")).to_have_count(2)
    written(page)
    assert [one.text_content() for one in tokens.all()][: len(kept)] == kept
    assert f"“{put}”" in page.locator("#branches button[aria-current]").text_content()
    assert page.locator(".tops ol").first.locator("button[aria-current]").first.locator(".name").text_content() == put
    forced = answer(page)
    assert forced != first

    # Rewound, and written on: with the same prompt and settings as before, so it says the same.
    tokens.nth(len(kept) - 1).click()
    page.get_by_role("button", name="Rewind to here").click()
    expect(page.locator("#branches button")).to_have_count(3)
    assert answer(page) == "".join(kept)[len(prompt) :]
    page.get_by_label("Most tokens").fill("2")
    page.get_by_role("button", name="Write on").click()
    written(page)
    assert answer(page) == first
    page.locator("#branches button").nth(1).click()
    assert answer(page) == forced


def test_rule_and_experts_are_switched(client, visit):
    page = visit(root(client) + "/")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("8")
    page.get_by_label("Prompt").fill("To open")
    page.get_by_label("Rule that joins them").select_option("mean")
    page.get_by_role("button", name="Write", exact=True).click()
    written(page)
    told = client.completions.create(model="joined:mean", prompt="To open", temperature=0, max_tokens=8)
    assert answer(page) == told.choices[0].text
    assert page.locator("#strip").get_attribute("aria-label").endswith("on average a 50%, b 50%")

    page.get_by_label("Rule that joins them").select_option("another")
    page.get_by_label("Another rule").fill("evidence:switch=0.2,cache=0.3")
    page.get_by_role("button", name="Read the text again so").click()
    written(page)
    assert answer(page) == told.choices[0].text
    assert "the text itself" in page.locator("#legend").text_content()
    page.get_by_label("Another rule").fill("nonsense")
    page.get_by_role("button", name="Read the text again so").click()
    expect(page.locator("#status.bad")).to_contain_text("nonsense")

    page.get_by_label("Rule that joins them").select_option("")
    page.locator("#experts").get_by_label("b").uncheck()
    expect(page.locator("#experts").get_by_label("a")).to_be_disabled()  # the last one stays
    page.get_by_role("button", name="Write", exact=True).click()
    written(page)
    asked = {"model": "joined-without-b", "prompt": "To open", "max_tokens": 8, "temperature": 0, "top_p": 0.95}
    assert answer(page) == client.completions.create(**asked).choices[0].text
    page.get_by_text("Python", exact=True).click()
    program = page.locator("#python").text_content()
    assert all(f"{name}={json.dumps(value)}," in program for name, value in asked.items())
    compile(program, "program", "exec")
    page.get_by_text("curl", exact=True).click()
    body = page.locator("#curl").text_content().partition("-d '")[2].rpartition("'")[0]
    assert json.loads(body) == asked


def test_a_text_is_stopped(directory, tokenizer, serving, visit):
    model = load_model(directory)
    expert, steps = model.experts["a"], []
    forward = expert.forward

    def slow(*args, **kwargs):
        steps.append(1)
        time.sleep(0.2 if len(steps) > 4 else 0)
        return forward(*args, **kwargs)

    expert.forward = slow
    with serving(Served("joined", model, tokenizer)) as client:
        page = visit(root(client) + "/")
        page.get_by_label("Prompt").fill("To open")
        page.get_by_role("button", name="Write", exact=True).click()
        expect(page.locator(".piece")).not_to_have_count(0)
        page.keyboard.press("Escape")
        written(page, "Stopped")
        assert len(steps) < 40
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def test_the_key_is_asked_for(guarded, visit):
    page = visit(root(guarded) + "/")
    page.get_by_label("This server asks for its API key").fill("wrong")
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#status")).to_contain_text("Incorrect API key")
    page.get_by_label("This server asks for its API key").fill(KEY)
    page.get_by_role("button", name="Open").click()
    page.get_by_label("Prompt").fill("To open")
    page.get_by_label("Most tokens").fill("3")
    page.get_by_role("button", name="Write", exact=True).click()
    written(page)
    assert KEY not in page.locator("#curl").text_content()
    assert page.evaluate("() => Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hinders_people(client, visit, faults, width, scheme):
    page = visit(root(client) + "/", width, scheme)
    assert faults(page) == []
    page.get_by_label("Prompt").fill("To open this dialog, choose " + "unbroken" * 12)
    page.get_by_role("button", name="Write", exact=True).click()
    written(page)
    page.locator(".piece").last.click()
    page.locator(".tops button").nth(1).click()
    expect(page.locator("#branches button")).to_have_count(2)
    written(page)
    for summary in page.locator("summary").all():
        summary.click()
    assert faults(page) == []
