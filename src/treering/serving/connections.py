"""Connections on which clients do not ask, or do not listen, and how many there may be."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from treering.serving.limits import Limits

STEP = 4096
"""Bytes that a client which reads slowly has to take in each period."""


class Connection(H11Protocol):
    """uvicorn's connection, which by itself waits for ever for the rest of a request's head, and for a reader.

    Until a request is complete the connection is *asking*. A head that is late ends it (bodies are timed by the
    application, which can still answer), and so does a body that goes on too long after the answer. When there are too
    many connections, the one that has been asking longest makes room.
    """

    def __init__(self, limits: Limits, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._limits = limits
        self._state: object = None
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self.asking_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Whatever the system's own buffers do not take is a reader's delay, and nothing more is written meanwhile.
        transport.set_write_buffer_limits(high=0)
        self._watch()
        if len(self.connections) > self._limits.connections:
            asking = [c for c in self.connections if isinstance(c, Connection) and c.asking_since is not None]
            longest = min(asking, key=lambda connection: connection.asking_since or 0)  # at worst this new one
            longest.asking_since = None
            longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._state = "lost"
        for timer in (self._late, self._stalled):
            if timer is not None:
                timer.cancel()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def _watch(self) -> None:
        """Set the time by which the client must have asked, if what it has sent changed what is waited for."""
        answered = self.conn.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        state = (self.conn.their_state, answered)
        if state == self._state or self._state == "lost":
            return
        self._state = state
        if self._late is not None:
            self._late.cancel()
            self._late = None
        self.asking_since = self.loop.time() if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) else None
        if self.conn.their_state is h11.IDLE:
            self._late = self.loop.call_later(self._limits.head_seconds, self.transport.abort)
        elif self.conn.their_state is h11.SEND_BODY and answered:
            self._late = self.loop.call_later(self._limits.linger_seconds, self.transport.abort)

    def _expect_reading(self) -> None:
        unread = self.transport.get_write_buffer_size()

        def check() -> None:
            if self.transport.get_write_buffer_size() > unread - STEP:
                self.transport.abort()
            else:
                self._expect_reading()

        self._stalled = self.loop.call_later(self._limits.stall_seconds, check)
