"""What clients may not take of a server: memory, its event loop, the model, or each other's turns."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import openai
import pytest
from transformers import PreTrainedModel

from treering import tokenizer as tokenizers
from treering.composition import load_model
from treering.serving import reading, turns
from treering.serving.limits import Limits
from treering.serving.served import Served

PROMPT = "To open this dialog, choose"


class Gate:
    """Lets a model's forward passes through one at a time, and counts them."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.permits, self.passed = threading.Semaphore(0), 0
        forward = model.forward

        def gated(*args, **kwargs):
            self.permits.acquire()
            self.passed += 1
            return forward(*args, **kwargs)

        model.forward = gated

    @contextmanager
    def open(self):
        """For as long as the context lasts, one passes every few milliseconds."""
        closed = threading.Event()

        def let() -> None:
            while not closed.wait(0.005):
                self.permits.release()

        thread = threading.Thread(target=let)
        thread.start()
        try:
            yield
        finally:
            closed.set()
            thread.join()

    def let(self, count: int) -> None:
        """Let some pass, and wait until they have."""
        self.permits.release(count)
        while self.passed < count:
            time.sleep(0.01)

    def leave_open(self) -> None:
        self.permits.release(10**6)


@pytest.fixture
def gated(directory, tokenizer, serving):
    """``gated(limits)``: a client of a server whose model waits, and the gate."""
    with ExitStack() as stack:

        def start(**limits) -> tuple[openai.OpenAI, Gate]:
            model = load_model(directory)
            gate = Gate(model)
            client = stack.enter_context(
                serving(Served("joined", model, tokenizer, Limits(**limits), speculates=False))
            )
            stack.callback(gate.leave_open)
            return client, gate

        yield start


def connect(client: openai.OpenAI) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port), timeout=30)


def head(length: int | None, path: str = "/v1/completions") -> bytes:
    body = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{body}\r\n\r\n".encode()


