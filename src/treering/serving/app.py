"""The server's addresses: OpenAI's and a page, for one model that is never loaded, changed or unloaded by a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from treering import tokenizer as tokenizers
from treering.backbone import context_length
from treering.serving import playground
from treering.serving.answers import EventStream, answer
from treering.serving.errors import ApiError
from treering.serving.guard import Guard
from treering.serving.limits import Bodies, Places
from treering.serving.requests import ChatRequest, CompletionRequest, Parameters, PlayRequest
from treering.serving.served import Served

T = TypeVar("T")


def create_app(served: Served, api_key: str | None = None) -> Starlette:
    """The server as an ASGI application, for those who have the key, if there is one."""
    created = int(time.time())
    bodies, places = Bodies(served.limits), Places(served.limits.requests)

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "treering"}

    async def respond(kind: type[Parameters], request: Request) -> Response:
        with ExitStack() as held:
            async with bodies.receive(request) as body:
                held.callback(places.take())
                end = time.monotonic() + served.limits.request_seconds
                reading = _while_connected(request, served.reader.read(kind, body))
                try:
                    asked = await asyncio.wait_for(reading, served.limits.request_seconds)
                except asyncio.TimeoutError:
                    raise served.limits.late() from None
            writing = answer(served, asked, end - time.monotonic())
            response = await _while_connected(request, writing)
            if isinstance(response, EventStream):
                response.at_the_end = held.pop_all().close
            return response

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [*map(described, served.catalogue.names)]})

    async def one_model(request: Request) -> Response:
        served.catalogue.find(name := request.path_params["name"])
        return JSONResponse(described(name))

    async def page(request: Request) -> Response:
        return HTMLResponse(playground.page(), headers=playground.headers())

    async def playable(request: Request) -> Response:
        return JSONResponse(_described(served))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/completions", partial(respond, CompletionRequest), methods=["POST"]),
            Route("/v1/chat/completions", partial(respond, ChatRequest), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/play", partial(respond, PlayRequest), methods=["POST"]),
            Route("/play", playable),
            Route("/", page),
            Route("/health", health),
        ],
        middleware=[Middleware(Guard, key=api_key)],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _internal_error,
        },
    )


def _described(served: Served) -> dict[str, Any]:
    """What the page has to know of a model before anything is asked of it."""
    catalogue = served.catalogue
    return {
        "model": catalogue.name,
        "rule": catalogue.rule,
        "experts": catalogue.experts,
        "shared": catalogue.shared,
        "rules": catalogue.rules,
        "chat": bool(served.tokenizer.chat_template),
        "context": context_length(served.model.config),
        "separator": tokenizers.separator(served.tokenizer),
    }


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; it is cancelled if the client leaves, so that nobody waits for a text nobody wants."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"There is no {request.method} {request.url.path} here."
    return JSONResponse(ApiError(error.status_code, message, "unknown_url").body(), error.status_code, error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(500, f"The server failed: {error}").body(), 500)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
