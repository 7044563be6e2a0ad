"""Text for one request, written by transformers' own serving; all that is not public of it is used here.

transformers' handlers turn a generation into OpenAI's responses and chunks. They are given a `Generation` of our own in
the place of their manager, which leaves stop strings in the text, loses the end of a stream that stops inside a
character, breaks off a stream where a run of bytes turns out to be no character, and seeds whatever request is running.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import torch
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import _StreamError

from treering.composition import draw, require_drawable
from treering.serving.errors import FINAL, ApiError
from treering.serving.limits import Limits
from treering.serving.reading import Asked, Reader
from treering.serving.requests import Parameters
from treering.serving.turns import Turns
from treering.serving.written import Stopped, Written

# The handlers load models and look after generation only in `handle_request`, which is not used.
_NONE: Any = None
COMPLETIONS = CompletionHandler(_NONE, _NONE)
CHAT = ChatCompletionHandler(_NONE, _NONE)
Handler = CompletionHandler | ChatCompletionHandler

# They would look for thoughts and tool calls in the text, as the model's family writes them elsewhere.
_NO_FAMILY = SimpleNamespace(config=SimpleNamespace(model_type=None))


class Served:
    """The one model of a server, who reads for it, and the threads that write with it. Use as a context.

    Attributes:
        alone: a composition's expert by its name, where answers are drawn; else None.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        limits: Limits | None = None,
        drawn: bool = False,
    ) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.limits = limits or Limits()
        self.reader = Reader(name, model, tokenizer)
        self.writers = ThreadPoolExecutor(self.limits.parallel, "writer")
        self.turns = Turns()
        self.alone = cache(require_drawable(model).expert) if drawn else None
        self.stopping = threading.Event()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *exception: object) -> None:
        """End all that is being written, and wait for it."""
        self.stopping.set()
        self.writers.shutdown()
        self.reader.close()


async def answer(served: Served, handler: Handler, asked: Asked, seconds: float) -> Response:
    """The model's answer to a request, whole or as an `EventStream`; it has to be written within ``seconds``.

    Raises:
        ApiError: 400, there is no such token; 500, generation failed; 503, the server is being stopped; 504, it took
            too long.
    """
    config = generation_config(served, asked.parameters, asked.tokens)
    generation = Generation(served, asked.parameters, seconds)
    input_ids = torch.tensor([asked.prompt], device=served.model.device)
    arguments: dict[str, Any] = {
        "request_id": f"{'chatcmpl' if handler is CHAT else 'cmpl'}-{uuid4().hex}",
        "model": _NO_FAMILY,
        "processor": None,
        "model_id": served.name,
        "inputs": {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)},
        "gen_config": config,
        "gen_manager": generation,
    }
    if asked.parameters.stream:
        return EventStream(handler._streaming(**arguments).body_iterator, generation)
    try:
        return await handler._non_streaming(**arguments)
    finally:
        generation.close()


class EventStream(StreamingResponse):
    """An answer in pieces, which ends its generation when it ends, even if nobody waited for its first piece."""

    def __init__(self, chunks: AsyncIterable[Any], generation: Generation) -> None:
        super().__init__(_events(chunks, generation), media_type="text/event-stream")
        self._generation = generation
        self.at_the_end: Callable[[], None] = lambda: None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()
            self.at_the_end()


async def _events(chunks: AsyncIterable[Any], generation: Generation) -> AsyncIterator[str]:
    """The stream as OpenAI ends it; transformers sends no ``[DONE]``, and an error as a bare string."""
    async for chunk in chunks:
        if generation.error is not None:
            yield f"data: {json.dumps(generation.error.body())}\n\n"
            return
        yield chunk
    yield "data: [DONE]\n\n"


def generation_config(served: Served, asked: Parameters, tokens: int) -> GenerationConfig:
    """The parameters of a request in transformers' terms, over what the model says of itself (such as its end token).

    Raises:
        ApiError: 400, a bias is for a token that the model does not have.
    """
    vocabulary = served.model.config.vocab_size
    if beyond := [token for token in asked.logit_bias if token >= vocabulary]:
        raise ApiError(
            400,
            f"logit_bias names token {beyond[0]}; the model has {vocabulary:,}, from 0 on.",
            "invalid_value",
            "logit_bias",
        )
    sampling = asked.temperature >= 1e-5  # colder than that, logits divided by it are no longer finite
    config = copy.deepcopy(served.model.generation_config)
    config.update(
        max_new_tokens=tokens,
        max_length=None,
        num_beams=1,
        do_sample=sampling,
        temperature=asked.temperature if sampling else None,
        top_p=asked.top_p if sampling else None,
        top_k=0 if sampling else None,  # None would be transformers' 50
        repetition_penalty=1 + asked.frequency_penalty,
        sequence_bias={(token,): bias for token, bias in asked.logit_bias.items()} or None,
        pad_token_id=served.tokenizer.pad_token_id,
    )
    return config