def told(connection: socket.socket) -> tuple[int, dict]:
    """Status and JSON of the next answer on a connection."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    first, _, body = received.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in first.split(b"\r\n") if line.lower().startswith(b"content-len"))
    while len(body) < length:
        body += connection.recv(65536)
    return int(first.split()[1]), json.loads(body)


def closed(connection: socket.socket) -> bool:
    """Wait until the server closes a connection."""
    with connection:
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
    return True


def healthy(client: openai.OpenAI) -> bool:
    with urllib.request.urlopen(f"http://{client.base_url.host}:{client.base_url.port}/health", timeout=10) as response:
        return json.load(response) == {"status": "ok"}


def test_body_of_a_hundred_megabytes_is_refused_before_it_comes(client):
    with connect(client) as connection:
        connection.sendall(head(100_000_000) + b'{"prompt": "')
        status, error = told(connection)
        assert (status, error["error"]["code"], error["error"]["type"]) == (
            413,
            "request_too_large",
            "invalid_request_error",
        )
        assert "4 MiB" in error["error"]["message"]


def test_body_without_a_length_is_refused_when_it_has_become_too_large(client):
    with connect(client) as connection:
        connection.sendall(head(None))
        chunk = b"%x\r\n%b\r\n" % (2**20, b" " * 2**20)
        connection.sendall(chunk * 5)
        assert told(connection)[0] == 413
        connection.sendall(chunk + b"0\r\n\r\n" + head(2) + b"{}")  # what still comes is read and forgotten
        assert told(connection)[0] == 400


def test_openais_client_gets_to_read_the_refusal_of_a_large_body(client):
    with pytest.raises(openai.APIStatusError, match="may have 4 MiB") as caught:
        client.completions.create(model="joined", prompt="word " * 4_000_000)
    assert caught.value.status_code == 413


def test_rest_of_a_refused_body_is_not_read_for_ever(directory, tokenizer, serving):
    limits = Limits(body=1000, linger_seconds=0.2)
    with serving(Served("joined", load_model(directory), tokenizer, limits)) as client:
        connection = connect(client)
        connection.sendall(head(2000))
        assert told(connection)[0] == 413
        assert closed(connection)


def test_bodies_that_are_held_at_once_are_limited(directory, tokenizer, serving, post):
    limits = Limits(body=1000)
    with ExitStack() as stack:
        client = stack.enter_context(serving(Served("joined", load_model(directory), tokenizer, limits)))
        for _ in range(16):
            stack.enter_context(connect(client)).sendall(head(1000) + b" " * 990)
        refused = {"error": None}
        while refused["error"] is None:  # until all that was sent has been received
            status, refused = post(client, "/completions", b" " * 999)
            refused = refused if status == 503 else {"error": None}
        assert refused["error"]["code"] == "server_busy"
        assert healthy(client)


def test_prompt_that_cannot_fit_is_refused_without_tokenising_it(client, tokenizer, monkeypatch):
    longest = 96 * max(map(len, tokenizer.get_vocab()))
    monkeypatch.setattr(reading, "prompt_ids", lambda *arguments: pytest.fail("tokenised"))
    with pytest.raises(openai.BadRequestError, match=f"more than {longest:,} characters") as caught:
        client.completions.create(model="joined", prompt="a" * (longest + 1))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_tokenising_does_not_hold_up_the_server(client, greedy, monkeypatch):
    begun, go_on, prompt_ids = threading.Event(), threading.Event(), reading.prompt_ids

    def slow(*arguments):
        begun.set()
        assert go_on.wait(30)
        return prompt_ids(*arguments)

    monkeypatch.setattr(reading, "prompt_ids", slow)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.completions.create, model="joined", prompt=PROMPT, temperature=0)
        assert begun.wait(30)
        assert healthy(client)
        assert not asked.done()
        go_on.set()
        assert asked.result().choices[0].text == greedy(PROMPT)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (b'"stop": "%b"' % (b"a" * 300_000), "stop.0"),
        (b'"stop": ["a", "b", "c", "d", "e"]', "stop"),
        (b'"stop": [%b"a"]' % (b"1, " * 300_000), "stop"),
        (b'"max_tokens": 1%b' % (b"0" * 4000), "max_tokens"),
        (b'"max_tokens": 1%b' % (b"0" * 100_000), None),
        (b'"temperature": NaN', None),
        (b'"temperature": 1e999', "temperature"),
        (b'"top_p": -1e999', "top_p"),
        (b'"seed": 1%b' % (b"0" * 4000), "seed"),
        (b'"logit_bias": {%b}' % b",".join(b'"%d": 1' % i for i in range(2000)), "logit_bias"),
        (b'"logit_bias": {"1%b": 1}' % (b"0" * 4000), "logit_bias"),
        (b'"logit_bias": {"5": 1e999}', "logit_bias.5"),
        (b'"user": "\\ud800"', None),
        (b'"user": "\xff"', None),
        (b'"user": %b' % (b"[" * 100_000 + b"]" * 100_000), None),
        (b'"user": %b' % (b"[" * 150 + b"]" * 150), "user"),
        (b",".join(b'"x%d": 1' % i for i in range(100_000)), "x0"),
        (b'"%b": 1' % (b"x" * 100_000), "x" * 100),
        (b'"prompt": [%b1]' % (b"[], " * 300_000), "prompt"),
    ],
)
def test_absurd_values_are_refused_in_few_words(client, post, change, param):
    status, error = post(client, "/completions", b'{"model": "joined", "prompt": "x", %b}' % change)
    assert status == 400
    where = error["error"]["param"]
    assert where is None if param is None else where.startswith(param)
    assert len(error["error"]["message"]) < 500


@pytest.mark.parametrize("messages", [b"1, " * 300_000 + b"1", b'{"role": "user", "content": "x"}, ' * 5000 + b"1"])
def test_absurd_conversations_are_refused(client, post, messages):
    status, error = post(client, "/chat/completions", b'{"model": "joined", "messages": [%b]}' % messages)
    assert (status, error["error"]["param"].startswith("messages")) == (400, True)


def test_name_of_a_megabyte_is_not_sent_back(client, post):
    status, error = post(client, "/completions", b'{"model": "%b"}' % (b"x" * 10**6))
    assert (status, len(error["error"]["message"]) < 200) == (400, True)


def test_half_open_connections_are_closed(directory, tokenizer, serving):
    """Without a word, in the middle of a head, and after an answer: 300 of them."""
    limits = Limits(head_seconds=0.5)
    with serving(Served("joined", load_model(directory), tokenizer, limits)) as client:
        connections = [connect(client) for _ in range(300)]
        for i, connection in enumerate(connections):
            if i % 3 == 2:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert told(connection) == (200, {"status": "ok"})
            if i % 3:
                connection.sendall(b"POST /v1/completions HT")
        assert healthy(client)
        assert all(map(closed, connections))


def test_connection_that_asks_longest_makes_room(directory, tokenizer, serving, greedy):
    """More connections than there may be, and nobody else notices."""
    limits = Limits(connections=20, head_seconds=600)
    with serving(Served("joined", load_model(directory), tokenizer, limits)) as client:
        connections = [connect(client) for _ in range(60)]
        assert healthy(client)
        asked = client.completions.create(model="joined", prompt=PROMPT, temperature=0)
        assert asked.choices[0].text == greedy(PROMPT)
        assert all(map(closed, connections[:40]))
        connections[-1].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert told(connections[-1]) == (200, {"status": "ok"})
        for connection in connections[40:]:
            connection.close()


def test_body_that_does_not_come(directory, tokenizer, serving):
    limits = Limits(body_seconds=0.2)
    with serving(Served("joined", load_model(directory), tokenizer, limits)) as client, connect(client) as connection:
        connection.sendall(head(100) + b"{")
        status, error = told(connection)
        assert (status, error["error"]["code"]) == (408, "request_timeout")


def ask_for_stream(client: openai.OpenAI, tokens: int) -> socket.socket:
    """A connection on which the server has begun to answer."""
    body = json.dumps({"model": "joined", "prompt": PROMPT, "max_tokens": tokens, "stream": True}).encode()
    connection = connect(client)
    connection.sendall(head(len(body)) + body)
    assert connection.recv(12) == b"HTTP/1.1 200"
    return connection


def test_requests_at_once_are_limited(gated):
    client, gate = gated(requests=3, parallel=2)
    asked = [ask_for_stream(client, 2) for _ in range(3)]
    with pytest.raises(openai.InternalServerError, match="busy with 3 requests") as caught:
        client.completions.create(model="joined", prompt=PROMPT)
    assert (caught.value.status_code, caught.value.code) == (503, "server_busy")
    assert caught.value.response.headers["retry-after"] == "1"
    assert healthy(client)
    gate.leave_open()
    for connection in asked:
        received = b""
        while b"[DONE]" not in received:
            received += connection.recv(65536)
        connection.close()
    client.completions.create(model="joined", prompt=PROMPT)  # there is room again


def test_stream_that_nobody_reads_lets_others_on(gated, greedy):
    """It asked first and for 60 tokens; one who asks later for 4 has them before it is done."""
    client, gate = gated()
    with ask_for_stream(client, 60):
        gate.let(2)
        with gate.open():
            other = client.completions.create(model="joined", prompt=PROMPT, temperature=0, max_tokens=4)
        assert other.choices[0].text == greedy(PROMPT, 4)
        assert gate.passed < 55


def test_request_for_many_texts_lets_others_on(gated, greedy):
    """It asked first and for 40 texts; one who asks later for 4 tokens has them before its third is done."""
    client, gate = gated(parallel=2)
    with ThreadPoolExecutor(1) as pool:
        many = pool.submit(client.completions.create, model="joined", prompt=["x", "y"], n=20, max_tokens=5)
        gate.let(2)
        with gate.open():
            other = client.completions.create(model="joined", prompt=PROMPT, temperature=0, max_tokens=4)
        assert other.choices[0].text == greedy(PROMPT, 4)
        assert gate.passed < 20
        gate.leave_open()
        assert len(many.result().choices) == 40


def test_seeds_hold_while_texts_take_turns(client, monkeypatch):
    def ask(seed: int) -> str:
        asked = {"model": "joined", "prompt": PROMPT, "temperature": 1.5, "max_tokens": 24, "seed": seed}
        return client.completions.create(**asked).choices[0].text

    alone = [ask(seed) for seed in range(12)]
    switches, pass_on = [], turns.Turns.pass_on
    monkeypatch.setattr(turns, "SLICE", 0)
    monkeypatch.setattr(turns.Turns, "pass_on", lambda self: switches.append(1) or pass_on(self))
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone
    assert len(switches) > 100
    assert len(set(alone)) == 12


def test_answer_that_takes_too_long_is_broken_off(gated, greedy):
    client, gate = gated(request_seconds=0.5, parallel=1)
    asked = {"model": "joined", "prompt": PROMPT, "temperature": 0}
    gate.permits.release(1)
    with pytest.raises(openai.InternalServerError, match=r"longer than 0\.5 seconds") as caught:
        client.completions.create(**asked)
    assert (caught.value.status_code, caught.value.code) == (504, "timeout")
    assert caught.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.APIError, match=r"longer than 0\.5 seconds"):
        list(client.completions.create(**asked, stream=True))
    gate.leave_open()
    assert client.completions.create(**asked).choices[0].text == greedy(PROMPT)


def test_template_that_does_not_end(directory, tokenizer, tmp_path, serving, monkeypatch):
    monkeypatch.setattr("treering.serving.templates.Renderer.__init__.__defaults__", (0.3,))
    tokenizers.save(tokenizer, tmp_path)
    templated = tokenizers.load(tmp_path)
    templated.chat_template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with (
        serving(Served("joined", load_model(directory), templated)) as client,
        pytest.raises(openai.BadRequestError, match=r"more than 0\.3 seconds"),
    ):
        client.chat.completions.create(model="joined", messages=[{"role": "user", "content": "Hello"}])


def test_server_stops_although_a_client_is_silent_in_the_middle_of_its_body(directory, tokenizer, serving, monkeypatch):
    monkeypatch.setattr("treering.serving.server.GRACE", 0.2)
    with serving(Served("joined", load_model(directory), tokenizer)) as client:
        connection = connect(client)
        connection.sendall(head(100) + b"{")
        assert healthy(client)
    assert closed(connection)
