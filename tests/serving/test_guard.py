"""Who may ask."""

from __future__ import annotations

import urllib.error
import urllib.request

import openai
import pytest

from treering.cli import main
from treering.composition import load_model
from treering.errors import TreeringError
from treering.serving import server
from treering.serving.served import Served

PROMPT = "To open this dialog, choose"
KEY = "sk-secret"


def status(client: openai.OpenAI, path: str, headers: dict[str, str]) -> int:
    url = f"http://{client.base_url.host}:{client.base_url.port}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def guarded(directory, tokenizer, serving):
    with serving(Served("joined", load_model(directory), tokenizer), KEY) as client:
        yield client


def test_key(guarded, greedy):
    assert guarded.completions.create(model="joined", prompt=PROMPT, temperature=0).choices[0].text == greedy(PROMPT)
    for wrong in ("sk-secreu", "sk-secre", "sk-secret2", "none"):
        with pytest.raises(openai.AuthenticationError) as caught:
            guarded.with_options(api_key=wrong).completions.create(model="joined", prompt=PROMPT)
        assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")
        assert wrong not in str(caught.value)


def test_all_but_health_needs_the_key(guarded):
    right = {"authorization": f"Bearer {KEY}"}
    for path in ("/v1/models", "/v1/models/joined", "/nothing", "/v1/completions"):
        for wrong in ({}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}, {"authorization": "Bearer \xff"}):
            assert status(guarded, path, wrong) == 401
        assert status(guarded, path, right) != 401
    assert status(guarded, "/health", {}) == 200
    assert status(guarded, "/v1/models", {"authorization": f"bearer  {KEY}"}) == 200


def test_pages_in_a_browser_may_ask_only_with_a_key(client, guarded):
    origin = {"origin": "https://example.com"}
    assert status(client, "/v1/models", {}) == 200
    assert status(client, "/v1/models", origin) == 403
    assert status(client, "/v1/models", {"origin": "null"}) == 403
    assert status(guarded, "/v1/models", origin) == 401
    assert status(guarded, "/v1/models", origin | {"authorization": f"Bearer {KEY}"}) == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_other_machines_need_a_key(host):
    with server.listen(host, 0) as listener:
        with pytest.raises(TreeringError, match="TREERING_API_KEY"):
            server.require_key(listener, None)
        server.require_key(listener, KEY)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1"])
def test_this_machine_needs_none(host):
    with server.listen(host, 0) as listener:
        server.require_key(listener, None)
        for wrong in ("", " x", "x\n", "ключ"):
            with pytest.raises(TreeringError, match="ASCII"):
                server.require_key(listener, wrong)


def test_command_asks_for_a_key_before_it_loads_the_model(directory, monkeypatch, capsys):
    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["treering", "serve", str(directory), "--port", "0", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        return capsys.readouterr().err

    def load(place, **_):
        raise TreeringError("loaded")

    monkeypatch.setattr(server, "load_model", load)
    assert "TREERING_API_KEY" in run("--host", "0.0.0.0")
    assert "loaded" in run("--host", "0.0.0.0", "--api-key", KEY)
    monkeypatch.setenv("TREERING_API_KEY", KEY)
    assert "loaded" in run("--host", "0.0.0.0")