class Generation:
    """One text, written on a thread of its server; what a handler of transformers asks of a generation manager.

    Text waits on an unlimited queue for the client to read it: it is at most the answer, and what writes it is not
    held up by a client that does not read.
    """

    def __init__(self, served: Served, asked: Parameters, seconds: float) -> None:
        self._served = served
        self._asked = asked
        self._loop = asyncio.get_running_loop()
        self._queue = asyncio.Queue[Any]()
        self._closed = threading.Event()
        self._timer = self._loop.call_later(seconds, self._expire)
        self.error: ApiError | None = None

    def close(self) -> None:
        """End the generation at its next token, or before its first: nobody waits for it any longer."""
        self._closed.set()
        self._timer.cancel()

    cancel = close  # as the handlers call it

    def _expire(self) -> None:
        self._fail(self._served.limits.late())
        self.close()

    def _fail(self, error: ApiError) -> None:
        """The first error is the one that is told."""
        self.error = self.error or error
        self._queue.put_nowait(_StreamError(str(error)))

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: dict[str, torch.Tensor],
        gen_config: GenerationConfig,
        request_id: str = "",
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, Generation]:
        """A queue on which text arrives, then None; and the object that counts tokens and can be cancelled."""
        self._written = Written(self._served.tokenizer, self._asked.stop, self._send, self._between)
        self._served.writers.submit(self._run, inputs, gen_config)
        return self._queue, self

    async def generate_non_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: dict[str, torch.Tensor],
        gen_config: GenerationConfig,
        request_id: str = "",
    ) -> tuple[str, int, list[int]]:
        """Text, number of prompt tokens and generated tokens."""
        self.generate_streaming(model, processor, inputs, gen_config)
        while await self._queue.get() is not None:
            if self.error is not None:
                raise self.error
        return self._written.text, inputs["input_ids"].shape[-1], self._written.ids

    @property
    def total_tokens(self) -> int:
        return len(self._written.ids)

    def _run(self, inputs: dict[str, torch.Tensor], config: GenerationConfig) -> None:
        """Write the text; runs on a thread, in turns with others."""
        generate: Any = self._served.model.generate
        try:
            self._require_reader()
            with self._served.turns:
                # Here, not where the request came in: the numbers are drawn from a generator that all threads share.
                torch.seed() if self._asked.seed is None else torch.manual_seed(self._asked.seed)
                if self._served.alone and self._asked.is_plain_sampling:
                    tokens: Any = config.max_new_tokens
                    draw(self._served.model, inputs["input_ids"], tokens, self._written, self._served.alone)
                else:
                    generate(**inputs, generation_config=config, streamer=self._written)
            ends = config.eos_token_id
            ended = self._written.ids[-1] in (ends if isinstance(ends, list) else [ends])
        except Stopped:
            ended = True
        except _Closed:
            return self._call(self._fail, ApiError(503, "The server is being stopped.", headers=FINAL))
        except Exception as error:
            logging.getLogger(__name__).exception("generation failed")
            return self._call(self._fail, ApiError(500, f"Generation failed: {error}", headers=FINAL))
        if ended:
            config.max_new_tokens = None  # or the handlers take an end at the last token allowed for "length"
        return self._send(None)

    def _require_reader(self) -> None:
        if self._closed.is_set() or self._served.stopping.is_set():
            raise _Closed

    def _between(self) -> None:
        """Between two tokens: see whether to go on, and let another text have its turn."""
        self._require_reader()
        if self._served.turns.over():
            device = self._served.model.device
            random: Any = torch if device.type == "cpu" else torch.get_device_module(device)
            state = random.get_rng_state()
            self._served.turns.pass_on()
            random.set_rng_state(state)
            self._require_reader()

    def _send(self, text: str | None) -> None:
        self._call(self._queue.put_nowait, text)

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed: the server has ended without waiting
            self._closed.set()


class _Closed(Exception):
    """Nobody waits for the text any longer."""
