"""How much of a server clients may take, and the counting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from treering.serving.errors import BUSY, FINAL, ApiError

if TYPE_CHECKING:
    from starlette.requests import Request

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """How much clients may take: sizes in bytes, times in seconds.

    Args:
        body: of a request; all bodies that are held at once may have 16 times as much.
        body_seconds: in which a body has to arrive.
        request_seconds: from the arrival of the body to the end of the answer.
        requests: that are answered at once, those included that wait for their turn.
        parallel: requests whose texts are written at once, each with a cache of its own; they take turns on the model.
        choices: texts that one request may ask for, ``n`` for each of its prompts; they are written one by one.
        tokens: of an answer with its prompt or with log-probabilities, each alternative to a token counted as well.
        connections: open at once; beyond it, the one that has kept the server waiting longest for a request is closed.
        head_seconds: in which a request's head has to arrive, from when the server was ready for it.
        linger_seconds: for how long the rest of a refused body is read, so that the client gets to read the refusal.
        stall_seconds: in which a client has to take `STEP` bytes of what is ready for it.
    """

    body: int = 4 * MIB
    body_seconds: float = 60
    request_seconds: float = 600
    requests: int = 256
    parallel: int = 4
    choices: int = 128
    tokens: int = 2**18
    connections: int = 512
    head_seconds: float = 10
    linger_seconds: float = 5
    stall_seconds: float = 30

    def late(self) -> ApiError:
        """What a client is told whose answer takes longer than ``request_seconds``."""
        return ApiError(504, f"The answer took longer than {self.request_seconds:g} seconds.", "timeout", headers=FINAL)


class Bodies:
    """The bodies of requests, of which a limited amount is held at once. Lives on the event loop alone."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[bytes]:
        """A request's body; it counts as held until the context ends.

        Raises:
            ApiError: 408, it does not arrive in time; 413, it is too large; 503, too much is held already.
        """
        body, seconds = bytearray(), self._limits.body_seconds
        try:
            try:
                await asyncio.wait_for(self._receive_into(body, request), seconds)
            except asyncio.TimeoutError:
                raise ApiError(408, f"The body did not arrive within {seconds:g} seconds.", "request_timeout") from None
            yield bytes(body)
        finally:
            self._held -= len(body)

    async def _receive_into(self, body: bytearray, request: Request) -> None:
        self._check(int(request.headers.get("content-length", 0)))
        async for chunk in request.stream():
            self._check(len(body) + len(chunk))
            if self._held + len(chunk) > 16 * self._limits.body:
                raise ApiError(503, "The server is reading too many long requests.", "server_busy", headers=BUSY)
            body += chunk
            self._held += len(chunk)

    def _check(self, size: int) -> None:
        if size > self._limits.body:
            most = f"{self._limits.body / MIB:,.3g} MiB"
            raise ApiError(413, f"A request may have {most}; this one has more.", "request_too_large", headers=FINAL)


class Places:
    """Places for requests that are being answered. Lives on the event loop alone."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._taken: set[object] = set()

    def take(self) -> Callable[[], None]:
        """Take a place, and return what gives it back.

        Raises:
            ApiError: 503, all are taken.
        """
        if len(self._taken) >= self._number:
            raise ApiError(
                503, f"The server is busy with {self._number:,} requests. Try again.", "server_busy", headers=BUSY
            )
        place = object()
        self._taken.add(place)
        return partial(self._taken.discard, place)
