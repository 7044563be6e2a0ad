"""A composition on a loopback port, for OpenAI's own client and for worse ones."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from transformers import PreTrainedModel

from treering import tokenizer as tokenizers
from treering.composition import compose, load_model
from treering.evaluation import generate
from treering.serving import server
from treering.serving.served import Served


@pytest.fixture(scope="session")
def directory(tmp_path_factory, expert, tokenizer) -> Path:
    """A composition of two experts that disagree, on disk."""
    directory = tmp_path_factory.mktemp("serving") / "joined"
    compose({"a": expert(1), "b": expert(2, family="llama")}).save_pretrained(directory)
    tokenizers.save(tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def model(directory) -> PreTrainedModel:
    """The same composition, to ask without a server."""
    return load_model(directory)


@contextmanager
def _serving(served: Served, api_key: str | None = None) -> Iterator[openai.OpenAI]:
    """A client of a real server that runs in a thread."""
    with served, server.listen("127.0.0.1", 0) as listener:
        running = server.http_server(served, api_key)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        try:
            with openai.OpenAI(base_url=url, api_key=api_key or "none", max_retries=0) as client:
                yield client
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def client(directory, tokenizer) -> Iterator[openai.OpenAI]:
    with _serving(Served("joined", load_model(directory), tokenizer)) as client:
        yield client


@pytest.fixture(scope="session")
def greedy(model, tokenizer):
    """``greedy(prompt, tokens)``: what the model writes when nothing but generate() is asked."""
    return lambda prompt, tokens=16: generate(model, tokenizer, prompt, tokens, temperature=0)


def _post(client: openai.OpenAI, path: str, body: bytes) -> tuple[int, dict]:
    """Status and JSON of a request that OpenAI's client would not send."""
    request = urllib.request.Request(
        str(client.base_url).rstrip("/") + path, body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="session")
def serving():
    """``serving(served, api_key)``: as a context, a client of a server."""
    return _serving


@pytest.fixture(scope="session")
def post():
    """``post(client, path, body)``: status and JSON."""
    return _post
