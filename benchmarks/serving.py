"""A server among bad clients: whether it stays up, small and right.

    python benchmarks/serving.py --clients 64 --seconds 300

Starts ``treering serve`` on a composition of two untrained experts, and for some time lets clients on loopback ask what
they should and what they should not: completions and chats whose right answers were computed beforehand with plain
transformers; bodies that are no request; prompts of up to 100 MB; streams that are left, or read slowly, or not at all;
connections on which nothing is asked. Meanwhile ``/health`` is asked, and the server's memory measured, by another
process four times a second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from treering import substrate as substrates
from treering import tokenizer as tokenizers
from treering.backbone import Preset, dock, gpt_neox
from treering.composition import compose
from treering.corpus import read_documents
from treering.tokenizer import encode, separator

CONTEXT = 512
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
PATIENCE = 120
"""Seconds after which a client calls an answer missing."""

Outcome = str
"""right, wrong, refused (as it should be), busy (503), left (by the client, as planned), or what else happened."""


@dataclass(frozen=True)
class Case:
    """A request with one right answer."""

    path: str
    body: dict
    text: str


@dataclass
class Load:
    """What clients ask, of whom, and what came of it."""

    host: str
    port: int
    cases: list[Case]
    outcomes: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=PATIENCE)


def build(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A composition of two experts that disagree, and its tokenizer, also on disk."""
    pages = [page.text for page in itertools.islice(read_documents("embedded:en"), 100)]
    tokenizer = tokenizers.train({"en": pages}, 700)
    tokenizer.chat_template = TEMPLATE
    substrate = substrates.build(tokenizer, 64, kind="random")
    configs = {
        "a": gpt_neox(Preset(2, 64, 2, len(tokenizer), context=CONTEXT)),
        "b": LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
        ),
    }
    experts = {}
    for seed, (name, config) in enumerate(configs.items()):
        torch.manual_seed(seed)
        config.initializer_range = 0.3  # far from uniform, so that experts disagree
        experts[name] = dock(config, substrate, tokenizer).eval()
    model = compose(experts).eval()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model, tokenizer


def right_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, number: int) -> list[Case]:
    """Requests and what plain transformers answers; each has a seed of its own."""
    rng, cases, vocabulary = random.Random(0), [], ["open", "the", "dialog", "and", "choose", "what", "to", "print"]
    for seed in range(number):
        tokens, temperature = rng.randrange(4, 60), rng.choice((0, 0.7, 1.0))
        words = " ".join(rng.choice(vocabulary) for _ in range(12))
        chat = seed % 4 == 0
        prompt = [separator(tokenizer), *encode(tokenizer, [f"user: {words}\nassistant:" if chat else words])[0]]
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        torch.manual_seed(seed)
        input_ids = torch.tensor([prompt])
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id,
            **(sampling or {"do_sample": False}),
        )
        text = tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
        asked = {"model": "joined", "max_tokens": tokens, "temperature": temperature, "seed": seed}
        if chat:
            body = asked | {"messages": [{"role": "user", "content": words}]}
            cases.append(Case("/v1/chat/completions", body, text))
        else:
            cases.append(Case("/v1/completions", asked | {"prompt": words}, text))
    return cases


def post(load: Load, path: str, body: bytes) -> tuple[int, bytes]:
    connection = HTTPConnection(load.host, load.port, timeout=PATIENCE)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def judge(status: int, content: bytes) -> Outcome:
    """What to call an answer that ought to be a refusal."""
    if status == 503:
        return "busy"
    error = json.loads(content).get("error", {})
    return "refused" if status in (400, 413) and error.keys() == {"message", "type", "param", "code"} else str(status)


def whole(load: Load, rng: random.Random) -> Outcome:
    """A request that is waited for."""
    case = rng.choice(load.cases)
    status, content = post(load, case.path, json.dumps(case.body).encode())
    if status != 200:
        return "busy" if status == 503 else str(status)
    choice = json.loads(content)["choices"][0]
    return "right" if choice.get("text", choice.get("message", {}).get("content")) == case.text else "wrong"


def stream(load: Load, rng: random.Random) -> Outcome:
    """A request that is read as it is written."""
    case = rng.choice(load.cases)
    status, content = post(load, case.path, json.dumps(case.body | {"stream": True}).encode())
    if status != 200:
        return "busy" if status == 503 else str(status)
    events = [line[6:] for line in content.decode().split("\n") if line.startswith("data: ")]
    if events[-1] != "[DONE]":
        return "broken off"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    text = "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)
    return "right" if text == case.text else "wrong"


