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
import re
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import torch
from starlette.responses import Response
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import _StreamError
from transformers.generation.streamers import BaseStreamer

from treering.serving.errors import ApiError
from treering.serving.requests import Parameters

# The handlers load models and look after generation only in `handle_request`, which is not used.
_NONE: Any = None
COMPLETIONS = CompletionHandler(_NONE, _NONE)
CHAT = ChatCompletionHandler(_NONE, _NONE)
Handler = CompletionHandler | ChatCompletionHandler

# They would look for thoughts and tool calls in the text, as the model's family writes them elsewhere.
_NO_FAMILY = SimpleNamespace(config=SimpleNamespace(model_type=None))


@dataclass(frozen=True)
class Served:
    """The one model of a server, and the one thread on which it writes."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1))
    stopping: threading.Event = field(default_factory=threading.Event)


async def answer(served: Served, handler: Handler, asked: Parameters, prompt: list[int], tokens: int) -> Response:
    """The model's answer to a prompt, whole or as a stream of events.

    Raises:
        ApiError: 500, generation failed; 503, the server is being stopped.
    """
    generation = Generation(served, asked.stop, asked.seed)
    input_ids = torch.tensor([prompt], device=served.model.device)
    arguments: dict[str, Any] = {
        "request_id": f"{'chatcmpl' if handler is CHAT else 'cmpl'}-{uuid4().hex}",
        "model": _NO_FAMILY,
        "processor": None,
        "model_id": served.name,
        "inputs": {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)},
        "gen_config": generation_config(served, asked, tokens),
        "gen_manager": generation,
    }
    if not asked.stream:
        return await handler._non_streaming(**arguments)
    response = handler._streaming(**arguments)
    response.body_iterator = _events(response.body_iterator, generation)
    return response


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
    """One request's turn on the thread of its server; what a handler of transformers asks of a generation manager."""

    def __init__(self, served: Served, stop: list[str], seed: int | None) -> None:
        self._served = served
        self._stop = stop
        self._seed = seed
        self.error: ApiError | None = None

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: dict[str, torch.Tensor],
        gen_config: GenerationConfig,
        request_id: str = "",
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, Written]:
        """A queue on which text arrives, then None; and the object that counts tokens and can be cancelled."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def send(item: Any) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        written = Written(self._served, self._stop, send)
        self._served.thread.submit(self._run, inputs, gen_config, written, send)
        return queue, written

    async def generate_non_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: dict[str, torch.Tensor],
        gen_config: GenerationConfig,
        request_id: str = "",
    ) -> tuple[str, int, list[int]]:
        """Text, number of prompt tokens and generated tokens."""
        queue, written = self.generate_streaming(model, processor, inputs, gen_config)
        try:
            while await queue.get() is not None:
                if self.error is not None:
                    raise self.error
        finally:
            written.cancel()  # when nobody waits any longer
        return written.text, inputs["input_ids"].shape[-1], written.ids

    def _run(
        self, inputs: dict[str, torch.Tensor], config: GenerationConfig, written: Written, send: Callable[[Any], None]
    ) -> None:
        # Here, not where the request came in: the numbers are drawn from a generator that all threads share.
        torch.seed() if self._seed is None else torch.manual_seed(self._seed)
        generate: Any = self._served.model.generate
        try:
            generate(**inputs, generation_config=config, streamer=written)
            ends = config.eos_token_id
            ended = written.ids[-1] in (ends if isinstance(ends, list) else [ends])
        except _Stopped:
            ended = True
        except _Cancelled:
            self.error = ApiError(503, "The server is being stopped.")
        except Exception as error:
            logging.getLogger(__name__).exception("generation failed")
            self.error = ApiError(500, f"Generation failed: {error}")
        if self.error is not None:
            send(_StreamError(str(self.error)))
            return
        if ended:
            config.max_new_tokens = None  # or the handlers take an end at the last token allowed for "length"
        send(None)


class _Stopped(Exception):
    """A stop string was written."""


class _Cancelled(Exception):
    """Nobody waits for the text any longer."""


class Written(BaseStreamer):
    """The text of one request, which ``generate`` pushes tokens into and which goes on to ``send`` once it is certain.

    Exceptions are the way to end a generation from here; ``generate`` itself knows only its own reasons.
    """

    def __init__(self, served: Served, stop: list[str], send: Callable[[Any], None]) -> None:
        self._tokenizer = served.tokenizer
        self._stopping = served.stopping
        self._stop = stop
        self._send = send
        self._cancelled = threading.Event()
        self._prompt_came = False
        self.ids: list[int] = []
        self.text = ""

    @property
    def total_tokens(self) -> int:
        return len(self.ids)

    def cancel(self) -> None:
        """End the generation at its next token, or before its first."""
        self._cancelled.set()

    def put(self, value: torch.Tensor) -> None:
        """Take the next token [1]; the first call brings the prompt [1, tokens]."""
        if self._cancelled.is_set() or self._stopping.is_set():
            raise _Cancelled
        if not self._prompt_came:
            self._prompt_came = True
            return
        self.ids += value.tolist()
        last = str(self._tokenizer.convert_ids_to_tokens(self.ids[-1]))
        if not re.fullmatch("<0x..>", last):  # bytes are read together: more of them may change those before
            text = self._decoded().rstrip("\ufffd")  # a character of which a part is still to come
            self._forward(text, max((n for s in self._stop for n in range(len(s)) if text.endswith(s[:n])), default=0))

    def end(self) -> None:
        """All that is left is certain now."""
        self._forward(self._decoded(), 0)

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self.ids, skip_special_tokens=True))

    def _forward(self, text: str, held_back: int) -> None:
        """Send what is new of ``text`` up to a stop string, but not the last characters, which may begin one."""
        stops = [at for s in self._stop if (at := text.find(s)) >= 0]
        certain = text[: min(stops, default=len(text) - held_back)]
        if len(certain) > len(self.text):
            self._send(certain[len(self.text) :])
            self.text = certain
        if stops:
            raise _Stopped
