"""From a request's body to what the model reads: parsed, laid out, tokenised, on a thread of its own."""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from treering.errors import TreeringError
from treering.evaluation import prompt_ids
from treering.serving.errors import ApiError
from treering.serving.requests import ChatRequest, CompletionRequest, Parameters, parse
from treering.serving.templates import Renderer, TemplateError

COMPLETION_TOKENS = 16
"""How many tokens a completion gets when the request does not say, if they fit: OpenAI's default."""


@dataclass(frozen=True)
class Asked:
    """A request, the tokens of its prompt, and how many may be written after them at most."""

    parameters: Parameters
    prompt: list[int]
    tokens: int


class Reader:
    """Reads requests to one model, one after the other, off the event loop.

    Its tokenizer is a copy: prompts are encoded with special tokens switched off, which is a setting of the tokenizer,
    while other threads decode with theirs.
    """

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self._name = name
        self._model = model
        self._tokenizer = copy.deepcopy(tokenizer)
        self._context = model.config.max_position_embeddings
        self._longest = self._context * max(map(len, tokenizer.get_vocab()))
        self._renderer: Renderer | None = None
        self._thread = ThreadPoolExecutor(1, "reader")

    def close(self) -> None:
        """End the thread, when it has read what it is reading, and the process that renders templates."""
        self._thread.shutdown(cancel_futures=True)
        if self._renderer is not None:
            self._renderer.close()

    def require(self, name: str) -> None:
        """Raise an ApiError, 404, unless ``name`` is the model's."""
        if name != self._name:
            raise ApiError(
                404, f"The model '{name}' does not exist; this server has '{self._name}'.", "model_not_found", "model"
            )

    async def read(self, kind: type[CompletionRequest] | type[ChatRequest], body: bytes) -> Asked:
        """What is asked for in the body of a request.

        Raises:
            ApiError: 400 or 404, it is not a request that this model can answer.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, kind, body)

    def _read(self, kind: type[CompletionRequest] | type[ChatRequest], body: bytes) -> Asked:
        asked = parse(kind, body)
        self.require(asked.model)
        if isinstance(asked, ChatRequest):
            tokens = asked.max_completion_tokens or asked.max_tokens
            prompt = self._prompt(self._conversation(asked), tokens, "messages")
            return Asked(asked, prompt, tokens or self._context - len(prompt))
        prompt = self._prompt(asked.prompt, asked.max_tokens, "prompt")
        return Asked(asked, prompt, asked.max_tokens or min(COMPLETION_TOKENS, self._context - len(prompt)))

    def _prompt(self, text: str, tokens: int | None, param: str) -> list[int]:
        """A text as the model reads it, with room for ``tokens`` after it: at least one."""
        try:
            if len(text) > self._longest:  # no need to tokenise it
                raise TreeringError(
                    f"The text has more than {self._longest:,} characters; the model's context is {self._context:,} "
                    "tokens."
                )
            return prompt_ids(self._model, self._tokenizer, text, tokens or 1)
        except TreeringError as error:
            raise ApiError(400, str(error), "context_length_exceeded", param) from error

    def _conversation(self, asked: ChatRequest) -> str:
        """The messages as one text, as the chat template lays them out."""
        if not self._tokenizer.chat_template:
            raise ApiError(
                400, f"{self._name} has no chat template: its tokenizer knows of no conversations. Use /v1/completions."
            )
        messages = [message.model_dump(exclude_none=True) for message in asked.messages]
        try:
            if self._renderer is None:
                template = self._tokenizer.get_chat_template()
                self._renderer = Renderer(template, self._tokenizer.special_tokens_map, self._longest)
            return self._renderer.render(messages)
        except (TemplateError, ValueError) as error:  # ValueError: there are several templates and none is the default
            raise ApiError(400, f"The chat template refuses these messages: {error}", param="messages") from error
