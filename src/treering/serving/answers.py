"""An answer on its way from the thread that writes it to the client who waits for it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from treering.serving.errors import FINAL, ApiError
from treering.serving.forms import ChatForm, CompletionForm, Form, Piece, PlayForm, Usage
from treering.serving.reading import Asked
from treering.serving.requests import ChatRequest, CompletionRequest, Parameters, PlayRequest
from treering.serving.served import Served
from treering.serving.writing import Writing

FORMS: dict[type[Parameters], type[Form]] = {
    CompletionRequest: CompletionForm,
    ChatRequest: ChatForm,
    PlayRequest: PlayForm,
}


async def answer(served: Served, asked: Asked, seconds: float) -> Response:
    """The model's answer to a request, whole or as an `EventStream`; it has to be written within ``seconds``.

    Raises:
        ApiError: 500, generation failed; 503, the server is being stopped; 504, it took too long.
    """
    generation = Generation(served, asked, seconds)
    if asked.parameters.stream:
        return EventStream(generation)
    try:
        return Response("".join([text async for text in generation.texts()]), media_type="application/json")
    finally:
        generation.close()


class EventStream(StreamingResponse):
    """An answer in pieces, which ends its generation when it ends, even if nobody waited for its first piece."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(_events(generation), media_type="text/event-stream")
        self._generation = generation
        self.at_the_end: Callable[[], None] = lambda: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()
            self.at_the_end()


async def _events(generation: Generation) -> AsyncIterator[str]:
    try:
        async for event in generation.texts():
            yield event
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n"
    else:
        yield "data: [DONE]\n\n"


class Generation:
    """What is sent for one request, written on a thread of its server: events, or one text.

    It waits on an unlimited queue for the client to read it: it is at most the answer, and what writes it is not held
    up by a client that does not read.
    """

    def __init__(self, served: Served, asked: Asked, seconds: float) -> None:
        self._served = served
        self._asked = asked
        self._loop = asyncio.get_running_loop()
        self._queue = asyncio.Queue[str | None]()
        self._closed = threading.Event()
        self._timer = self._loop.call_later(seconds, self._expire)
        self._error: ApiError | None = None
        served.writers.submit(self._run)

    def close(self) -> None:
        """End the generation at its next token, or before its first: nobody waits for it any longer."""
        self._closed.set()
        self._timer.cancel()

    async def texts(self) -> AsyncIterator[str]:
        """What is to be sent, as it comes.

        Raises:
            ApiError: see `answer`.
        """
        while (text := await self._queue.get()) is not None and self._error is None:
            yield text
        if self._error is not None:
            raise self._error

    def _expire(self) -> None:
        self._fail(self._served.limits.late())
        self.close()

    def _fail(self, error: ApiError) -> None:
        """The first error is the one that is told."""
        self._error = self._error or error
        self._queue.put_nowait(None)

    def _run(self) -> None:
        """Write the answer; runs on a thread."""
        parameters, pieces = self._asked.parameters, list[Piece]()
        form = FORMS[type(parameters)](parameters.model, self._served.spelling)

        def tell(piece: Piece, usage: Usage | None) -> None:
            if parameters.stream:
                self._call(self._queue.put_nowait, form.event(piece, usage))
                return
            pieces.append(piece)
            if usage is not None:
                self._call(self._queue.put_nowait, form.whole(pieces, usage))

        try:
            Writing(self._served, self._asked, tell, self._require_reader).run()
        except _Closed:
            self._call(self._fail, ApiError(503, "The server is being stopped.", headers=FINAL))
        except Exception as error:
            logging.getLogger(__name__).exception("generation failed")
            self._call(self._fail, ApiError(500, f"Generation failed: {error}", headers=FINAL))
        else:
            self._call(self._queue.put_nowait, None)

    def _require_reader(self) -> None:
        if self._closed.is_set() or self._served.stopping.is_set():
            raise _Closed

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: the server has ended without waiting
            self._closed.set()


class _Closed(Exception):
    """Nobody waits for the text any longer."""