BAD: list[Callable[[random.Random], str]] = [
    lambda rng: "",
    lambda rng: "[" * rng.randrange(1, 10**6),
    lambda rng: "{" + ",".join(f'"x{i}": {i}' for i in range(rng.randrange(1, 50_000))) + "}",
    lambda rng: '{"model": "joined", "prompt": "x", "temperature": NaN}',
    lambda rng: '{"model": "joined", "prompt": "x", "top_p": 1e999}',
    lambda rng: '{"model": "joined", "prompt": "\\ud800"}',
    lambda rng: '{"model": "joined", "prompt": "x", "max_tokens": 1%s}' % ("0" * rng.randrange(10, 6000)),
    lambda rng: '{"model": "joined", "prompt": "x", "stop": "%s"}' % ("a" * rng.randrange(2000, 300_000)),
    lambda rng: '{"model": "joined", "prompt": "x", "stop": [%s"a"]}' % ('"a", ' * rng.randrange(5, 10_000)),
    lambda rng: '{"model": "joined", "prompt": [%s1]}' % ("[], " * rng.randrange(1, 100_000)),
    lambda rng: '{"model": "joined", "prompt": "x", "logit_bias": {"%s": 9}}' % ("9" * rng.randrange(4, 6000)),
    lambda rng: '{"model": "joined", "messages": [%s1]}' % ('{"role": "user", "content": "x"}, ' * rng.randrange(9000)),
]


def bad_body(load: Load, rng: random.Random) -> Outcome:
    """A body that is no request."""
    path = rng.choice(("/v1/completions", "/v1/chat/completions"))
    return judge(*post(load, path, rng.choice(BAD)(rng).encode()))


def huge_prompt(load: Load, rng: random.Random) -> Outcome:
    """A prompt of 10 kB to 100 MB; half of the clients send on after the refusal, the others stop."""
    size, polite = int(10 ** rng.uniform(4, 8)), rng.random() < 0.5
    body_head, body_tail = b'{"model": "joined", "prompt": "', b'"}'
    length = len(body_head) + size + len(body_tail)
    with load.connect() as connection:
        connection.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        connection.sendall(body_head)
        piece = b"word " * 13_000
        for start in range(0, size, len(piece)):
            if polite and select.select([connection], [], [], 0)[0]:
                break
            connection.sendall(piece[: size - start])
        else:
            connection.sendall(body_tail)
        return judge(*answer_on(connection))


def answer_on(connection: socket.socket) -> tuple[int, bytes]:
    """Status and content of the answer on a connection."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (more := connection.recv(65536)):
            raise ConnectionError("no answer")
        received += more
    head, _, content = received.partition(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: *(\d+)", head)
    assert found
    while len(content) < int(found[1]):
        content += connection.recv(65536)
    return int(head.split()[1]), content


def long_stream(tokens: int) -> bytes:
    body = json.dumps({"model": "joined", "prompt": "To open", "max_tokens": tokens, "stream": True}).encode()
    return f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def disconnect(load: Load, rng: random.Random) -> Outcome:
    """Leaves in the middle of its request, before its answer, or in the middle of it."""
    request = long_stream(rng.randrange(20, 400))
    with load.connect() as connection:
        if rng.random() < 0.3:
            connection.sendall(request[: rng.randrange(len(request))])
        else:
            connection.sendall(request)
            if rng.random() < 0.7:
                connection.recv(rng.randrange(1, 2000))
        if rng.random() < 0.5:  # with a reset, not a farewell
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return "left"


def slow_reader(load: Load, rng: random.Random) -> Outcome:
    """Reads a few bytes now and then, or nothing, of a long stream, for some seconds."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE)
        connection.connect((load.host, load.port))
        connection.sendall(long_stream(400))
        reads = rng.random() < 0.7
        for _ in range(rng.randrange(5, 40)):
            if reads and not connection.recv(64):
                break
            time.sleep(0.2)
    return "left"


def half_open(load: Load, rng: random.Random) -> Outcome:
    """Says nothing, or part of a request's head, until the server closes the connection."""
    with load.connect() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHo"[: rng.randrange(30)])
        connection.settimeout(30)
        try:
            return "closed" if not connection.recv(1) else "answered"
        except ConnectionResetError:
            return "closed"


KINDS: dict[str, tuple[Callable[[Load, random.Random], Outcome], float]] = {
    "completion or chat, whole": (whole, 3),
    "the same, streamed": (stream, 3),
    "bad body": (bad_body, 3),
    "huge prompt": (huge_prompt, 1),
    "leaves in the middle": (disconnect, 3),
    "slow reader": (slow_reader, 1),
    "half-open connection": (half_open, 0.5),
}
"""What clients do, and how often, relative to each other."""


