"""Clients that do not read."""

from __future__ import annotations

import asyncio
import socket
import threading
from functools import partial

import uvicorn

from treering.serving.connections import Connection
from treering.serving.limits import Limits
from treering.serving.server import listen


def stream_to_one_that(read, limits: Limits) -> int:
    """Send without end until the server drops the client; returns how many bytes it had sent, in chunks of 4 KiB."""
    sent, ended = [0], threading.Event()

    async def endless(scope, receive, send) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b" " * 4096, "more_body": True})
                sent[0] += 4096
                await asyncio.sleep(0)

        writing = asyncio.ensure_future(write())
        while (await receive())["type"] != "http.disconnect":
            pass
        writing.cancel()
        ended.set()

    server = uvicorn.Server(
        uvicorn.Config(endless, http=partial(Connection, limits), lifespan="off", log_level="error")
    )
    with listen("127.0.0.1", 0) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
                client.connect(listener.getsockname())
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                read(client, ended)
        finally:
            server.should_exit = True
            thread.join()
    return sent[0]


def test_client_that_does_not_read_is_dropped_and_costs_no_memory():
    sent = stream_to_one_that(lambda client, ended: ended.wait(30), Limits(stall_seconds=0.2))
    assert 0 < sent < 2**20  # what the system's buffers took


def test_client_that_reads_slowly_is_not_dropped():
    """Ten periods long it reads a little in each; then it stops, and is dropped."""
    received = []

    def read(client: socket.socket, ended: threading.Event) -> None:
        for _ in range(20):
            assert not ended.wait(0.1)
            received.append(len(client.recv(65536)))
        assert ended.wait(30)

    assert stream_to_one_that(read, Limits(stall_seconds=0.4)) >= sum(received) - 4096
    assert sum(received) > 20 * 4096
