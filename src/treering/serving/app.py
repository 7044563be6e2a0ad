"""The server's addresses: OpenAI's, for one model that is never loaded, changed or unloaded by a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from treering.errors import TreeringError
from treering.evaluation import prompt_ids
from treering.serving.answers import CHAT, COMPLETIONS, Served, answer
from treering.serving.errors import ApiError
from treering.serving.requests import ChatRequest, CompletionRequest, parse

COMPLETION_TOKENS = 16
"""How many tokens a completion gets when the request does not say, if they fit: OpenAI's default."""


def create_app(served: Served) -> Starlette:
    """The server as an ASGI application."""
    model = {"id": served.name, "object": "model", "created": int(time.time()), "owned_by": "treering"}

    def require(name: str) -> None:
        if name != served.name:
            raise ApiError(
                404, f"The model '{name}' does not exist; this server has '{served.name}'.", "model_not_found", "model"
            )

    async def completions(request: Request) -> Response:
        asked = parse(CompletionRequest, await request.body())
        require(asked.model)
        prompt, room = _prompt(served, asked.prompt, asked.max_tokens, "prompt")
        tokens = asked.max_tokens or min(COMPLETION_TOKENS, room)
        return await _while_connected(request, answer(served, COMPLETIONS, asked, prompt, tokens))

    async def chat(request: Request) -> Response:
        asked = parse(ChatRequest, await request.body())
        require(asked.model)
        tokens = asked.max_completion_tokens or asked.max_tokens
        prompt, room = _prompt(served, _conversation(served, asked), tokens, "messages")
        return await _while_connected(request, answer(served, CHAT, asked, prompt, tokens or room))

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        require(request.path_params["name"])
        return JSONResponse(model)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/health", health),
        ],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _internal_error,
        },
    )


def _prompt(served: Served, text: str, tokens: int | None, param: str) -> tuple[list[int], int]:
    """A text as the model reads it, and how many tokens of the context are left after it: at least one."""
    try:
        prompt = prompt_ids(served.model, served.tokenizer, text, tokens or 1)
    except TreeringError as error:
        raise ApiError(400, str(error), "context_length_exceeded", param) from error
    return prompt, served.model.config.max_position_embeddings - len(prompt)


def _conversation(served: Served, asked: ChatRequest) -> str:
    """The messages as one text, as the chat template lays them out."""
    if not served.tokenizer.chat_template:
        raise ApiError(
            400, f"{served.name} has no chat template: its tokenizer knows of no conversations. Use /v1/completions."
        )
    messages = [message.model_dump(exclude_none=True) for message in asked.messages]
    try:
        return str(served.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a template is a program, and refuses conversations in its own ways
        raise ApiError(400, f"The chat template refuses these messages: {error}", param="messages") from error


async def _while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """What ``work`` returns; it is cancelled if the client leaves, so that nobody waits for a text nobody wants."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leaves())
    await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not working.done():
        working.cancel()
        raise ClientDisconnect
    return working.result()


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"There is no {request.method} {request.url.path} here."
    return JSONResponse(ApiError(error.status_code, message, "unknown_url").body(), error.status_code, error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(500, f"The server failed: {error}").body(), 500)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