def client(load: Load, seed: int, end: float, most: int) -> None:
    """One thing after the other, until the time is over."""
    rng = random.Random(seed)
    for _ in range(most):
        if time.monotonic() >= end:
            return
        kind = rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
        start = time.monotonic()
        try:
            outcome = KINDS[kind][0](load, rng)
        except (OSError, HTTPException, ValueError) as error:
            outcome = type(error).__name__
        with load.lock:
            load.outcomes[kind, outcome] += 1
            load.seconds.setdefault(kind, []).append(time.monotonic() - start)


def watch(host: str, port: int, pid: int, results: Connection, ended: multiprocessing.Event) -> None:
    """Ask for ``/health``, and measure memory [MiB] of the server and its children, until told to end.

    Also how much later than asked for this process wakes up: what the machine makes everybody wait.
    """
    server, seen, due = psutil.Process(pid), [], time.monotonic()
    while not ended.is_set():
        start = time.monotonic()
        late = start - due
        connection = HTTPConnection(host, port, timeout=PATIENCE)
        try:
            connection.request("GET", "/health")
            well = connection.getresponse().read() == b'{"status":"ok"}'
        except OSError:
            well = False
        connection.close()
        seconds = time.monotonic() - start
        memory = sum(p.memory_info().rss for p in [server, *server.children(recursive=True)])
        seen.append((start, seconds, well, memory / 2**20, late))
        due = time.monotonic() + max(0, 0.25 - seconds)
        ended.wait(due - time.monotonic())
    results.send(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--requests", type=int, default=2000, help="of one client at most")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "joined"
        cases = right_answers(*build(directory), number=100)
        command = [sys.executable, "-m", "treering", "serve", str(directory), "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            try:
                assert server.stderr is not None
                found = re.search(r"http://([\d.]+):(\d+)/v1", server.stderr.readline())
                assert found
                measure(server, Load(found[1], int(found[2]), cases), arguments, console)
                server.send_signal(signal.SIGINT)
                _, said = server.communicate(timeout=60)
            finally:
                server.kill()
        console.print(
            f"Ctrl-C: exit code {server.returncode}; the server's log has {len(said):,} characters", said[-2000:]
        )


def measure(server: subprocess.Popen, load: Load, arguments: argparse.Namespace, console: Console) -> None:
    for case in load.cases[:8]:  # what is only loaded once is loaded
        post(load, case.path, json.dumps(case.body).encode())
    processes = multiprocessing.get_context("spawn")
    results, sending = processes.Pipe(duplex=False)
    ended = processes.Event()
    watching = processes.Process(target=watch, args=(load.host, load.port, server.pid, sending, ended))
    watching.start()
    time.sleep(5)
    start = time.monotonic()
    end = start + arguments.seconds
    threads = [
        threading.Thread(target=client, args=(load, seed, end, arguments.requests)) for seed in range(arguments.clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over = time.monotonic()
    time.sleep(5)
    ended.set()
    seen = results.recv()
    watching.join()
    report(load, seen, start, over, console)


def report(load: Load, seen: list[tuple], start: float, over: float, console: Console) -> None:
    table = Table("what clients did", "times", "what came of it", "median s", "longest s")
    for kind in KINDS:
        outcomes = {outcome: n for (k, outcome), n in load.outcomes.most_common() if k == kind}
        took = load.seconds.get(kind, [0])
        said = ", ".join(f"{outcome} {n:,}" for outcome, n in outcomes.items())
        table.add_row(kind, f"{sum(outcomes.values()):,}", said, f"{statistics.median(took):.2f}", f"{max(took):.2f}")
    console.print(table)
    during = [each for each in seen if start <= each[0] <= over]
    waits = sorted(seconds for _, seconds, _, _, _ in during)
    wrong = sum(n for (_, outcome), n in load.outcomes.items() if outcome == "wrong")
    console.print(
        f"{over - start:.0f} s; wrong answers: {wrong}; /health: asked {len(during):,} times, failed "
        f"{sum(not well for _, _, well, _, _ in during)}, median {1000 * statistics.median(waits):.0f} ms, 99% within "
        f"{1000 * waits[int(len(waits) * 0.99)]:.0f} ms, longest {1000 * waits[-1]:.0f} ms; "
        f"who asked was itself up to {1000 * max(late for *_, late in during):.0f} ms late"
    )
    fifth = (over - start) / 5
    memory = [[m for t, _, _, m, _ in during if i <= (t - start) / fifth < i + 1 + (i == 4)] for i in range(5)]
    console.print(
        f"memory in MiB: {seen[0][3]:.0f} before, at most "
        + ", ".join(f"{max(found):.0f}" if found else "unknown" for found in memory)
        + f" in the five fifths of the time, {seen[-1][3]:.0f} after"
    )


if __name__ == "__main__":
    main()
